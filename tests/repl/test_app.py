"""Whole conversations by piped keys, without a terminal or a model; and how a chat starts."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from scripted_chat import ALT_ENTER, CTRL_C, CTRL_D, CTRL_J, ScriptedBackend
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import FixedLength

from tinystory.errors import CheckpointError, TinystoryError, UsageError
from tinystory.repl import app as app_module
from tinystory.repl.app import App, ChatSettings, chat
from tinystory.repl.browser import Alternative, Browser
from tinystory.screen.blocks import Line
from tinystory.screen.screen import Screen
from tinystory.text.tokenizer import Tokenizer
from tinystory.writing.generate import Trimmed


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
top-k: k must be an integer ≥ 1, not '0'; e.g. `top-k 40`, or leave the stage
out

The dog sat
— 4 tokens · 8 tokens/s · 1.50 bits/token · length · greedy · seed 42

""",
    )


def test_an_edit_shows_the_words_before_the_change_or_only_corrects_them(make, talk, monkeypatch):
    """Only the changed words were printed, and every correction made the model go on."""
    edited = iter(["The cat was a blue", "The bat was a blue dog."])
    monkeypatch.setattr(app_module, "edit_text", lambda text: next(edited))
    monkeypatch.setattr(app_module, "show_story", lambda studio, screen: screen.show(Line(studio.text)))
    studio = make(([" was a red fox"], "length"), ([" dog."], "length"))
    code, output = talk(studio, "The cat\r/edit\r/edit fix\r/edit it\r" + CTRL_D, quiet=True)
    assert (code, output.split("\n\n")[:4]) == (0, [
        "The cat was a red fox", "> /edit\nThe cat was a blue dog.", "> /edit fix\nThe bat was a blue dog.",
        "> /edit it\n/edit takes nothing, or `fix` to correct the text without going on, not 'it'",
    ])  # fmt: skip
    assert [turn.written is None for turn in studio.tree.turns.values()] == [False, False, True]
    assert len(studio.backend.requests) == 2


def test_a_text_and_then_enter_alone(make, talk):
    studio = make(([" was"], "length"), ([" red"], "length"), ([" too"], "eos"))
    code, output = talk(studio, "The cat\r\r" + "and so was he\r" + CTRL_D, quiet=True)
    assert (code, output) == (0, "The cat was\n\n red\n\nand so was he too\n\n")
    assert studio.text == "The cat was red and so was he too"


def test_quiet_prints_stories_answers_and_errors_only(make, talk):
    _, output = talk(make((["."], "eos")), "Hi\r/len 5\r/len x\r" + CTRL_D, quiet=True)
    assert output == (
        "Hi.\n\n> /len 5\nat most 5 tokens in one turn\n\n"
        "> /len x\n/len: max_tokens must be a whole number from 1 to 10,000,000, not 'x'\n\n"
    )


def test_first_prompt_is_written_at_once(make, talk):
    code, output = talk(make(([" was"], "length")), CTRL_D, prompt="The cat", quiet=True)
    assert (code, output) == (0, "The cat was\n\n")


def test_a_warning_about_the_model_is_shown_once(make, talk):
    backend = ScriptedBackend(([" sat"], "length"), ([" down"], "length"))
    backend.warnings = ("the weights have the tensor 'v_head', which the model does not use",)
    _, output = talk(make(backend=backend), "The cat\r\r" + CTRL_D)
    assert output.count("— the weights have the tensor 'v_head', which the model does not use") == 1


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
    """The input line's timer for Alt-Up once took an Escape that was meant for the browser."""
    monkeypatch.setenv("TERM", "xterm")
    left_by = []
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):

        def alternatives(place):
            if place == 1 and not left_by:  # the browser is on the screen for the first time
                left_by.append("nothing")
                keyboard.send_text("\x1b[D\x1b")
            return [Alternative("x", 0.5, taken=True)]

        class Watched(Browser):
            def application(self, **how):
                window = super().application(**how)
                run = window.run_async

                async def watched(**options):
                    result = await run(**options)
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


class PanickingBackend(ScriptedBackend):
    """A model whose tokenizer panics for each text that begins with "Bad"."""

    def __init__(self, *turns):
        super().__init__(*turns)
        fast = FastTokenizer(BPE({"a": 0}, []))
        fast.pre_tokenizer = FixedLength(0)
        self.panics = Tokenizer(fast, None, frozenset())

    def encode(self, text, *, bos):
        return self.panics.encode(text) if text.startswith("Bad") else super().encode(text, bos=bos)


def test_a_tokenizer_that_panics_does_not_end_the_chat(make, talk, capfd):
    studio = make(backend=PanickingBackend(([" sat"], "length")))
    code, output = talk(studio, "Bad\rThe cat\r" + CTRL_D, quiet=True)
    assert code == 0
    assert "the tokenizer cannot turn this text into tokens: chunk size must be non-zero\n" in output
    assert output.endswith("The cat sat\n\n")
    assert studio.text == "The cat sat"
    assert capfd.readouterr().err == ""


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


def test_outgrown_context_is_told_once_after_the_turn(make, talk):
    _, output = talk(make((["a", Trimmed(0, 9), "b"], "length")), "x\r" + CTRL_D)
    assert "xab\n— the story has outgrown the model's context" in output


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
