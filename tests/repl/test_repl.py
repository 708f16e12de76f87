"""The chat without a terminal or a model: commands, continuing, completion, and whole conversations by piped keys."""

import copy
import io
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from tinystory.decoding import Token
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import format_value, parse_spec
from tinystory.errors import CheckpointError, TinystoryError, UsageError
from tinystory.repl import app as app_module
from tinystory.repl.app import App, ChatSettings, chat, toolbar
from tinystory.repl.browser import Alternative, Browser
from tinystory.repl.commands import COMMANDS, execute
from tinystory.repl.completion import complete
from tinystory.repl.history import open_history
from tinystory.screen import terminal as terminal_module
from tinystory.screen.blocks import HEAT, Line, Outline, Table
from tinystory.screen.screen import Screen, background
from tinystory.screen.terminal import Writing
from tinystory.settings import Setting
from tinystory.studio.backend import ModelBackend
from tinystory.studio.seams import joint
from tinystory.studio.studio import Studio
from tinystory.writing.generate import Ended, Story, Text, Trimmed

SEED = 42


class ScriptedBackend:
    """Writes what it is told to, a list of (pieces, finish reason), one for each turn.

    A token is a character, 0 is BOS. A piece is a text, (text shown, text of its tokens), an event, an exception to
    raise, or a function to call.
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

    def facts(self):
        return [("model", self.name)]

    def start(self):
        pass

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
        pieces, reason = self.turns.pop(0)
        text, tokens = "", []
        for piece in pieces:
            if isinstance(piece, BaseException):
                raise piece
            if isinstance(piece, Trimmed):
                yield piece
            elif callable(piece):
                piece()
            else:
                shown, behind = (piece, piece) if isinstance(piece, str) else piece
                new = tuple(Token(ord(character), -1.0) for character in behind)
                text, tokens = text + shown, [*tokens, *new]
                yield Text(index, shown, new)
            if request.cancel():
                reason = "cancelled"
                break
        figures = {"tokens": 1.0, "seconds": 0.5, "first_token_seconds": 0.1}
        figures |= {"tokens_per_second": 2 * len(tokens), "bits_per_token": 1.5, "drafts": 3.0}
        yield Ended(index, Story(request, text, request.prompt_ids, tuple(tokens), reason, figures))


@pytest.fixture(scope="module")
def registry():
    return discover(user_folder=None)


@pytest.fixture
def make(registry):
    """A studio with a scripted model; `models` are those that /model can open."""

    def build(*turns, models=(), backend=None, **fields):
        def open_model(name):
            for model in models:
                if model.name == name:
                    return model
            raise CheckpointError(f"there is no directory {name}")

        draws = iter(range(100, 200))
        backend = backend or ScriptedBackend(*turns)
        fields = {"seed": SEED, **fields}
        return Studio(
            registry, parse_spec("sample 0.8", registry), backend, open_model, draw_seed=lambda: next(draws), **fields
        )

    return build


def write(studio, text):
    """Type a text; what was added by the writer and by the model."""
    turn = studio.next_turn(text)
    return turn.typed, "".join(e.text for e in studio.write([turn], lambda: False) if isinstance(e, Text))


def printed(blocks):
    stream = io.StringIO()
    Screen(stream, color=False).show(*blocks)
    return stream.getvalue()


def run(studio, line):
    return printed(execute(studio, line).blocks)


@pytest.fixture
def talk(monkeypatch):
    """Feed keys to a whole chat; returns the exit code and what it printed."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")

    def converse(studio, keys, history=None, **settings):
        stream = io.StringIO()
        settings = ChatSettings(**{"color": False, **settings})
        with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
            keyboard.send_bytes(keys.encode(errors="surrogateescape"))
            code = App(studio, Screen(stream, color=settings.color), settings, history).run()
        return code, stream.getvalue()

    return converse


CTRL_C, CTRL_D, CTRL_J, ALT_ENTER = "\x03", "\x04", "\n", "\x1b\r"


# Whole conversations


def test_transcript(make, talk):
    studio = make(([" a", " cat", "."], "eos"), ([" sat"], "length"))
    keys = "Once upon\r/decoder greedy\r/decoder topk 40\r/decoder top-k 0\rThe dog\rhalf a thought" + CTRL_C + CTRL_D
    assert talk(studio, keys) == (
        0,
        """\
Once upon a cat.
— 7 tokens · 14 tokens/s · 1.50 bits/token · the end · sample 0.8 · seed 42

> /decoder greedy
decoder: greedy

> /decoder topk 40
no decoder stage is called 'topk': did you mean `top-k`?

> /decoder top-k 0
top-k: k must be an integer ≥ 1, not '0'; e.g. `top-k 40`

The dog sat
— 4 tokens · 8 tokens/s · 1.50 bits/token · length · greedy · seed 42

""",
    )


