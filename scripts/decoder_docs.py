"""Write docs/decoders.md from the decoders themselves: `python scripts/decoder_docs.py [--measure]`.

Names, options and methods come from the classes. Samples and figures come from the shipped model. `--measure` makes
them again and saves them in docs/decoders.json, from which the page is then written without a model.
"""

import argparse
import dataclasses
import inspect
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinystory.decoding import Decoder, Request, Stage, latest_half
from tinystory.decoding.options import Option, options_of
from tinystory.decoding.plugins import Registry, discover
from tinystory.decoding.spec import example_decoder, format_spec, format_value, parse_spec
from tinystory.errors import TinystoryError

if TYPE_CHECKING:
    from tinystory.session.loading import LoadedModel

ROOT = Path(__file__).resolve().parent.parent
PAGE, DATA = ROOT / "docs" / "decoders.md", ROOT / "docs" / "decoders.json"
FRAME = ROOT / "scripts" / "decoder_docs.md"
EXAMPLE = ROOT / "examples" / "one_file_decoder.py"

PROMPT, SEED, SAMPLE_TOKENS = "Once upon a time", 1131, 60
N_STORIES, STORY_TOKENS, N_REAL, REAL_TOKENS = 12, 100, 20, 100
KINDS = {"processor": "Processors", "sampler": "Samplers", "search": "Searches"}


def main() -> None:
    """Parse the command line, measure if --measure is given, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", action="store_true", help="first write samples and measure with the shipped model")
    parser.add_argument("--stories", metavar="FILE", help="real stories, in which --measure counts tokens")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="measure only these decoders, and keep the other figures"
    )
    args = parser.parse_args()
    if args.measure and not args.stories:
        parser.error("--measure needs --stories FILE with real stories")
    registry = built_in()
    if args.measure:
        old_data = json.loads(DATA.read_text(encoding="utf-8")) if args.only else {}
        data = measured(registry, args.stories, args.only, old_data)
        DATA.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(registry, json.loads(DATA.read_text(encoding="utf-8"))), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")


def built_in() -> Registry:
    """Return the decoders of this repository, without plug-ins."""
    everything, registry = discover(user_folder=None), Registry()
    for _, cls, source in everything.classes():
        if source == "tinystory":
            registry.add(cls, source)
    return registry


# --- the page ---


def page(registry: Registry, data: Mapping[str, Any]) -> str:
    """Return the page in Markdown."""
    classes = [cls for _, cls, _ in registry.classes()]
    contents, parts = [], []
    for kind, heading in KINDS.items():
        of_kind = [cls for cls in classes if cls.kind == kind]
        if of_kind:
            names = ", ".join(f"[{cls.name}](#{cls.name})" for cls in of_kind)
            contents.append(f"- [{heading}](#{heading.lower()}): {names}")
            parts += [f"## {heading}", *(_decoder(cls, data["decoders"].get(cls.name)) for cls in of_kind)]
    text = FRAME.read_text(encoding="utf-8")
    filled = {
        "contents": "\n".join(contents),
        "example": EXAMPLE.read_text(encoding="utf-8").rstrip(),
        "decoders": "\n\n".join(parts),
        **{name: data[name] for name in ("stories", "story_tokens", "real_stories")},
        "real_bits": f"{data['real_bits']:.2f}",
    }
    for name, value in filled.items():
        text = text.replace(f"<!-- {name} -->", str(value))
    return text


def method(cls: type[Stage]) -> tuple[str, str]:
    """Return the two parts of a decoder's module docstring: name and source (the first paragraph), and the method."""
    doc = inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")
    title, _, rest = doc.partition("\n\n")
    return title.replace("\n", " "), rest


