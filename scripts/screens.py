"""Draw the screens of the documentation: run the chat on fixed input, and save its screen as SVG.

python scripts/screens.py --out docs/screens
"""

import argparse
import io
import os
import sys
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
SCENES = {
    "story": ("/color surprise", "Once upon a time", "/decoder"),
    "compare": ("One day, a little owl", "/compare greedy ; top-k 40 | sample 0.8 ; sample 1.3"),
    "tree": ("One day", "/retry", "/more", "/goto 1", "", "/compare greedy ; sample 1.3", "/pick 12 #2", "/tree"),
    "funnel": ("/decoder temperature 1.2 | top-k 40 | min-p 0.05 | sample", "The dragon was", "/trace 9", "/top 9 6"),
}
"""The lines that are typed for each screen."""


def screen(typed: tuple[str, ...], columns: int) -> str:
    """Return what the terminal shows after these lines, with escape sequences."""
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
    stream = io.StringIO()
    os.environ["COLUMNS"] = str(columns)
    app = App(studio, Screen(stream, color=True), ChatSettings())
    for line in typed:
        app.screen.gap()
        app.do(line)
    return stream.getvalue()


def svg(shown: str, title: str, columns: int) -> str:
    """Return a screen as SVG; the same screen always gives the same SVG."""
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(shown.strip("\n")))
    return console.export_svg(title=title, unique_id=title, code_format=SVG)


def main() -> int:
    """Parse the command line and draw every screen; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write")
    args = parser.parse_args()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for name, typed in SCENES.items():
            picture = svg(screen(typed, WIDTH), f"tinystory-{name}", WIDTH)
            (args.out / f"{name}.svg").write_text(picture, encoding="utf-8")
            print(args.out / f"{name}.svg")
    except TinystoryError as error:
        print(f"screens: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"screens: {args.out} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
