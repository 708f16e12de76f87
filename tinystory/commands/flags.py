"""The flags of every command, and the parser that reads them. This module imports nothing heavy and no command."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinystory import __version__
from tinystory.commands.shared.dashes import with_joined_separator
from tinystory.commands.shared.groups import Options
from tinystory.commands.shared.notices import warn
from tinystory.commands.shared.parser import Parser, SettingFlag, whole_number
from tinystory.errors import TinystoryError
from tinystory.settings import BUILT_IN, RETIRED, Setting, allowed, parse, resolve_settings

__all__ = ["COMMAND_SUMMARIES", "build_parser", "parse_args"]


COMMAND_SUMMARIES = {
    "chat": "write with a model in the terminal (the default)",
    "generate": "write one story, or several, and exit",
    "compare": "write one story with several decoders, side by side",
    "replay": "write the stories of a session again, and check that they are the same",
    "page": "make one HTML page of a session that shows what else the model had in mind at each word",
    "eval": "measure a model on real stories: perplexity, bits per byte, accuracy; compare its own stories with them",
    "study": "write with many decoders from many prompts, and measure how close each decoder comes to real stories",
    "decoders": "list the decoders, show one, write a new one or check one",
    "info": "show what a checkpoint is",
    "import": "make a checkpoint from a GGUF file or a llama2.c model",
    "export": "write a model as a GGUF file for llama.cpp, or in llama2.c's format",
    "config": "show the settings, and where each one comes from",
    "completion": "print a script that lets a shell complete the commands, flags and decoders of tinystory",
}


_MODULES = {"import": "import_model"}
"""The modules of commands whose own name is a keyword of Python."""


_MODEL = "a folder, a hub id or the name of a shipped model"
_DEVICE = f"where the model runs, such as cpu or cuda (default {BUILT_IN['device']})"
_STORIES = "a text with <|endoftext|> between stories, a saved dataset, or the name of a dataset on the hub"
_PROMPT_FILE = "a YAML list, a text with <|endoftext|> between prompts, or a prompt on each line"


def _checked(name: str) -> Callable[[str], Any]:
    """Return an argparse type that checks a flag in the same way as a value in the configuration file."""

    def convert(text: str) -> Any:
        try:
            return parse(name, text)
        except TinystoryError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def build_parser() -> Parser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="tinystory", description="Write stories with small language models, and watch how they pick each token."
    )
    parser.add_argument("--version", action="version", version=f"tinystory {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser, required=True)
    for name, text in COMMAND_SUMMARIES.items():
        command = commands.add_parser(name, help=text, description=text)
        _FLAGS[name](command)
        quiet = command.add_mutually_exclusive_group()
        quiet.add_argument("-q", "--quiet", action="store_true", help="print results and errors, but no notices")
        quiet.add_argument("-v", "--verbose", action="store_true", help="show the traceback of an error")
        module = f"tinystory.commands.{_MODULES.get(name, name)}"
        command.set_defaults(module=module, options=f"{name.capitalize()}Options")
    return parser


def _chat(parser: argparse.ArgumentParser) -> None:
    _add_writing_flags(parser)
    described = "go on with a saved session; without NAME, the latest one"
    parser.add_argument("--resume", nargs="?", const="", metavar="NAME", help=described)
    _add_setting(parser, "--theme", metavar="THEME", help=f"the background of the terminal: {_choices('theme')}")
    _add_setting(parser, "--keys", metavar="KEYS", help=f"the keys for editing a line: {_choices('keys')}")


def _generate(parser: argparse.ArgumentParser) -> None:
    _add_writing_flags(parser)
    add = parser.add_argument
    add("--num", type=whole_number, default=1, metavar="N", help="write N stories from one prompt (default 1)")
    described = "write from each prompt of a file, one JSON object a line; - is standard input; the file is"
    add("--prompts", type=Path, metavar="FILE", help=f"{described} {_PROMPT_FILE}")
    described = "with --prompts: write to FILE; the same command goes on where it was stopped"
    add("-o", "--out", type=Path, metavar="FILE", help=described)
    described = "with --prompts: write N stories at a time (default 32, fewer with a large model)"
    add("--batch-size", type=whole_number, metavar="N", help=described)
    _add_json_flags(parser)


def _compare(parser: argparse.ArgumentParser) -> None:
    _add_writing_flags(parser, several=True)
    _add_json_flags(parser)


def _replay(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="SESSION", help="the name or the file of a session, or a story exported as .json")
    # This is not the setting `model`: the default is the model that the file names.
    add("-m", "--model", dest="with_model", metavar="MODEL", help=f"{_MODEL} (default: the model that the file names)")
    add("--device", metavar="D", default=BUILT_IN["device"], help=_DEVICE)
    add("--json", action="store_true", help="print one JSON object")
    _add_decoder_file_flag(parser)


def _page(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="SESSION", help="the name or the file of a session, or a story exported as .json")
    add("-o", "--out", type=Path, metavar="FILE", help="the page to write (default: standard output)")
    add("--whatif", metavar="SPEC", help="mark the words that this decoder could not have picked")
    add("-m", "--model", dest="with_model", metavar="MODEL", help=f"{_MODEL} (default: the model that the file names)")
    add("--device", metavar="D", default=BUILT_IN["device"], help=_DEVICE)
    _add_decoder_file_flag(parser)


def _eval(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("data", metavar="DATA", help=f"real stories: {_STORIES}")
    add("--column", metavar="NAME", help="column of DATA that has the text (default text, else story)")
    add("--split", default="validation", metavar="NAME", help="split of a hub dataset (default validation)")
    add("--separator", metavar="TEXT", help="text between the stories of a text file (default <|endoftext|>)")
    add("--limit", type=whole_number, metavar="N", help="take the first N stories")
    add("--cut", action="store_true", help="score only what fits into the context, as some published figures do")
    add(
        "--cloze",
        type=whole_number,
        metavar="N",
        help="cut N stories: which of four endings is theirs? (1 in 4 by chance)",
    )
    add("--stories", type=whole_number, metavar="N", help="also write N stories, and compare them with real ones")
    add("--train", metavar="FILE", help="the training text, to find what the N stories share with it")
    add("--json", action="store_true", help="print one JSON object")
    _add_model_flags(parser)
    _add_decoding_flags(parser)
    # The report is about whole stories. The usual setting would cut off a quarter of the real ones.
    length = Setting("max_tokens", 1024)
    _add_setting(
        parser, "-n", "--max-tokens", metavar="N",
        help=f"at most N tokens in a story (default {length.value}; the settings do not change it)",
    )  # fmt: skip
    parser.set_defaults(settings=(length,))


def _study(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--real",
        required=True,
        metavar="DATA",
        help=f"real stories to compare with, held out from training: {_STORIES}",
    )
    add(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder of the study; finished stories in it are kept",
    )
    described = f"the prompts: {_PROMPT_FILE} (default: openings of the real stories)"
    add("--prompts", type=Path, metavar="FILE", help=described)
    add(
        "--limit",
        type=whole_number,
        metavar="N",
        help="take the first N prompts; without a file of prompts, N openings (default 44)",
    )
    add("--train", metavar="FILE", help="the training text, to count the words that it does not have")
    described = "a decoder to study; may be repeated (default: a built-in grid)"
    add("-d", "--decoder", dest="decoders", action="append", default=[], metavar="SPEC", help=described)
    add("--grid", type=Path, metavar="FILE", help="a file of decoders to study, one spec a line")
    add(
        "--seeds",
        type=whole_number,
        default=2,
        metavar="N",
        help="write N stories from each prompt, each with a seed of its own (default 2)",
    )
    add("--search-seeds", type=whole_number, metavar="N", help="searches use only the first N of these seeds")
    add(
        "--page",
        type=Path,
        metavar="FILE",
        help="write the page to FILE (default: study.md in the folder of the study)",
    )
    add("--json", action="store_true", help="print one JSON object instead of the table")
    _add_model_flags(parser)
    _add_decoder_file_flag(parser)
    # The same command has to give the same study, on a machine with other settings too.
    fixed = Setting("seed", 0), Setting("max_tokens", 200)
    _add_setting(
        parser,
        "-s",
        "--seed",
        metavar="N",
        help=f"the first seed (default {fixed[0].value}; the settings do not change it)",
    )
    described = f"at most N tokens in a story (default {fixed[1].value}; the settings do not change it)"
    _add_setting(parser, "-n", "--max-tokens", metavar="N", help=described)
    parser.set_defaults(settings=fixed)


def _decoders(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "name",
        nargs="?",
        metavar="NAME|new|check",
        help="the decoder to show; or new to write a decoder, or check to check one",
    )
    described = "with new: its name; with check: a decoder file, a name or a spec"
    add("subject", nargs="?", metavar="NAME|FILE", help=described)
    kinds = ("processor", "sampler", "search")
    add("--kind", choices=kinds, metavar="KIND", help=f"with new: {', '.join(kinds)} (default {kinds[0]})")
    add("-o", "--out", type=Path, metavar="FILE", help="with new: the file to write (default: the name with .py)")
    add("--json", action="store_true", help="print JSON")
    _add_decoder_file_flag(parser)


def _info(parser: argparse.ArgumentParser) -> None:
    described = f"{_MODEL} (default: the shipped model `{BUILT_IN['model']}`)"
    _add_setting(parser, "model", nargs="?", metavar="MODEL", help=described)
    _add_setting(parser, "-m", "--model", metavar="MODEL", help="the same as the argument MODEL")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _import(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="a GGUF file, or weights in llama2.c's version-0 format (.bin)")
    add("--tokenizer", type=Path, metavar="FILE", help="the tokenizer of the .bin file, in llama2.c's format")
    add("-o", "--out", type=Path, required=True, metavar="DIR", help="the folder to write")


def _export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="the name of a shipped model, a folder or a hub id")
    formats = ("gguf", "llama2c")
    add("--to", choices=formats, required=True, metavar="FORMAT", help=f"the format: {' or '.join(formats)}")
    add("-o", "--out", type=Path, required=True, metavar="FILE", help="the file to write; an old one is replaced")
    types = ("F32", "F16", "Q8_0")
    described = f"how a GGUF file stores the weights: {', '.join(types)} (default {types[0]})"
    add("--type", dest="file_type", choices=types, metavar="T", help=described)


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")


_FLAGS: Mapping[str, Callable[[argparse.ArgumentParser], None]] = {
    "chat": _chat,
    "generate": _generate,
    "compare": _compare,
    "replay": _replay,
    "page": _page,
    "eval": _eval,
    "study": _study,
    "decoders": _decoders,
    "info": _info,
    "import": _import,
    "export": _export,
    "config": _config,
    "completion": _completion,
}
"""Adds the flags of a command to its parser, without -q and -v."""


def _add_setting(parser: argparse.ArgumentParser, *names: str, **options: Any) -> None:
    """Add a flag or an argument for the setting that its last name spells. It is checked as the setting is."""
    name = names[-1].lstrip("-").replace("-", "_")
    parser.add_argument(*names, action=SettingFlag, type=_checked(name), **options)


def _choices(name: str) -> str:
    return f"{allowed(name)} (default {BUILT_IN[name]})"


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    _add_setting(
        parser, "-m", "--model", metavar="MODEL", help=f"{_MODEL} (default: the shipped model `{BUILT_IN['model']}`)"
    )
    _add_setting(parser, "--device", metavar="D", help=_DEVICE)
    _add_setting(parser, "--dtype", metavar="T", help=f"the number format of the computation: {_choices('dtype')}")
    described = "what computes Llama and GPT-2 models on the CPU in float32 or int8"
    _add_setting(parser, "--engine", metavar="E", help=f"{described}: {_choices('engine')}")
    for name in RETIRED:
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=argparse.SUPPRESS)
    _add_setting(parser, "--color", metavar="WHEN", help=f"when to use colour: {_choices('color')}")


def _add_json_flags(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--jsonl", action="store_true", help="print one JSON object a line for each event, as it comes")


def _add_writing_flags(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the text that the story begins with")
    _add_model_flags(parser)
    _add_decoding_flags(parser, several=several)
    described = f"write at most N new tokens (default {BUILT_IN['max_tokens']})"
    _add_setting(parser, "-n", "--max-tokens", metavar="N", help=described)
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end the story before this text; may be repeated"
    )


def _add_decoding_flags(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    if several:
        described = "a spec that says how tokens are picked; give -d 2 to 8 times"
        parser.add_argument(
            "-d", "--decoder", dest="decoders", action="append", default=[], metavar="SPEC", help=described
        )
    else:
        described = f"a spec that says how tokens are picked (default: {BUILT_IN['decoder']})"
        _add_setting(parser, "-d", "--decoder", metavar="SPEC", help=described)
    _add_setting(parser, "-s", "--seed", metavar="N", help="the same seed gives the same story (default: random)")
    _add_decoder_file_flag(parser)


def _add_decoder_file_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--decoder-file", action="append", type=Path, default=[], metavar="FILE",
        help="load a decoder file of your own; may be repeated",
    )  # fmt: skip


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. A setting without a flag comes from the environment, the configuration file or BUILT_IN.

    Returns:
        The values of all flags; `settings`, every `Setting` with where it comes from; `module` and `options`, the
        names of the module of the command and of its class of options.

    Raises:
        UsageError: a setting in the environment or in the configuration file is wrong.
        SystemExit: for --help, --version and a wrong command line.
    """
    argv = with_joined_separator(argv)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help", "--version")):
        argv.insert(0, "chat")
    parser = build_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.unknown(unknown)
    warnings: list[str] = []
    args.settings = resolve_settings(getattr(args, "settings", ()), warnings=warnings)
    warnings += [f"--{name} {said}" for name, said in RETIRED.items() if getattr(args, name, None) is not None]
    warn(Options(quiet=args.quiet), warnings)
    for setting in args.settings:
        if getattr(args, setting.name, "") is None:
            setattr(args, setting.name, setting.value)
    return args
