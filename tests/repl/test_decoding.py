"""The commands that show and change the decoder, and the file of presets."""

import copy
import io
import os
import re
from pathlib import Path
from types import SimpleNamespace

import platformdirs
import pytest

from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.decoding.spec_text import stage_names
from tinystory.errors import UsageError
from tinystory.folders import presets_file
from tinystory.repl.commands import execute
from tinystory.repl.completion import Names, complete
from tinystory.repl.export import FORMATS
from tinystory.screen.screen import Screen
from tinystory.studio import presets
from tinystory.studio.backend import ModelBackend
from tinystory.studio.presets import preset_names
from tinystory.studio.studio import Studio


@pytest.fixture(scope="module")
def registry():
    return discover(user_folder=None)


@pytest.fixture(scope="module")
def backend():
    return ModelBackend.open(None, dtype="float32", device="cpu")


@pytest.fixture
def studio(registry, backend):
    decoder = parse_spec("temperature 0.9 | top-k 40 | sample 0.8", registry)
    return Studio(registry, decoder, backend=backend, open_model=lambda name: backend, seed=7, max_tokens=30)


@pytest.fixture(autouse=True)
def config(monkeypatch, tmp_path):
    """Keep the user's own files out of the tests."""
    monkeypatch.setattr(platformdirs, "user_config_path", lambda name: tmp_path / "config" / name)


def run(studio, line):
    stream = io.StringIO()
    Screen(stream, color=False).show(*execute(studio, line).blocks)
    return stream.getvalue()


def write(studio, text):
    for _ in studio.write([studio.next_turn(text)], lambda: False):
        pass


@pytest.mark.parametrize(
    ("line", "spec"),
    [
        ("/set top-k 5", "temperature 0.9 | top-k 5 | sample 0.8"),
        ("/set top-k k=5", "temperature 0.9 | top-k 5 | sample 0.8"),
        ("/set sampling 1", "temperature 0.9 | top-k 40 | sample 1"),
        ("/set temperature#1 t=1", "temperature 1 | top-k 40 | sample 0.8"),
    ],
)
def test_one_stage_is_set_and_the_rest_stays(studio, line, spec):
    assert run(studio, line).splitlines()[0] == f"decoder: {spec}"
    assert studio.decoder == parse_spec(spec, studio.registry)


@pytest.mark.parametrize(
    ("spec", "line", "shown"),
    [
        ("sample 0.8", "/temperature 0.5", "decoder: sample 0.5"),
        ("top-k 40 | sample", "/temp 0.5", "decoder: top-k 40 | sample 0.5"),
        ("temperature 0.9 | sample", "/temp 0.5", "decoder: temperature 0.5 | sample 1"),
        ("mirostat 2", "/temp 0.5", "decoder: temperature 0.5 | mirostat 2"),
        ("sample 0.8", "/temp", "temperature: sample 0.8"),
        ("greedy", "/temp", "temperature: none"),
    ],
)
def test_the_temperature_is_set_where_it_is(studio, registry, spec, line, shown):
    studio.decoder = parse_spec(spec, registry)
    assert run(studio, line) == f"{shown}\n"


def test_two_temperatures_are_named_when_they_come_about(studio, registry):
    """The advice for `/set temperature 0.5` was a decoder that lost the 0.5 and divided the logits twice."""
    studio.decoder = parse_spec("sample 0.8", registry)
    with pytest.raises(UsageError, match=r"stands in sample 0.8: /temperature 0.5 sets it there"):
        execute(studio, "/set temperature 0.5")
    with pytest.raises(UsageError, match="must be a number > 0"):
        execute(studio, "/temp 0")
    doubled = run(studio, "/decoder temperature 0.5 | sample 0.8")
    assert "temperature 0.5 and sample 0.8 both divide the logits, so the temperatures\nmultiply" in doubled
    assert "multiply" not in run(studio, "/set sample 0.7")  # said once
    assert run(studio, "/decoder temperature 0.5 | sample") == "decoder: temperature 0.5 | sample 1\n"
    studio.decoder = parse_spec("greedy", registry)
    with pytest.raises(UsageError, match=r"/decoder sample 0\.5"):
        execute(studio, "/temp 0.5")


