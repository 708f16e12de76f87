"""Check the table of dtypes and the lists that follow from it."""

import pytest
import torch

from tinystory import settings
from tinystory.checkpoint.arrays import _NUMPY_DTYPES
from tinystory.checkpoint.safetensors_header import _BITS
from tinystory.dtypes import COMPUTED_DTYPES, DTYPES, LOADED_DTYPES, STORED_DTYPES, dtype_of_safetensors


def test_lists_keep_the_order_in_which_users_see_them():
    assert COMPUTED_DTYPES == ("float32", "bfloat16", "float16", "int8")
    assert LOADED_DTYPES == ("float32", "bfloat16", "float16", "float64")
    assert STORED_DTYPES == ("float32", "bfloat16", "float16")
    assert settings.CHOICES["dtype"] is COMPUTED_DTYPES


@pytest.mark.parametrize("name", DTYPES)
def test_sizes_are_those_of_torch_and_of_safetensors(name):
    assert getattr(torch, name).itemsize == DTYPES[name].n_bytes
    assert _BITS[DTYPES[name].safetensors_name] == 8 * DTYPES[name].n_bytes


def test_every_stored_dtype_can_be_read_with_and_without_torch():
    assert {dtype_of_safetensors(name) for name in _NUMPY_DTYPES} == set(LOADED_DTYPES)
    assert set(STORED_DTYPES) <= set(LOADED_DTYPES)
    assert dtype_of_safetensors("I8") is None
