"""Check the models inside the package: their names, sizes, common vocabulary and model cards."""

import json

import pytest

from tinystory.checkpoint.shipped import SHIPPED_MODELS, find_model
from tinystory.checkpoint.tokenizers import load_tokenizer
from tinystory.errors import CheckpointError

MB = 1_000_000


def weights(folder):
    return (folder / "model.safetensors").stat().st_size


def test_they_are_found_by_name_and_a_folder_of_that_name_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, folder in SHIPPED_MODELS.items():
        found, header = find_model(name)
        assert (found, header.directory) == (name, folder.resolve())
    assert find_model(None)[0] == "default"
    (tmp_path / "mini").mkdir()
    with pytest.raises(CheckpointError):
        find_model("./mini")


def test_their_sizes_are_those_that_a_package_can_carry():
    assert weights(SHIPPED_MODELS["default"]) <= 22 * MB
    assert weights(SHIPPED_MODELS["mini"]) <= 3 * MB
    assert sum(map(weights, SHIPPED_MODELS.values())) <= 32 * MB


def test_they_share_a_vocabulary_so_that_one_can_draft_for_another():
    vocabularies = {load_tokenizer(find_model(name)[1]).to_json() for name in SHIPPED_MODELS}
    assert len(vocabularies) == 1


@pytest.mark.parametrize("name", SHIPPED_MODELS)
def test_each_has_a_card_and_tells_where_it_came_from(name):
    header = find_model(name)[1]
    assert header.dtype == "bfloat16"
    told = json.dumps(dict(header.provenance))
    assert "git_commit" in told
    assert "tokens" in told
    card = (header.directory / "README.md").read_text(encoding="utf-8")
    assert f"{header.config.n_parameters:,}" in card
    assert "CDLA-Sharing-1.0" in card