def test_a_text_and_then_enter_alone(make, talk):
    studio = make(([" was"], "length"), ([" red"], "length"), ([" too"], "eos"))
    code, output = talk(studio, "The cat\r\r" + "and so was he\r" + CTRL_D, quiet=True)
    assert (code, output) == (0, "The cat was\n\n red\n\nand so was he too\n\n")
    assert studio.text == "The cat was red and so was he too"


def test_quiet_prints_stories_answers_and_errors_only(make, talk):
    _, output = talk(make((["."], "eos")), "Hi\r/len 5\r/len x\r" + CTRL_D, quiet=True)
    assert output == (
        "Hi.\n\n> /len 5\nat most 5 tokens at a time\n\n"
        "> /len x\n/len: max_tokens must be a whole number from 1 to 10,000,000, not 'x'\n\n"
    )


def test_first_prompt_is_written_at_once(make, talk):
    code, output = talk(make(([" was"], "length")), CTRL_D, prompt="The cat", quiet=True)
    assert (code, output) == (0, "The cat was\n\n")


def test_ctrl_c_mid_story_keeps_the_text_and_the_next_turn_goes_on(make, talk):
    def press():
        os.kill(os.getpid(), signal.SIGINT)

    studio = make(([" sat", press, " never"], "eos"), ([" down"], "length"))
    before = signal.getsignal(signal.SIGINT)
    code, output = talk(studio, "The cat\r\r" + CTRL_D)
    assert code == 0
    assert output.startswith("The cat sat\n— 4 tokens · 8 tokens/s · 1.50 bits/token · cancelled")
    assert studio.text == "The cat sat down"
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_the_model_is_loading_keeps_the_text(make, talk):
    backend = ScriptedBackend(([" sat"], "length"))
    backend.loading = True
    waits = []

    def wait(cancel):
        waits.append(cancel())
        if len(waits) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return not cancel()

    backend.wait = wait
    studio = make(backend=backend)
    _, output = talk(studio, "The cat\r\r" + CTRL_D)
    assert output.startswith(
        "— loading toy …\nThe cat\n— cancelled while the model was loading; Enter goes on\n\n— loading toy …\n sat\n"
    )
    assert studio.text == "The cat sat"


