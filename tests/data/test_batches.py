"""Batches in which every token is predicted once and no story sees another, in any order that can be had again."""

import json
import time
import zlib
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.data.batches import BatchPlan, Pieces, collate, cut, epoch_batches, pack, share
from tinystory.data.prepare import prepare, tokenize
from tinystory.model.config import ModelConfig
from tinystory.model.cross_entropy import IGNORE
from tinystory.model.transformer import Transformer
from tinystory.training.step import loss_sum

ROW_LEN = 12
MODES = ("packed", "padded")

story_lengths = st.lists(st.integers(0, 40), max_size=40)


def numbered(lengths):
    """Stories whose token ids count up through all of them, so that each token is one of a kind."""
    ends = np.cumsum(lengths)
    return [np.arange(end - n, end, dtype=np.uint16) for n, end in zip(lengths, ends, strict=True)]


def to_predict(stories):
    """Return the tokens that an epoch has to predict: all but the first of each story."""
    return sorted(int(i) for story in stories for i in story[1:])


class Shards:
    """Stories that are asked for one at a time, and know their lengths, as `TokenShards` do."""

    def __init__(self, stories):
        self.stories, self.asked = stories, []

    def __len__(self):
        return len(self.stories)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.stories[index]

    def lengths(self):
        return np.array([len(story) for story in self.stories], np.uint32)


# --- cutting ---


@settings(deadline=None)
@given(lengths=story_lengths, row_len=st.integers(1, 12))
def test_cutting_predicts_every_token_once(lengths, row_len):
    stories = numbered(lengths)
    pieces = cut(stories, row_len)
    assert all(2 <= len(piece) <= row_len + 1 for piece in pieces)
    assert [int(i) for piece in pieces for i in piece[1:]] == to_predict(stories)
    assert all((np.diff(piece.astype(int)) == 1).all() for piece in pieces)
    assert pieces.n_predicted.tolist() == [len(piece) - 1 for piece in pieces]


def test_a_story_as_long_as_a_row_is_not_cut():
    assert [piece.tolist() for piece in cut([np.arange(5), np.arange(6)], 4)] == [
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
        [4, 5],
    ]


def test_pieces_are_an_index_that_reads_nothing_before_it_must():
    shards = Shards(numbered([30, 5, 1, 0, 9]))
    plan = BatchPlan(shards, ROW_LEN, 4, seed=0)
    epoch = plan.epoch(0)
    assert plan.count(epoch[0]) == 29 + 4 + 8 == plan.n_tokens
    assert shards.asked == []
    piece = plan.pieces[1]
    assert shards.asked == [0]
    assert piece.base is shards.stories[0].base or piece.base is shards.stories[0]
    assert piece.tolist() == list(range(12, 25))


# --- packing ---


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 20), max_size=60))
def test_packing_keeps_every_item_whole_and_fits(lengths):
    row_of = pack(np.array(lengths, np.int32), 20)
    fills = np.bincount(row_of, lengths)
    assert len(row_of) == len(lengths)
    assert (fills <= 20).all()
    assert (fills > 0).all()
    # Best fit never leaves two rows that would fit into one.
    least = sorted(fills)
    assert len(least) < 2 or least[0] + least[1] > 20


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 9), max_size=40))
def test_packing_is_best_fit(lengths):
    """Each item goes into the fullest row that has room, checked against the rule written out."""
    fills = []
    for length, row in zip(lengths, pack(np.array(lengths, np.int32), 9).tolist(), strict=True):
        fitting = [fill for fill in fills if fill + length <= 9]
        if not fitting:
            assert row == len(fills)
            fills.append(0)
        else:
            assert fills[row] == max(fitting)
        fills[row] += length


def test_two_hundred_thousand_stories_are_packed_in_a_moment():
    """Two million take 1.5 CPU seconds; a sorted list of open rows once took ten minutes."""
    lengths = np.random.default_rng(0).integers(20, 400, 200_000)
    started = time.process_time()
    row_of = pack(lengths, 512)
    assert time.process_time() - started < 1
    assert lengths.sum() / ((row_of.max() + 1) * 512) > 0.95


# --- epochs ---


@settings(deadline=None)
@given(lengths=story_lengths, n_rows=st.integers(1, 5), world_size=st.integers(1, 7), seed=st.none() | st.integers())
@pytest.mark.parametrize("batching", MODES)
def test_every_token_is_predicted_once_in_an_epoch_whatever_the_ranks(lengths, n_rows, world_size, seed, batching):
    stories = numbered(lengths)
    plan = BatchPlan(stories, ROW_LEN, n_rows, batching=batching, seed=seed)
    seen = []
    for rows in plan.epoch(3):
        assert 1 <= len(rows) <= n_rows
        shares = [share(rows, rank, world_size) for rank in range(world_size)]
        assert sorted(row for part in shares for row in part) == sorted(rows)
        assert sum(plan.count(part) for part in shares) == plan.count(rows)
        for part in shares:
            batch = plan.collate(part)
            scored = batch.labels != IGNORE
            assert batch.n_tokens == plan.count(part) == int(scored.sum())
            # Consecutive numbers: each label is the token after its input.
            assert torch.equal(batch.labels[scored], batch.token_ids[scored] + 1)
            assert torch.equal(scored, batch.story >= 0)
            seen += batch.labels[scored].tolist()
            if batching == "padded":
                assert all(len(row) == 1 for row in part)
    assert sorted(seen) == to_predict(stories)
    assert plan.n_tokens == len(seen)


