"""The question for the next token that a person picks."""

import io
from types import SimpleNamespace

import pytest
import torch
from prompt_toolkit.utils import get_cwidth

from tinystory.repl.chooser import Chooser
from tinystory.screen.screen import Screen


@pytest.mark.parametrize(
    "story", ["むかしむかし、あるところに、ふくろうがいました。" * 3, "Once upon a time. " * 9, "🦉" * 40]
)
def test_the_end_of_the_story_takes_one_line_of_the_screen(make, monkeypatch, story):
    """It was cut by characters before, and wide ones took two lines."""
    monkeypatch.setenv("COLUMNS", "30")
    stream = io.StringIO()
    chooser = Chooser(make(), Screen(stream, color=False))
    monkeypatch.setattr(chooser, "_read", lambda: "1")
    logits = torch.full((0x80,), -1.0)
    logits[ord("!")] = 5.0
    step = SimpleNamespace(token_ids=(0, *map(ord, story)), eos_ids=frozenset())
    assert chooser(logits, step) == ord("!")
    first, second = stream.getvalue().splitlines()[:2]
    assert first.startswith("…")
    assert story.rstrip().endswith(first[1:])
    assert 25 < get_cwidth(first) < 30
    assert '"!"' in second
