"""`tinystory page`: a session as one HTML page that shows what else the model had in mind at each word."""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from tinystory.commands.shared.groups import DecoderFileOptions
from tinystory.commands.shared.notices import warn
from tinystory.data.shards import fingerprint
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.dtypes import COMPUTED_DTYPES
from tinystory.errors import TinystoryError, UsageError
from tinystory.safe.reading import shown
from tinystory.safe.writing import refuse_input, write_atomically
from tinystory.session.loading import LoadedModel, load
from tinystory.story.saved_chat import SavedChat
from tinystory.story.session_file import load_session
from tinystory.studio.kept_sessions import find_session

__all__ = ["PageOptions", "run"]


@dataclass(frozen=True, kw_only=True)
class PageOptions(DecoderFileOptions):
    """The options of `tinystory page`.

    Attributes:
        file: the name or the file of a session, or a story exported as .json.
        out: the page; a file that is there is replaced. None writes to standard output.
        whatif: a spec whose impossible tokens are marked.
        with_model: the model to compute with; None is the model that the file names.
        device: where the model runs, as torch names it.
    """

    file: Path
    out: Path | None
    whatif: str | None
    with_model: str | None
    device: str


def run(options: PageOptions) -> int:
    """Write the page of the story that was on the desk last.

    Raises:
        SessionError: the session is missing or damaged.
        UsageError: the session has no story, or the spec is wrong.
        TinystoryError: the page cannot be written.
    """
    from tinystory.page.content import columns_of, mark_partings, page_story
    from tinystory.page.page import page_html

    file = find_session(options.file)
    if options.out is not None:
        refuse_input(options.out, [file])
    chat = load_session(file)
    registry = discover(options.decoder_file)
    turns = columns_of(chat.tree)
    if options.whatif is not None:
        parse_spec(options.whatif, registry)
    model = _model_of(chat, options)
    stories = []
    with redirect_stdout(sys.stderr):  # a decoder of somebody else may print
        for turn in turns:
            fits = model is not None and fingerprint(model.tokenizer) == turn.vocabulary
            tokenizer = model.tokenizer if model is not None and fits else None
            stories.append(page_story(chat.tree, turn, tokenizer, model, registry, options.whatif))
    mark_partings(stories)
    content = page_html(stories, options.whatif)
    if options.out is None:
        sys.stdout.write(content)
        return 0
    try:
        write_atomically(options.out, content.encode("utf-8"), keep_mode=True)
    except OSError as error:
        raise TinystoryError(f"cannot write {options.out}: {error.strerror}") from error
    size = f"{options.out} is ready: {len(content.encode()) / 1000:,.0f} kB"
    warn(options, [*dict.fromkeys(line for story in stories for line in story.notes), size])
    return 0


def _model_of(chat: SavedChat, options: PageOptions) -> LoadedModel | None:
    """Return the model of `-m`, or else the one that the file names if it ships with tinystory; None without one."""
    from tinystory.story.replay import is_local

    written = next((turn.written for turn in reversed(chat.tree.turns.values()) if turn.written is not None), None)
    name = options.with_model or (written.model if written else chat.model)
    if not options.with_model and not is_local(name):
        return None
    dtype = written.dtype if written else chat.dtype
    if dtype not in COMPUTED_DTYPES:
        raise UsageError(
            f"the session was computed in {shown(dtype)}; dtype must be one of {', '.join(COMPUTED_DTYPES)}"
        )
    model = load(name, dtype, options.device)
    warn(options, model.warnings)
    return model