def test_ctrl_c_is_noted_once_and_raised_when_nothing_looks(monkeypatch):
    moments = iter([10.0, 10.9, 11.1])
    monkeypatch.setattr(terminal_module, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    with Writing() as writing:
        assert not writing.interrupted
        signal.raise_signal(signal.SIGINT)
        assert writing.interrupted
        signal.raise_signal(signal.SIGINT)  # impatience, well within a slow token
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_idle_ctrl_c_hints_and_twice_leaves(make, talk):
    assert talk(make(), CTRL_C * 2) == (130, "— Ctrl-C once more leaves; so does Ctrl-D\n\n")


def test_ctrl_c_that_clears_text_is_not_counted(make, talk):
    assert talk(make(), "text" + CTRL_C + CTRL_C + CTRL_D) == (0, "— Ctrl-C once more leaves; so does Ctrl-D\n\n")


def test_second_ctrl_c_has_to_come_soon(make, talk, monkeypatch):
    moments = iter([10.0, 12.1, 14.0])
    monkeypatch.setattr(app_module, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    code, output = talk(make(), CTRL_C * 3)
    assert code == 130
    assert output.count("once more") == 2


def test_cleared_text_stays_in_the_history(make, talk):
    history = InMemoryHistory()
    talk(make(), "precious" + CTRL_C + CTRL_D, history)
    assert history.get_strings() == ["precious"]


def test_ctrl_d_leaves_only_from_an_empty_line(make, talk):
    studio = make((["."], "eos"))
    assert talk(studio, "ab" + CTRL_D + "\r" + CTRL_D, quiet=True) == (0, "ab.\n\n")


@pytest.mark.parametrize("keys", ["/quit\r", "/exit\r"])
def test_quit(make, talk, keys):
    assert talk(make(), keys)[0] == 0


def test_paste_does_not_send_and_new_lines_can_be_typed(make, talk):
    studio = make((["."], "eos"))
    keys = "\x1b[200~one\r\ntwo\nthree\x1b[201~" + ALT_ENTER + "four" + CTRL_J + "five\r" + CTRL_D
    talk(studio, keys)
    assert studio.text == "one\ntwo\nthree\nfour\nfive."


def test_two_slashes_begin_a_story_with_one(make, talk):
    studio = make(([" yes"], "length"))
    talk(studio, "//or no\r" + CTRL_D)
    assert studio.text == "/or no yes"


def test_escapes_and_markup_of_a_model_are_shown(make, talk):
    evil = ["\x1b[2J", "\x1b]0;owned\x07", "\u202e", "[bold]", "\x9b1m", "\r", "\x1b", "]52;c;cm0=\x07"]
    _, output = talk(make((evil, "eos")), "Hi\r" + CTRL_D, quiet=True, color=True)
    assert "\x1b[1mHi\x1b[0m" in output
    assert "␛[2J␛]0;owned␇<U+202E>[bold]<U+009B>1m␍␛]52;c;cm0=␇\n" in output


def test_escapes_of_a_writer_a_name_and_an_error_are_shown(make, talk):
    backend = ScriptedBackend((["x", TinystoryError("bad \x1b[31m")], "eos"), name="\x1b]0;m\x07")
    _, output = talk(make(backend=backend), "/\x1b[200~\x1b[5m\x1b[201~\r\x1b[200~\x1b[7m\x1b[201~\r/model\r" + CTRL_D)
    assert "\x1b" not in output
    assert "\x07" not in output
    assert "␛[7mx\nbad ␛[31m" in output
    assert "␛]0;m␇" in output


def test_escape_leaves_the_token_browser_however_soon_it_comes(make, monkeypatch):
    """The prompt's timer for the Alt-Up just pressed once took the Escape that was pending in the browser."""
    monkeypatch.setenv("TERM", "xterm")
    left_by = []
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):

        def alternatives(place):
            if place == 1 and not left_by:  # the first time that it is on the screen
                left_by.append("nothing")
                keyboard.send_text("\x1b[D\x1b")
            return [Alternative("x", 0.5, taken=True)]

        class Watched(Browser):
            def application(self, *, color):
                window = super().application(color=color)
                run = window.run_async

                async def watched():
                    result = await run()
                    left_by.append((self.place, result))
                    keyboard.send_text(CTRL_D)
                    return result

                window.run_async = watched
                return window

        monkeypatch.setattr(app_module, "browser_of", lambda studio: Watched(["a", "b"], alternatives))
        rescue = threading.Timer(10, lambda: (left_by.append("q"), keyboard.send_text("q")))
        rescue.start()
        keyboard.send_text("\x1b\x1b[A")
        code = App(make(), Screen(io.StringIO(), color=False), ChatSettings(color=False)).run()
        rescue.cancel()
    assert left_by == ["nothing", (0, None)]
    assert code == 0


def test_bytes_that_are_no_text_become_replacement_characters(make, talk):
    studio = make((["."], "eos"))
    talk(studio, "a\udcff\r" + CTRL_D)
    assert studio.text == "a\ufffd."


def test_colour_is_weight_alone_and_none_without(make, talk):
    keys = "Hi\r/help\r/decoders\r/stats\r" + CTRL_D
    _, colored = talk(make((["."], "eos")), keys, color=True)
    _, plain = talk(make((["."], "eos")), keys)
    assert set(re.findall(r"\x1b[^m]*m", colored)) == {"\x1b[1m", "\x1b[2m", "\x1b[0m"}
    assert "\x1b" not in plain


def test_what_a_decoder_wrote_before_it_failed_stays(make, talk):
    studio = make(([" sat", TinystoryError("decoder stage x failed")], "eos"), ([" down"], "length"))
    _, output = talk(studio, "The cat\r\r" + CTRL_D, quiet=True)
    assert output == "The cat sat\ndecoder stage x failed\n\n down\n\n"
    assert studio.text == "The cat sat down"


@pytest.mark.parametrize("verbose", [False, True])
def test_an_unexpected_error_does_not_end_the_chat(make, talk, verbose):
    studio = make(([ZeroDivisionError("oh\nno")], "eos"), ([" lives"], "length"))
    code, output = talk(studio, "It\r" + CTRL_D, verbose=verbose)
    assert code == 0
    assert "unexpected error (ZeroDivisionError: oh no)" in output
    assert ("Traceback" in output) == verbose


def test_a_model_that_did_not_load_is_told_when_needed_and_mended(make, talk):
    good = ScriptedBackend(([" sat"], "length"), name="good")
    studio = make(backend=ScriptedBackend(error=TinystoryError("the model toy did not load: NaN")), models=[good])
    _, output = talk(studio, "The cat\r/model good\rThe cat\r" + CTRL_D, quiet=True)
    assert output == ("The cat\nthe model toy did not load: NaN\n\n> /model good\nmodel  good\n\nThe cat sat\n\n")


def test_interrupted_command_changes_nothing(make, talk, monkeypatch):
    slow = ScriptedBackend(name="slow", error=KeyboardInterrupt())
    studio = make(models=[slow])
    _, output = talk(studio, "/model slow\r" + CTRL_D)
    assert output == "> /model slow\n— cancelled\n\n"
    assert studio.backend.name == "toy"


def test_outgrown_context_is_told_once_after_the_piece(make, talk):
    _, output = talk(make((["a", Trimmed(0, 9), "b"], "length")), "x\r" + CTRL_D)
    assert "xab\n— the story has outgrown the model's context" in output


# Going on with a story


@pytest.mark.parametrize(
    ("text", "addition", "between"),
    [
        ("The cat sat", "on the mat", " "),
        ("The cat sat.", "Then", " "),
        ("The cat sat", ", and", ""),
        ("The cat sat", ".", ""),
        ("The cat sat ", "on", ""),
        ("The cat sat", " on", ""),
        ("The cat sat\n", "Then", ""),
        ("The cat sat", "\nThen", ""),
        ("", "Then", ""),
        ("Then", "", ""),
        ('Tom said, "', "Hello", ""),
        ('Tom said, "Hello', '" and left', ""),
        ('Tom said, "Hello."', "Then", " "),
        ("Tom said,", '"Hello', " "),
        ('"Hi."\nTom said, "', "Hello", ""),
        ("Tom said, “", "Hello", ""),
        ("Tom", "'s hat", ""),
        ("Tom said,", "'hello' to", " "),
        ("He was (", "not", ""),
        ("He was (not", ")", ""),
        ("A well-", "known cat", ""),
        ("Wait", "… what", ""),
    ],
)
def test_joint(text, addition, between):
    assert joint(text, addition) == between


def test_a_story_goes_on_with_its_exact_tokens_seed_and_prompt(make):
    studio = make(([" was"], "length"), (["."], "length"), (["!"], "length"), seed=None)
    assert write(studio, "A cat") == ("A cat", " was")
    assert write(studio, "red") == ("red", ".")
    assert write(studio, "") == ("", "!")
    first, second, third = studio.backend.requests
    assert first.prompt_ids == (0, *map(ord, "A cat"))
    assert second.prompt_ids == (0, *map(ord, "A cat was red"))
    assert third.prompt_ids == (0, *map(ord, "A cat was red."))
    assert [r.n_prompt for r in studio.backend.requests] == [6, 6, 6]
    assert [r.seed for r in studio.backend.requests] == [100, 100, 100]
    assert studio.text == "A cat was red.!"


def test_after_the_end_a_text_begins_a_new_story(make):
    studio = make(([" ran."], "eos"), (["."], "eos"), (["Once"], "length"), seed=None)
    write(studio, "A dog")
    assert write(studio, "A cat") == ("A cat", ".")
    assert write(studio, "") == ("", "Once")
    assert [r.prompt for r in studio.backend.requests] == ["A dog", "A cat", ""]
    assert [r.seed for r in studio.backend.requests] == [100, 101, 102]
    assert studio.backend.requests[-1].prompt_ids == (0,)


def test_enter_goes_past_a_stop_text_and_a_text_replaces_it(make):
    studio = make(([" ran", ("", ".\n")], "stop"), ([" He"], "length"), stop=(".",))
    write(studio, "A dog")
    assert studio.text == "A dog ran"
    assert write(studio, "") == (".\n", " He")

    studio = make(([" ran", ("", ".\n")], "stop"), (["!"], "length"), stop=(".",))
    write(studio, "A dog")
    assert write(studio, "fast") == ("fast", "!")
    assert studio.backend.requests[1].prompt_ids == (0, *map(ord, "A dog ran fast"))


def test_half_a_character_becomes_whole(make):
    class Bytes(ScriptedBackend):
        def detokenize(self, token_ids):
            return super().detokenize(token_ids).replace("AB", "é").replace("A", "\ufffd")

    studio = make(backend=Bytes((["x", ("\ufffd", "A")], "length"), ([("\ufffd", "B")], "length")))
    write(studio, "")
    assert studio.text == "x\ufffd"
    write(studio, "")
    assert studio.backend.requests[1].prompt_ids == (0, *map(ord, "xA"))
    assert studio.text == "xé"


def test_a_vocabulary_that_adds_spaces_gets_none_too_many(make):
    class Spaced(ScriptedBackend):
        def encode(self, text, *, bos):
            return super().encode(" " + text, bos=bos)

        def detokenize(self, token_ids):
            return super().detokenize(token_ids).removeprefix(" ")

    studio = make(backend=Spaced(([" was"], "length"), (["."], "length")))
    write(studio, "A cat")
    write(studio, "red")
    assert studio.backend.requests[1].prompt_ids == (0, *map(ord, " A cat was red"))
    assert studio.text == "A cat was red."


def test_nothing_written_leaves_the_desk_as_it_was(make):
    studio = make(([UsageError("the prompt is empty and this model has no BOS token")], "eos"))
    with pytest.raises(UsageError):
        write(studio, "")
    assert studio.text == ""


def test_seed(make):
    studio = make(*[(["."], "length")] * 4, seed=None)
    write(studio, "A")
    assert run(studio, "/seed 7") == "seed: 7\n"
    write(studio, "")
    assert run(studio, "/seed random") == "seed: random, a fresh one for each story\n"
    write(studio, "")
    write(studio, "")
    assert [r.seed for r in studio.backend.requests] == [100, 7, 101, 101]
    assert run(studio, "/seed") == "seed: random, a fresh one for each story\n"


def test_another_model_goes_on_in_its_own_tokens(make):
    class Shifted(ScriptedBackend):
        def encode(self, text, *, bos):
            return [1] * bos + [ord(c) + 1 for c in text]

    other = Shifted((["!"], "length"), name="other")
    other.vocabulary = "shifted characters"
    studio = make((["b"], "length"), models=[other])
    write(studio, "a")
    assert run(studio, "/model other") == "model  other\n"
    write(studio, "")
    assert other.requests[0].prompt_ids == (1, ord("a") + 1, ord("b") + 1)
    assert other.requests[0].n_prompt == 3  # in other tokens, all that stands is what the writer gives


# Commands


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/decoder topk 40", "no decoder stage is called 'topk': did you mean `top-k`?"),
        ("/decoder top-k 0", "top-k: k must be an integer ≥ 1, not '0'"),
        ("/decoder top-k k=", "top-k"),
        ("/decoder |", "empty stage"),
        ("/decoders topk", "did you mean `top-k`?"),
        ("/seed x", "/seed: seed must be a whole number or random, not 'x'"),
        ("/len 0", "must be a whole number from 1 to"),
        ("/len -5", "not '-5'"),
        ("/len abc", "not 'abc'"),
        ("/model nowhere", "there is no directory nowhere"),
        ("/model broken", "NaN"),
        ("/decodr greedy", "/decodr is no command: did you mean /decoder?"),
        ("/help lenn", "did you mean /len?"),
        ("/xyzzy", "/xyzzy is no command: /help lists them"),
        ("/", "/ is no command: /help lists them"),
        ("/ new", "is no command"),
        ("/quit now", "/quit takes nothing after it"),
        ("/" + "x" * 100_000, "is no command"),
    ],
)
def test_wrong_input_is_named_and_changes_nothing(make, line, message):
    studio = make(models=[ScriptedBackend(name="broken", error=TinystoryError("NaN"))])
    studio.keep(studio.begin("A cat"))
    before = copy.deepcopy(studio.tree), replace(studio)
    with pytest.raises(TinystoryError, match=re.escape(message)) as error:
        execute(studio, line)
    assert (studio.tree, studio) == before
    assert len(str(error.value)) < 300


