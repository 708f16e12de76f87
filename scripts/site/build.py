"""Build the documentation site.

Usage: python scripts/site/build.py, then python -m http.server -d build/site

The pages are the files that people read in the repository: README.md, docs/, the notebooks with their outputs, and the
docstrings of the public doors. They are copied to build/pages with links between them, and Zensical builds the site
strictly: a link to nowhere is an error. `zensical.toml` has the order of the pages.
"""

import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = "examples/notebooks"
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "docs/lessons/README.md": "lessons.md",
    "tinystory/models/default/README.md": "model-card.md",
}
"""The pages that do not stand in docs/."""

DOORS = {
    "tinystory": "Scripts and notebooks",
    "tinystory.decoding": "Authors of decoders",
    "tinystory.testing": "Tests of decoders",
    "tinystory.errors": "Errors",
}
"""The modules whose names are documented from their docstrings."""

_LINK = re.compile(r"(?<=\]\()(?!#|[a-z]+:)([^)\s#]+)(?=[)#])")


def build(folder: Path) -> None:
    """Write the pages to a folder, and build the site beside them.

    Raises:
        CalledProcessError: the site has a mistake; Zensical has told it.
    """
    write_pages(folder / "pages")
    shutil.copy(ROOT / "zensical.toml", folder)
    sources = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    program = shutil.which("zensical", path=Path(sys.executable).parent)
    if program is None:
        raise SystemExit("Zensical is missing; pip install -c constraints.txt '.[docs]'")
    subprocess.run(
        [program, "build", "--strict", "--clean"], cwd=folder, check=True, env=os.environ | {"PYTHONPATH": sources}
    )


def write_pages(pages: Path) -> None:
    """Write all pages to a folder; what was there is removed."""
    shutil.rmtree(pages, ignore_errors=True)
    shutil.copytree(ROOT / "docs", pages, ignore=shutil.ignore_patterns("*.md", "*.json", "*.1"))
    pictures = {f"docs/{path.relative_to(pages)}": str(path.relative_to(pages)) for path in pages.rglob("*.*")}
    sources = {f"docs/{path.name}": path.name for path in (ROOT / "docs").glob("*.md")} | ELSEWHERE
    lessons = sorted((ROOT / "docs" / "lessons").glob("[0-9]*.md"))
    sources |= {f"docs/lessons/{path.name}": f"lesson-{path.name}" for path in lessons}
    sources |= {f"{NOTEBOOKS}/{path.name}": f"{path.stem}.md" for path in (ROOT / NOTEBOOKS).glob("*.ipynb")}
    for source, page in sources.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source.endswith(".ipynb"):
            text = notebook_page(json.loads(text))
        (pages / page).write_text(with_links(text, source, sources | pictures), encoding="utf-8")
    (pages / "api.md").write_text(api_page(), encoding="utf-8")


def with_links(text: str, source: str, places: Mapping[str, str]) -> str:
    """Return a page whose links lead to pages of the site instead of files.

    Args:
        text: the page.
        source: its file in the repository.
        places: where each file of the repository stands in the site.

    Raises:
        SystemExit: a link leads to a file that is not in the site.
    """

    def linked(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[0]))
        if target not in places:
            raise SystemExit(f"{source}: the site has no page for {match[0]}")
        return places[target]

    return _LINK.sub(linked, text)


def notebook_page(notebook: dict[str, Any]) -> str:
    """Return a notebook with its outputs as Markdown."""
    return "\n\n".join(block for cell in notebook["cells"] for block in _cell(cell)) + "\n"


def _cell(cell: dict[str, Any]) -> Iterable[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        shown = output.get("data", {"text/plain": output.get("text", "")})
        if "text/html" in shown:
            yield "".join(shown["text/html"])
        else:
            yield f"```text\n{''.join(shown['text/plain'])}\n```"


def api_page() -> str:
    """Return the page that mkdocstrings fills with the docstrings of the public doors."""
    blocks = [
        "# API",
        "The names that code outside of this repository may use. [tinystory in Python](python.md) explains how.",
    ]
    for door, title in DOORS.items():
        module = import_module(door)
        blocks.append(f"## {title}\n\n`from {door} import …`")
        blocks += [f"::: {door}.{name}" for name in sorted(module.__all__) if not name.startswith("_")]
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    build(ROOT / "build")
