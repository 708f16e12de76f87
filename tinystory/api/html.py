"""Stories, comparisons, traces and insides as HTML for notebooks: inline styles, no script, nothing from a network.

All text of models and users is escaped. The tints are half transparent, so that they fit dark and light pages.
"""

import html
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tinystory.safe.showing import visible

if TYPE_CHECKING:
    from tinystory.api.comparison import Comparison
    from tinystory.api.inside import Inside
    from tinystory.api.story import Story
    from tinystory.api.trace import Trace, WhatIf

__all__ = ["comparison_html", "inside_html", "story_html", "trace_html", "whatif_html"]

_SURPRISES = ((1.0, 0.0), (2.5, 0.15), (4.5, 0.3), (7.0, 0.45), (math.inf, 0.65))
"""Bits of surprise, and how strong the tint is up to there."""
_TINT = "230, 120, 40"
_FORBIDDEN = "200, 30, 60"
_N_ALTERNATIVES = 5
_STORY = "white-space: pre-wrap; line-height: 1.7; max-width: 50em"
_SMALL = "font-size: 85%; opacity: 0.7"


def story_html(story: "Story") -> str:
    """Return a story with its tokens tinted by surprise, and the likeliest tokens of each place on hover."""
    return f"<div>{_story(story, _hints(story))}{_foot(story)}</div>"


def comparison_html(comparison: "Comparison") -> str:
    """Return the stories side by side, each under its decoder."""
    columns = "".join(
        f'<div style="flex: 1 1 16em; min-width: 12em"><b>{_text(story.shown_spec)}</b>{_story(story, _hints(story))}'
        f"{_foot(story)}</div>"
        for story in comparison
    )
    return f'<div style="display: flex; flex-wrap: wrap; gap: 1.5em">{columns}</div>'


def trace_html(trace: "Trace") -> str:
    """Return the funnel as a table, and the likeliest tokens of the model as bars."""
    rows = [("stage", "left", "share of the model", "took away")]
    for effect in trace.effects:
        removed = " ".join(repr(trace.name(token_id)) for token_id in effect.removed[:4])
        more = " …" if effect.n_removed > 4 else ""
        rows.append((effect.stage, f"{effect.left:,}", f"{effect.mass:.1%}", removed + more))
    picked = f"took {trace.token.text!r}" + ", at a numerical tie" * trace.tie
    bars = "".join(_bar(repr(text), share, bold=text == trace.token.text) for text, share in trace.alternatives)
    return f"<div>{_table(rows)}<p>{_text(picked)}</p>{bars}</div>"


def whatif_html(verdict: "WhatIf") -> str:
    """Return the story with the tokens marked that the decoder could not have picked."""
    stages = dict(verdict.forbidden)
    pieces = [f"<b>{_text(verdict.story.prompt)}</b>"]
    for index, token in enumerate(verdict.story.tokens):
        stage = stages.get(index)
        pieces.append(_token(token.text, 0.45 if stage else 0.0, f"removed by {stage}" if stage else "", _FORBIDDEN))
    n = len(verdict.forbidden)
    bits = "" if verdict.bits_per_token is None else f" · {verdict.bits_per_token:.2f} bits/token"
    foot = f"{verdict.spec} · {n} token{'s' * (n != 1)} that it could not have picked{bits}"
    return f'<div><div style="{_STORY}">{"".join(pieces)}</div><p style="{_SMALL}">{_text(foot)}</p></div>'


def inside_html(inside: "Inside") -> str:
    """Return what the model would have said after each layer, and the words that its heads looked at."""
    name = inside.story.model.loaded.tokenizer.token_text
    rows = [("after", "this token", "place", "likeliest")]
    for guess in inside.layers:
        label = f"layer {guess.layer}" if guess.layer else "embeddings"
        likeliest = "   ".join(f"{name(token_id)!r} {share:.0%}" for token_id, share in guess.likeliest[:3])
        taken = "" if guess.taken is None else f"{guess.taken:.1%}"
        rows.append((label, taken, "" if guess.taken_rank is None else f"{guess.taken_rank:,}", likeliest))
    return f"<div><p>{_text(repr(inside.token.text))}</p>{_table(rows)}{_attention(inside)}</div>"


