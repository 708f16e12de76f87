"""Measure how much the stories of some decoders surprise the model itself, in bits per token.

  python scripts/measure_surprise.py "sample 1.0" "sample 0.8" greedy

The default target of `mirostat` was measured in this way. The stories begin with BOS and have the seeds 0, 1, 2 …;
their ends are not counted.
"""

import argparse
import sys

from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import TinystoryError
from tinystory.session.loading import LoadedModel, load
from tinystory.writing.generate import Ended, StoryRequest, bits_per_token, write


def surprise(loaded: LoadedModel, spec: str, n_stories: int, max_tokens: int) -> tuple[float, int]:
    """Return the mean surprise of a decoder's stories, in bits per token, and how many tokens they have."""
    decoder = parse_spec(spec, discover())
    requests = [StoryRequest("", decoder, seed=seed, max_new_tokens=max_tokens) for seed in range(n_stories)]
    stories = [e.result for e in write(loaded.session, loaded.tokenizer, requests) if isinstance(e, Ended)]
    tokens = [token for story in stories for token in story.tokens]
    return bits_per_token(tokens), len(tokens)


def main() -> int:
    """Parse the command line, measure, and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="+", metavar="SPEC", help="the decoders to measure")
    parser.add_argument("-m", "--model", metavar="MODEL", help="a folder, a hub id or a shipped model")
    parser.add_argument("--stories", type=int, default=100, metavar="N", help="stories of each decoder (default 100)")
    parser.add_argument(
        "-n", "--max-tokens", type=int, default=256, metavar="N", help="most new tokens of a story (default 256)"
    )
    args = parser.parse_args()
    try:
        loaded = load(args.model)
        for spec in args.specs:
            bits, n_tokens = surprise(loaded, spec, args.stories, args.max_tokens)
            print(f"{format_spec(parse_spec(spec, discover()))}: {bits:.3f} bits per token over {n_tokens} tokens")
    except TinystoryError as error:
        print(f"measure_surprise: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
