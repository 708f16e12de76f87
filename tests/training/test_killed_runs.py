"""Kill runs at random moments: the resumed run is the one that was not killed."""

import os

import pytest
from kill_runs import SIGNALS, kill_runs, opened_trainer


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the signals are those of POSIX")
def test_a_killed_run_becomes_the_same_run(tmp_path):
    """`python tests/support/kill_runs.py -n 100` kills more. Every signal comes five times."""
    with opened_trainer() as train:
        found = list(kill_runs(train, tmp_path, 5 * len(SIGNALS), seed=1))
    assert len({name for name, _ in found}) == 2 * len(SIGNALS)
    assert [(name, problems) for name, problems in found if problems] == []