def _attention(inside: "Inside") -> str:
    """Return the words before the token, tinted by the weight of all heads; empty without attention."""
    from tinystory.text.tokenizer import Detokenizer

    if inside.run.attention is None:
        return ""
    detokenizer = Detokenizer(inside.story.model.loaded.tokenizer)
    shares = inside.attention().tolist()
    pieces = [
        _token(detokenizer.add(token_id), min(0.7, 4 * share), f"{share:.1%} of the weight")
        for token_id, share in zip(inside.before, shares, strict=True)
    ]
    idle = f"; BOS has {float(inside.gaze.bos_share.mean()):.0%} of all" if inside.gaze.has_bos else ""
    foot = f"tinted: the share of the weight that all heads together gave to a word{idle}"
    return f'<div style="{_STORY}">{"".join(pieces)}</div><p style="{_SMALL}">{_text(foot)}</p>'


def _story(story: "Story", hints: Sequence[str]) -> str:
    pieces = [f"<b>{_text(story.prompt)}</b>"]
    for token, hint in zip(story.tokens, hints, strict=True):
        bits = -token.logprob / math.log(2)
        pieces.append(_token(token.text, next(tint for bound, tint in _SURPRISES if bits <= bound), hint))
    return f'<div style="{_STORY}">{"".join(pieces)}</div>'


def _foot(story: "Story") -> str:
    bits = story.statistics["bits_per_token"]
    facts = f"{len(story.tokens)} tokens · {bits:.2f} bits/token · {story.finish_reason}"
    return f'<p style="{_SMALL}">{_text(f"{facts} · {story.shown_spec} · seed {story.seed}")}</p>'


def _hints(story: "Story") -> list[str]:
    """Return for each token its surprise and the likeliest tokens of its place, for the pointer."""
    if not story.tokens:
        return []
    name = story.model.loaded.tokenizer.token_text
    *_, logits = story.traced()
    best = logits[: len(story.tokens)].softmax(dim=-1).topk(min(_N_ALTERNATIVES, logits.shape[-1]))
    hints = []
    for token, ids, shares in zip(story.tokens, best.indices.tolist(), best.values.tolist(), strict=True):
        likeliest = "\n".join(f"{share:.1%}  {name(token_id)!r}" for token_id, share in zip(ids, shares, strict=True))
        hints.append(f"{-token.logprob / math.log(2):.1f} bits\n{likeliest}")
    return hints


def _token(text: str, tint: float, hint: str, color: str = _TINT) -> str:
    background = f' style="background: rgba({color}, {tint:.2f})"' if tint >= 0.01 else ""
    title = f' title="{html.escape(visible(hint))}"' if hint else ""
    return f"<span{background}{title}>{_text(text)}</span>"


def _bar(label: str, share: float, *, bold: bool) -> str:
    weight = "bold" if bold else "normal"
    style = f"display: inline-block; height: 0.8em; width: {12 * share:.2f}em; background: rgba({_TINT}, 0.6)"
    bar = f'<span style="{style}"></span>'
    return f'<div style="font-weight: {weight}">{bar} {share:.1%} {_text(label)}</div>'


def _table(rows: Iterable[Sequence[str]]) -> str:
    head, *body = rows
    cells = "".join(f'<th style="text-align: left">{_text(cell)}</th>' for cell in head)
    lines = "".join(
        "<tr>" + "".join(f'<td style="text-align: left">{_text(cell)}</td>' for cell in row) + "</tr>" for row in body
    )
    return f"<table><tr>{cells}</tr>{lines}</table>"


def _text(text: str) -> str:
    return html.escape(visible(text))
