"""The part `studio`: the time of slash commands, compared with writing one story.

The commands are `/compare` with eight decoders, and `/whatif`.
"""

from functools import partial
from typing import TYPE_CHECKING

from bench.ours import PROMPT, SEED, decoders_of, labelled, open_ours, variants_of, written
from bench.pairs import Measurement, run_pairs, timed, times
from bench.subject import Subject

if TYPE_CHECKING:
    from tinystory.decoding import Decoder
    from tinystory.session.loading import LoadedModel

__all__ = ["measure_studio"]

SPECS = (
    "sample 0.8", "top-k 40 | sample 0.8", "top-p 0.9 | sample", "min-p 0.1 | sample", "temperature 0.7 | sample",
    "top-k 5 | sample", "sample 1.2", "top-k 40 | top-p 0.95 | sample",
)  # fmt: skip


def measure_studio(subject: Subject) -> list[Measurement]:
    """Measure the commands in every variant. The other side is the first decoder, which writes one story."""
    return [measurement for variant in variants_of(subject) for measurement in _beside_one_story(subject, variant)]


def _beside_one_story(subject: Subject, variant: str) -> list[Measurement]:
    settings = subject.settings
    loaded, decoders = open_ours(subject, variant), decoders_of(SPECS)
    one_story = partial(_stories, loaded, decoders[:1], settings.tokens)
    commands = {
        "/compare of 8 (left) and one story (right)": partial(_stories, loaded, decoders, settings.tokens),
        "/whatif (left) and writing the story (right)": partial(_look_back, loaded, decoders[-1], one_story()),
    }
    measurements: list[Measurement] = []
    for name, command in commands.items():
        command()
        what = labelled(name, variant)
        measured = times("studio", what, "one story")
        run_pairs(what, settings.pairs, measured, partial(timed, command), partial(timed, one_story))
        measurements += measured
    return measurements


def _stories(loaded: "LoadedModel", decoders: "list[Decoder]", n_tokens: int) -> list[int]:
    """Write a story with each decoder in one batch, and return the token ids of all, joined."""
    return [token_id for _, ids in written(loaded, decoders, n_tokens) for token_id in ids]


def _look_back(loaded: "LoadedModel", decoder: "Decoder", token_ids: list[int]) -> list[int]:
    """Compute the logits of a story again. Return the positions of the tokens that a decoder would have forbidden."""
    from tinystory.decoding import Request
    from tinystory.story.tracing import story_logits, whatif
    from tinystory.text.sentences import whole_sentences

    prompt_ids = tuple(loaded.tokenizer.encode(PROMPT))
    ids = (*prompt_ids, *token_ids)
    logits = story_logits(loaded.session, ids, partial(whole_sentences, loaded.tokenizer), len(prompt_ids))
    verdict = whatif(decoder, Request(prompt_ids, len(token_ids), SEED), ids, logits)
    return [position for position, _ in verdict.forbidden]