def test_decoder_shows_the_chain_and_what_is_off(make):
    studio = make()
    assert run(studio, "/decoder temperature 1 | top-k 7") == "decoder: temperature 1 | top-k 7 | sample\n"
    shown = run(studio, "/decoder")
    assert shown.startswith("temperature 1 | top-k 7 | sample\n")
    assert re.search(
        r"^  temperature +off: t = 1 +logits are divided by t \(a number > 0\)$", shown, re.MULTILINE
    )
    assert re.search(r"^  top-k +k = 7 ", shown, re.MULTILINE)
    studio.decoder = parse_spec("greedy", studio.registry)
    assert re.search(r"^  greedy +Always pick", run(studio, "/decoder"), re.MULTILINE)


def test_decoders_come_from_the_registry(make, registry):
    shown = run(make(), "/decoders")
    for name, cls, _ in registry.classes():
        assert re.search(rf"^{name} +{cls.kind} ", shown, re.MULTILINE)
    one = run(make(), "/decoders top-p")
    assert "p: a number > 0 and ≤ 1" in one
    assert re.search(r"from +tinystory", one)


def test_help_is_made_from_the_commands(make):
    studio = make()
    shown = run(studio, "/help")
    for one in COMMANDS.values():
        assert re.search(rf"^{re.escape(one.synopsis)}( |$)", shown, re.MULTILINE)
        assert one.help in run(studio, f"/help {one.name}")
    assert "also /exit" in run(studio, "/help /quit")


