"""A piece of the tree as the engine was asked for it: request, decoder and tokens, from what its node has recorded."""

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
    """What the model was asked for when it wrote a node; the prompt is the story up to its first token.

    Args:
        tree: that has the node.
        number: of a node that the model has written.
        tokenizer: the one it was written with.
        opener: for stages that look at a second model, as in `Request`.

    Raises:
        ValueError: the node was not written by a model.
    """
    node = tree.nodes[number]
    if node.written is None:
        raise ValueError(f"node {number} was typed")
    return Request(
        (*tree.token_ids(node.parent)[: node.kept], *node.typed_ids),
        node.written.max_new_tokens,
        node.written.seed,
        tree.n_prompt(number),
        node.written.number,
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
    """The prompt of a node and every token picked after it, hidden ones too; an EOS id where the model ended it."""
    node = tree.nodes[number]
    written = node.written
    picked = tuple(token.id for token in written.tokens) if written else ()
    end = (min(tokenizer.eos_ids),) if node.ended and tokenizer.eos_ids else ()
    return (*tree.token_ids(node.parent)[: node.kept], *node.typed_ids, *picked, *end)
