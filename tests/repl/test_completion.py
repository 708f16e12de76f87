"""Completion of commands, specs and folders, and the Tab key."""

import pytest
from scripted_chat import CTRL_D

from tinystory.repl.completion import complete


def offered(text, registry):
    return [suggestion.text for suggestion in complete(text, registry)]


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("/deco", ["decoder ", "decoders "]),
        ("/q", ["quit"]),
        ("/decoder t", ["temperature ", "top-a ", "top-h ", "top-k ", "top-n-sigma ", "top-p ", "typical "]),
        ("/decoder top-k 40 | te", ["temperature "]),
        ("/decoder top-k 40|gr", ["greedy"]),
        ("/decoder greedy | t", []),
        ("/decoder sampling | t", []),
        ("/decoder top-k ", ["40", "k="]),
        ("/decoder top-p 0", ["0.9"]),
        ("/decoder min-p p=", ["0.1", "0"]),
        ("/decoder sample t", ["temperature="]),
        ("/decoder top-k 40 ", ["| "]),
        ("/decoder top-k k=4", ["40"]),
        ("/decoder nonsense ", []),
        ('/decoder top-k "a | b', []),
        ("/decoders gr", ["greedy"]),
        ("/help de", ["decode", "decoder", "decoders"]),
        ("/help keys", ["keys"]),
        ("/seed r", ["random"]),
        ("/len 1", []),
        ("/nonsense x", []),
        ("Once /d", []),
        ("//d", []),
        ("", []),
    ],
)
def test_completion(registry, text, texts):
    assert offered(text, registry) == texts


def test_completion_of_folders(registry, tmp_path, monkeypatch):
    for name in ("model one", "model-two", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "model.txt").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert offered(f"/model {tmp_path}/mod", registry) == ["model one/", "model-two/"]
    assert offered(f"/model {tmp_path}/.h", registry) == [".hidden/"]
    assert offered("/model ~/model-", registry) == ["model-two/"]
    assert offered("/model def", registry)[0] == "default"
    assert "mini" in offered("/versus default mi", registry)
    assert offered("/model /nowhere/x", registry) == []


@pytest.mark.parametrize(
    ("keys", "expected"),
    [("/dec\t \t\r", "/decoder"), ("/see\trandom\r", "/seed random"), ("/decoder gr\t\r", "/decoder greedy")],
)
def test_tab(make, talk, keys, expected):
    """Keys that come in a burst are not lost while a completion runs."""
    _, output = talk(make(), keys + CTRL_D)
    assert output.startswith(f"> {expected}")
