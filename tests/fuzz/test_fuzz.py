"""The quick part of the fuzzing: 200 cases of each reader, inputs that once failed, and the harness itself."""

import json
import os

import pytest

from tinystory.errors import CheckpointError

from .harness import Target, kept, run
from .targets import TARGETS, _tokenizer_seeds

N_CASES = 200
SLOW = ("transformers",)
REFUSES_NOTHING = ("history",)
"""What it cannot use is left out; the input line works with any file."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in TARGETS])
def test_damaged_files_are_read_or_refused(name):
    """`python -m tests.fuzz --cases N` tries more."""
    target = TARGETS[name]
    result = run(target, kept(target) + [(str(n), target.case(n)) for n in range(N_CASES)])
    assert result.failures == []
    assert result.n_read > 5
    assert result.n_refused > 5 or name in REFUSES_NOTHING


def test_the_undamaged_tokenizers_are_read():
    target = TARGETS["tokenizer"]
    cases = [(str(n), json.dumps(seed).encode()) for n, seed in enumerate(_tokenizer_seeds())]
    result = run(target, cases)
    assert (result.n_read, result.failures) == (12, [])


def _read(case, _folder):
    if case == b"refused":
        raise CheckpointError("it is damaged")
    if case == b"wrong kind":
        raise KeyError("x")
    if case == b"three lines":
        raise CheckpointError("a\nb\nc")
    if case == b"noise":
        os.write(2, b"thread panicked")


def test_the_harness_reports_what_a_user_would_not_want(tmp_path):
    names = ["good", "refused", "wrong kind", "three lines", "noise"]
    result = run(Target("x", None, _read), [(name, name.encode()) for name in names], tmp_path)
    assert (result.n_read, result.n_refused) == (2, 2)
    assert [name for name, _ in result.failures] == ["wrong kind", "three lines", "noise"]
    assert "KeyError" in result.failures[0][1]
    assert "thread panicked" in result.failures[2][1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["noise", "three lines", "wrong kind"]


def test_a_case_follows_from_its_number():
    target = TARGETS["tokenizer"]
    assert target.case(3) == target.case(3) != target.case(4)
    assert target.case(3) != target.case(3, seed=1)
