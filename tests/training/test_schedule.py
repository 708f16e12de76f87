"""The learning rate over a run."""

import pytest

from tinystory.training.schedule import learning_rate_scale


def test_the_rate_rises_holds_and_falls_to_zero():
    def scale(progress):
        return learning_rate_scale(progress, "wsd", warmup=0.1, decay=0.5)

    assert 0 < scale(0) < 0.02
    assert scale(0.05) == pytest.approx(0.5, abs=0.02)
    assert scale(0.1) == scale(0.5) == 1.0
    assert scale(0.75) == pytest.approx(0.5)
    assert scale(1) == 0


def test_cosine_falls_to_a_tenth_and_constant_stays():
    cosine = [round(learning_rate_scale(p, "cosine", warmup=0.0, decay=0.7), 3) for p in (0, 0.5, 1)]
    assert cosine == [1.0, 0.55, 0.1]
    assert {learning_rate_scale(p, "constant", warmup=0.0, decay=0.7) for p in (0, 0.3, 1)} == {1.0}


def test_without_warmup_and_decay_the_rate_is_the_peak():
    assert learning_rate_scale(0.4, "wsd", warmup=0, decay=0) == 1.0
