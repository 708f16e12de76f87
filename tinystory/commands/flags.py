"""Every flag of every command, and the parser made of them. Imports nothing heavy."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from tinystory import __version__
from tinystory.errors import TinystoryError
from tinystory.settings import BUILT_IN, Setting, allowed, parse, resolve_settings

__all__ = ["COMMAND_SUMMARIES", "build_parser", "parse_args"]


COMMAND_SUMMARIES = {
    "chat": "write with a model in the terminal (the default)",
    "generate": "write one story, or several, and leave",
    "compare": "write one story with several decoders, side by side",
    "replay": "check that the stories of a session come about as they are written down",
    "eval": "measure a model on stories: perplexity, bits per byte, accuracy, and what its own are like",
    "study": "write with many decoders from many prompts, and measure how like real stories each one's are",
    "decoders": "list the decoders, show one, write a new one or check one",
    "info": "show what a checkpoint is",
    "import": "make a checkpoint from a llama2.c model",
    "config": "show the settings, and where each comes from",
    "completion": "print what makes a shell complete tinystory's commands, flags and decoders",
}


_MODULES = {"import": "import_model"}
"""The modules of commands whose own name is a word of Python."""


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line and name the nearest command or flag."""

    def error(self, message: str) -> NoReturn:
        words = message.split("'")
        if message.startswith("argument COMMAND: invalid choice"):
            near = get_close_matches(words[1], COMMAND_SUMMARIES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMAND_SUMMARIES)}"
            message = f"{words[1]!r} is not a command; {hint}"
        elif message.startswith("unrecognized arguments: -"):
            flag = message.split()[2]
            near = [one for one in get_close_matches(flag, _flags(self), n=2) if one != flag]
            message = f"{flag} is not a flag here; " + (f"did you mean {near[0]}?" if near else "see --help")
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    """Every flag of a parser and of its commands."""
    flags: list[str] = []
    for action in parser._actions:
        flags += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            flags += [flag for one in action.choices.values() for flag in _flags(one)]
    return flags


class _SettingFlag(argparse.Action):
    """Stores a value, and among the namespace's `settings` that it was given here."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if values is None and not self.option_strings:
            return  # an argument left out
        setattr(namespace, self.dest, values)
        origin = f"flag {self.option_strings[-1]}" if self.option_strings else f"argument {self.metavar}"
        namespace.settings = (*getattr(namespace, "settings", ()), Setting(self.dest, values, origin))


class _SettingSwitch(argparse.BooleanOptionalAction):
    """`--name` and `--no-name`, stored in the same way."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        assert option is not None
        value = not option.startswith("--no-")
        setattr(namespace, self.dest, value)
        namespace.settings = (*getattr(namespace, "settings", ()), Setting(self.dest, value, f"flag {option}"))


