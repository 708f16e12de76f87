"""Collect what a page shows of a session: the tokens of its story, and what model and decoder had in mind at each.

It knows trees, models and decoders, but no HTML. A token that was written by another model than the given one, or by a
search, has no funnel; without a model no token has alternatives.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from tinystory.decoding import Request, Step
from tinystory.decoding.plugins import Registry
from tinystory.decoding.spec import parse_spec, spec_as_shown
from tinystory.errors import UsageError
from tinystory.page.network import TokenInside, insides
from tinystory.session.loading import LoadedModel
from tinystory.story import tracing
from tinystory.story.lookback import decoder_of, request_of, written_ids
from tinystory.story.tree import PathToken, StoryTree, Turn
from tinystory.text.sentences import whole_sentences
from tinystory.text.tokenizer import Detokenizer, Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PageStory", "PageToken", "columns_of", "mark_partings", "page_story"]

_N_ALTERNATIVES = 8
_MOST_COLUMNS = 8


@dataclass
class PageToken:
    """A token of the page. What is not known is None or empty.

    Attributes:
        text: the text that it adds.
        turn: the number of the turn that added it.
        typed: True if a person typed it.
        bits: its surprise under the model, in bits.
        rank: its place in the model's distribution, from 1.
        entropy: of that distribution, in bits.
        alternatives: the likeliest tokens of the model, as (text, probability).
        funnel: for each stage (stage, number of tokens left, their share in the model, from 0 to 1).
        chance: the probability with which the decoder picked it.
        luck: the noise of this token and of the decoder's likeliest one, if the noise made the choice.
        forbidden: the stage of the decoder of `--whatif` that removes it.
        inside: what was inside the model.
    """

    text: str
    turn: int
    typed: bool
    bits: float | None = None
    rank: int | None = None
    entropy: float | None = None
    alternatives: list[tuple[str, float]] = field(default_factory=list)
    funnel: list[tuple[str, int, float]] = field(default_factory=list)
    chance: float | None = None
    luck: tuple[float, float] | None = None
    forbidden: str = ""
    inside: TokenInside = field(default_factory=TokenInside)


@dataclass
class PageStory:
    """A story of the page.

    Attributes:
        turn: the number of its last turn.
        tokens: its tokens; BOS is left out.
        specs: the decoder of each turn that a model has written, by number.
        notes: what the page does not know of this story, one line each.
        parts_at: the index of the first token that differs from the first story of the page; None if none does.
        shape: the numbers of layers and of heads in a layer; 0 if they are not known.
    """

    turn: Turn
    tokens: list[PageToken]
    specs: dict[int, str]
    notes: list[str] = field(default_factory=list)
    parts_at: int | None = None
    shape: tuple[int, int] = (0, 0)


def columns_of(tree: StoryTree) -> list[Turn]:
    """Return the turn on the desk, and beside it the branches of the same text and noise, as /compare makes them.

    Raises:
        UsageError: the page is blank.
    """
    desk = tree.turn
    if desk is None:
        raise UsageError("there is no story on the desk; a page shows the story that was there last")
    if desk.written is None:
        return [desk]
    same = [
        turn
        for turn in tree.children(desk.parent)
        if turn.written is not None
        and (turn.kept, turn.typed, turn.written.seed, turn.written.number)
        == (desk.kept, desk.typed, desk.written.seed, desk.written.number)
    ]
    return [desk, *(turn for turn in same if turn is not desk)][:_MOST_COLUMNS]


def page_story(
    tree: StoryTree,
    turn: Turn,
    tokenizer: Tokenizer | None,
    model: LoadedModel | None,
    registry: Registry,
    whatif: str | None = None,
) -> PageStory:
    """Collect what is known of a story.

    Args:
        tree: the tree of the session.
        turn: the last turn of the story.
        tokenizer: gives the texts of the story's tokens, also without the model; None if it has another vocabulary.
        model: the model to compute with; None if it cannot be had.
        registry: the decoder stages.
        whatif: a spec; the tokens that it could not pick are marked.

    Raises:
        UsageError: the spec of `whatif` is wrong, or is a search.
    """
    path = tree.path(turn.id)
    lineage = tree.lineage(turn.id)
    specs = {one.id: spec_as_shown(one.written.spec, registry) for one in lineage if one.written is not None}
    last = tree.last_written(turn.id)
    if model is None or tokenizer is None or (last is not None and model.hash != last.model_hash):
        story = PageStory(turn, _bare_tokens(tree, turn, path, tokenizer), specs)
        story.notes.append("The model that wrote this story is not here, so the page has no alternatives.")
        return story
    ids = [token.id for token in path]
    n_bos = model.tokenizer.n_before_text(ids)
    story = PageStory(turn, _with_texts(path, model.tokenizer), specs)
    _add_alternatives(story.tokens, ids, model)
    for one in lineage:
        _add_funnel(story, tree, one, path, model, registry)
    if whatif is not None:
        _add_verdict(story.tokens, tree, turn, ids, model, parse_spec(whatif, registry))
    _add_inside(story, ids, model, n_bos)
    del story.tokens[:n_bos]
    return story


def _bare_tokens(
    tree: StoryTree, turn: Turn, path: Sequence[PathToken], tokenizer: Tokenizer | None
) -> list[PageToken]:
    """Return the tokens as the session has recorded them; without their vocabulary, the text of each turn is one."""
    if tokenizer is not None:
        tokens = _with_texts(path, tokenizer)
        return tokens[tokenizer.n_before_text([token.id for token in path]) :]
    tokens, length = [], 0
    for one in tree.lineage(turn.id):
        while length > one.shared:  # an edit has cut the story
            last = tokens.pop()
            length -= len(last.text)
            if length < one.shared:
                tokens.append(PageToken(last.text[: one.shared - length], last.turn, last.typed))
                length = one.shared
        tokens.append(PageToken(one.own, one.id, typed=one.written is None))
        length += len(one.own)
    return tokens


def _with_texts(path: Sequence[PathToken], tokenizer: Tokenizer) -> list[PageToken]:
    detokenizer = Detokenizer(tokenizer)
    tokens = []
    for token in path:
        one = PageToken(detokenizer.add(token.id), token.turn, typed=token.token is None)
        if token.token is not None:
            one.bits = -token.token.logprob / math.log(2)
            one.rank = token.token.rank + 1 if token.token.rank >= 0 else None
            one.entropy = None if math.isnan(token.token.entropy) else token.token.entropy
        tokens.append(one)
    if tokens:
        tokens[-1].text += detokenizer.finish()
    return tokens


def _add_alternatives(tokens: list[PageToken], ids: Sequence[int], model: LoadedModel) -> None:
    if len(ids) < 2:
        return
    window = partial(whole_sentences, model.tokenizer)
    logits = tracing.story_logits(model.session, ids, window, 1)
    log_probs = logits.log_softmax(dim=-1)
    best = log_probs.topk(min(_N_ALTERNATIVES, log_probs.shape[-1]))
    for row, token in enumerate(tokens[1:]):
        named = zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True)
        token.alternatives = [(model.tokenizer.token_text(i), math.exp(logprob)) for i, logprob in named]
        if token.bits is None:  # typed
            token.bits = -float(log_probs[row, ids[row + 1]]) / math.log(2)
            token.rank = int((logits[row] > logits[row, ids[row + 1]]).sum()) + 1


def _add_funnel(
    story: PageStory, tree: StoryTree, turn: Turn, path: Sequence[PathToken], model: LoadedModel, registry: Registry
) -> None:
    """Add the funnel of each token that a chain of this turn picked."""
    places = [index for index, token in enumerate(path) if token.turn == turn.id and token.token is not None]
    if turn.written is None or not places or turn.written.model_hash != model.hash:
        return
    try:
        decoder = decoder_of(turn.written, registry, model.tokenizer)
    except UsageError as error:
        story.notes.append(f"Turn {turn.id}: {error}")
        return
    if decoder.search is not None:
        story.notes.append(f"Turn {turn.id} was written by a search, {decoder.search.name}, which has no funnel.")
        return
    request = request_of(tree, turn.id, model.tokenizer, model.session.open)
    ids = written_ids(tree, turn.id, model.tokenizer)
    logits = tracing.story_logits(model.session, ids, request.window, len(request.prompt_ids))
    picks = tracing.retrace(decoder, request, ids, logits, eos_ids=model.tokenizer.eos_ids)
    state = decoder.sampler.start(request) if decoder.sampler else None
    for index, pick in zip(places, picks, strict=False):
        token = story.tokens[index]
        token.funnel = [(effect.stage, effect.left, effect.mass) for effect in tracing.funnel(decoder, pick)]
        if decoder.sampler is not None:
            step = Step(request, ids[: pick.position], frozenset(), state)
            _add_luck(token, decoder.sampler.log_probs(pick.received[-1], step), step, pick.token_id)
            state = decoder.sampler.observe(state, pick.token_id, pick.received[-1])


def _add_luck(token: PageToken, log_probs: "Tensor | None", step: Step, token_id: int) -> None:
    """Add the chance of a pick; and its noise, if the pick is the largest sum of log-probability and noise."""
    import numpy as np

    if log_probs is None:
        return
    scores = log_probs.numpy(force=True).astype(np.float64)
    token.chance = float(np.exp(scores[token_id]))
    noise = step.noise().gumbel_of_all(len(scores))
    if token.chance < 1 and int((scores + noise).argmax()) == token_id:
        token.luck = float(noise[token_id]), float(noise[int(scores.argmax())])


def _add_verdict(
    tokens: list[PageToken], tree: StoryTree, turn: Turn, ids: Sequence[int], model: LoadedModel, decoder: Any
) -> None:
    n_prompt = tree.n_prompt(turn.id)
    if n_prompt >= len(ids):
        return
    window = partial(whole_sentences, model.tokenizer)
    request = Request(
        tuple(ids[:n_prompt]),
        len(ids) - n_prompt,
        0,
        window=window,
        vocabulary=model.tokenizer,
        opener=model.session.open,
    )
    logits = tracing.story_logits(model.session, ids, window, n_prompt)
    verdict = tracing.whatif(decoder, request, ids, logits, eos_ids=model.tokenizer.eos_ids)
    for position, stage in verdict.forbidden:
        if position < len(tokens):
            tokens[position].forbidden = stage


def _add_inside(story: PageStory, ids: Sequence[int], model: LoadedModel, n_bos: int) -> None:
    """Add what was inside the model at each token but the first."""
    found, story.shape, note = insides(ids, model, n_bos)
    for token, inside in zip(story.tokens[1:], found, strict=False):
        token.inside = inside
    if note:
        story.notes.append(note)


def mark_partings(stories: Sequence[PageStory]) -> None:
    """Set where each story parts from the first one."""
    first = stories[0]
    for story in stories[1:]:
        story.parts_at = next(_differences(first.tokens, story.tokens), None)
        if first.parts_at is None or (story.parts_at is not None and story.parts_at < first.parts_at):
            first.parts_at = story.parts_at


def _differences(a: Sequence[PageToken], b: Sequence[PageToken]) -> Iterator[int]:
    yield from (index for index, (one, other) in enumerate(zip(a, b, strict=False)) if one.text != other.text)
    if len(a) != len(b):
        yield min(len(a), len(b))
