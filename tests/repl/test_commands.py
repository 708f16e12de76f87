"""The table of slash commands, wrong input, and the commands that need no real model."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
from scripted_chat import ScriptedBackend, run, write

from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import format_value, parse_spec
from tinystory.errors import TinystoryError
from tinystory.repl import commands
from tinystory.repl.commands import COMMANDS, GROUPS, MODULES, execute
from tinystory.settings import Setting


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/decoder topk 40", "no decoder stage is called 'topk': did you mean `top-k`?"),
        ("/decoder top-k 0", "top-k: k must be an integer ≥ 1, not '0'"),
        ("/decoder top-k k=", "top-k"),
        ("/decoder |", "empty stage"),
        ("/decoders topk", "did you mean `top-k`?"),
        ("/seed x", "/seed: seed must be a whole number or random, not 'x'"),
        ("/len 0", "must be a whole number from 1 to"),
        ("/len -5", "not '-5'"),
        ("/len abc", "not 'abc'"),
        ("/model nowhere", "there is no directory nowhere"),
        ("/model broken", "NaN"),
        ("/decodr greedy", "/decodr is no command: did you mean /decoder?"),
        ("/help lenn", "/help does not know 'lenn': did you mean len?"),
        ("/xyzzy", "/xyzzy is no command: /help lists them"),
        ("/", "/ is no command: /help lists them"),
        ("/ new", "is no command"),
        ("/quit now", "/quit takes nothing after it"),
        ("/" + "x" * 100_000, "is no command"),
    ],
)
def test_wrong_input_is_named_and_changes_nothing(make, line, message):
    studio = make(models=[ScriptedBackend(name="broken", error=TinystoryError("NaN"))])
    studio.keep(studio.begin("A cat"))
    before = copy.deepcopy(studio.tree), replace(studio)
    with pytest.raises(TinystoryError, match=re.escape(message)) as error:
        execute(studio, line)
    assert (studio.tree, studio) == before
    assert len(str(error.value)) < 300


def test_decoder_shows_the_chain_and_what_is_off(make):
    studio = make()
    assert run(studio, "/decoder temperature 1 | top-k 7") == "decoder: temperature 1 | top-k 7 | sample 1\n"
    shown = run(studio, "/decoder")
    assert shown.startswith("temperature 1 | top-k 7 | sample 1\n")
    assert re.search(r"^  temperature +off: t = 1 +logits are divided by t \(a number > 0\)$", shown, re.MULTILINE)
    assert re.search(r"^  top-k +k = 7 ", shown, re.MULTILINE)
    studio.decoder = parse_spec("greedy", studio.registry)
    assert re.search(r"^  greedy +Always pick", run(studio, "/decoder"), re.MULTILINE)


def test_decoders_come_from_the_registry(make, registry):
    shown = run(make(), "/decoders")
    for name, cls, _ in registry.classes():
        assert re.search(rf"(^  |, |  ){name}\b", shown, re.MULTILINE), cls
    assert re.findall(r"^  (\S+)", shown, re.MULTILINE)[:6] == ["greedy", "sample", "top-k", "top-p", "min-p", "beam"]
    assert shown.count("\n") <= 23
    one = run(make(), "/decoders top-p")
    assert "p: a number > 0 and ≤ 1" in one
    assert re.search(r"from +tinystory", one)


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_help_has_a_line_for_each_of_eight_groups(make, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    groups = run(make(), "/help").partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in groups] == [group.name for group in GROUPS]
    assert len(groups) == 8
    assert "/top" in groups[3]


def test_help_shows_a_group_a_command_or_everything(make):
    studio = make()
    everything = run(studio, "/help all")
    for group in GROUPS:
        assert group.name not in COMMANDS
        shown = run(studio, f"/help {group.name}")
        for one in group.commands:
            for text in (shown, everything):
                assert re.search(rf"^{re.escape(one.synopsis)}( |$)", text, re.MULTILINE)
            assert one.help in run(studio, f"/help {one.name}")
    assert sorted(one.name for group in GROUPS for one in group.commands) == sorted(COMMANDS)
    assert "Ctrl-D" in run(studio, "/help keys")
    assert "also /exit" in run(studio, "/help /quit")


def test_len_new_stats_and_model(make):
    studio = make(([" b"], "length"), (["z"], "eos"))
    assert "has written nothing" in run(studio, "/stats")
    assert run(studio, "/len 17") == run(studio, "/len") == "at most 17 tokens in one turn\n"
    write(studio, "a")
    assert studio.backend.requests[0].max_new_tokens == 17
    stats = run(studio, "/stats")
    assert re.search(r"^tokens +2 after 2$", stats, re.MULTILINE)
    assert re.search(r"^surprise +1.500 bits/token, perplexity 2.83$", stats, re.MULTILINE)
    assert re.search(r"^drafts +3$", stats, re.MULTILINE)
    assert execute(studio, "/new A  dog\nran").requests[0].typed == "A  dog\nran"
    assert "a blank page" in run(studio, "/new")
    assert studio.text == ""
    assert run(studio, "/model") == "model  toy\n"


def test_decoders_that_are_broken_are_told_of(make, tmp_path):
    (tmp_path / "broken.py").write_text("def")
    studio = make()
    studio.registry = discover(user_folder=tmp_path)
    assert f"— decoder file {tmp_path}/broken.py:1: SyntaxError" in " ".join(run(studio, "/decoders").split())


def test_config_shows_each_setting_and_where_it_comes_from(make):
    studio = make(settings=(Setting("seed", 7, "flag --seed"), Setting("keys", "vi", "TINYSTORY_KEYS")))
    shown = run(studio, "/config")
    assert re.search(r"^seed +7 +flag --seed$", shown, re.MULTILINE)
    assert re.search(r"^keys +vi +TINYSTORY_KEYS$", shown, re.MULTILINE)
    assert "configuration file:" in shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "yes"),
        (False, "no"),
        (3, "3"),
        (1.0, "1"),
        (0.25, "0.25"),
        ("cat", "cat"),
        ((1.0, 2.5), "1,2.5"),
        ((), ","),
        ({"cat": 2.0, "dog": -1.5}, "cat=2 dog=-1.5"),
        ({}, ","),
    ],
)
def test_values_show_as_specs_write_them(value, shown):
    assert format_value(value) == shown


def test_every_module_of_commands_has_entered_its_commands_in_the_order_of_help():
    """A tool may remove an import that nothing uses. It cannot remove a name from MODULES."""
    folder = Path(commands.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", "base", *MODULES}
    written = []
    for module in MODULES:
        source = (folder / f"{module}.py").read_text(encoding="utf-8")
        names = re.findall(r'^@(?:keeping_)?command\(\s*"(\w+)"', source, re.MULTILINE)
        assert names, module
        assert {COMMANDS[name].run.__module__ for name in names} == {f"{commands.__name__}.{module}"}
        written += names
    assert list(COMMANDS) == written


def test_help_and_the_page_of_the_studio_have_one_order():
    page = (Path(__file__).resolve().parents[2] / "docs" / "studio.md").read_text(encoding="utf-8")
    first_of_module = {entry.run.__module__: name for name, entry in reversed(COMMANDS.items())}
    firsts = [name for name in COMMANDS if name in first_of_module.values()]
    assert len(firsts) == len(MODULES)
    assert sorted(firsts, key=lambda name: page.index(f"| `/{name}")) == firsts


def test_the_page_of_the_studio_and_help_name_every_command(make):
    page = (Path(__file__).resolve().parents[2] / "docs" / "studio.md").read_text(encoding="utf-8")
    shown = run(make(), "/help all")
    for name in COMMANDS:
        assert f"`/{name}" in page
        assert re.search(rf"^/{name}\b", shown, re.MULTILINE)
