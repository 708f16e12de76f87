"""A turn as the loop wrote it: its request, its decoder and its tokens, from what the turn has recorded."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tinystory.decoding import Decoder, Request, Session
from tinystory.decoding.plugins import Registry
from tinystory.decoding.spec import parse_spec
from tinystory.story.tree import StoryTree, Written
from tinystory.text.sentences import whole_sentences
from tinystory.text.tokenizer import Tokenizer
from tinystory.writing.healing import Healing

__all__ = ["decoder_of", "request_of", "written_ids"]


def request_of(
    tree: StoryTree, number: int, tokenizer: Tokenizer, opener: Callable[[str | None], Session] | None = None
) -> Request:
    """Return the request from which the model wrote a turn; its prompt is the story up to the first written token.

    Args:
        tree: the tree of the turn.
        number: the number of a turn that a model has written.
        tokenizer: the tokenizer of that model.
        opener: opens a second model for a stage, as in `Request`.

    Raises:
        ValueError: no model has written in this turn.
    """
    turn = tree.turns[number]
    if turn.written is None:
        raise ValueError(f"no model has written in turn {number}")
    return Request(
        (*tree.token_ids(turn.parent)[: turn.kept], *turn.typed_ids),
        turn.written.max_new_tokens,
        turn.written.seed,
        tree.n_prompt(number),
        turn.written.number,
        window=partial(whole_sentences, tokenizer),
        vocabulary=tokenizer,
        opener=opener,
    )


def decoder_of(written: Written, registry: Registry, tokenizer: Tokenizer) -> Decoder:
    """Return the decoder that picked the tokens, with the healing of a cut word as its first processor.

    Raises:
        UsageError: a stage of the spec is not installed.
    """
    decoder = parse_spec(written.spec, registry)
    if not written.heal or tokenizer.token_bytes is None:
        return decoder
    return replace(decoder, processors=(Healing(written.heal, tokenizer.token_bytes), *decoder.processors))


def written_ids(tree: StoryTree, number: int, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the prompt of a turn and every token picked after it, the hidden ones too.

    If the model ended the story, an EOS id follows.
    """
    turn = tree.turns[number]
    written = turn.written
    picked_ids = tuple(token.id for token in written.tokens) if written else ()
    end = (min(tokenizer.eos_ids),) if turn.ended and tokenizer.eos_ids else ()
    return (*tree.token_ids(turn.parent)[: turn.kept], *turn.typed_ids, *picked_ids, *end)
