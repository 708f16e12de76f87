"""docs/decoders.md is what the decoders say of themselves; its samples are what the shipped model writes."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tinystory.commands.flags import build_parser
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import example_decoder, format_spec, parse_spec

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "decoders.md").read_text(encoding="utf-8")
DATA = json.loads((DOCS / "decoders.json").read_text(encoding="utf-8"))
BUILT_IN = {name: cls for name, cls, source in discover(user_folder=None).classes() if source == "tinystory"}


@pytest.fixture(scope="module")
def docs(load_script):
    return load_script("decoder_docs")


def test_the_page_in_the_tree_is_what_the_decoders_give(docs):
    assert docs.page(docs.built_in(), DATA) == PAGE, "run `python scripts/decoder_docs.py`"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_decoder_tells_its_source_and_its_method(docs, name):
    """The module's docstring: a title line with the source, then the method in two sentences or more."""
    title, method = docs.method(BUILT_IN[name])
    assert title.endswith(".")
    assert len(re.findall(r"[.!?)](?=\s|$)", method)) >= 2, f"decoders/*.py: what is the method of {name}?"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_decoder_was_measured_as_its_example_stands(name):
    registry = discover(user_folder=None)
    spec = format_spec(example_decoder(BUILT_IN[name], registry))
    assert DATA["decoders"].get(name, {}).get("spec") == spec, f"run `scripts/decoder_docs.py --measure --only {name}`"


def test_the_commands_of_the_page_parse(docs):
    commands = re.findall(r"^\$ tinystory (.*)$", PAGE, flags=re.MULTILINE)
    assert len(commands) == sum(one["story"] is not None for one in DATA["decoders"].values())
    for command in commands:
        args = build_parser().parse_args(shlex.split(command))
        assert (args.prompt, args.seed, args.max_tokens) == (docs.PROMPT, docs.SEED, docs.SAMPLE_TOKENS)
        parse_spec(args.decoder, discover(user_folder=None))


def test_a_sample_shows_what_its_decoder_does():
    """`speculative` writes the story of plain sampling; every other sample differs from it."""
    stories = {name: one["story"] for name, one in DATA["decoders"].items()}
    plain = stories.pop("speculative")
    assert [name for name, story in stories.items() if story == plain] == []


def test_an_empty_list_and_a_bar_keep_the_table_whole(docs):
    options = docs._options(docs.options_of(BUILT_IN["min-p"]))
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 6 for line in options.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, one in DATA["decoders"].items() if one["story"] is not None])
def test_a_sample_is_what_the_model_writes(docs, name):
    from tinystory.session.loading import load

    known = DATA["decoders"][name]
    decoder = parse_spec(known["spec"], discover(user_folder=None))
    assert docs._write(load(), decoder, docs.SEED, docs.SAMPLE_TOKENS)[0] == known["story"]
