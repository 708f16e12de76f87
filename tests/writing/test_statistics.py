"""The statistics of a story in words."""

import pytest

from tinystory.decoding import Token
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.evaluation.comparison import figures
from tinystory.writing.generate import Story, StoryRequest
from tinystory.writing.statistics import REASONS, statistics_items, statistics_line


def story_of(text, reason="eos", n_tokens=3):
    decoder = parse_spec("top-k 40 | sampling .8", discover(user_folder=None))
    statistics = {"tokens_per_second": 812.4, "bits_per_token": 1.3449}
    tokens = (Token(5, -1.0),) * n_tokens
    return Story(StoryRequest("Once", decoder, seed=7, number=2), text, (0,), tokens, reason, statistics)


def test_the_line_under_a_story_says_how_it_went_and_how_to_write_it_again():
    line = "3 tokens · 812 tokens/s · 1.34 bits/token · the end · top-k 40 | sample 0.8 · seed 7"
    assert statistics_line(story_of("")) == line
    assert statistics_line(story_of(""), numbered=True) == f"{line} · story 2"


@pytest.mark.parametrize(("n_tokens", "words"), [(0, "0 tokens"), (1, "1 token"), (2, "2 tokens")])
def test_one_token_is_no_tokens(n_tokens, words):
    assert statistics_items(story_of("", n_tokens=n_tokens))[0] == words


@pytest.mark.parametrize("reason", ["eos", "length", "stop", "cancelled"])
def test_every_reason_has_a_word(reason):
    assert statistics_items(story_of("", reason))[3] == REASONS[reason]


def test_the_figures_of_a_column_add_how_varied_a_story_is():
    items = statistics_items(story_of(""))
    assert figures(story_of("the owl saw the owl")) == [*items, "distinct-2 0.75", "repeated 4-grams 0.00"]
    assert figures(story_of("")) == [*items, "distinct-2 –", "repeated 4-grams –"]
    assert all(len(item) <= 24 for item in figures(story_of("the owl saw the owl")))  # the narrowest column
