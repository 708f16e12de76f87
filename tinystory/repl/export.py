"""The story on the desk as a file: text, Markdown, JSON, or a picture with the colours of its tokens.

The ending of the file's name selects the format.
"""

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.style import Style as RichStyle
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

from tinystory.decoding.spec import spec_as_shown
from tinystory.errors import TinystoryError, UsageError, nearest
from tinystory.page.content import columns_of, mark_partings, page_story
from tinystory.page.page import page_html
from tinystory.repl.pieces import legend, spans
from tinystory.safe.reading import shown
from tinystory.safe.showing import visible
from tinystory.safe.writing import write_atomically
from tinystory.screen.colours import HEAT, Style, Theme
from tinystory.story.session_file import MAX_BYTES
from tinystory.story.session_json import session_fields, turn_fields
from tinystory.story.tree import Turn
from tinystory.studio.saved_state import saved_chat
from tinystory.studio.studio import Studio

__all__ = ["FORMATS", "SVG", "export"]

_WIDTH = 80
_TITLE = 40

# The templates of rich load fonts from the web. These templates need no network.
SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px;
  line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: arial, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
  <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def export(studio: Studio, path: Path, *, overwrite: bool = False) -> None:
    """Write the story on the desk to a file, whole or not at all.

    Args:
        studio: the studio with the story.
        path: the file; its ending is one of `FORMATS`.
        overwrite: replace the file if it exists.

    Raises:
        UsageError: there is no story, the ending is unknown, or the file exists.
        TinystoryError: the file cannot be written.
    """
    if studio.tree.turn is None:
        raise UsageError("there is no story on the desk to export")
    kind = path.suffix.lower()
    if kind not in FORMATS:
        near = nearest(kind, FORMATS)
        hint = f"did you mean {near}?" if near else "the ending of the name selects the format"
        raise UsageError(f"/export writes {', '.join(FORMATS)}, not {shown(kind or path.name)}: {hint}")
    try:
        if path.is_dir() or (path.exists() and not path.is_file()):
            raise UsageError(f"{path} is not a file, so it cannot be replaced; choose another name")
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists already; /export {path} ! replaces it")
        write_atomically(path, FORMATS[kind](studio).encode("utf-8", errors="replace"), keep_mode=True)
    except (OSError, ValueError) as error:  # the name is too long, or has a null character
        reason = getattr(error, "strerror", None) or error
        raise TinystoryError(f"cannot write {path}: {reason}") from error


def _text(studio: Studio) -> str:
    return studio.text + "\n"


def _markdown(studio: Studio) -> str:
    """Return the story with typed text in bold, and a table of its turns."""
    pieces = "".join(_marked(text, bold=style == "bold") for text, style in spans(replace(studio, tint="off")))
    # In Markdown a single newline is a space.
    story = re.sub(r"(?<!\n)\n(?!\n)", "  \n", pieces)
    rows: list[tuple[str, ...]] = [("turn", "decoder", "seed", "model", "tokens"), ("---",) * 5]
    rows += [_turn_row(studio, turn) for turn in studio.tree.lineage(studio.tree.current)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{story.strip()}\n\n{table}\n"


def _turn_row(studio: Studio, turn: Turn) -> tuple[str, ...]:
    written = turn.written
    if written is None:
        return str(turn.id), "(typed)", "", "", str(len(turn.typed_ids))
    seed = f"{written.seed}/{written.number}" if written.number else str(written.seed)
    model = _cell(f"{written.model} {written.model_hash[:12]}")
    return str(turn.id), _cell(spec_as_shown(written.spec, studio.registry)), seed, model, str(len(written.tokens))


def _marked(text: str, *, bold: bool) -> str:
    """Return text that Markdown shows literally. Bold leaves out the white space around each line."""
    parts = re.split(r"(\s*\n\s*)", _escaped(visible(text)))
    if bold:
        parts = [re.sub(r"^(\s*)(.*\S)(\s*)$", r"\1**\2**\3", part, flags=re.DOTALL) for part in parts]
    return "".join(parts)


def _cell(text: str) -> str:
    """Return text as a cell of a table, on one line."""
    return _escaped(" ".join(visible(text).split()))


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#+|~&-])", r"\\\1", text)


def _json(studio: Studio) -> str:
    """Return a session file for `replay` that has only the turns of this story.

    Each turn has also the text of the story up to its end.
    """
    tree = studio.tree
    lineage = tree.lineage(tree.current)
    story_tree = replace(
        tree,
        turns={turn.id: turn for turn in lineage},
        latest={turn.parent: turn.id for turn in lineage},
    )
    chat = saved_chat(replace(studio, tree=story_tree))
    if sum(turn.n_characters for turn in lineage) > MAX_BYTES:
        raise UsageError("the turns of this story are too long for .json; a session file keeps them all (/save)")
    turns = [turn_fields(turn) | {"text": tree.text(turn.id)} for turn in lineage]
    fields = session_fields(chat) | {"text": studio.text, "nodes": turns}
    return json.dumps(fields, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def _html(studio: Studio) -> str:
    """Return the page of the story; without alternatives if another model has written it."""
    backend = studio.backend
    backend.wait(lambda: False)
    stories = []
    for turn in columns_of(studio.tree):
        tokenizer = backend.tokenizer if turn.vocabulary == backend.vocabulary else None
        stories.append(page_story(studio.tree, turn, tokenizer, backend.loaded, studio.registry))
    mark_partings(stories)
    return page_html(stories)


def _svg(studio: Studio) -> str:
    console = _drawn(studio, "dark")
    return console.export_svg(title=_title(studio), theme=SVG_EXPORT_THEME, code_format=SVG)


def _drawn(studio: Studio, theme: Theme) -> Console:
    """Return a console that has recorded the story in colour, the legend, and how the last turn was written."""
    tint = "surprise" if studio.tint == "off" else studio.tint
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(_rich(spans(replace(studio, tint=tint)), theme), end="\n\n")
    console.print(_rich(legend(tint), theme))
    written = studio.tree.turn.written if studio.tree.turn else None
    if written is not None:
        spec = spec_as_shown(written.spec, studio.registry)
        facts = f"{spec} · seed {written.seed} · {written.model} {written.model_hash[:12]}"
        console.print(_rich([(facts, "dim")], theme))
    return console


def _rich(pieces: Sequence[tuple[str, Style]], theme: Theme) -> Text:
    """Return pieces of (text, style) for rich. Nothing in them is markup."""
    text = Text(no_wrap=False, overflow="fold")
    for piece, style in pieces:
        if style.startswith("heat"):
            text.append(visible(piece), RichStyle(color=f"color({HEAT[theme][int(style[4:])]})"))
        else:
            text.append(visible(piece), RichStyle(bold=style in ("bold", "good"), dim=style in ("dim", "note")))
    return text


def _title(studio: Studio) -> str:
    return " ".join(visible(studio.text[: 4 * _TITLE]).split())[:_TITLE]


FORMATS: Mapping[str, Callable[[Studio], str]] = {
    ".txt": _text,
    ".md": _markdown,
    ".json": _json,
    ".html": _html,
    ".svg": _svg,
}
"""The functions that return the content of a file, by the ending of its name."""