@settings(deadline=None)
@given(lengths=story_lengths, n_rows=st.integers(1, 5), seed=st.integers(), where=st.floats(0, 1))
@pytest.mark.parametrize("batching", MODES)
def test_going_on_in_mid_epoch_equals_going_straight_through(lengths, n_rows, seed, where, batching):
    """A position is (epoch, number of the batch): another process, where everything is made anew, goes on from it."""
    stories = numbered([*lengths, 5])

    def from_position(epoch, batch, n):
        plan = BatchPlan(stories, ROW_LEN, n_rows, batching=batching, seed=seed)
        found = list(islice(plan.ahead(epoch, batch), n))
        return [(e, b, plan.collate(rows).token_ids.tolist()) for e, b, rows in found]

    n_batches = len(BatchPlan(stories, ROW_LEN, n_rows, batching=batching, seed=seed).epoch(0))
    straight = from_position(0, 0, n_batches + 3)
    assert straight[n_batches - 1][:2] == (1, 0)
    at = int(where * n_batches)
    assert from_position(0, at, n_batches + 3 - at) == straight[at:]


def test_no_stories_are_no_batches():
    for batching in MODES:
        plan = BatchPlan([], ROW_LEN, 4, batching=batching, seed=1)
        assert list(plan.ahead()) == []
        assert len(plan.epoch(0)) == plan.n_tokens == 0


@pytest.mark.parametrize("batching", MODES)
def test_an_epoch_is_the_same_for_the_same_seed_and_number_only(stories, tokenizer, batching):
    pieces = cut(tokenize(stories, tokenizer), 64)

    def rows(seed, epoch=0):
        return list(epoch_batches(pieces, 64, 4, seed, epoch=epoch, batching=batching))

    assert rows(1) == rows(1)
    different = [rows(None), rows(1), rows(2), rows(-1), rows(1, epoch=1), rows(2, epoch=1)]
    assert all(a != b for n, a in enumerate(different) for b in different[n + 1 :])
    for found in different:
        assert sorted(i for batch in found for row in batch for i in row) == list(range(len(pieces)))
    assert rows(None) == rows(None, epoch=5)


def test_orders_stay_what_they_are():
    """A run that resumes years later, with another numpy, goes on with the same batches."""
    lengths = [5, 3, 9, 2, 7, 4, 6, 8]
    packed = BatchPlan(numbered(lengths), 10, 2, seed=1)
    assert list(packed.epoch(0)) == [[[4], [0, 6, 3]], [[7, 5], [2, 1]]]
    padded = BatchPlan(numbered(lengths), 10, 4, batching="padded", seed=1)
    assert list(padded.epoch(2)) == [[[5], [2], [7], [6]], [[0], [3], [1], [4]]]
    many = numbered([2 + n % 11 for n in range(300)])
    checksums = {}
    for batching in MODES:
        plan = BatchPlan(many, 12, 4, batching=batching, seed=1)
        checksums[batching] = [zlib.crc32(json.dumps(list(plan.epoch(n))).encode()) for n in range(2)]
    assert checksums == {"packed": [702914341, 3301014849], "padded": [2510045263, 2452644444]}


def test_an_epoch_is_a_sequence(stories, tokenizer):
    epoch = epoch_batches(cut(tokenize(stories, tokenizer), 64), 64, 4, seed=1)
    everything = list(epoch)
    assert len(everything) == len(epoch)
    assert epoch[-1] == everything[-1]
    assert epoch[2:4] == everything[2:4]
    with pytest.raises(IndexError):
        epoch[len(epoch)]


def test_pieces_in_a_list_are_as_good(stories, tokenizer):
    pieces = cut(tokenize(stories, tokenizer), 64)
    assert list(epoch_batches(pieces[:], 64, 4, seed=1)) == list(epoch_batches(pieces, 64, 4, seed=1))
    assert isinstance(pieces, Pieces)
    assert isinstance(pieces[:], list)


def test_shards_and_lists_give_the_same_batches(stories, story_file, tokenizer, tmp_path):
    shards = prepare(story_file, tokenizer, tmp_path / "p", shard_bytes=2000)
    one, other = (BatchPlan(source, 64, 4, seed=1) for source in (shards, tokenize(stories, tokenizer)))
    for rows, same in zip(one.epoch(0), other.epoch(0), strict=True):
        assert rows == same
        assert torch.equal(one.collate(rows).token_ids, other.collate(rows).token_ids)


# --- batches ---


