"""Write the manual page docs/tinystory.1 from the parser of the command line: `python scripts/man_page.py`."""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tinystory.commands.flags import build_parser
from tinystory.settings import BUILT_IN, Setting, allowed, variable

PAGE = Path(__file__).resolve().parent.parent / "docs" / "tinystory.1"

NAME = "tinystory - write stories with small language models"
FILES = {
    "$XDG_CONFIG_HOME/tinystory/config.toml": "Settings, with the names above, as in max_tokens = 300. Without the "
    "variable, ~/.config takes its place. tinystory config shows its path and every setting.",
    "$XDG_CONFIG_HOME/tinystory/decoders/": "Your own decoders, one Python file each.",
}
VARIABLES = {
    "NO_COLOR": "If it is set and not empty, there is no colour, unless --color asks for it.",
    "TINYSTORY_NO_PLUGINS": "If it is set, and not empty or 0, only the decoders of tinystory itself are loaded.",
    "HF_HOME, HF_HUB_OFFLINE, HF_TOKEN": "For a model with a hub id, as in the documentation of huggingface_hub.",
}
EXIT_CODES = {
    "0": "Done.",
    "1": "Failed.",
    "2": "The command line or a setting is wrong.",
    "3": "The model is missing or invalid.",
    "130": "Interrupted.",
    "143": "Terminated.",
}
EXAMPLES = {
    "tinystory": "Write with the model in the terminal.",
    "tinystory generate 'Once upon a time' -d 'top-k 40 | sample 0.8' -s 7": "Write one story, the same in each run.",
    "tinystory decoders top-p": "Show what a stage does, and its options.",
    'eval "$(tinystory completion bash)"': "Complete commands, flags and decoders in this shell.",
}


def page() -> str:
    """Return the manual page in roff, without date and version."""
    parser = build_parser()
    lines = ['.TH TINYSTORY 1 "" "tinystory" "User Commands"', ".SH NAME", _text(NAME), ".SH SYNOPSIS"]
    lines += [".B tinystory", "[COMMAND] [ARGUMENT ...] [FLAG ...]", ".SH DESCRIPTION"]
    lines += [_text(f"{parser.description} Without a command, tinystory runs chat.")]
    commands = _commands(parser)
    common = set.intersection(*({_key(action) for action in command._actions} for command in commands.values()))
    lines += [".SH COMMANDS"]
    for name, command in commands.items():
        lines += _command(name, command, common)
    shared = [action for action in next(iter(commands.values()))._actions if _key(action) in common]
    lines += [".SH FLAGS OF EVERY COMMAND", *_actions(shared)]
    lines += [".SH SETTINGS", "A flag wins over a variable, and a variable wins over the file."]
    for setting in map(Setting, BUILT_IN, BUILT_IN.values()):
        described = f"{allowed(setting.name)} (default: {setting.shown})"
        lines += _entry(f"{setting.name}, {variable(setting.name)}", described)
    sections = {"FILES": FILES, "ENVIRONMENT": VARIABLES, "EXIT STATUS": EXIT_CODES, "EXAMPLES": EXAMPLES}
    for heading, entries in sections.items():
        lines += [f".SH {heading}"]
        for term, text in entries.items():
            lines += _entry(term, text)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    [subparsers] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(subparsers.choices)


def _command(name: str, parser: argparse.ArgumentParser, common: set[str]) -> Iterator[str]:
    """Yield the lines of a command: how to call it, what it does, and the flags that not every command has."""
    needed = [action for action in parser._actions if action.required or not action.option_strings]
    called = [f"[{action.metavar}]" if action.nargs == "?" else _called(action) for action in needed]
    yield f".SS {_bold(name)} {_text(' '.join([*called, '[FLAG ...]']))}"
    described = str(parser.description)
    yield _text(f"{described[0].upper()}{described[1:]}.")
    yield from _actions([action for action in parser._actions if _key(action) not in common])


def _called(action: argparse.Action) -> str:
    return " ".join([*action.option_strings[-1:], str(action.metavar)])


def _actions(actions: list[argparse.Action]) -> Iterator[str]:
    for action in actions:
        if action.help == argparse.SUPPRESS:
            continue
        flags = ", ".join(map(_bold, action.option_strings))
        metavar = f"\\fI{_text(str(action.metavar))}\\fR" if action.metavar else ""
        yield from (".TP", f"{flags} {metavar}".strip(), _text(action.help or ""))


def _key(action: argparse.Action) -> str:
    """Return a text that is equal for two actions if they are the same flag."""
    return f"{action.option_strings} {action.metavar} {action.help}"


def _entry(term: str, text: str) -> tuple[str, str, str]:
    return ".TP", _bold(term), _text(text)


def _bold(text: str) -> str:
    return f"\\fB{_text(text)}\\fR"


def _text(text: str) -> str:
    """Escape backslashes, hyphens, quotes and a dot at the beginning, which mean something else in roff."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return re.sub(r"^\.", r"\\&.", escaped.replace("~", "\\(ti").replace("^", "\\(ha"))


if __name__ == "__main__":
    main()
