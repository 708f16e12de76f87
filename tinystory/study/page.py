"""The page of a study: how it was made, how it measures, what came out. Markdown, the same for the same findings."""

from collections.abc import Mapping, Sequence
from typing import Any

from tinystory.study.table import cells, heading_of, headings

__all__ = ["page"]

_METHOD = """\
Every decoder goes on from the same prompts with the same luck: a draw depends on the seed, the prompt's number, the
position and the token alone, so decoders differ only in what they do. Only what follows a prompt is measured.

Real stories are the yardstick, not an ideal such as "no repetition". Each prompt's counterparts are held-out stories,
divided after as many words as the prompt has: what comes before is given to the model, what follows, up to the same
number of tokens, is measured as if a decoder had written it. A story no longer than the prompt is passed over, no story
is used twice. The real stories form groups with one story for each prompt, as the stories of one seed do. Every
figure is taken of a group and averaged over groups, so it does not matter that there are more real ones.

| column | what it is |
| --- | --- |
| distance | the criterion, below: 0 is like real stories |
| bits gap | surprise under the model's own distribution, whatever the decoder made of it, in buckets of \
{bucket_tokens} tokens after the prompt: the mean absolute difference from real stories, each bucket counting for the \
share of real tokens in it. The real row is each group against the other groups: what chance alone gives |
| bits/token | the mean of that surprise |
| distinct-2 | share of different ones among the word pairs, in the mean over all choices of \
{distinct_ngrams:,} of them |
| self-BLEU | mean BLEU-4 of a story with the group's other stories as references (no match counts as 0.1); high is \
uniform |
| repeated 4-grams | share of the word 4-grams that occurred before in the same story |
| ended properly | share of the stories that were ended in time, with a complete sentence |
| unknown words | share of the words that the training text does not have; the last word of a story cut off, which may \
be half a word, is not counted |
| impossible | share of the tokens of real stories that the decoder could not have picked there, the end included; a \
dash where that is not defined (searches) or the sampler does not tell |
| words | of a story, without the prompt |
| tokens/CPU s | while writing; chains in batches of up to 32 stories, a search by itself |

Intervals are 95 % bootstrap intervals over the prompts (1,000 resamples, the same ones for every decoder); for the bits
gap and distinct-2, which a story drawn twice would distort, over jackknife pseudo-values."""

_CRITERION = """\
Laid down in the code before the results. It takes {measures}.

For each of these, z is how far a decoder is from real stories, in standard deviations between the groups of real
stories; the gap of the bits counts only where it is above that of real stories. The distance is the mean of
log2(1 + z): 1 is as far as one handful of real stories is from the rest, and each further 1 about doubles that. The
least distance wins. A decoder that is no further than the winner in at least 5 % of the resamples is tied with it
(marked =)."""


def page(found: Mapping[str, Any], command: str, plots: Sequence[str]) -> str:
    """Write the page.

    Args:
        found: what `findings` gives, with `model`, `model_hash`, `dtype`, `device`, `skipped` and `versions`.
        command: that made it, for people to repeat.
        plots: links to the pictures, relative to the page.
    """
    seeds = ", ".join(map(str, found["seeds"]))
    left_out = found["left_out_of_criterion"]
    measures = ", ".join(heading_of(name) for name in found["criterion"])
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    parts = [
        "# The decoder study",
        f"`{command}`",
        f"Model {found['model']} (`{found['model_hash'][:12]}`, {found['dtype']} on {found['device']}), "
        f"{found['prompts']} prompts, seeds {seeds}, at most {found['max_tokens']} tokens; {found['real']['groups']} "
        f"groups of {found['prompts']} real stories; {versions}. Table and plots are as the command wrote them.",
        "## How it is measured",
        _METHOD.format(**found),
        "## The criterion",
        _CRITERION.format(measures=measures or "nothing"),
        *([f"Left out here, unknown or without a spread: {', '.join(map(heading_of, left_out))}."] if left_out else []),
        "## Results",
        _verdict(found),
        _table(found),
        *(f"![{link.rpartition('/')[2].partition('.')[0]}]({link})" for link in plots),
        *_missing(found),
    ]
    return "\n\n".join(parts) + "\n"


def _verdict(found: Mapping[str, Any]) -> str:
    if found["winner"] is None:
        return "No decoder has all figures of the criterion."
    tied = ", ".join(f"`{spec}`" for spec in found["tied"])
    return f"Nearest to real stories: `{found['winner']}`" + (f"; tied with it: {tied}." if tied else ".")


def _table(found: Mapping[str, Any]) -> str:
    first = headings(found)
    rows = [[first[0], first[1], *first[2:]], ["---", "---", *["---:"] * (len(first) - 2)]]
    for place, spec, *figures in cells(found, intervals=True):
        escaped = spec.replace("|", "\\|")
        rows.append([place, f"`{escaped}`" if place else f"**{escaped}**", *figures])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _missing(found: Mapping[str, Any]) -> list[str]:
    lines = [f"- `{spec}`: {reason}" for spec, reason in (found["skipped"] | found["failed"]).items()]
    return ["## Not measured", "\n".join(lines)] if lines else []