def test_packed_rows_are_as_long_as_the_row_and_padded_ones_as_the_longest():
    pieces = cut([np.arange(1, 6), np.arange(6, 9), np.arange(9, 13)], 10)
    packed = collate(pieces, [[0, 2], [1]], row_len=10)
    assert packed.labels.tolist() == [[2, 3, 4, 5, 10, 11, 12] + [IGNORE] * 3, [7, 8] + [IGNORE] * 8]
    assert packed.positions[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 0, 0]
    assert packed.story[0].tolist() == [0, 0, 0, 0, 1, 1, 1, -1, -1, -1]
    assert packed.n_tokens == 9
    assert packed.mask().shape == (2, 1, 10, 10)
    padded = collate(pieces, [[1], [0]])
    assert padded.token_ids.tolist() == [[6, 7, 0, 0], [1, 2, 3, 4]]
    assert padded.labels.tolist() == [[7, 8, IGNORE, IGNORE], [2, 3, 4, 5]]
    assert padded.mask() is None
    moved = padded.to(torch.device("meta"))
    assert moved.alone
    assert moved.labels.is_meta


def test_a_share_of_no_rows_is_an_empty_batch():
    plan = BatchPlan([np.arange(5)], 10, 4)
    batch = plan.collate(share(plan.epoch(0)[0], rank=2, world_size=3))
    assert batch.token_ids.shape == (0, 10)
    assert batch.n_tokens == 0


def tiny_models():
    torch.manual_seed(0)
    for config in (ModelConfig.llama(50, 2, 2, 16, 32, 24), ModelConfig.gpt2(50, 2, 2, 16, 32)):
        model = Transformer(config).double().eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        yield model


def test_a_packed_story_gets_the_logits_it_gets_alone():
    for model in tiny_models():
        pieces = [np.array([1, 2, 3, 4, 5]), np.array([6, 7, 8]), np.array([9, 10, 11, 12])]
        batch = collate(pieces, [[0, 2], [1]], row_len=10)
        with torch.no_grad():
            packed = model(batch.token_ids, batch.positions, batch.mask())
            for (row, start), piece in zip([(0, 0), (0, 4), (1, 0)], [pieces[0], pieces[2], pieces[1]], strict=True):
                alone = model(torch.from_numpy(piece[None, :-1]))[0]
                torch.testing.assert_close(packed[row, start : start + len(piece) - 1], alone)


@torch.no_grad()
def mean_loss(model, plan):
    """Nats per token over an epoch."""
    total, n = 0.0, 0
    for rows in plan.epoch(0):
        batch = plan.collate(rows)
        logits = model(batch.token_ids, batch.positions, batch.mask())
        total += F.cross_entropy(
            logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE, reduction="sum"
        ).item()
        n += batch.n_tokens
    assert n == plan.n_tokens
    return total / n


@settings(deadline=None, max_examples=15)
@given(lengths=st.lists(st.integers(2, 70), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_packed_and_padded_have_the_same_loss(lengths, seed):
    """Over-long stories too: rows have 24 positions."""
    rng = np.random.default_rng(seed)
    stories = [rng.integers(0, 50, n).astype(np.uint16) for n in lengths]
    for model in tiny_models():
        packed, padded = (mean_loss(model, BatchPlan(stories, 24, 3, batching=b, seed=seed)) for b in MODES)
        assert packed == pytest.approx(padded, abs=1e-9)
        if max(lengths) <= 25:  # nothing is cut: the loss is that of each story alone
            with torch.no_grad():
                nats = sum(
                    F.cross_entropy(
                        model(torch.from_numpy(story[None, :-1].astype(np.int64)))[0],
                        torch.from_numpy(story[1:].astype(np.int64)),
                        reduction="sum",
                    ).item()
                    for story in stories
                )
            assert packed == pytest.approx(nats / packed_tokens(stories), abs=1e-9)


def packed_tokens(stories):
    return sum(len(story) - 1 for story in stories)


@pytest.mark.parametrize("batching", MODES)
@pytest.mark.parametrize(
    "config", [ModelConfig.llama(60, 2, 2, 16, ROW_LEN, 24), ModelConfig.gpt2(60, 2, 2, 16, ROW_LEN)]
)
def test_joining_the_stories_changes_neither_loss_nor_gradients(batching, config):
    """Stories on a CPU are one row without padding, with attention story by story."""
    torch.manual_seed(0)
    model = Transformer(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    plan = BatchPlan(numbered([5, 3, ROW_LEN + 4, 2, 7]), ROW_LEN, 3, batching=batching)
    for rows in plan.epoch():
        whole = plan.collate(rows)
        joined = whole.joined()
        assert joined.token_ids.shape == (1, joined.n_tokens)
        assert joined.n_tokens == whole.n_tokens == sum(joined.mask())
        found = []
        for batch in (whole, joined):
            model.zero_grad()
            loss = loss_sum(model, batch)
            loss.backward()
            found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    padding = collate(plan.pieces, [[]], 3)
    assert padding.joined() is padding
