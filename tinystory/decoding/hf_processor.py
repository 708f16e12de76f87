"""Our processors inside `generate` of transformers: `model.generate(logits_processor=[as_logits_processor("dry")])`.

The stage `hf` does the opposite: it runs a processor of transformers in our decoders. transformers is imported by
the first call, because that takes seconds.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tinystory.decoding.plugins import discover
from tinystory.decoding.request import Request, Step, common_prefix
from tinystory.decoding.spec import parse_spec
from tinystory.decoding.stages import Chain, ChainState, Decoder, LogitsProcessor
from tinystory.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers.generation.logits_process import LogitsProcessor as HFLogitsProcessor

__all__ = ["as_logits_processor"]


def as_logits_processor(
    decoder: str | Decoder | LogitsProcessor,
    *,
    seed: int = 0,
    eos_ids: frozenset[int] = frozenset(),
    pad_id: int | None = None,
    **request: Any,
) -> "HFLogitsProcessor":
    """Return our processors as one logits processor for `generate`. Make a new one for each call of `generate`.

    Each row of the batch is one story, and the index of the row is the number of its branch, which enters the noise.
    Rows may change places, as in a beam search: a story is recognized by its ids.

    Examples:
        >>> processor = as_logits_processor("top-k 40 | min-p 0.05")

    Args:
        decoder: a spec that has only processors, because `generate` picks the tokens; or a decoder; or one stage.
        seed: the seed of the coupled noise.
        eos_ids: the tokens that end a story, for stages that ask for them.
        pad_id: the token that fills shorter prompts from the left. Stages do not see it.
        request: more fields of `Request` for stages that need them: vocabulary, opener, max_new_tokens.

    Raises:
        UsageError: the spec is wrong, or it has a search or a sampler other than plain `sample`.
    """
    from transformers.generation.logits_process import LogitsProcessor as HFLogitsProcessor

    class Processor(_Rows, HFLogitsProcessor):
        """The same rows, in the class that transformers asks for."""

    if isinstance(decoder, str):
        decoder = parse_spec(decoder, discover())
    elif isinstance(decoder, LogitsProcessor):
        decoder = Decoder((decoder,))
    picker = decoder.search or decoder.sampler
    if picker and not (picker.name == "sample" and picker == type(picker)()):
        raise UsageError(
            f"{picker.name} picks tokens, but inside `generate` transformers does: remove it from the spec"
        )
    fields = {"max_new_tokens": 2**31, **request, "seed": seed}
    return Processor(Chain(decoder.chain.processors, None), fields, eos_ids, pad_id)


class _Story(NamedTuple):
    """One row as it was at the last call.

    Attributes:
        token_ids: its ids, without the padding on the left.
        n_prompt: the number of its ids at the first call.
        state: the state of the chain before the token that these logits were for.
        received: the logits that each stage received.
    """

    token_ids: list[int]
    n_prompt: int
    state: ChainState
    received: "Sequence[Tensor]"


class _Rows:
    """The stories of a batch. Each call processes the logits of all rows and remembers the rows for the next call."""

    def __init__(self, chain: Chain, fields: dict[str, Any], eos_ids: frozenset[int], pad_id: int | None) -> None:
        self._chain, self._fields, self._eos_ids, self._pad_id = chain, fields, eos_ids, pad_id
        self._stories: list[_Story] = []

    def __call__(self, input_ids: "Tensor", scores: "Tensor") -> "Tensor":
        """Return the processed (B, V) scores for (B, T) ids and (B, V) scores."""
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
        n_padding = next((n for n, token_id in enumerate(ids[:-1]) if token_id != self._pad_id), len(ids) - 1)
        return ids[n_padding:]

    def _state(self, token_ids: list[int], number: int, before: list[_Story]) -> tuple[int, ChainState]:
        """Return the prompt's length and the chain's state for a row.

        If the row is one token longer than a row of the last call, it continues that row. Otherwise its state starts
        at the beginning.
        """
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
