"""`tinystory export` writes files that `tinystory import` reads again; what does not fit is one line."""

import json
import shutil

import pytest

from tinystory.checkpoint.shipped import SHIPPED_MODELS
from tinystory.cli import main


def test_a_model_goes_to_gguf_and_back(tmp_path, capsys):
    file, folder = tmp_path / "mini.gguf", tmp_path / "mini"
    assert main(["export", "mini", "--to", "gguf", "-o", str(file)]) == 0
    assert capsys.readouterr() == ("", f"{file} is ready\n")
    assert main(["import", str(file), "-o", str(folder)]) == 0
    assert capsys.readouterr().err == f"{folder} is ready: tinystory chat -m {folder}\n"
    stories = []
    for model in ("mini", str(folder)):
        assert main(["generate", "The owl", "-m", model, "-d", "greedy", "-n", "12", "--json"]) == 0
        stories.append(json.loads(capsys.readouterr().out)["token_ids"])
    assert stories[0] == stories[1]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_an_export_never_replaces_its_model(tmp_path, capsys, name):
    folder = shutil.copytree(SHIPPED_MODELS["mini"], tmp_path / "mini")
    before = (folder / name).read_bytes()
    assert main(["export", str(folder), "--to", "gguf", "-o", str(folder / name)]) == 2
    assert "would be replaced, and it is a file that is read here" in capsys.readouterr().err
    assert (folder / name).read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["export", "mini", "--to", "llama2c", "-o", "OUT"], 3, "llama2.c"),
        (["export", "mini", "--to", "llama2c", "--type", "F16", "-o", "OUT"], 2, "--type F16 is for --to gguf"),
        (["export", "no-such-model", "--to", "gguf", "-o", "OUT"], 3, "no-such-model"),
        (["import", "WEIGHTS", "-o", "OUT"], 2, "need --tokenizer FILE; a GGUF file needs none"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, capsys, argv, code, message):
    out = tmp_path / "out"
    weights = SHIPPED_MODELS["mini"] / "model.safetensors"
    assert main([{"OUT": str(out), "WEIGHTS": str(weights)}.get(word, word) for word in argv]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert shown.err.count("\n") <= 2
    assert not out.exists()


def test_a_gguf_file_needs_no_second_tokenizer(tmp_path, capsys):
    file = tmp_path / "mini.gguf"
    assert main(["export", "mini", "--to", "gguf", "--type", "F16", "-o", str(file), "-q"]) == 0
    argv = ["import", str(file), "--tokenizer", str(file), "-o", str(tmp_path / "mini")]
    assert main(argv) == 2
    assert "leave out --tokenizer" in capsys.readouterr().err
