"""Warnings about a second model, which a decoder opens while it writes, are shown like those of the first one."""

import json
import shutil

import pytest

from tinystory.cli import main
from tinystory.session.loading import load
from tinystory.studio.backend import ModelBackend


@pytest.fixture(scope="module")
def draft(checkpoint, tmp_path_factory):
    """A copy of the checkpoint with an added token that the model does not know."""
    directory = shutil.copytree(checkpoint, tmp_path_factory.mktemp("draft") / "draft")
    document = json.loads((directory / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document["added_tokens"].append({"id": 300, "content": "<pad>", "special": True, **flags})
    (directory / "tokenizer.json").write_text(json.dumps(document))
    return directory


def test_warnings_are_told_once_when_it_is_opened(checkpoint, draft):
    told = []
    session = load(str(checkpoint), tell=told.append).session
    assert told == []
    session.open(str(draft))
    session.open(str(draft))
    assert len(told) == 1
    assert "1 added token above the 300 of the model, like '<pad>'" in told[0]


def test_command_and_studio_show_them(checkpoint, draft, capsys):
    spec = f'greedy | speculative "{draft}"'
    assert main(["generate", "Once", "-m", str(checkpoint), "-d", spec, "-n", "4"]) == 0
    assert capsys.readouterr().err.count("1 added token above the 300 of the model") == 1
    backend = ModelBackend.open(str(checkpoint), "float32", "cpu")
    backend.start()
    assert backend.wait(lambda: False)
    assert list(backend.take_warnings()) == []
    backend.session(str(draft))
    assert len(backend.take_warnings()) == 1
