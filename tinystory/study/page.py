"""Write the page of a study, in Markdown: how it was made, what it measures, its results. Knows only the findings."""

from collections.abc import Mapping, Sequence
from typing import Any

from tinystory.study.table import cells, heading_of, headings

__all__ = ["page"]

_METHOD = """\
Every decoder continues the same prompts with the same noise. The noise depends only on the seed, the number of the
prompt, the position and the token. So decoders differ only in what they do. Only the text after a prompt is measured.

Decoders are compared with real stories, and not with an ideal such as "no repetition". Each prompt is paired with
held-out real stories. They are divided after as many words as the prompt has. The part before is given to the model.
The part after it, up to the same number of tokens, is measured as if a decoder had written it. A story that is not
longer than the prompt is left out, and no story is used twice. The real stories form groups with one story for each
prompt, as the stories of one seed do. Every figure is taken of a group and then averaged over the groups, so it does
not matter that there are more groups of real stories.

| column | meaning |
| --- | --- |
| distance | the criterion, see below: 0 is like real stories |
| bits gap | mean absolute difference in surprise from real stories, in buckets of {bucket_tokens} tokens after the \
prompt. The surprise is that of the model's own distribution, before the decoder changes it. The weight of a bucket is \
its share of the real tokens. The row of real stories compares each group with the other groups, and so shows the \
difference that chance alone gives |
| bits/token | mean surprise of a token |
| distinct-2 | share of different word pairs, as the mean over all choices of {distinct_ngrams:,} word pairs |
| self-BLEU | mean BLEU-4 of a story, with the other stories of its group as references (no match counts as 0.1); a \
high value means that the stories are alike |
| repeated 4-grams | share of word 4-grams that occur earlier in the same story |
| ended properly | share of stories that ended before max-tokens, with a complete sentence |
| unknown words | share of words that the training text does not have; the last word of a story that was cut off is \
not counted, because it may be half a word |
| impossible | share of the tokens of real stories, with their ends, that the decoder could not have picked; a dash \
means that this is not defined (searches), or that the sampler does not show its probabilities |
| words | words of a story, without the prompt |
| tokens/CPU s | speed; chains write in batches of up to 32 stories, a search writes one story at a time |

Intervals are 95 % bootstrap intervals over the prompts (1,000 resamples, which all decoders share). For the bits gap
and distinct-2, which would be wrong if a story were drawn twice, they use jackknife pseudo-values."""

_CRITERION = """\
The criterion was fixed in the code before there were results. It uses {measures}.

For each of these measures, z is the difference between a decoder and real stories, in standard deviations between the
groups of real stories. The bits gap counts only if it is larger than that of real stories. The distance is the mean of
log2(1 + z). At 1, the stories differ from real ones as much as one group of real stories differs from the others; each
further 1 about doubles the difference. The smallest distance wins. A decoder whose distance is not larger than that of
the winner in at least 5 % of the resamples is tied with it (marked =)."""


def page(findings: Mapping[str, Any], command: str, plots: Sequence[str]) -> str:
    """Return the page. The same findings give the same page.

    Args:
        findings: the result of `findings`, with `model`, `model_hash`, `dtype`, `device`, `skipped` and `versions`.
        command: the command that made the findings, so that people can repeat it.
        plots: links to the plots, relative to the page.
    """
    seeds = ", ".join(map(str, findings["seeds"]))
    left_out = findings["left_out_of_criterion"]
    measures = ", ".join(heading_of(name) for name in findings["criterion"])
    versions = ", ".join(f"{name} {version}" for name, version in findings["versions"].items())
    n_prompts, n_groups = findings["prompts"], findings["real"]["groups"]
    parts = [
        "# The decoder study",
        f"`{command}`",
        f"Model {findings['model']} (`{findings['model_hash'][:12]}`, {findings['dtype']} on {findings['device']}), "
        f"{n_prompts} prompts, seeds {seeds}, at most {findings['max_tokens']} tokens; {n_groups} groups of "
        f"{n_prompts} real stories; {versions}. The command wrote the table and the plots.",
        "## How it is measured",
        _METHOD.format(**findings),
        "## The criterion",
        _CRITERION.format(measures=measures or "nothing"),
        *(
            [f"Left out, because it is unknown or equal in all groups: {', '.join(map(heading_of, left_out))}."]
            if left_out
            else []
        ),
        "## Results",
        _verdict(findings),
        _table(findings),
        *_alike(findings),
        *(f"![{link.rpartition('/')[2].partition('.')[0]}]({link})" for link in plots),
        *_missing(findings),
    ]
    return "\n\n".join(parts) + "\n"


def _verdict(findings: Mapping[str, Any]) -> str:
    if findings["winner"] is None:
        return "No decoder has all the figures of the criterion."
    tied = ", ".join(f"`{spec}`" for spec in findings["tied"])
    return f"Nearest to real stories: `{findings['winner']}`" + (f"; tied with it: {tied}." if tied else ".")


def _table(findings: Mapping[str, Any]) -> str:
    first = headings(findings)
    rows = [[first[0], first[1], *first[2:]], ["---", "---", *["---:"] * (len(first) - 2)]]
    for place, spec, *figures in cells(findings, intervals=True):
        escaped = spec.replace("|", "\\|")
        rows.append([place, f"`{escaped}`" if place else f"**{escaped}**", *figures])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _alike(findings: Mapping[str, Any]) -> list[str]:
    """Return a line for each group of decoders that have the same figures in everything except their speed."""
    groups: list[list[Mapping[str, Any]]] = []
    for row in findings["decoders"]:
        group = next((group for group in groups if group[0]["measures"] == row["measures"]), None)
        if group is None:
            groups.append([row])
        else:
            group.append(row)
    return [
        " and ".join(f"`{row['spec']}`" for row in group)
        + " have the same figures, because they wrote the same stories."
        for group in groups
        if len(group) > 1
    ]


def _missing(findings: Mapping[str, Any]) -> list[str]:
    lines = [f"- `{spec}`: {reason}" for spec, reason in (findings["skipped"] | findings["failed"]).items()]
    return ["## Not measured", "\n".join(lines)] if lines else []
