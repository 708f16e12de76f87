"""Attention story by story: the same numbers as the formula, with few shapes of products."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tinystory.model import story_attention as module
from tinystory.model.story_attention import story_attention
from tinystory.model.transformer import attend, attend_explicitly


def drawn(lengths, dtype=torch.float64, n_heads=2, n_kv_heads=2, d_head=6):
    generator = torch.Generator().manual_seed(sum(lengths))
    shapes = [(1, n, sum(lengths), d_head) for n in (n_heads, n_kv_heads, n_kv_heads)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def one_by_one(q, k, v, lengths):
    stories = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
    return torch.cat([attend_explicitly(*story) for story in stories], dim=2)


def found_by(attention, inputs, lengths):
    """Return the result, and the gradients of a weighted sum of it."""
    mixed = attention(*inputs, lengths)
    weights = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1))
    return mixed.detach(), *torch.autograd.grad(mixed, inputs, weights.to(mixed.dtype))


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 21), min_size=1, max_size=5),
    unit=st.integers(1, 8),
    queries=st.integers(1, 3),
    n_kv_heads=st.sampled_from([1, 2, 4]),
)
def test_values_and_gradients_are_those_of_the_formula(lengths, unit, queries, n_kv_heads):
    inputs = drawn(lengths, n_heads=4, n_kv_heads=n_kv_heads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_UNIT", unit)
        patch.setattr(module, "_QUERIES", unit * queries)
        ours = found_by(attend, inputs, lengths)
    torch.testing.assert_close(ours, found_by(one_by_one, inputs, lengths), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("lengths", [[1], [32], [130, 1, 300, 64]])
def test_so_they_are_with_the_lengths_of_real_stories(lengths):
    inputs = drawn(lengths, n_heads=1, n_kv_heads=1)
    torch.testing.assert_close(
        found_by(attend, inputs, lengths), found_by(one_by_one, inputs, lengths), rtol=1e-11, atol=1e-12
    )


def test_bfloat16_is_as_close_as_its_rounding():
    lengths = [150, 7, 40]
    inputs = drawn(lengths, torch.bfloat16, d_head=16)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    for ours, theirs in zip(found_by(attend, inputs, lengths), found_by(one_by_one, exact, lengths), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - theirs).norm() < 0.01 * theirs.norm()


def test_queries_of_autocasts_exact_operations_are_cast_to_the_dtype_of_the_values():
    lengths = [15, 1, 24]
    q, k, v = (x.detach() for x in drawn(lengths, torch.float32))
    assert attend(q, k, v.bfloat16(), lengths).equal(attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), lengths))


def test_stories_of_all_lengths_have_products_of_few_shapes():
    """A product of a new shape costs more than computing it in bfloat16."""
    shapes = set()

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.bmm.default:
                shapes.add(tuple(x.shape for x in args))
            return func(*args, **(kwargs or {}))

    lengths = list(range(1, 257, 3))
    q, k, v = (x[0] for x in drawn(lengths, torch.float32, 1, 1, 2))
    with Products():
        story_attention(q, k, v, lengths).sum().backward()
    assert 8 <= len(shapes) <= 6 * 256 // module._UNIT
