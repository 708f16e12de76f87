"""What the studio's own commands cost: eight decoders at once beside one alone, and a look back beside writing."""

from functools import partial
from typing import TYPE_CHECKING

from bench.pairs import Measurement, Subject, run_pairs, timed
from bench.variants import PROMPT, labelled, open_ours, variants_of

if TYPE_CHECKING:
    from tinystory.decoding import Decoder
    from tinystory.session.loading import LoadedModel

__all__ = ["measure_studio"]

SEED = 7
SPECS = (
    "sample 0.8", "top-k 40 | sample 0.8", "top-p 0.9 | sample", "min-p 0.1 | sample", "temperature 0.7 | sample",
    "top-k 5 | sample", "sample 1.2", "top-k 40 | top-p 0.95 | sample",
)  # fmt: skip


def measure_studio(subject: Subject) -> list[Measurement]:
    """The first side is the command, the second the first decoder writing one story; no story ends by itself."""
    return [measurement for variant in variants_of(subject) for measurement in beside_one_story(subject, variant)]


def beside_one_story(subject: Subject, variant: str) -> list[Measurement]:
    """The commands of one variant."""
    from tinystory.decoding.plugins import discover
    from tinystory.decoding.spec import parse_spec

    args = subject.args
    loaded = open_ours(subject, variant)
    decoders = [parse_spec(spec, discover()) for spec in SPECS]
    one = partial(written, loaded, decoders[:1], args.tokens)
    story = one()
    commands = {
        "/compare of 8 (left) and one story (right)": partial(written, loaded, decoders, args.tokens),
        "/whatif (left) and writing the story (right)": partial(looked_back, loaded, decoders[-1], story),
    }
    found: list[Measurement] = []
    for name, command in commands.items():
        command()
        what = labelled(name, variant)
        measurements = [
            Measurement("studio", what, "CPU s", lambda run: run.cpu, peer="one story"),
            Measurement("studio", what, "s", lambda run: run.wall, peer="one story"),
        ]
        run_pairs(what, args.pairs, measurements, partial(timed, command), partial(timed, one))
        found += measurements
    return found


def written(loaded: "LoadedModel", decoders: "list[Decoder]", n_tokens: int) -> list[int]:
    """A story by each decoder, in one batch, from an empty cache; their token ids, one after the other."""
    from tinystory.writing.generate import Ended, StoryRequest, write

    requests = [StoryRequest(PROMPT, decoder, seed=SEED, max_new_tokens=n_tokens) for decoder in decoders]
    events = write(loaded.session.open(), loaded.tokenizer, requests)
    return [i for event in events if isinstance(event, Ended) for i in event.result.token_ids]


def looked_back(loaded: "LoadedModel", decoder: "Decoder", token_ids: list[int]) -> list[int]:
    """What a decoder would have forbidden of a story, its logits computed anew; the places."""
    from tinystory.decoding import Request
    from tinystory.story.tracing import story_logits, whatif
    from tinystory.text.sentences import whole_sentences

    prompt_ids = tuple(loaded.tokenizer.encode(PROMPT))
    ids = (*prompt_ids, *token_ids)
    logits = story_logits(loaded.session, ids, partial(whole_sentences, loaded.tokenizer), len(prompt_ids))
    verdict = whatif(decoder, Request(prompt_ids, len(token_ids), SEED), ids, logits)
    return [position for position, _ in verdict.forbidden]