def test_a_stage_that_stands_twice_is_told_apart_by_its_number(studio, registry):
    studio.decoder = parse_spec("top-k 40 | top-k 9 | greedy", registry)
    assert run(studio, "/set top-k#2 3") == "decoder: top-k 40 | top-k 3 | greedy\n"
    assert re.search(r"^  top-k#2 +k = 3 ", run(studio, "/decoder"), re.MULTILINE)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set", "/set takes a stage and a value"),
        ("/set top-k", "/set top-k takes a value: k, an integer ≥ 1"),
        ("/set topk 4", "did you mean `top-k`?"),
        ("/set top-k 0", "k must be an integer ≥ 1"),
        ("/set top-k n=4", "top-k has no option 'n'"),
        ("/set top-k 4 | greedy", "`|` stands where a value should be"),
        ("/set top-k#2 4", "top-k stands once in temperature 0.9 | top-k 40 | sample 0.8"),
        ("/set top-p 0.5", "add it with /decoder temperature 0.9 | top-k 40 | top-p 0.5 | sample 0.8"),
        ("/set top-p", "add it with /decoder temperature 0.9 | top-k 40 | top-p 0.9 | sample 0.8"),
        ("/set top-p 7", "add it with /decoder temperature 0.9 | top-k 40 | top-p 0.9 | sample 0.8"),
        ("/temp 0.5", "which multiply: /set temperature 0.5 or /set sample 0.5"),
        ("/set greedy", "add it with /decoder temperature 0.9 | top-k 40 | greedy"),
        ("/preset", "/preset: it has save, load, list, rm"),
        ("/preset sav x", "did you mean save?"),
        ("/preset save", "'' cannot name a preset"),
        ("/preset save ../x", "'../x' cannot name a preset"),
        ("/preset save warm topk 4", "did you mean `top-k`?"),
        ("/preset load warm", "no preset is called 'warm': there are suggested"),
        ("/preset rm warm", "no preset is called 'warm'"),
        ("/preset load warm greedy", "takes just a NAME"),
        ("/preset list x", "takes nothing"),
    ],
)
def test_wrong_input_names_the_right_one_and_changes_nothing(studio, line, message):
    before = copy.copy(studio)
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        execute(studio, line)
    assert studio == before
    assert len(str(error.value).splitlines()) <= 2
    assert not presets_file().exists()


def test_reset_goes_back_to_the_decoder_of_the_start(studio):
    run(studio, "/decoder greedy")
    run(studio, "/decoder top-k 3")
    assert run(studio, "/reset").startswith("decoder: temperature 0.9 | top-k 40 | sample 0.8\n")


def test_decoder_tells_how_many_picks_each_stage_changed(studio, backend):
    backend.wait(lambda: False)
    write(studio, "Once upon a time")
    shown = run(studio, "/decoder")
    assert "in the 30 tokens of the turn on the desk:" in shown
    assert re.search(r"^  temperature 0.9 +changed ", shown, re.MULTILINE)
    assert re.search(r"^  sample 0.8 +did not pick the likeliest possible token", shown, re.MULTILINE)
    run(studio, "/set top-k 5")
    assert "was written by temperature 0.9 | top-k 40 | sample 0.8" in " ".join(run(studio, "/decoder").split())


def test_decoder_does_not_wait_for_the_model(studio, backend):
    backend.wait(lambda: False)
    write(studio, "Once")
    studio.backend = SimpleNamespace(loading=True)
    assert "when the model is loaded" in run(studio, "/decoder")


def test_presets_are_saved_listed_loaded_and_removed(studio):
    assert "/preset save NAME saves" in run(studio, "/preset list")
    assert run(studio, "/preset save warm") == "warm: temperature 0.9 | top-k 40 | sample 0.8\n"
    assert run(studio, "/preset save cold sampling .2") == "cold: sample 0.2\n"
    assert run(studio, "/preset save cold greedy") == "cold: greedy (it was sample 0.2)\n"
    assert run(studio, "/preset list").split("\n")[0].split() == ["cold", "greedy"]
    assert run(studio, "/preset load cold") == "decoder: greedy\n"
    assert run(studio, "/preset rm cold") == "cold is removed; it was greedy\n"
    assert preset_names() == ["suggested", "warm"]
    with pytest.raises(UsageError, match="did you mean warm"):
        execute(studio, "/preset load warn")


