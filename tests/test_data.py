"""Stories from files, and batches in which no story sees another."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.config import ModelConfig
from tinystory.data import IGNORE, batches, collate, cut, pack, read_stories, tokenize
from tinystory.errors import UsageError
from tinystory.model import Transformer


def test_stories_stand_between_separators(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_bytes(
        b"One.\nTwo lines.\n<|endoftext|>\n\n  Second. <|endoftext|>Third, same line."
        b"\n<|endoftext|>\n<|endoftext|>\n   \n<|endoftext|>Broken \xff byte."
    )
    assert list(read_stories(path)) == ["One.\nTwo lines.", "Second.", "Third, same line.", "Broken \ufffd byte."]


def test_an_empty_file_has_no_stories(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    assert list(read_stories(tmp_path / "empty.txt")) == []


def test_a_saved_dataset_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": [" One. ", "", "Two."]}).save_to_disk(tmp_path / "plain")
    datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "validation")}
    ).save_to_disk(tmp_path / "splits")
    assert list(read_stories(tmp_path / "plain")) == ["One.", "Two."]
    assert list(read_stories(tmp_path / "splits", split="validation")) == ["validation"]


def test_the_hub_name_goes_to_load_dataset(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_dict({"text": ["From the hub."]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_stories("roneneldan/TinyStories")) == ["From the hub."]
    assert asked == [("roneneldan/TinyStories", "train")]


def test_a_missing_column_names_those_that_are_there(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"story": ["One."]}).save_to_disk(tmp_path / "d")
    with pytest.raises(UsageError, match="no column 'text'; it has story"):
        read_stories(tmp_path / "d")


def test_what_is_no_source_is_one_clear_error(tmp_path):
    with pytest.raises(UsageError, match="not a story file") as caught:
        read_stories(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_story_becomes_bos_tokens_eos(tokenizer):
    [ids] = tokenize(["Once upon a time"], tokenizer)
    assert ids[0] == ids[-1] == 0
    assert tokenizer.detokenize(ids.tolist()) == "Once upon a time"


@settings(deadline=None)
@given(length=st.integers(2, 50), row_len=st.integers(1, 12))
def test_cutting_predicts_every_token_once(length, row_len):
    story = np.arange(length)
    pieces = cut([story], row_len)
    assert all(2 <= len(piece) <= row_len + 1 for piece in pieces)
    assert np.concatenate([piece[1:] for piece in pieces]).tolist() == story[1:].tolist()


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 20), max_size=60))
def test_packing_keeps_every_item_whole_and_fits(lengths):
    rows = pack(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 20 for row in rows)
    # Best fit never leaves two rows that would fit into one.
    fills = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(fills) < 2 or fills[0] + fills[1] > 20


def test_an_epoch_is_the_same_for_the_same_seed_only(stories, tokenizer):
    pieces = cut(tokenize(stories, tokenizer), 64)
    assert batches(pieces, 64, 4, seed=1) == batches(pieces, 64, 4, seed=1) != batches(pieces, 64, 4, seed=2)
    assert sorted(i for batch in batches(pieces, 64, 4, seed=1) for row in batch for i in row) == list(
        range(len(pieces))
    )


def test_a_packed_story_gets_the_logits_it_gets_alone():
    torch.manual_seed(0)
    for config in (ModelConfig.llama(50, 2, 2, 16, 32, 24), ModelConfig.gpt2(50, 2, 2, 16, 32)):
        model = Transformer(config).double().eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        pieces = [np.array([1, 2, 3, 4, 5]), np.array([6, 7, 8]), np.array([9, 10, 11, 12])]
        batch = collate(pieces, [[0, 2], [1]], row_len=10)
        with torch.no_grad():
            packed = model(batch.token_ids, batch.positions, batch.mask())
            for (row, start), piece in zip([(0, 0), (0, 4), (1, 0)], [pieces[0], pieces[2], pieces[1]], strict=True):
                alone = model(torch.from_numpy(piece[None, :-1]))[0]
                torch.testing.assert_close(packed[row, start : start + len(piece) - 1], alone)
        assert batch.labels[0].tolist() == [2, 3, 4, 5, 10, 11, 12, IGNORE, IGNORE, IGNORE]
        assert batch.n_tokens == 9
