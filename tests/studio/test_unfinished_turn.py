"""A turn while it is written: which of its tokens belong to the story after a stop text has ended it."""

import pytest

from tinystory.decoding import Decoder, Token
from tinystory.studio.turn_request import TurnRequest
from tinystory.studio.unfinished_turn import UnfinishedTurn
from tinystory.writing.generate import DraftText, Ended, Story, StoryRequest, Text

PIECES = ["", "The", " cat", " sat", ".", " sat. T", "he", " END", " ", "sat"]


class Pieces:
    """A backend of ten tokens; 0 is BOS."""

    name, dtype = "toy", "float32"

    def encode(self, text, *, bos):
        ids = [0] * bos
        while text:
            token_id = max((i for i, piece in enumerate(PIECES) if piece and text.startswith(piece)), key=len_of)
            ids.append(token_id)
            text = text.removeprefix(PIECES[token_id])
        return ids

    def detokenize(self, token_ids):
        return "".join(PIECES[token_id] for token_id in token_ids)

    def model_hash(self):
        return "ab"


def len_of(token_id):
    return len(PIECES[token_id])


def written(tokens, stop, shown):
    """A turn after "The" with these tokens, of which the text filter has shown some text."""
    request = TurnRequest(
        parent=0, kept=0, typed="The", typed_ids=(0, 1), decoder=Decoder(), seed=7, max_new_tokens=9, number=2
    )
    story_request = StoryRequest("The", Decoder(), seed=7, stop=stop, prompt_ids=(0, 1))
    turn = UnfinishedTurn(request, story_request)
    picked = tuple(Token(token_id, -1.0) for token_id in tokens)
    turn.take(Text(0, shown, picked))
    turn.take(DraftText(0, " a draft is no part of it"))
    if stop:
        turn.take(Ended(0, Story(story_request, shown, (0, 1), picked, "stop", {})))
    return turn


@pytest.mark.parametrize(
    ("tokens", "stop", "shown", "text", "hidden", "tail_ids"),
    [
        ([2, 3], (), " cat sat", "The cat sat", 0, ()),
        ([2, 3, 7], (" END",), " cat sat", "The cat sat", 1, ()),
        ([2, 5, 6], (" The",), " cat sat.", "The cat sat.", 2, (3, 4)),
        ([7], (" END",), "", "The", 1, ()),
    ],
    ids=["no stop", "a token of its own", "within a token", "at once"],
)
def test_a_stop_text_and_its_tokens_are_hidden_and_the_text_before_it_stays(
    tokens, stop, shown, text, hidden, tail_ids
):
    turn, backend = written(tokens, stop, shown), Pieces()
    assert turn.token_ids == [0, 1, *tokens]
    assert turn.ending(backend) == (text, hidden, tail_ids)
    kept = turn.token_ids[: len(turn.token_ids) - hidden]
    assert backend.detokenize([*kept, *tail_ids]) == text


def test_a_turn_that_has_not_ended_is_recorded_as_cancelled():
    record = written([2, 3], (), " cat sat").written(Pieces())
    assert (record.seed, record.number, record.max_new_tokens, record.model_hash) == (7, 2, 9, "ab")
    assert [token.id for token in record.tokens] == [2, 3]
    assert record.finish_reason == "cancelled"
    ended = written([7], (" END",), "").written(Pieces())
    assert (ended.finish_reason, ended.stop) == ("stop", (" END",))
