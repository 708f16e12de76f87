"""`tinystory completion`: the script that a shell loads, and the answers that this script asks tinystory for.

The values of a flag follow from its setting, its metavar or its name. So a new flag with the metavar FILE needs no
change here.
Tab runs only installed plug-ins, and no decoder file that is named on the line.
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import argcomplete
from argcomplete.completers import ChoicesCompleter, DirectoriesCompleter, FilesCompleter
from argcomplete.shell_integration import shellcode

from tinystory.commands.shared.groups import Options
from tinystory.settings import CHOICES

__all__ = ["CompletionOptions", "answer", "decoder_specs", "run"]

_NOTHING = ChoicesCompleter({})
"""Completes a text that only the user knows. Without a completer, the library would offer files."""

_ZSH_LINE = {
    "local completions\n": 'local completions line="${(j: :)words[1,CURRENT-1]} $QIPREFIX$PREFIX"\n',
    'COMP_LINE="$BUFFER"': 'COMP_LINE="$line"',
    'COMP_POINT="$CURSOR"': 'COMP_POINT="${#line}"',
}
"""Changes to the script for zsh: its $BUFFER lacks an open quote, so that a spec in quotes would be several words."""


@dataclass(frozen=True, kw_only=True)
class CompletionOptions(Options):
    """The options of `tinystory completion`.

    Attributes:
        shell: `bash`, `zsh` or `fish`.
    """

    shell: str


def run(options: CompletionOptions) -> int:
    """Print the script for a shell."""
    script = shellcode(["tinystory"], shell=options.shell, use_defaults=False)
    if options.shell == "zsh":
        for old, new in _ZSH_LINE.items():
            script = script.replace(old, new)
    sys.stdout.write(script)
    return 0


def answer(parser: argparse.ArgumentParser) -> None:
    """Print for the shell how the line in `COMP_LINE` may go on, and end the process."""
    _name_the_default_command()
    _attach(parser)
    argcomplete.autocomplete(parser, always_complete_options="long", default_completer=_NOTHING)


def decoder_specs(prefix: str) -> dict[str, str]:
    """Return the specs that a prefix may become, each with a description of its last part.

    A shell closes the word after a single answer. To prevent that, a single answer comes with its own continuations.
    """
    specs = _suggestions("decoder", f"{prefix} " if prefix.endswith("|") else prefix)
    if len(specs) > 1:
        return specs
    for spec in specs or [prefix]:
        longer = _suggestions("decoder", spec if spec.endswith("=") else f"{spec} ")
        specs = {spec: specs.get(spec, "")} | longer if longer else specs
    return specs


def _name_the_default_command() -> None:
    """Insert `chat` into the line, as the parser does: `tinystory --theme` means `tinystory chat --theme`."""
    line = os.environ["COMP_LINE"]
    flags = re.match(r"\s*\S+(?= +-)", line)
    if flags:
        os.environ["COMP_LINE"] = f"{flags[0]} chat{line[flags.end() :]}"
        os.environ["COMP_POINT"] = str(int(os.environ["COMP_POINT"]) + len(" chat"))


def _attach(parser: argparse.ArgumentParser) -> None:
    """Set the completer of every flag and argument of a parser and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _attach(command)
        elif not action.choices:
            vars(action)["completer"] = _completer(action)


def _completer(action: argparse.Action) -> object:
    words = CHOICES.get(action.dest) or _WORDS.get(action.dest)
    if words:
        return ChoicesCompleter(dict.fromkeys(words, ""))
    return _BY_NAME.get(action.dest) or _BY_METAVAR.get(str(action.metavar), _NOTHING)


def _suggestions(command: str, prefix: str) -> dict[str, str]:
    """Return the whole words that the studio suggests for the argument of a slash command, with their descriptions."""
    from tinystory.decoding.plugins import discover
    from tinystory.folders import sessions_folder
    from tinystory.repl.completion import Names, complete
    from tinystory.studio.keeper import session_names

    names = Names(sessions=lambda: session_names(sessions_folder()))
    suggestions = complete(f"/{command} {prefix}", discover(), names)
    return {prefix[: len(prefix) - s.typed] + s.text.rstrip(): s.help for s in suggestions}


def _checkable(prefix: str) -> dict[str, str]:
    """Return decoders and files: `tinystory decoders check` takes both."""
    return _suggestions("decoders", prefix) | dict.fromkeys(FilesCompleter()(prefix), "")


_WORDS: Mapping[str, tuple[str, ...]] = {"device": ("cpu", "cuda", "mps"), "seed": ("random",)}
"""Values that are offered for settings with many more values."""

_ACTIONS = {"new": "write a decoder of your own", "check": "test whether a decoder keeps the contract"}
"""The other actions of `tinystory decoders`, besides showing decoders."""

_BY_NAME: Mapping[str, object] = {
    "name": lambda prefix, **_: _suggestions("decoders", prefix) | _ACTIONS,
    "subject": lambda prefix, parsed_args, **_: _checkable(prefix) if parsed_args.name == "check" else {},
    "resume": lambda prefix, **_: _suggestions("load", prefix),
}

_BY_METAVAR: Mapping[str, object] = {
    "SPEC": lambda prefix, **_: decoder_specs(prefix),
    "MODEL": lambda prefix, **_: _suggestions("model", prefix),
    "FILE": FilesCompleter(),
    "SESSION": lambda prefix, **_: _suggestions("load", prefix) | dict.fromkeys(FilesCompleter()(prefix), ""),
    "DATA": FilesCompleter(),
    "DIR": DirectoriesCompleter(),
}
