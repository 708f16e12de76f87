"""Every built-in decoder and every one in examples/ passes the conformance kit with the options of its example."""

import tomllib
from pathlib import Path

import pytest

from tinystory.decoding.options import is_neutral
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import example_decoder
from tinystory.testing import conformance

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = [EXAMPLES / "one_file_decoder.py", EXAMPLES / "tinystory-restless" / "tinystory_restless.py"]
BUILT_IN = {name: cls for name, cls, source in discover(user_folder=None).classes() if source == "tinystory"}


def test_none_is_left_out_as_broken():
    project = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    registry = discover(user_folder=None)
    registry.classes()
    assert BUILT_IN.keys() | registry.aliases.keys() == project["entry-points"]["tinystory.decoders"].keys()


def check(name, registry):
    cls = registry.get(name)
    decoder = example_decoder(cls, registry)
    [stage] = [stage for stage in decoder.stages if isinstance(stage, cls)]
    assert not is_neutral(stage), "a chain never calls it: its example has to bite"
    assert conformance(decoder) == []


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_decoder_conforms(name):
    check(name, discover(user_folder=None))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_conforms(path, monkeypatch):
    monkeypatch.setenv("TINYSTORY_NO_PLUGINS", "1")  # the package of the examples may be installed
    registry = discover([path])
    [name] = [name for name, _, source in registry.classes() if source == str(path)]
    check(name, registry)