def test_len_new_stats_and_model(make):
    studio = make(([" b"], "length"), (["z"], "eos"))
    assert "has written nothing" in run(studio, "/stats")
    assert run(studio, "/len 17") == run(studio, "/len") == "at most 17 tokens at a time\n"
    write(studio, "a")
    assert studio.backend.requests[0].max_new_tokens == 17
    stats = run(studio, "/stats")
    assert re.search(r"^tokens +2 after 2$", stats, re.MULTILINE)
    assert re.search(r"^surprise +1.500 bits/token, perplexity 2.83$", stats, re.MULTILINE)
    assert re.search(r"^drafts +3$", stats, re.MULTILINE)
    assert execute(studio, "/new A  dog\nran").requests[0].typed == "A  dog\nran"
    assert "a blank page" in run(studio, "/new")
    assert studio.text == ""
    assert run(studio, "/model") == "model  toy\n"


def test_decoders_that_are_broken_are_told_of(make, tmp_path):
    (tmp_path / "broken.py").write_text("def")
    studio = make()
    studio.registry = discover(user_folder=tmp_path)
    assert f"— decoder file {tmp_path}/broken.py:1: SyntaxError" in " ".join(run(studio, "/decoders").split())


# Completion


def offered(text, registry):
    return [suggestion.text for suggestion in complete(text, registry)]


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("/deco", ["decoder ", "decoders "]),
        ("/q", ["quit"]),
        ("/decoder t", ["temperature ", "top-a ", "top-h ", "top-k ", "top-n-sigma ", "top-p ", "typical "]),
        ("/decoder top-k 40 | te", ["temperature "]),
        ("/decoder top-k 40|gr", ["greedy"]),
        ("/decoder greedy | t", []),
        ("/decoder sampling | t", []),
        ("/decoder top-k ", ["40", "k="]),
        ("/decoder top-p 0", ["0.9"]),
        ("/decoder min-p p=", ["0.1", "0"]),
        ("/decoder sample t", ["temperature="]),
        ("/decoder top-k 40 ", ["| "]),
        ("/decoder top-k k=4", ["40"]),
        ("/decoder nonsense ", []),
        ('/decoder top-k "a | b', []),
        ("/decoders gr", ["greedy"]),
        ("/help de", ["decoder", "decoders"]),
        ("/seed r", ["random"]),
        ("/len 1", []),
        ("/nonsense x", []),
        ("Once /d", []),
        ("//d", []),
        ("", []),
    ],
)
def test_completion(registry, text, texts):
    assert offered(text, registry) == texts