def _checked(name: str) -> Callable[[str], Any]:
    """An argparse type that checks a flag as the configuration file's value would be."""

    def convert(text: str) -> Any:
        try:
            return parse(name, text)
        except TinystoryError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(prog="tinystory", description="Write stories with small language models, and watch them choose.")
    parser.add_argument("--version", action="version", version=f"tinystory {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser, required=True)
    for name, text in COMMAND_SUMMARIES.items():
        one = commands.add_parser(name, help=text, description=text)
        _FLAGS[name](one)
        quiet = one.add_mutually_exclusive_group()
        quiet.add_argument("-q", "--quiet", action="store_true", help="no notices, only results and errors")
        quiet.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
        module = f"tinystory.commands.{_MODULES.get(name, name)}"
        one.set_defaults(module=module, options=f"{name.capitalize()}Options")
    return parser


def _chat(parser: argparse.ArgumentParser) -> None:
    _add_writing_flags(parser)
    described = "go on with a session that was kept; the latest when NAME is left out"
    parser.add_argument("--resume", nargs="?", const="", metavar="NAME", help=described)
    _add_setting(parser, "--theme", metavar="THEME", help=f"the terminal's background: {_choices('theme')}")
    _add_setting(parser, "--keys", metavar="KEYS", help=f"the keys that edit a line: {_choices('keys')}")


def _generate(parser: argparse.ArgumentParser) -> None:
    _add_writing_flags(parser)
    add = parser.add_argument
    add("--num", type=int, default=1, metavar="N", help="write N stories from one prompt (default 1)")
    described = (
        "write from each prompt of a file, a JSON object a line: a YAML list, a text with <|endoftext|> between, "
    )
    add("--prompts", type=Path, metavar="FILE", help=f"{described}or lines; - is standard input")
    described = "with --prompts, write into FILE, and go on where the same command was stopped"
    add("-o", "--out", type=Path, metavar="FILE", help=described)
    described = "with --prompts, N stories at a time (default 32, or fewer of a large model)"
    add("--batch-size", type=int, metavar="N", help=described)
    _add_json_flags(parser)


def _compare(parser: argparse.ArgumentParser) -> None:
    _add_writing_flags(parser, several=True)
    _add_json_flags(parser)


def _replay(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="a session, or a story exported as .json")
    # Not the setting of that name: what counts is the model that the file names.
    add("-m", "--model", dest="with_model", metavar="MODEL", help="a folder or hub id (default: the one in the file)")
    add("--device", metavar="D", default=BUILT_IN["device"], help=f"default {BUILT_IN['device']}")
    add("--json", action="store_true", help="print one JSON object")
    _add_decoder_file_flag(parser)


def _eval(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", metavar="DATA", help="stories: a text file with <|endoftext|> between, a saved dataset, a hub name")
    add("--limit", type=int, metavar="N", help="take the first N stories")
    add("--cut", action="store_true", help="score of a long story only what fits the context, as some figures do")
    add("--stories", type=int, metavar="N", help="write N stories too, and compare what they are like with real ones")
    add("--train", metavar="FILE", help="the training text: look up there what those N share with it")
    add("--json", action="store_true", help="print one JSON object")
    _add_model_flags(parser)
    _add_decoding_flags(parser)
    # A measure of whole stories: the length that suits writing would cut off a quarter of the real ones.
    length = Setting("max_tokens", 1024)
    _add_setting(
        parser, "-n", "--max-tokens", metavar="N",
        help=f"at most N tokens a story (default {length.value}, whatever the settings say)",
    )  # fmt: skip
    parser.set_defaults(settings=(length,))


def _study(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--real", required=True, metavar="DATA", help="held-out real stories to measure against, as for eval")
    add("-o", "--out", type=Path, required=True, metavar="DIR", help="the study's folder; what is done there is kept")
    described = "go on from these: a YAML list, a text with <|endoftext|> between, or lines (default: from scratch)"
    add("--prompts", type=Path, metavar="FILE", help=described)
    add("--limit", type=int, metavar="N", help="take the first N prompts; without prompts, N stories (default 44)")
    add("--train", metavar="FILE", help="the training text: count the words that it does not have")
    described = "a decoder to study; may be repeated (default: a built-in grid)"
    add("-d", "--decoder", dest="decoders", action="append", default=[], metavar="SPEC", help=described)
    add("--grid", type=Path, metavar="FILE", help="decoders to study, a spec on each line")
    add("--seeds", type=int, default=2, metavar="N", help="write N stories a prompt, with N seeds (default 2)")
    add("--search-seeds", type=int, metavar="N", help="of these seeds, searches write with the first N only")
    add("--page", type=Path, metavar="FILE", help="write the page there, not as study.md into the study's folder")
    add("--json", action="store_true", help="print one JSON object, not the table")
    _add_model_flags(parser)
    _add_decoder_file_flag(parser)
    # One command gives one study: whatever the settings say.
    fixed = Setting("seed", 0), Setting("max_tokens", 200)
    _add_setting(parser, "-s", "--seed", metavar="N", help=f"the first of the seeds (default {fixed[0].value})")
    described = f"at most N tokens a story (default {fixed[1].value}, whatever the settings say)"
    _add_setting(parser, "-n", "--max-tokens", metavar="N", help=described)
    parser.set_defaults(settings=fixed)


def _decoders(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME|new|check", help="show this decoder; or write a new one, or check one")
    described = "of the new decoder; or what to check: a decoder file, a name or a spec"
    add("subject", nargs="?", metavar="NAME|FILE", help=described)
    kinds = ("processor", "sampler", "search")
    add("--kind", choices=kinds, metavar="KIND", help=f"of the new one: {', '.join(kinds)} (default {kinds[0]})")
    add("-o", "--out", type=Path, metavar="FILE", help="where the new one is written (default: its name, with .py)")
    add("--json", action="store_true", help="print JSON")
    _add_decoder_file_flag(parser)


def _info(parser: argparse.ArgumentParser) -> None:
    described = "a folder or hub id; the shipped model when left out"
    _add_setting(parser, "model", nargs="?", metavar="MODEL", help=described)
    _add_setting(parser, "-m", "--model", metavar="MODEL", help="the same as a flag")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _import(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="weights in llama2.c's version-0 format (.bin)")
    add("--tokenizer", type=Path, required=True, metavar="FILE", help="its tokenizer in llama2.c's format")
    add("-o", "--out", type=Path, required=True, metavar="DIR", help="the folder to write")


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")


_FLAGS: Mapping[str, Callable[[argparse.ArgumentParser], None]] = {
    "chat": _chat,
    "generate": _generate,
    "compare": _compare,
    "replay": _replay,
    "eval": _eval,
    "study": _study,
    "decoders": _decoders,
    "info": _info,
    "import": _import,
    "config": _config,
    "completion": _completion,
}
"""What a command takes, besides -q and -v."""


def _add_setting(parser: argparse.ArgumentParser, *names: str, **options: Any) -> None:
    """A flag for the setting its last name spells, checked as the setting is."""
    name = names[-1].lstrip("-").replace("-", "_")
    parser.add_argument(*names, action=_SettingFlag, type=_checked(name), **options)


def _choices(name: str) -> str:
    return f"{allowed(name)} (default {BUILT_IN[name]})"


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    _add_setting(parser, "-m", "--model", metavar="MODEL", help="a folder or hub id (default: the shipped one)")
    _add_setting(parser, "--device", metavar="D", help=f"default {BUILT_IN['device']}")
    _add_setting(parser, "--dtype", metavar="T", help=_choices("dtype"))
    described = "compute in code that a C compiler builds for this processor, once (Llama and GPT-2 models on the CPU)"
    parser.add_argument("--compile", action=_SettingSwitch, help=described)
    _add_setting(parser, "--color", metavar="WHEN", help=_choices("color"))


def _add_json_flags(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--jsonl", action="store_true", help="print one JSON event a line, as they come")


def _add_writing_flags(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="text to begin with")
    _add_model_flags(parser)
    _add_decoding_flags(parser, several=several)
    described = f"at most N new tokens (default {BUILT_IN['max_tokens']})"
    _add_setting(parser, "-n", "--max-tokens", metavar="N", help=described)
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end the story before this text; may be repeated"
    )


def _add_decoding_flags(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    if several:
        described = "how tokens are picked; once for each decoder, 2 to 8 of them"
        parser.add_argument(
            "-d", "--decoder", dest="decoders", action="append", default=[], metavar="SPEC", help=described
        )
    else:
        described = f"how tokens are picked (default: {BUILT_IN['decoder']})"
        _add_setting(parser, "-d", "--decoder", metavar="SPEC", help=described)
    _add_setting(parser, "-s", "--seed", metavar="N", help="the same seed gives the same story (default: random)")
    _add_decoder_file_flag(parser)


def _add_decoder_file_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decoder-file", action="append", type=Path, default=[], metavar="FILE",
        help="load a decoder of your own; may be repeated",
    )  # fmt: skip


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse, and fill what no flag gave from the environment, the configuration file and the built-in defaults.

    Returns:
        What the command takes, and as `settings` every `Setting` with where it comes from.

    Raises:
        UsageError: a default outside the command line is wrong.
        SystemExit: for --help, --version and a wrong command line.
    """
    argv = list(argv)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version")):
        argv.insert(0, "chat")
    args = build_parser().parse_args(argv)
    args.settings = resolve_settings(getattr(args, "settings", ()))
    for setting in args.settings:
        if getattr(args, setting.name, "") is None:
            setattr(args, setting.name, setting.value)
    return args
