"""Word bias, as `sequence_bias` in Hugging Face transformers and `logit_bias` in OpenAI's API.

The logit of a token that writes a word, or writes the end of one, gets a number added. Two nats make it about seven
times as likely against the others, minus two as much rarer; nothing is forced. Where a word is several tokens, its
beginning is as likely as ever.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tinystory.decoding import LogitsProcessor, Request, Step, option
from tinystory.text.words import check_words

if TYPE_CHECKING:
    from torch import Tensor

_MOST = 1e30


class _Compiled(NamedTuple):
    """The words in tokens: for each what has to stand before, the token that completes it, the bias."""

    entries: tuple[tuple[tuple[int, ...], int, float], ...]


@dataclass(frozen=True)
class Bias(LogitsProcessor):
    """Make words likelier or less likely, by nats.

    A word is taken as it is written, capitals included, once at the start of a text and once after a space. Where that
    is a single token its logit always gets the bias, inside of longer words too; of several tokens the last one gets
    it, where the others stand before it. A word that the vocabulary cannot spell does nothing.
    """

    name = "bias"
    example = 'bias dragon=3 "birthday cake"=-2'
    words: Mapping[str, float] = option(neutral={}, help="pairs word=nats: 2 makes a word 7 times as likely, -2 rare")

    def __post_init__(self) -> None:
        """Check the options; raises UsageError."""
        super().__post_init__()
        check_words(tuple(self.words), self.name)

    def start(self, request: Request) -> _Compiled:
        """Spell the words."""
        vocabulary = request.require_vocabulary()
        biases: dict[tuple[int, ...], float] = {}
        for word, bias in self.words.items():
            for text in (word.strip(), " " + word.strip()):
                ids = vocabulary.encode(text, bos=False)
                if vocabulary.detokenize(ids).strip() == word.strip():
                    biases[tuple(ids)] = bias
        return _Compiled(tuple((ids[:-1], ids[-1], bias) for ids, bias in biases.items()))

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """(V,) logits -> the same with a bias for each token that completes a word."""
        import torch

        due = [
            (token_id, bias)
            for before, token_id, bias in step.state.entries
            if not before or tuple(step.token_ids[-len(before) :]) == before
        ]
        if not due:
            return logits
        token_ids, biases = zip(*due, strict=True)
        # More than this decides already; the bound keeps the sum finite in float32.
        added = torch.tensor([min(max(bias, -_MOST), _MOST) for bias in biases], device=logits.device)
        return logits.index_add(0, torch.tensor(token_ids, device=logits.device), added.to(logits.dtype))
