"""Write a story from each prompt with each decoder, and print all of them, unedited, as Markdown.

  python scripts/write_stories.py --prompts prompts.yaml --limit 10 -d greedy -d "top-k 40 | sample 0.8" -s 7

The file of prompts is a YAML list of texts.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from tinystory.data.prompts import PromptFile
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import TinystoryError
from tinystory.safe.showing import visible
from tinystory.session.loading import load
from tinystory.writing.generate import Ended, Story, StoryRequest, write


def read_prompts(path: Path, limit: int | None) -> list[str]:
    """Return the first prompts of a file; raise UsageError if it has none."""
    with PromptFile(path) as prompts:
        return list(islice(prompts, limit))


def stories(model: str | None, prompts: Sequence[str], specs: Sequence[str], seed: int, max_tokens: int) -> list[Story]:
    """Return all stories: those of the first prompt, then those of the second, and so on."""
    registry, loaded = discover(), load(model)
    decoders = [parse_spec(spec, registry) for spec in specs]
    requests = [
        StoryRequest(prompt, decoder, seed=seed, max_new_tokens=max_tokens)
        for prompt in prompts
        for decoder in decoders
    ]
    written = {e.story: e.result for e in write(loaded.session, loaded.tokenizer, requests) if isinstance(e, Ended)}
    return [written[number] for number in range(len(requests))]


def markdown(written: Sequence[Story]) -> Iterator[str]:
    """Yield a heading for each prompt and a quotation for each story, with a bar before the model's part."""
    prompt = None
    for story in written:
        if story.request.prompt != prompt:
            prompt = story.request.prompt
            yield f"\n## {' '.join(visible(prompt).split())[:60]}…\n"
        bits = story.statistics["bits_per_token"]
        yield (
            f"`{format_spec(story.request.decoder)}`, seed {story.request.seed}: {len(story.tokens)} tokens, "
            f"{bits:.2f} bits per token, {story.finish_reason}\n"
        )
        paragraphs = visible(f"{story.request.prompt} **|**{story.completion}").split("\n")
        yield "> " + "\n>\n> ".join(line for line in paragraphs if line.strip()) + "\n"


def main() -> int:
    """Parse the command line, write, and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE", help="a YAML list of texts")
    parser.add_argument("--limit", type=int, metavar="N", help="take only the first N prompts")
    parser.add_argument("-m", "--model", metavar="MODEL", help="a folder, a hub id or a shipped model")
    parser.add_argument(
        "-d", "--decoder", action="append", required=True, metavar="SPEC", help="a decoder; may be repeated"
    )
    parser.add_argument("-s", "--seed", type=int, default=7, metavar="N", help="seed of every story (default 7)")
    parser.add_argument(
        "-n", "--max-tokens", type=int, default=256, metavar="N", help="most new tokens of a story (default 256)"
    )
    args = parser.parse_args()
    try:
        prompts = read_prompts(args.prompts, args.limit)
        written = stories(args.model, prompts, args.decoder, args.seed, args.max_tokens)
    except TinystoryError as error:
        print(f"write_stories: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(markdown(written)).strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
