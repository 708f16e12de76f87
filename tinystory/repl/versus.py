"""One prompt, one seed, one decoder, several models: their stories side by side, for the eye alone."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from shutil import get_terminal_size

from tinystory.decoding.spec import format_spec
from tinystory.repl.stream import figures
from tinystory.screen.columns import Columns
from tinystory.screen.screen import Screen
from tinystory.studio.backend import Backend
from tinystory.writing.generate import Ended, StoryRequest, Text, TextEvent

__all__ = ["show_versus"]


def show_versus(
    screen: Screen,
    titles: Sequence[str],
    backends: Sequence[Backend],
    request: StoryRequest,
    notice: Callable[[str], None],
) -> None:
    """Let each model write the same story, token by token in turn, and show them in columns.

    Args:
        screen: where they go.
        titles: over the columns.
        backends: the models; all of them are in memory at once.
        request: what each is asked for, as text; its `cancel` ends them all.
        notice: says a line.

    Raises:
        TinystoryError: a model does not load, or a decoder failed; what was written until then is shown.
    """
    for backend in backends:
        if backend.loading:
            notice(f"loading {backend.name} …")
        if not backend.wait(request.cancel):
            notice("cancelled while the models were loading")
            return
    columns = Columns(titles, get_terminal_size().columns, color=screen.color)
    screen.fresh_line()
    try:
        for index in range(len(backends)):
            screen.written(columns.add(index, request.prompt))
        for index, event in _in_turn(backends, request):
            if isinstance(event, Text):
                screen.written(columns.add(index, event.text))
            elif isinstance(event, Ended):
                screen.written(columns.end(index, figures(event)))
    finally:
        screen.written(columns.finish())
    notice(f"{format_spec(request.decoder)} · seed {request.seed} · to look at only: the tree is as it was")


def _in_turn(backends: Sequence[Backend], request: StoryRequest) -> Iterator[tuple[int, TextEvent]]:
    """An event of each model after the other, until all have ended."""
    with ExitStack() as stack:
        streams = {index: backend.write([request]) for index, backend in enumerate(backends)}
        for stream in streams.values():
            if isinstance(stream, Generator):
                stack.enter_context(closing(stream))
        while streams:
            for index, stream in list(streams.items()):
                event = next(stream, None)
                if event is None:
                    del streams[index]
                else:
                    yield index, event
