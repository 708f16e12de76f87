"""A studio with a scripted model, and small helpers for the tests of the chat."""

import io

from tinystory.decoding import Token
from tinystory.decoding.spec import parse_spec
from tinystory.errors import CheckpointError
from tinystory.repl.commands import execute
from tinystory.screen.screen import Screen
from tinystory.studio.studio import Studio
from tinystory.writing.generate import Ended, Story, Text, Trimmed

CTRL_C, CTRL_D, CTRL_J, ALT_ENTER = "\x03", "\x04", "\n", "\x1b\r"


class ScriptedBackend:
    """A model that writes what the test gives it: (parts, finish reason) for each turn.

    A token is a character; 0 is BOS. A part is a text, a pair (text shown, text of its tokens), an event, an exception
    to raise, or a function to call.
    """

    def __init__(self, *turns, name="toy", error=None):
        self.turns = list(turns)
        self.requests = []
        self.name = name
        self.max_seq_len = 64
        self.loading = False
        self.error = error
        self.dtype = "float32"
        self.vocabulary = "characters"
        self.heals = False
        self.warnings = ()

    def facts(self):
        return [("model", self.name)]

    def start(self):
        pass

    def take_warnings(self):
        warnings, self.warnings = self.warnings, ()
        return warnings

    def wait(self, cancel):
        if self.error:
            raise self.error
        return not (self.loading and cancel())

    def encode(self, text, *, bos):
        return [0] * bos + [ord(character) for character in text]

    def detokenize(self, token_ids):
        return "".join(map(chr, token_ids)).replace("\0", "")

    def token_text(self, token_id):
        return chr(token_id)

    def model_hash(self):
        return "0" * 64

    def write(self, requests):
        for index, request in enumerate(requests):
            yield from self._write(index, request)

    def _write(self, index, request):
        self.requests.append(request)
        parts, reason = self.turns.pop(0)
        text, tokens = "", []
        for part in parts:
            if isinstance(part, BaseException):
                raise part
            if isinstance(part, Trimmed):
                yield part
            elif callable(part):
                part()
            else:
                shown, behind = (part, part) if isinstance(part, str) else part
                new = tuple(Token(ord(character), -1.0) for character in behind)
                text, tokens = text + shown, [*tokens, *new]
                yield Text(index, shown, new)
            if request.cancel():
                reason = "cancelled"
                break
        figures = {"tokens": 1.0, "seconds": 0.5, "first_token_seconds": 0.1}
        figures |= {"tokens_per_second": 2 * len(tokens), "bits_per_token": 1.5, "drafts": 3.0}
        yield Ended(index, Story(request, text, request.prompt_ids, tuple(tokens), reason, figures))


def scripted_studio(registry, *turns, models=(), backend=None, **fields):
    """Return a studio with a scripted model. `models` are those that /model can open; fresh seeds count from 100."""

    def open_model(name):
        for model in models:
            if model.name == name:
                return model
        raise CheckpointError(f"there is no directory {name}")

    draws = iter(range(100, 200))
    backend = backend or ScriptedBackend(*turns)
    fields = {"seed": 42, **fields}
    return Studio(
        registry,
        parse_spec("sample 0.8", registry),
        backend=backend,
        open_model=open_model,
        draw_seed=lambda: next(draws),
        **fields,
    )


def write(studio, text):
    """Type a text; return what the writer and the model added."""
    request = studio.next_turn(text)
    return request.typed, "".join(e.text for e in studio.write([request], lambda: False) if isinstance(e, Text))


def printed(blocks):
    stream = io.StringIO()
    Screen(stream, color=False).show(*blocks)
    return stream.getvalue()


def run(studio, line):
    return printed(execute(studio, line).blocks)