def test_completion_of_folders(registry, tmp_path, monkeypatch):
    for name in ("model one", "model-two", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "model.txt").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert offered(f"/model {tmp_path}/mod", registry) == ["model one/", "model-two/"]
    assert offered(f"/model {tmp_path}/.h", registry) == [".hidden/"]
    assert offered("/model ~/model-", registry) == ["model-two/"]
    assert offered("/model def", registry)[0] == "default"
    assert "mini" in offered("/versus default mi", registry)
    assert offered("/model /nowhere/x", registry) == []


@pytest.mark.parametrize(
    ("keys", "expected"),
    [("/dec\t \t\r", "/decoder"), ("/see\trandom\r", "/seed random"), ("/decoder gr\t\r", "/decoder greedy")],
)
def test_tab(make, talk, keys, expected):
    """Keys that come in a burst are not lost on a completion that still runs."""
    _, output = talk(make(), keys + CTRL_D)
    assert output.startswith(f"> {expected}")


# Starting, printing, keeping


@pytest.fixture
def no_files(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


@pytest.mark.usefixtures("no_files")
@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"model": "/nowhere"}, CheckpointError),
        ({"decoder": "topk 40"}, UsageError),
        ({"stop": ("a", "")}, UsageError),
        ({"decoder_files": ("/nowhere.py",)}, UsageError),
    ],
)
def test_a_chat_that_cannot_start_prints_nothing(settings, error, capsys):
    with pytest.raises(error):
        chat(ChatSettings(**settings))
    assert capsys.readouterr() == ("", "")


