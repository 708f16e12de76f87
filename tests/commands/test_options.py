"""Every command has options of its own: frozen, and with one field for each flag."""

import argparse
import dataclasses
import importlib
import sys
import types
import typing
from pathlib import Path

import pytest

from tinystory.cli import main
from tinystory.commands import chat, generate
from tinystory.commands.flags import COMMAND_SUMMARIES, build_parser, parse_args
from tinystory.commands.shared.groups import Options, options_from
from tinystory.settings import BUILT_IN

NEEDED = {
    "replay": ["session.json"],
    "eval": ["stories.txt"],
    "study": ["--real", "stories.txt", "-o", "out"],
    "import": ["model.bin", "--tokenizer", "tokenizer.bin", "-o", "out"],
    "export": ["mini", "--to", "gguf", "-o", "mini.gguf"],
    "completion": ["bash"],
    "page": ["session.json"],
}
"""The arguments that a command does not work without."""

FLAGS_OF_OTHER_TYPES = {"-m": "mini", "-s": "3", "-d": "greedy", "--decoder-file": "mine.py", "--stop": "The end"}


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in BUILT_IN:
        monkeypatch.delenv(f"TINYSTORY_{name.upper()}", raising=False)


def options_of(*argv):
    args = parse_args(argv)
    return options_from(args, getattr(importlib.import_module(args.module), args.options))


def actions_of(command):
    [commands] = [action for action in build_parser()._actions if action.dest == "command"]
    actions = commands.choices[command]._actions
    return [action for action in actions if action.dest != "help" and action.help != argparse.SUPPRESS]


def is_of(value, hint):
    """Return whether a value is of an annotated type, and so are the elements of a tuple."""
    if isinstance(hint, types.UnionType):
        return any(is_of(value, one) for one in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(is_of(one, typing.get_args(hint)[0]) for one in value)
    return isinstance(value, hint) and (hint is bool) == isinstance(value, bool)


@pytest.mark.parametrize("command", COMMAND_SUMMARIES)
def test_every_flag_has_a_field_and_every_field_a_flag(command):
    options = options_of(command, *NEEDED.get(command, []))
    fields = {field.name for field in dataclasses.fields(options)}
    assert fields - {"settings"} == {action.dest for action in actions_of(command)}
    assert isinstance(options, Options)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.quiet = True


@pytest.mark.parametrize("command", COMMAND_SUMMARIES)
def test_the_values_have_the_types_of_their_fields_with_flags_and_without(command):
    known = {flag for action in actions_of(command) for flag in action.option_strings}
    flags = [word for pair in FLAGS_OF_OTHER_TYPES.items() if pair[0] in known for word in pair]
    for argv in ([], flags):
        options = options_of(command, *NEEDED.get(command, []), *argv)
        for name, hint in typing.get_type_hints(type(options)).items():
            assert is_of(getattr(options, name), hint), (name, getattr(options, name), hint)


def test_a_chat_on_a_terminal_gets_every_option(monkeypatch):
    given = []
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
    monkeypatch.setattr("tinystory.repl.app.chat", lambda settings: given.append(settings) or 0)
    flags = ["Once", "-m", "mini", "-d", "greedy", "-s", "3", "-n", "9", "--stop", "a", "--resume", "owl"]
    more = [
        "--engine",
        "numpy",
        "--decoder-file",
        "mine.py",
        "--color",
        "never",
        "--theme",
        "dark",
        "--keys",
        "vi",
        "-v",
    ]
    options = options_of("chat", *flags, *more, "--dtype", "int8", "--device", "cuda")
    assert chat.run(options) == 0
    [settings] = given
    changed = {"decoder_files": (Path("mine.py"),), "engine": "numpy", "color": False, "stop": ("a",), "prompt": "Once"}
    for field in dataclasses.fields(settings):
        expected = changed[field.name] if field.name in changed else getattr(options, field.name)
        assert getattr(settings, field.name) == expected, field.name


@pytest.mark.parametrize("command", COMMAND_SUMMARIES)
def test_a_command_is_run_with_its_options_and_not_with_the_parsed_line(command, monkeypatch):
    given = []
    args = parse_args([command, *NEEDED.get(command, [])])
    monkeypatch.setattr(f"{args.module}.run", lambda options: given.append(options) or 0)
    assert main([command, *NEEDED.get(command, [])]) == 0
    assert type(given[0]).__name__ == args.options
    assert type(given[0]).__module__ == args.module


def test_a_chat_without_a_terminal_gives_generate_all_that_both_know(monkeypatch, tmp_path):
    """Flags of a chat were once forged into those of `generate`, one attribute at a time."""
    given = []
    monkeypatch.setattr(generate, "run", lambda options: given.append(options) or 0)
    monkeypatch.setattr(sys, "stdin", None)
    flags = [
        "Once",
        "-m",
        "mini",
        "-d",
        "greedy",
        "-s",
        "3",
        "-n",
        "9",
        "--stop",
        "a",
        "--stop",
        "b",
        "-q",
        "--engine=numpy",
    ]
    assert chat.run(options_of("chat", *flags, "--decoder-file", "mine.py", "--color", "never")) == 0
    assert given == [
        generate.GenerateOptions(
            prompt="Once", model="mini", decoder="greedy", seed=3, max_tokens=9, stop=("a", "b"), quiet=True,
            decoder_file=(Path("mine.py"),), device="cpu", dtype="float32", engine="numpy", color="never",
        )
    ]  # fmt: skip
