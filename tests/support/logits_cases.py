"""Code that the tests of decoders share: logits for hypothesis, steps and comparisons."""

import math

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st

from tinystory.decoding import Request, Step

REQUEST = Request((0,), max_new_tokens=1, seed=3)
STEP = Step(REQUEST, [0], frozenset({1}))
INF = math.inf
HALVES = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()

one_logit = st.one_of(
    st.floats(-30, 30, width=32),
    st.integers(-3, 3).map(float),  # ties
    st.sampled_from([-INF, -INF, 1e4, -1e4]),
)
many_logits = (
    st.lists(one_logit, min_size=1, max_size=40)
    .filter(lambda values: max(values) > -INF)
    .map(lambda values: torch.tensor(values, dtype=torch.float32))
)
probabilities = st.floats(0, 1, exclude_min=True) | st.sampled_from([0.1, 0.5, 0.9, 0.95, 1.0])
many_examples = settings(deadline=None, max_examples=300)
enough_examples = settings(deadline=None, max_examples=200)
some_examples = settings(deadline=None, max_examples=80)


@st.composite
def logits_after_a_story(draw):
    """Return logits, and 1 to 30 token ids that come before them."""
    logits = draw(many_logits)
    few = st.integers(0, min(3, len(logits) - 1))  # so that they repeat
    ids = st.lists(few | st.integers(0, len(logits) - 1), min_size=1, max_size=30)
    return logits, draw(ids)


def step_at(position):
    return Step(REQUEST, [0] * position, frozenset())


def step_after(token_ids, n_prompt=1, eos_ids=frozenset({1})):
    """Return a step of a story whose first n_prompt tokens are the user's."""
    return Step(Request(tuple(token_ids), 1, seed=3, n_prompt=n_prompt), list(token_ids), eos_ids)


def kept(logits):
    return set(torch.isfinite(logits).nonzero()[:, 0].tolist())


def assert_parity(ours, warper, logits, token_ids=(0,)):
    """Check that a processor equals one of transformers bit for bit. If all tokens would go, ours may keep all."""
    theirs = warper(torch.tensor([list(token_ids)]), logits[None].clone())[0]
    if not kept(theirs):
        theirs = logits
    torch.testing.assert_close(ours(logits, step_after(token_ids)), theirs, rtol=0, atol=0)


def assert_drawn_by(draw, probs, n=20_000):
    """Check that draws at n positions fit the probabilities. Chi-square fails by chance once in 10,000 times."""
    observed = np.bincount([draw(position) for position in range(n)], minlength=len(probs))
    expected = n * np.asarray(probs)
    possible = expected > 0
    assert (observed[~possible] == 0).all()
    limit = {1: 15.1, 2: 18.4, 3: 21.1}.get(possible.sum() - 1, 0.0)
    assert float(((observed - expected)[possible] ** 2 / expected[possible]).sum()) <= limit