def test_importing_the_chat_imports_nothing_heavy():
    heavy = ("torch", "transformers", "datasets", "rich", "pyarrow")
    code = f"import sys, tinystory.repl.app; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_history_is_private_and_survives_whatever_happens_to_it(tmp_path):
    path = tmp_path / "new" / "history"
    history = open_history(path)
    history.append_string("one\ntwo")
    history.append_string("half \udcff")
    history.append_string("x" * 100_000)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(open_history(path).load_history_strings()) == ["half ?", "one\ntwo"]
    assert history.get_strings()[-1] == "x" * 100_000
    path.chmod(0o644)
    open_history(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    path.mkdir()
    history.append_string("kept")
    assert history.get_strings()[-1] == "kept"
    assert list(history.load_history_strings()) == []


def test_history_is_in_memory_where_there_can_be_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "file" / "history"):
        assert isinstance(open_history(path), InMemoryHistory)


@pytest.mark.parametrize("width", [1, 2, 7, 20, 33, 80, 1000])
def test_tables_and_lines_lose_nothing_on_any_width(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    table = Table((("名前", "two words", "a longer text that has to wrap somewhere"), ("x", "", "")), indent=2)
    shown = printed([table, Line("some more words\nand a line")])
    assert " ".join(shown.split()) == (
        "名前 two words a longer text that has to wrap somewhere x some more words and a line"
    )
    if width >= 80:
        assert shown.splitlines()[0] == "  名前  two words  a longer text that has to wrap somewhere"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (True, "yes"),
        (False, "no"),
        (3, "3"),
        (1.0, "1"),
        (0.25, "0.25"),
        ("cat", "cat"),
        ((1.0, 2.5), "1,2.5"),
        ((), ","),
        ({"cat": 2.0, "dog": -1.5}, "cat=2 dog=-1.5"),
        ({}, ","),
    ],
)
def test_values_show_as_specs_write_them(value, shown):
    assert format_value(value) == shown


def test_toolbar_drops_what_does_not_fit():
    pieces = ["default", "sample 0.8", "seed 42", "0 of 512 tokens"]
    assert toolbar(pieces, 80) == " default · sample 0.8 · seed 42 · 0 of 512 tokens"
    assert toolbar(pieces, 40) == " default · sample 0.8 · seed 42"
    assert toolbar(pieces, 3) == ""
    assert toolbar(["a\nb\x1b"], 80) == " a b␛"


def luminance(number):
    """Relative luminance, as WCAG defines it, of a colour of the 256 from 16 on."""
    if number < 232:
        place = number - 16
        steps = (place // 36, place // 6 % 6, place % 6)
        values = [0 if step == 0 else 55 + 40 * step for step in steps]
    else:
        values = [8 + 10 * (number - 232)] * 3
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (value / 255 for value in values)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_tint_can_be_read_on_its_background():
    assert luminance(231) == pytest.approx(1)
    for theme, backgrounds, least in [("dark", [0], 4), ("light", [1], 4), ("any", [0, 1], 3)]:
        for number in HEAT[theme]:
            for ground in backgrounds:
                low, high = sorted([luminance(number), ground])
                assert (high + 0.05) / (low + 0.05) >= least, (theme, number, ground)
        assert len(set(HEAT[theme])) == 5


def test_the_background_is_as_told_or_as_the_terminal_says():
    assert background("light", {"COLORFGBG": "15;0"}) == "light"
    assert background("dark", {"COLORFGBG": "0;15"}) == "dark"
    assert [background("auto", {"COLORFGBG": value}) for value in ("0;15", "0;default;7", "15;0", "")] == [
        "light", "light", "dark", "any"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (100, "● 2  The owl had a vase. It was big and brig…  top-k 40 | sample 0.8 · seed 7 · 176 tok · 1.34 bits"),
        (76, "● 2  The owl had a vase.…  top-k 40 | sampl… · seed 7 · 176 tok · 1.34 bits"),
        (60, "● 2  The owl had a vase. It…   seed 7 · 176 tok · 1.34 bits"),
        (40, "● 2  The owl had a vase. It…  1.34 bits"),
        (30, "● 2  The owl had a vase. It…"),
    ],
)
def test_a_row_of_the_tree_keeps_the_figures_and_cuts_the_spec(monkeypatch, width, line):
    """In 80 columns, two stages were enough for a row to lose all it had to say."""
    monkeypatch.setenv("COLUMNS", str(width))
    facts = "top-k 40 | sample 0.8 · seed 7 · 176 tok · 1.34 bits"
    shown = printed([Outline((("● 2", "The owl had a vase. It was big and bright and old.", facts, ""),))])
    assert shown == line + "\n"


