"""A piece of the tree as the engine was asked for it: request, decoder and tokens, from what its turn has recorded."""

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
    """What the model was asked for when it wrote a turn; the prompt is the story up to its first token.

    Args:
        tree: that has the turn.
        number: of a turn that the model has written.
        tokenizer: the one it was written with.
        opener: for stages that look at a second model, as in `Request`.

    Raises:
        ValueError: the turn was not written by a model.
    """
    turn = tree.turns[number]
    if turn.written is None:
        raise ValueError(f"node {number} was typed")
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
    """The decoder that picked the tokens, the healing of a cut word included.

    Raises:
        UsageError: the spec has a stage that is not here any more.
    """
    decoder = parse_spec(written.spec, registry)
    if not written.heal or tokenizer.token_bytes is None:
        return decoder
    return replace(decoder, processors=(Healing(written.heal, tokenizer.token_bytes), *decoder.processors))


def written_ids(tree: StoryTree, number: int, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The prompt of a turn and every token picked after it, hidden ones too; an EOS id where the model ended it."""
    turn = tree.turns[number]
    written = turn.written
    picked = tuple(token.id for token in written.tokens) if written else ()
    end = (min(tokenizer.eos_ids),) if turn.ended and tokenizer.eos_ids else ()
    return (*tree.token_ids(turn.parent)[: turn.kept], *turn.typed_ids, *picked, *end)
