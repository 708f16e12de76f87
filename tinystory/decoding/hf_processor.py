"""Our processors inside `generate` of transformers: `model.generate(logits_processor=[as_logits_processor("dry")])`.

It is the other half of the stage `hf`. transformers is imported with this module, so nothing else here imports it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers.generation.logits_process import LogitsProcessor as HFLogitsProcessor

from tinystory.decoding.plugins import discover
from tinystory.decoding.request import common_prefix
from tinystory.decoding.spec import parse_spec
from tinystory.decoding.stages import Chain, ChainState, Decoder, LogitsProcessor, Request, Step
from tinystory.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["as_logits_processor"]


def as_logits_processor(
    decoder: str | Decoder | LogitsProcessor,
    *,
    seed: int = 0,
    eos_ids: frozenset[int] = frozenset(),
    pad_id: int | None = None,
    **request: Any,
) -> HFLogitsProcessor:
    """A logits processor for `generate` out of processors of ours; a new one for every kind of story.

    A row of the batch is a story, with its row as its number among siblings (it enters the noise, where a stage has
    any). Rows may change places, as in a beam search: a story is known again by its ids.

    >>> processor = as_logits_processor("top-k 40 | min-p 0.05")

    Args:
        decoder: a spec of processors only, since `generate` picks the tokens; or a decoder, or one stage.
        seed: of the coupled noise.
        eos_ids: the tokens that end a story, for stages that ask.
        pad_id: the token that fills shorter prompts from the left; it is kept from the stages.
        request: more fields of `Request` for stages that need them: vocabulary, opener, max_new_tokens.

    Raises:
        UsageError: the spec is wrong, or has a sampler other than plain `sample`, or a search.
    """
    if isinstance(decoder, str):
        decoder = parse_spec(decoder, discover())
    elif isinstance(decoder, LogitsProcessor):
        decoder = Decoder((decoder,))
    picks = decoder.search or decoder.sampler
    if picks and not (picks.name == "sample" and picks == type(picks)()):
        raise UsageError(f"{picks.name} picks tokens, and inside `generate` transformers does: leave it out")
    fields = {"max_new_tokens": 2**31, **request, "seed": seed}
    return _Bridge(Chain(decoder.chain.processors, None), fields, eos_ids, pad_id)


class _Story(NamedTuple):
    """A row as it was at the last call.

    Attributes:
        token_ids: without what fills it from the left.
        n_prompt: how many of them were there at the first call.
        state: before the token that these logits were for.
        received: what each stage got.
    """

    token_ids: list[int]
    n_prompt: int
    state: ChainState
    received: "Sequence[Tensor]"


class _Bridge(HFLogitsProcessor):
    def __init__(self, chain: Chain, fields: dict[str, Any], eos_ids: frozenset[int], pad_id: int | None) -> None:
        self._chain, self._fields, self._eos_ids, self._pad_id = chain, fields, eos_ids, pad_id
        self._stories: list[_Story] = []

    def __call__(self, input_ids: "Tensor", scores: "Tensor") -> "Tensor":
        """(B, T) ids and (B, V) scores -> (B, V) scores."""
        import torch

        before, self._stories = self._stories, []
        rows = []
        for number, (ids, logits) in enumerate(zip(input_ids.tolist(), scores.float(), strict=True)):
            token_ids = self._without_padding(ids)
            n_prompt, state = self._state(token_ids, number, before)
            request = self._request(token_ids, n_prompt, number)
            processed, received = self._chain.process(logits, Step(request, token_ids, self._eos_ids), state)
            self._stories.append(_Story(token_ids, n_prompt, state, received))
            rows.append(processed)
        return torch.stack(rows).to(scores)

    def _without_padding(self, ids: list[int]) -> list[int]:
        n = next((n for n, token_id in enumerate(ids[:-1]) if token_id != self._pad_id), len(ids) - 1)
        return ids[n:]

    def _state(self, token_ids: list[int], number: int, before: list[_Story]) -> tuple[int, ChainState]:
        """The prompt's length and the state of a row: one token on from a row of the last call, else from the start."""
        for story in before[number : number + 1] + before:
            if story.token_ids == token_ids[:-1]:
                return story.n_prompt, self._chain.observe(story.state, token_ids[-1], story.received)
        n_prompt = len(token_ids)
        for story in before[number : number + 1]:
            if common_prefix(story.token_ids, token_ids) >= story.n_prompt:
                n_prompt = story.n_prompt
        return n_prompt, self._chain.start(self._request(token_ids, n_prompt, number))

    def _request(self, token_ids: list[int], n_prompt: int, number: int) -> Request:
        return Request(tuple(token_ids), n_prompt=n_prompt, story=number, **self._fields)
