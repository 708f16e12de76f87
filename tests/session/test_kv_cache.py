"""Check that rows which come and go copy only what they need, and never the content of another row."""

import pytest
import torch

from tinystory.model.config import ModelConfig
from tinystory.session import kv_cache
from tinystory.session.kv_cache import KVCache

CONFIG = ModelConfig.llama(61, 2, 2, 16, 24, 40, n_kv_head=1)


def stamp(cache, row, position):
    """Write into a position a number that identifies the ids of its row up to there."""
    value = float(hash(tuple(cache.rows[row][: position + 1])) % 9973)
    for keys, values in cache.layers():
        keys[row, :, position] = value
        values[row, :, position] = -value


def expect_own(cache):
    for row, ids in enumerate(cache.rows):
        for position in range(len(ids)):
            value = float(hash(tuple(ids[: position + 1])) % 9973)
            for keys, values in cache.layers():
                assert (keys[row, :, position] == value).all(), (row, position)
                assert (values[row, :, position] == -value).all()


def extend(cache, new):
    for row, token_id in enumerate(new):
        cache.rows[row].append(token_id)
        stamp(cache, row, len(cache.rows[row]) - 1)


@pytest.fixture
def cache():
    cache = KVCache(CONFIG, torch.zeros)
    assert cache.adopt([[1], [2]]) == [0, 0]
    extend(cache, [1, 2])
    extend(cache, [3, 4])
    return cache


def test_rows_swap_double_and_go(cache):
    for order in ([1, 0], [0, 0, 1, 1], [3, 1], [1, 0, 1, 0, 0], [2], [0, 0, 0]):
        cache.reorder(order)
        expect_own(cache)
        extend(cache, range(5, 5 + len(order)))
        expect_own(cache)


def test_the_memory_of_rows_that_went_is_used_again(cache):
    cache.reorder([0, 0, 1, 1])
    memory = cache._memory
    for order in ([2], [0, 0, 0, 0], [3, 1]):
        cache.reorder(order)
        extend(cache, range(len(order)))
        expect_own(cache)
    assert cache._memory is memory


def test_only_what_differs_is_copied(cache):
    """The rows of a beam differ in their last tokens. Whole rows were once copied at every step."""
    cache.reorder([0, 0])
    extend(cache, [7, 8])
    for keys, _ in cache.layers():
        keys[0, :, 0] = 0.5  # the mark of a shared token stays if its position is not copied
    cache.reorder([1, 1])
    for keys, values in cache.layers():
        assert (keys[0, :, 0] == 0.5).all()
        assert keys[0, :, 2].equal(keys[1, :, 2])
        assert values[0, :, 2].equal(values[1, :, 2])


def test_a_prompt_takes_over_the_row_that_has_most_of_it(cache):
    assert cache.adopt([[2, 4, 5], [1, 3], [9]]) == [2, 1, 0]
    assert [row[:2] for row in cache.rows[:2]] == [[2, 4], [1, 3]]


def test_much_memory_is_given_back(cache, monkeypatch):
    cache.reorder([0, 0, 1, 1])
    monkeypatch.setattr(kv_cache, "_KEPT_BYTES", 0)
    cache.reorder([2])
    assert cache._memory.shape[2] == 1
    expect_own(cache)
    cache.reorder([0, 0])
    extend(cache, [1, 2])
    expect_own(cache)
