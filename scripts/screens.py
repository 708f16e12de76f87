"""Make the screens of the documentation by running the program on fixed input.

python scripts/screens.py --out docs/screens       # pictures of the chat, as SVG; tour.svg moves
python scripts/screens.py --lessons docs/lessons   # the outputs in the lessons, as text

A lesson has its input in blocks that begin with ```chat or ```console. In a `chat` block, a line that begins with "> "
is typed into the studio, one studio for the whole lesson; in a `console` block, a line that begins with "$ " is a
command of the shell. The lines below an input are its output, and this script writes them.
"""

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.errors import TinystoryError
from tinystory.repl.app import App
from tinystory.repl.export import SVG
from tinystory.repl.settings import ChatSettings
from tinystory.screen.screen import Screen
from tinystory.studio.backend import ModelBackend
from tinystory.studio.studio import Studio

WIDTH = 100
TEXT_WIDTH = 96
"""The columns of a chat in a lesson."""

_BLOCK = re.compile(r"^```(chat|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SIGNS = {"chat": "> ", "console": "$ "}

SCENES = {
    "compare": ("One day, a little owl", "/compare greedy ; top-k 40 | sample 0.8 ; sample 1.3"),
    "tree": ("One day", "/retry", "/more", "/goto 1", "", "/compare greedy ; sample 1.3", "/pick 12 #2", "/tree"),
    "funnel": ("/decoder temperature 1.2 | top-k 40 | min-p 0.05 | sample", "The dragon was", "/trace 9", "/top 9 6"),
}
"""The lines that are typed for each screen."""

TOUR = (
    "/decoder top-k 40 | min-p 0.05 | sample",
    "/color surprise",
    "Once upon a time",
    "/retry",
    "/compare greedy ; sample 0.8 ; sample 1.5",
    "/trace 9",
    "/whatif top-k 5 | sample",
    "/tree",
)
"""The lines that are typed in the moving picture."""
TOUR_ROWS = 26
SECONDS_TYPED, SECONDS_ANSWERED = 1.5, 4.0
"""How long the moving picture shows a line that was typed, and its answer."""


def open_app(stream: io.StringIO, columns: int, *, color: bool = True, quiet: bool = False) -> App:
    """Open a chat that writes into a stream."""
    registry = discover(user_folder=None)
    open_model = partial(ModelBackend.open, dtype="float32", device="cpu")
    draws = iter(range(271_828, 272_000))
    studio = Studio(
        registry,
        parse_spec("sample 0.8", registry),
        backend=open_model(None),
        open_model=open_model,
        seed=7,
        max_tokens=60,
        draw_seed=lambda: next(draws),
    )
    studio.backend.wait(lambda: False)
    os.environ["COLUMNS"] = str(columns)
    return App(studio, Screen(stream, color=color), ChatSettings(quiet=quiet))


def screen(typed: tuple[str, ...], columns: int) -> str:
    """Return what the terminal shows after these lines, with escape sequences."""
    stream = io.StringIO()
    app = open_app(stream, columns)
    for line in typed:
        app.screen.gap()
        app.do(line)
    return stream.getvalue()


def svg(shown: str, title: str, columns: int, *, unique: str = "") -> str:
    """Return a screen as SVG; the same screen always gives the same SVG. `unique` is the prefix of its styles."""
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(shown.strip("\n")))
    return console.export_svg(title=title, unique_id=unique or title, code_format=SVG)


def tour(typed: Sequence[str], columns: int) -> str:
    """Return a moving SVG of a chat: each line as it stands at the prompt, then its answer. It begins anew at its end.

    Somebody who wants less motion sees the last screen.
    """
    stream = io.StringIO()
    app = open_app(stream, columns)
    shown: list[tuple[str, float]] = []
    for line in typed:
        app.screen.gap()
        shown.append((f"{stream.getvalue()}> {line}▌", SECONDS_TYPED))
        app.do(line)
        shown.append((stream.getvalue(), SECONDS_ANSWERED))
    total, start, frames, styles = sum(seconds for _, seconds in shown), 0.0, [], []
    for number, (text, seconds) in enumerate(shown):
        frame = svg(_last_rows(text), "tinystory", columns, unique=f"frame-{number}")
        frames.append(f'<g class="frame" id="frame-{number}">{frame}</g>')
        first, last = (f"{100 * moment / total:.3f}%" for moment in (start, start + seconds))
        before = "0% { visibility: hidden } " if number else ""
        styles.append(
            f"#frame-{number} {{ animation-name: show-{number} }}\n@keyframes show-{number} "
            f"{{ {before}{first} {{ visibility: visible }} {last} {{ visibility: hidden }} }}"
        )
        start += seconds
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', frames[-1])
    assert size is not None
    return _FILM.format(
        width=size[1], height=size[2], seconds=total, styles="\n".join(styles), frames="\n".join(frames)
    )


