"""`tinystory completion`: the script a shell loads, and the answers that script then asks tinystory for.

What a value may be is told by its setting or its metavar (a new FILE needs nothing here), or by a name below. Decoder
files named on the line are not run: Tab executes nothing but the installed plug-ins.
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping

import argcomplete
from argcomplete.completers import ChoicesCompleter, DirectoriesCompleter, FilesCompleter
from argcomplete.shell_integration import shellcode

from tinystory.settings import CHOICES

__all__ = ["answer", "decoder_specs", "run"]

_NOTHING = ChoicesCompleter({})
"""For text only the user knows; without a completer the library offers files."""

_ZSH_LINE = {
    "local completions\n": 'local completions line="${(j: :)words[1,CURRENT-1]} $QIPREFIX$PREFIX"\n',
    'COMP_LINE="$BUFFER"': 'COMP_LINE="$line"',
    'COMP_POINT="$CURSOR"': 'COMP_POINT="${#line}"',
}
"""While zsh completes, its $BUFFER lacks the quote that is still open, and a spec in quotes would be many words."""


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    script = shellcode(["tinystory"], shell=args.shell, use_defaults=False)
    if args.shell == "zsh":
        for theirs, ours in _ZSH_LINE.items():
            script = script.replace(theirs, ours)
    sys.stdout.write(script)
    return 0


def answer(parser: argparse.ArgumentParser) -> None:
    """Tell the shell how the line in `COMP_LINE` may go on, and leave the process."""
    _name_the_default_command()
    _attach(parser)
    argcomplete.autocomplete(parser, always_complete_options="long", default_completer=_NOTHING)


def decoder_specs(prefix: str) -> dict[str, str]:
    """How a decoder spec may go on: each whole spec, and what its end means.

    A shell closes the word after an only answer; so that it does not, what may follow that answer is offered with it.
    """
    found = _suggestions("decoder", f"{prefix} " if prefix.endswith("|") else prefix)
    if len(found) > 1:
        return found
    for spec in found or [prefix]:
        after = _suggestions("decoder", spec if spec.endswith("=") else f"{spec} ")
        found = {spec: found.get(spec, "")} | after if after else found
    return found


def _name_the_default_command() -> None:
    """`tinystory --theme` is short for `tinystory chat --theme`, to the completer as to the parser."""
    line = os.environ["COMP_LINE"]
    flags = re.match(r"\s*\S+(?= +-)", line)
    if flags:
        os.environ["COMP_LINE"] = f"{flags[0]} chat{line[flags.end() :]}"
        os.environ["COMP_POINT"] = str(int(os.environ["COMP_POINT"]) + len(" chat"))


def _attach(parser: argparse.ArgumentParser) -> None:
    """Give every value of a parser and its commands its completer."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                _attach(one)
        elif not action.choices:
            vars(action)["completer"] = _completer(action)


def _completer(action: argparse.Action) -> object:
    words = CHOICES.get(action.dest) or _WORDS.get(action.dest)
    if words:
        return ChoicesCompleter(dict.fromkeys(words, ""))
    return _BY_NAME.get(action.dest) or _BY_METAVAR.get(str(action.metavar), _NOTHING)


def _suggestions(command: str, prefix: str) -> dict[str, str]:
    """What the studio would suggest for a command's argument, as whole words."""
    from tinystory.decoding.plugins import discover
    from tinystory.folders import sessions_folder
    from tinystory.repl.completion import Names, complete
    from tinystory.studio.keeper import session_names

    names = Names(sessions=lambda: session_names(sessions_folder()))
    found = complete(f"/{command} {prefix}", discover(), names)
    return {prefix[: len(prefix) - one.typed] + one.text.rstrip(): one.help for one in found}


def _checkable(prefix: str) -> dict[str, str]:
    """Decoders and files."""
    return _suggestions("decoders", prefix) | dict.fromkeys(FilesCompleter()(prefix), "")


_WORDS: Mapping[str, tuple[str, ...]] = {"device": ("cpu", "cuda", "mps"), "seed": ("random",)}
"""Values worth offering for settings that have more than these."""

_ROADS = {"new": "write a decoder of your own", "check": "hold one to the contract"}
"""What `tinystory decoders` does besides showing."""

_BY_NAME: Mapping[str, object] = {
    "name": lambda prefix, **_: _suggestions("decoders", prefix) | _ROADS,
    "subject": lambda prefix, parsed_args, **_: _checkable(prefix) if parsed_args.name == "check" else {},
    "resume": lambda prefix, **_: _suggestions("load", prefix),
}

_BY_METAVAR: Mapping[str, object] = {
    "SPEC": lambda prefix, **_: decoder_specs(prefix),
    "MODEL": lambda prefix, **_: _suggestions("model", prefix),
    "FILE": FilesCompleter(),
    "DATA": FilesCompleter(),
    "DIR": DirectoriesCompleter(),
}