def test_one_preset_is_suggested_until_the_user_has_one_of_that_name(studio):
    """The preset is the winner of docs/study.md. It is not used unless the user asks for it."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "study.md").read_text(encoding="utf-8")
    assert "Nearest to real stories: `min-p 0.05 | xtc 0.5 | sample 1`" in page
    before = studio.spec
    assert presets.SUGGESTED in run(studio, "/help decode")
    assert "min-p 0.05 | xtc 0.5 | sample 1" in run(studio, "/preset list")
    assert studio.spec == before
    assert run(studio, "/preset load suggested") == "decoder: min-p 0.05 | xtc 0.5 | sample 1\n"
    run(studio, "/preset save suggested greedy")
    assert run(studio, "/preset load suggested") == "decoder: greedy\n"


def test_a_preset_keeps_quotes_and_other_alphabets(studio, tmp_path):
    from tinystory.studio.presets import read_presets, write_presets

    spec = 'words "a \\"b\\" 🙂\\\\" | sample'
    write_presets({"odd": spec})
    assert read_presets() == ({"odd": spec}, "")


@pytest.mark.parametrize("content", [b"warm = ", b"\xff", b"warm = 3\n", b"[table]\nx = 'y'\n", b"x" * 2**21])
def test_a_damaged_file_is_set_aside_and_never_lost(studio, content):
    path = presets_file()
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    shown = run(studio, "/preset save warm")
    assert "is set aside as presets.toml.damaged-1" in " ".join(shown.split())
    assert path.with_name("presets.toml.damaged-1").read_bytes() == content
    assert preset_names() == ["suggested", "warm"]


def test_damage_is_told_also_where_the_command_then_fails(studio):
    presets_file().parent.mkdir(parents=True)
    presets_file().write_bytes(b"warm = ")
    with pytest.raises(UsageError, match=r"set aside as presets.toml.damaged-1(.|\n)*no preset is called 'warm'"):
        execute(studio, "/preset load warm")


def test_a_byte_order_mark_is_no_damage(studio):
    presets_file().parent.mkdir(parents=True)
    presets_file().write_bytes(b"\xef\xbb\xbfwarm = 'greedy'\n")
    assert run(studio, "/preset load warm") == "decoder: greedy\n"


def test_a_file_that_cannot_be_read_is_told_and_never_replaced(studio):
    presets_file().parent.mkdir(parents=True)
    os.mkfifo(presets_file())
    assert "is not a regular file" in " ".join(run(studio, "/preset load suggested").split())
    for line in ("/preset save warm", "/preset rm warm"):
        with pytest.raises(UsageError, match="is not a regular file"):
            execute(studio, line)
    assert preset_names() == ["suggested"]


def test_a_preset_of_a_stage_that_is_gone_changes_nothing(studio):
    presets_file().parent.mkdir(parents=True)
    presets_file().write_text('old = "gone 3 | sample"\n')
    before = studio.decoder
    with pytest.raises(UsageError, match="no decoder stage is called 'gone'"):
        execute(studio, "/preset load old")
    assert studio.decoder is before


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("/set te", ["temperature "]),
        ("/set gr", []),
        ("/set to", ["top-k#1 ", "top-p ", "top-k#2 ", "top-a ", "top-h ", "top-k ", "top-n-sigma "]),
        ("/set top-k ", ["40", "k="]),
        ("/set top-k#2 k=", ["40"]),
        ("/preset ", ["save ", "load ", "list", "rm "]),
        ("/preset load w", ["warm"]),
        ("/preset save new te", ["temperature "]),
        ("/preset save new top-k 4 | gr", ["greedy"]),
        ("/compare greedy ; top-k 3 | gr", ["greedy"]),
        ("/compare greedy ; te", ["temperature "]),
        ('/compare greedy ; top-k "a ; te', []),
        ("/color s", ["surprise"]),
        ("/colour e", ["entropy"]),
        ("/save m", ["mine"]),
        ("/sessions r", ["rename ", "rm "]),
        ("/sessions rm y", ["yours"]),
        ("/goto 1", ["12", "1"]),
        ("/diff 2 1", ["12", "1"]),
        ("/export owl.m", ["owl.md"]),
        ("/export /nowhere/", [f"story.{ending}" for ending in ("txt", "md", "json", "html", "svg")]),
    ],
)
def test_completion(registry, text, texts):
    decoder = parse_spec("top-k 40 | top-p 0.9 | top-k 9 | sample 0.8", registry)
    names = Names(lambda: ["cold", "warm"], lambda: ["mine", "yours"], lambda: stage_names(decoder),
                  lambda: [("12", "The owl"), ("1", "Once"), ("0", "the blank page")])  # fmt: skip
    assert [one.text for one in complete(text, registry, names)] == texts


def test_tab_knows_every_format_of_export(registry):
    assert [one.text for one in complete("/export /nowhere/a", registry)] == [f"a{ending}" for ending in FORMATS]


def test_completion_of_files_and_models(registry, tmp_path):
    (tmp_path / "story.txt").touch()
    (tmp_path / "step").mkdir()
    assert [one.text for one in complete(f"/ppl {tmp_path}/st", registry)] == ["step/", "story.txt"]
    assert [one.text for one in complete(f"/versus default {tmp_path}/st", registry)] == ["step/"]
