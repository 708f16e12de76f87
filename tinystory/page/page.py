"""Write the page: plain HTML with one style sheet and one small script of our own, and nothing from any other place.

The Content-Security-Policy allows this style and this script by their hashes, and no request at all. Text of models and
users is escaped in the HTML, and in the data it cannot end its element.
"""

import base64
import dataclasses
import hashlib
import html
import json
import string
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

from tinystory.page.content import PageStory, PageToken
from tinystory.page.network import Looks
from tinystory.safe.showing import visible

__all__ = ["page_html"]

_TITLE = 60
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase + "-_"
"""The digits of the base 64, in which the heads and parts of a token are short."""
_NOTHING_ELSE = ("default-src 'none'", "base-uri 'none'", "form-action 'none'")


def page_html(stories: Sequence[PageStory], whatif: str | None = None) -> str:
    """Return the page of one story, or of several side by side.

    Args:
        stories: as from `content.page_story`; the first one names the page.
        whatif: the spec whose impossible tokens are marked.
    """
    style, script, template = (
        files("tinystory.page").joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html")
    )
    text = " ".join("".join(token.text for token in stories[0].tokens).split())
    notes = "".join(
        f"<p>{_text(note)}</p>" for note in dict.fromkeys(note for story in stories for note in story.notes)
    )
    return Template(template).substitute(
        policy="; ".join((*_NOTHING_ELSE, f"style-src '{_hash(style)}'", f"script-src '{_hash(script)}'")),
        title=_text(text if len(text) <= _TITLE else text[: _TITLE - 1] + "…"),
        style=style,
        notes=f'<div class="notes">{notes}</div>' if notes else "",
        columns="".join(_column(index, story) for index, story in enumerate(stories)),
        data=_json(_data(stories, whatif)),
        script=script,
    )


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _column(index: int, story: PageStory) -> str:
    tokens = "".join(
        _token(index, place, token, parts=place == story.parts_at) for place, token in enumerate(story.tokens)
    )
    heading = f"<h2>{_text(_origin(story))}</h2>"
    return (
        f'<section class="story" aria-label="{_text(_origin(story))}">{heading}<p class="text">{tokens}</p></section>'
    )


def _token(story: int, place: int, token: PageToken, *, parts: bool) -> str:
    names = ["token", "typed" * token.typed, "parts" * parts, "forbidden" * bool(token.forbidden)]
    kind = " ".join(name for name in names if name)
    place_in_data = f'data-story="{story}" data-token="{place}"'
    name = "" if token.text.strip() else f' aria-label="{_name_of_blank(token.text)}"'
    return f'<span class="{kind}" tabindex="-1" role="button"{name} {place_in_data}>{_text(token.text)}</span>'


def _name_of_blank(text: str) -> str:
    """Return what a screen reader says for a token that it cannot read."""
    return "new line" if "\n" in text else "space" if text else "part of a character"


def _origin(story: PageStory) -> str:
    written = story.turn.written
    return "typed" if written is None else f"{story.specs[story.turn.id]} · seed {written.seed} · {written.model}"


def _data(stories: Sequence[PageStory], whatif: str | None) -> dict[str, Any]:
    return {
        "whatif": whatif,
        "stories": [
            {
                "shape": story.shape,
                "specs": {number: visible(spec) for number, spec in story.specs.items()},
                "tokens": [_token_data(token) for token in story.tokens],
            }
            for story in stories
        ],
    }


def _token_data(token: PageToken) -> dict[str, Any]:
    """Return a token for the script, without what is not known."""
    fields = dataclasses.asdict(token)
    fields |= fields.pop("inside")
    fields["layers"] = [(text, share) for text, share, _ in fields["layers"]]
    fields["heads"] = " ".join(_packed_head(*head) for head in token.inside.heads)
    fields["parts"] = "".join(_DIGITS[round(min(max(4 * bits + 32, 0), 63))] for bits in token.inside.parts)
    return {name: _short(value) for name, value in fields.items() if value not in (None, "", [], False)}


def _packed_head(bos_share: float, looks: Looks) -> str:
    """Return a head in digits: the share of BOS, then for each look two digits of its place and one of its share."""
    places = (_DIGITS[place // 64] + _DIGITS[place % 64] + _digit(share) for place, share in looks if place < 64**2)
    return _digit(bos_share) + "".join(places)


def _digit(share: float) -> str:
    return _DIGITS[round(63 * share)]


def _short(value: Any) -> Any:
    """Return a value with numbers of three significant digits, and texts as they can be shown."""
    if isinstance(value, float):
        return float(f"{value:.3g}")
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list | tuple):
        return [_short(item) for item in value]
    return value


def _json(value: Any) -> str:
    """Return JSON in which no text can end the element around it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _text(text: str) -> str:
    return html.escape(visible(text))