_FILM = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.frame {{ visibility: hidden; animation: {seconds}s step-end infinite }}
{styles}
@media (prefers-reduced-motion: reduce) {{
  .frame {{ animation: none }}
  .frame:last-of-type {{ visibility: visible }}
}}
</style>
{frames}
</svg>
"""


def _last_rows(shown: str) -> str:
    """Return the last rows of a screen, with blank rows below them if it is not full."""
    rows = shown.strip("\n").split("\n")[-TOUR_ROWS:]
    return "\n".join([*rows, *[" "] * (TOUR_ROWS - len(rows))])


def lesson(page: str) -> str:
    """Return a lesson with the outputs that its inputs have now."""
    stream = io.StringIO()
    app = open_app(stream, TEXT_WIDTH, color=False, quiet=True)

    def typed(line: str) -> str:
        start = stream.tell()
        app.do(line)
        return stream.getvalue()[start:].lstrip("\n").removeprefix(f"> {line}\n")

    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Callable[[str], str]] = {"chat": typed, "console": partial(_shell_output, folder)}

        def block(match: re.Match[str]) -> str:
            kind, sign = match[1], _SIGNS[match[1]]
            inputs = [line[2:] for line in match[2].splitlines() if line.startswith(sign)]
            parts = (f"{sign}{line}\n{_plain(runs[kind](line))}" for line in inputs)
            return f"```{kind}\n{''.join(parts)}```"

        return _BLOCK.sub(block, page)


def _shell_output(folder: str, line: str) -> str:
    """Return what a command prints, in a folder that the commands of a lesson share."""
    environment = os.environ | {"XDG_CONFIG_HOME": folder, "COLUMNS": str(TEXT_WIDTH), "NO_COLOR": "1"}
    done = subprocess.run(
        line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    return (done.stdout + done.stderr).replace(folder, "~")


def _plain(output: str) -> str:
    """Return an output without lines of speeds, blank lines around it, and spaces at the ends of lines."""
    speeds = ("tokens/s", "microseconds")
    lines = [line.rstrip() for line in output.strip("\n").splitlines() if not any(unit in line for unit in speeds)]
    return "".join(f"{line}\n" for line in lines)


def _pictures(folder: Path) -> Iterator[Path]:
    """Draw every screen; yield the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, typed in SCENES.items():
        picture = svg(screen(typed, WIDTH), f"tinystory-{name}", WIDTH)
        (folder / f"{name}.svg").write_text(picture, encoding="utf-8")
        yield folder / f"{name}.svg"
    (folder / "tour.svg").write_text(tour(TOUR, WIDTH), encoding="utf-8")
    yield folder / "tour.svg"


def _lessons(folder: Path) -> Iterator[Path]:
    """Write the outputs of every lesson; yield the files."""
    for path in sorted(folder.glob("*.md")):
        path.write_text(lesson(path.read_text(encoding="utf-8")), encoding="utf-8")
        yield path


def main() -> int:
    """Parse the command line, and make the pictures or the outputs of lessons; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made = parser.add_mutually_exclusive_group(required=True)
    made.add_argument("--out", type=Path, metavar="DIR", help="write the pictures into this folder")
    made.add_argument("--lessons", type=Path, metavar="DIR", help="write the outputs into the lessons of this folder")
    args = parser.parse_args()
    try:
        for path in _lessons(args.lessons) if args.lessons else _pictures(args.out):
            print(path)
    except TinystoryError as error:
        print(f"screens: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"screens: {args.out or args.lessons} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
