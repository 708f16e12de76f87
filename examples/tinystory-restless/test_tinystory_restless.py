import pytest
import torch
from tinystory_restless import Restless

from tinystory.decoding import Request, Step
from tinystory.testing import conformance

REQUEST = Request((0,), max_new_tokens=8, seed=1)
SURE, UNSURE = torch.tensor([9.0, 0.0, 0.0]), torch.zeros(3)


@pytest.mark.parametrize("stage", [Restless(), Restless(growth=5.0, limit=1.5)])
def test_conformance(stage):
    assert not conformance(stage)


def test_it_warms_up_until_a_surprise():
    stage = Restless(growth=0.5, limit=2.0)
    state = stage.start(REQUEST)
    temperatures = []
    for logits in (SURE, SURE, SURE, SURE, UNSURE, SURE):
        warmed = stage(torch.tensor([1.0]), Step(REQUEST, [0], frozenset(), state))
        temperatures.append(1 / float(warmed))
        state = stage.observe(state, 0, logits)
    assert temperatures == pytest.approx([1, 1.5, 2, 2, 2, 1])
