"""Measure how surprising the stories of some decoders are to the model itself, in bits per token.

  python scripts/measure_surprise.py "sample 1.0" "sample 0.8" greedy

Mirostat's default target comes from here. The stories begin at BOS, with the seeds 0, 1, 2 …; their ends do not count.
"""

import argparse
import sys

from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import TinystoryError
from tinystory.session.loading import LoadedModel, load
from tinystory.writing.generate import Ended, StoryRequest, bits_per_token, write


def surprise(loaded: LoadedModel, spec: str, n_stories: int, max_tokens: int) -> tuple[float, int]:
    """Mean surprise over all tokens of n_stories, in bits under the model's own distribution; and how many tokens."""
    decoder = parse_spec(spec, discover())
    requests = [StoryRequest("", decoder, seed=seed, max_new_tokens=max_tokens) for seed in range(n_stories)]
    stories = [e.result for e in write(loaded.session, loaded.tokenizer, requests) if isinstance(e, Ended)]
    tokens = [token for story in stories for token in story.tokens]
    return bits_per_token(tokens), len(tokens)


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="+", metavar="SPEC", help="decoders")
    parser.add_argument("-m", "--model", metavar="MODEL", help="a folder, a hub id or a shipped model")
    parser.add_argument("--stories", type=int, default=100, metavar="N", help="how many a decoder (default 100)")
    parser.add_argument("-n", "--max-tokens", type=int, default=256, metavar="N", help="of a story (default 256)")
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