def _decoder(cls: type[Stage], measurements: Mapping[str, Any] | None) -> str:
    title, rest = method(cls)
    summary = (inspect.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")
    figures = _figures_text(measurements) if measurements else ["Not measured yet."]
    parts = [f"### {cls.name}", summary, title, rest, _options(options_of(cls)), *figures]
    return "\n\n".join(filter(None, parts))


def _options(options: Sequence[Option]) -> str:
    if not options:
        return "It has no options."
    lines = ["| option | range | default | off at | meaning |", "|---|---|---|---|---|"]
    for o in options:
        default = "must be written" if o.required else _code(o.default)
        neutral = "–" if o.neutral is dataclasses.MISSING else _code(o.neutral)
        meaning = o.help.replace("|", "\\|")
        lines.append(f"| `{o.name}` | {o.range} | {default} | {neutral} | {meaning} |")
    return "\n".join(lines)


def _code(value: Any) -> str:
    text = " ".join(f"{key}={number:g}" for key, number in value.items()) if isinstance(value, Mapping) else None
    return f"`{format_value(value) if text is None else text or 'none'}`"


def _figures_text(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield the sample and the figures."""
    command = f"tinystory generate {json.dumps(PROMPT)} -d {shlex.quote(entry['spec'])} -s {SEED} -n {SAMPLE_TOKENS}"
    if entry["story"] is None:
        yield f"No sample: {entry['why']}."
        return
    yield f"```\n$ {command}\n{entry['story'].strip()}\n```"
    figures = [
        (entry["speed"], "{:.2f} times the tokens per CPU second of plain `sample`"),
        (entry["bits_per_token"], "{:.2f} bits per token under the model's own distribution"),
        (entry["tokens_left"], "{:.0f} of " + f"{entry['vocab_size']:,} tokens left on average"),
        (entry["forbidden"], "{:.1%} of the tokens of real stories made impossible"),
    ]
    yield "Measured: " + "; ".join(text.format(value) for value, text in figures if value is not None) + "."


# --- the measurements ---


def measured(
    registry: Registry, stories: str, only: Sequence[str] | None, old_data: Mapping[str, Any]
) -> dict[str, Any]:
    """Return samples and figures of every decoder, as the JSON file has them."""
    from tinystory.data.sources import read_stories
    from tinystory.session.loading import load

    model = load()
    real = [_real(model, text) for text in islice(read_stories(stories), N_REAL)]
    plain = parse_spec("sample", registry)
    decoders: dict[str, Any] = dict(old_data.get("decoders", {}))
    for name, cls, _ in registry.classes():
        if not only or name in only:
            decoders[name] = _figures(model, example_decoder(cls, registry), plain, real)
            sys.stderr.write(f"{name}: {decoders[name]['speed']}\n")
    surprises = [-logits.log_softmax(-1)[range(len(logits)), ids[1:]].mean().item() for ids, logits in real]
    return {
        "model_hash": model.hash,
        "stories": N_STORIES,
        "story_tokens": STORY_TOKENS,
        "real_stories": len(real),
        "real_bits": statistics.mean(surprises) / math.log(2),
        "decoders": {name: decoders[name] for name in registry.names() if name in decoders},
    }


def _real(model: "LoadedModel", text: str) -> Any:
    """Return the ids of a real story, with its end if it fits, and the model's logits for all except the first."""
    from tinystory.story.walk import story_logits

    ids = [*model.tokenizer.encode(text), min(model.tokenizer.eos_ids)][:REAL_TOKENS]
    return ids, story_logits(model.session, ids, latest_half)


def _figures(model: "LoadedModel", decoder: Decoder, plain: Decoder, real: Sequence[Any]) -> dict[str, Any]:
    vocab_size = model.session.vocab_size
    about: dict[str, Any] = {"spec": format_spec(decoder), "vocab_size": vocab_size, "story": None, "why": None}
    left, forbidden = _along(decoder, real, model) if decoder.search is None else (None, None)
    try:
        about["story"] = _write(model, decoder, SEED, SAMPLE_TOKENS)[0]
        # The two write in turn, and each is first equally often, so that a busy machine slows down both alike.
        pairs = []
        for seed in range(N_STORIES):
            both = (decoder, plain) if seed % 2 else (plain, decoder)
            pair = [_write(model, writer, seed, STORY_TOKENS) for writer in both]
            pairs.append(pair if seed % 2 else pair[::-1])
    except TinystoryError as error:
        about["why"] = str(error)
        return about | _rounded(speed=None, bits_per_token=None, tokens_left=left, forbidden=forbidden)
    speed = statistics.median(tested[1] / reference[1] for tested, reference in pairs)
    bits = statistics.mean(tested[2] for tested, _ in pairs)
    return about | _rounded(speed=speed, bits_per_token=bits, tokens_left=left, forbidden=forbidden)


def _rounded(**figures: float | None) -> dict[str, float | None]:
    return {name: figure and round(figure, 4) for name, figure in figures.items()}


def _write(model: "LoadedModel", decoder: Decoder, seed: int, n_tokens: int) -> tuple[str, float, float]:
    """Write a story; return its text, its tokens per CPU second and its bits per token."""
    from tinystory.writing.generate import Ended, StoryRequest, write

    before = time.process_time()
    events = list(
        write(model.session, model.tokenizer, [StoryRequest(PROMPT, decoder, seed=seed, max_new_tokens=n_tokens)])
    )
    seconds = time.process_time() - before
    [story] = [event.result for event in events if isinstance(event, Ended)]
    return story.text, len(story.tokens) / seconds, story.statistics["bits_per_token"]


def _along(decoder: Decoder, real: Sequence[Any], model: "LoadedModel") -> tuple[float | None, float | None]:
    """Return how many tokens a chain leaves on average in real stories, and the share of their tokens it removes."""
    from tinystory.story.walk import walk

    counts, removed = [], []
    for ids, logits in real:
        request = Request((ids[0],), len(ids), SEED, vocabulary=model.tokenizer, opener=model.session.open)
        for place in walk(decoder, request, ids, logits, model.session.eos_ids):
            left = place.received[-1]
            if place.chain.sampler:
                log_probs = place.chain.sampler.log_probs(left, place.step.for_stage(place.state[-1]))
                left = left if log_probs is None else log_probs
            counts.append(int((left > -math.inf).sum()))
            removed.append(not bool((left[sorted(place.wanted)] > -math.inf).any()))
    return (statistics.mean(counts), statistics.mean(removed))


if __name__ == "__main__":
    main()
