"""The coupled noise: a pure function of its place, uniform, independent between places, and never changed."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinystory.noise import Noise

PLACE = Noise(seed=7, stream="token", story=0, position=11)
N = 20_000


def chi_square(values, bins=50):
    """Return the p-value of a test that values are uniform in (0, 1)."""
    observed = np.histogram(values, bins=bins, range=(0, 1))[0]
    expected = len(values) / bins
    return float(((observed - expected) ** 2 / expected).sum())


CHI_SQUARE_49 = 95.0
"""Exceeded by chance about once in 10,000 times with 49 degrees of freedom."""


def test_the_numbers_never_change():
    """Stories are replayed from their seed, so another number here would break every saved story."""
    np.testing.assert_array_equal(
        PLACE.uniform(np.arange(3)), [0.20057088482782143, 0.2948610529056516, 0.23095626475742465]
    )
    assert float(Noise(-(2**70), "xtc", 3, 0).uniform()) == 0.39257955110123094


@given(
    seed=st.integers(), stream=st.text(max_size=9), story=st.integers(0), position=st.integers(0),
    token_ids=st.lists(st.integers(0, 2**40), max_size=20),
)  # fmt: skip
def test_pure_and_strictly_inside_the_unit_interval(seed, stream, story, position, token_ids):
    noise = Noise(seed, stream, story, position)
    ids = np.array(token_ids, dtype=np.int64)
    uniform = noise.uniform(ids)
    assert uniform.dtype == np.float64
    assert uniform.shape == ids.shape
    assert ((uniform > 0) & (uniform < 1)).all()
    assert np.isfinite(noise.gumbel(ids)).all()
    again = Noise(seed, stream, story, position)
    for index, token_id in enumerate(token_ids):  # alone or among others, a token has the same noise
        assert float(again.uniform(token_id)) == uniform[index]


def place_whose_token_0_mixes_to(bits):
    """Run SplitMix64 backwards."""
    mask = 2**64 - 1
    bits ^= bits >> 31 ^ bits >> 62
    bits = bits * pow(0x94D049BB133111EB, -1, 2**64) & mask
    bits ^= bits >> 27 ^ bits >> 54
    bits = bits * pow(0xBF58476D1CE4E5B9, -1, 2**64) & mask
    bits ^= bits >> 30 ^ bits >> 60
    place = dataclasses.replace(PLACE)
    place.__dict__["_key"] = np.uint64((bits - 0x9E3779B97F4A7C15) & mask)
    return place


@pytest.mark.parametrize(("bits", "uniform"), [(0, 2.0**-54), (2**64 - 1, 1 - 2.0**-53), (2**63, 0.5 + 2.0**-54)])
def test_the_extremes_stay_inside(bits, uniform):
    """0.5 + (2^53 − 1) rounds to 2^53 in float64. Without a bound, u would be 1 and the Gumbel noise infinite."""
    place = place_whose_token_0_mixes_to(bits)
    assert float(place.uniform()) == uniform
    assert np.isfinite(place.gumbel(np.array([0]))).all()


@pytest.mark.parametrize("changed", ["token", "position", "story", "seed"])
def test_uniform_along_every_axis(changed):
    if changed == "token":
        values = PLACE.uniform(np.arange(N))
    else:
        values = np.array([float(dataclasses.replace(PLACE, **{changed: n}).uniform(3)) for n in range(N)])
    assert chi_square(values) < CHI_SQUARE_49
    assert chi_square((values[:-1] + values[1:]) % 1) < CHI_SQUARE_49  # neighbours are independent
    assert chi_square((values[:-1] - values[1:]) % 1) < CHI_SQUARE_49


@pytest.mark.parametrize("other", [{"seed": 8}, {"stream": "xtc"}, {"story": 1}, {"position": 12}])
def test_other_places_are_independent(other):
    here, there = PLACE.uniform(np.arange(N)), dataclasses.replace(PLACE, **other).uniform(np.arange(N))
    assert chi_square((here + there) % 1) < CHI_SQUARE_49
    assert chi_square((here - there) % 1) < CHI_SQUARE_49
    assert abs(np.corrcoef(here, there)[0, 1]) < 4 / np.sqrt(N)


def test_parts_of_the_place_do_not_run_together():
    """Seed 1, story 12 must not be seed 11, story 2."""
    places = [Noise(1, "a", 12, 3), Noise(11, "a", 2, 3), Noise(1, "a", 1, 23), Noise(1, "a/12", 3, 3)]
    assert len({float(place.uniform()) for place in places}) == len(places)


def test_gumbel_moments():
    gumbel = PLACE.gumbel(np.arange(200_000))
    assert gumbel.mean() == pytest.approx(np.euler_gamma, abs=0.012)  # four standard errors
    assert gumbel.var() == pytest.approx(np.pi**2 / 6, abs=0.04)