def test_a_long_first_cell_does_not_take_the_width_of_the_second(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    shown = printed([Table((("/go", "on"), ("/preset save NAME | load NAME | rm", "decoders of your own")))])
    assert shown == "/go  on\n/preset save NAME | load NAME | rm\n     decoders of your own\n"


def test_config_shows_each_setting_and_where_it_comes_from(make):
    studio = make(settings=(Setting("seed", 7, "flag --seed"), Setting("keys", "vi", "TINYSTORY_KEYS")))
    shown = run(studio, "/config")
    assert re.search(r"^seed +7 +flag --seed$", shown, re.MULTILINE)
    assert re.search(r"^keys +vi +TINYSTORY_KEYS$", shown, re.MULTILINE)
    assert "configuration file:" in shown


def test_what_is_healed_is_shown_once(make):
    turn = replace(make().begin("a little ti"), heal=" ti")
    assert turn.ahead == "a little"
    assert replace(turn, typed="i").ahead == ""


# A real model


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory):
    """A random model over bytes: it writes control characters and broken UTF-8 all the time, and never an end."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    from tinystory.checkpoint import save_checkpoint
    from tinystory.model.config import ModelConfig
    from tinystory.model.transformer import Transformer

    end = "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet, 1)} | {end: 0}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([end])
    fast.post_processor = processors.TemplateProcessing(single=f"{end} $A", special_tokens=[(end, 0)])
    torch.manual_seed(0)
    model = Transformer(ModelConfig.llama(257, 1, 1, 32, 128, 64, tied_head=False)).eval()
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_checkpoint(path, model, fast.to_str(), bos_id=0, eos_ids=(), provenance={})
    return path


def test_a_story_in_pieces_is_the_story_in_one(make, tiny_checkpoint):
    """Also where a piece ends in the middle of a character."""
    backend = ModelBackend.open(str(tiny_checkpoint), "float32", "cpu")
    assert backend.wait(lambda: False)
    whole = make(backend=backend, max_tokens=91)
    write(whole, "Once é")
    pieces = make(backend=backend, max_tokens=7)
    write(pieces, "Once é")
    while len(pieces.token_ids) < len(whole.token_ids):
        write(pieces, "")
    assert len(whole.token_ids) == 8 + 91
    assert (pieces.token_ids, pieces.text) == (whole.token_ids, whole.text)
    assert whole.tree.n_prompt(whole.tree.current) == pieces.tree.n_prompt(pieces.tree.current) == 8


def test_backend_tells_of_its_model_before_and_after_loading(tiny_checkpoint):
    backend = ModelBackend.open(str(tiny_checkpoint), "float32", "cpu")
    assert backend.loading
    assert backend.max_seq_len == 128
    assert dict(backend.facts())["runs"] == "in float32 on cpu, loading"
    assert backend.wait(lambda: False)
    backend.start()
    assert not backend.loading
    assert dict(backend.facts())["runs"] == "in float32 on cpu, loaded"


def test_backend_that_cannot_load_says_so_each_time(tiny_checkpoint):
    backend = ModelBackend.open(str(tiny_checkpoint), "float32", "nosuchdevice")
    for _ in range(2):
        with pytest.raises(TinystoryError, match=r"did not load: device 'nosuchdevice' is not available"):
            backend.wait(lambda: False)
    assert dict(backend.facts())["runs"] == "in float32 on nosuchdevice, failed to load"


def test_waiting_for_a_backend_can_be_cancelled(tiny_checkpoint, monkeypatch):
    backend = ModelBackend.open(str(tiny_checkpoint), "float32", "cpu")
    monkeypatch.setattr(backend, "start", lambda: None)
    assert not backend.wait(lambda: True)
