"""Word bias, as `sequence_bias` in Hugging Face transformers and `logit_bias` in OpenAI's API.

A number is added to the logit of a token that writes a word or completes it. Two nats make the token about seven times
as likely compared with the others; minus two nats make it seven times rarer. Nothing is forced. If a word has several
tokens, its first tokens are as likely as before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tinystory.decoding import LogitsProcessor, Request, Step, option
from tinystory.words import check_words

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_BIAS = 1e7


class _Spellings(NamedTuple):
    """The words in tokens. An entry has the tokens before the last one, the last token, and the bias in nats."""

    entries: tuple[tuple[tuple[int, ...], int, float], ...]


@dataclass(frozen=True)
class Bias(LogitsProcessor):
    """Make the tokens of some words likelier or less likely, by a number of nats for each word.

    A word is used as it is written, with its capitals, once at the start of a text and once after a space. If it is a
    single token, the logit of this token always gets the bias, also inside longer words. If it has several tokens, the
    last one gets the bias when the others stand before it. A word that the vocabulary cannot spell has no effect.
    """

    name = "bias"
    example = 'bias dragon=5 "big book"=-3'
    words: Mapping[str, float] = option(
        neutral={}, help="pairs word=nats: 2 makes a word about 7 times as likely, -2 about 7 times rarer"
    )

    def __post_init__(self) -> None:
        """Check the options. Raise UsageError if one is wrong."""
        super().__post_init__()
        check_words(tuple(self.words), self.name)

    def start(self, request: Request) -> _Spellings:
        """Return the words in tokens."""
        vocabulary = request.require_vocabulary()
        biases: dict[tuple[int, ...], float] = {}
        for word, bias in self.words.items():
            for text in (word.strip(), " " + word.strip()):
                ids = vocabulary.encode(text, bos=False)
                if vocabulary.detokenize(ids).strip() == word.strip():
                    biases[tuple(ids)] = bias
        return _Spellings(tuple((ids[:-1], ids[-1], bias) for ids, bias in biases.items()))

    def __call__(self, logits: "Tensor", step: Step) -> "Tensor":
        """Add the bias to the (V,) logits of all tokens that complete a word."""
        import torch

        completing = [
            (token_id, bias)
            for before, token_id, bias in step.state.entries
            if not before or tuple(step.token_ids[-len(before) :]) == before
        ]
        if not completing:
            return logits
        token_ids, biases = zip(*completing, strict=True)
        # A larger bias has no other effect, and the bound keeps the sum finite in float32, also after a temperature.
        added = [min(max(bias, -_LARGEST_BIAS), _LARGEST_BIAS) for bias in biases]
        nats = torch.tensor(added, device=logits.device).to(logits.dtype)
        return logits.index_add(0, torch.tensor(token_ids, device=logits.device), nats)
