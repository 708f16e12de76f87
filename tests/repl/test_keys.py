"""Keys from the terminal: unknown escape sequences, the newer forms of keys, pastes, and the keys of vi."""

import os
import pty

import pytest
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input.typeahead import get_typeahead
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.keys import Keys
from scripted_chat import ALT_ENTER, CTRL_D

from tinystory.repl.keys import StrictParser, early_keys

ANSWERS = {
    "OSC 10": "\x1b]10;rgb:ffff/ffff/ffff\x1b\\",
    "OSC 11": "\x1b]11;rgb:0000/0000/0000\x07",
    "OSC 52": "\x1b]52;c;T25jZQ==\x07",
    "DA1": "\x1b[?62;1;4c",
    "DA2": "\x1b[>0;276;0c",
    "DA3": "\x1bP!|00000000\x1b\\",
    "XTVERSION": "\x1bP>|XTerm(370)\x1b\\",
    "DECRQSS": "\x1bP1$r0m\x1b\\",
    "DECRPM": "\x1b[?2026;2$y",
    "kitty flags": "\x1b[?0u",
    "kitty graphics": "\x1b_Gi=31;OK\x1b\\",
    "status": "\x1b[0n",
    "size": "\x1b[8;24;80t",
    "focus in": "\x1b[I",
    "focus out": "\x1b[O",
    "end of a paste": "\x1b[201~",
    "key released": "\x1b[97;1:3u",
    "arrow released": "\x1b[1;1:3A",
    "F25": "\x1b[57388u",
    "keypad 5 without Num Lock": "\x1bOE",
    "key without a name": "\x1b[99~",
    "click": "\x1b[<0;10;10M",
    "click of urxvt": "\x1b[32;10;10M",
    "click in the oldest form": "\x1b[M\0é你",
    "click without a place": "\x1b[<5M",
    "cursor far away": "\x1b[" + "9" * 40 + ";1R",
}
KEYS = {
    "\x1b[13u": [Keys.Enter],
    "\x1b[13;2u": [Keys.ControlJ],
    "\x1b[13;5u": [Keys.ControlJ],
    "\x1b[27;2;13~": [Keys.ControlJ],
    "\x1b[27;5;13~": [Keys.ControlJ],
    "\x1bOM": [Keys.Enter],
    "\x1b[57414u": [Keys.Enter],
    "\x1bOj\x1bOq\x1bOn": ["*", "1", "."],
    "\x1b[57400u\x1b[57417u": ["1", Keys.Left],
    "\x1b[9;2u": [Keys.BackTab],
    "\x1b[27u": [Keys.Escape],
    "\x1b[127u": [Keys.ControlH],
    "\x1b[97u\x1b[97;2u\x1b[228;1u": ["a", "A", "ä"],
    "\x1b[97:65;2u": ["A"],
    "\x1b[99;5u\x1b[27;5;100~": [Keys.ControlC, Keys.ControlD],
    "\x1b[102;3u": [Keys.Escape, "f"],
    "\x1b[13;129u": [Keys.Enter],  # with Num Lock
    "\x1b[1;129A\x1b[1;1:1B\x1b[1;5C": [Keys.Up, Keys.Down, Keys.ControlRight],
    "\x1b[A\x1bOB\x1b[3~\x1bOP": [Keys.Up, Keys.Down, Keys.Delete, Keys.F1],
    "\x1b[1;3D": [Keys.Escape, Keys.Left],
    "\x1bf": [Keys.Escape, "f"],
    "\x1b": [Keys.Escape],
    "\x1b]": [Keys.Escape, "]"],
    "\x1bPlace": [Keys.Escape, *"Place"],
    "\x1b[12;1R": [Keys.CPRResponse],
    "\x1b[[A": [Keys.F1],
}


def keys_of(*parts):
    keys = []
    parser = StrictParser(keys.append)
    for part in parts:
        parser.feed(part)
    parser.flush()
    return [key.key for key in keys]


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_sequence_that_is_no_key_types_nothing(answer):
    assert keys_of(f"a{answer}b") == ["a", "b"]
    assert keys_of("a", *answer, "b") == ["a", "b"]
    for at in range(2 if answer[1] == "[" else 3, len(answer)):  # the line was slow, and the timer for Escape has run
        keys = []
        parser = StrictParser(keys.append)
        parser.feed(answer[: at + 1])
        parser.flush()
        parser.feed(answer[at + 1 :])
        parser.flush()
        assert keys == []


@pytest.mark.parametrize(("typed", "keys"), KEYS.items(), ids=map(repr, KEYS))
def test_a_sequence_that_is_a_key_is_that_key(typed, keys):
    assert keys_of(typed) == keys
    assert keys_of(*typed) == keys


@pytest.mark.parametrize(
    "sequence", ["\x1b[99999999999999;5u", "\x1b[;u", "\x1b[u", "\x1b[55296u", "\x1b[1;;2A", "\x1b[27;;13~"]
)
def test_nonsense_does_no_harm(sequence):
    assert keys_of(sequence)[:1] in ([], [Keys.Enter], [Keys.Up])


def test_what_begins_like_a_sequence_and_is_long_is_typed_text():
    assert keys_of("\x1b]1" + "x" * 5000)[-5000:] == ["x"] * 5000
    assert Keys.Enter in keys_of("\x1b]11;rgb\r")


def test_a_paste_is_a_paste_with_whatever_it_holds():
    keys = []
    parser = StrictParser(keys.append)
    parser.feed("\x1b[200~one\x1b[13;2u\r\x1b[2")
    parser.feed("01~\x1b[I.")
    assert [(key.key, key.data) for key in keys] == [(Keys.BracketedPaste, "one\x1b[13;2u\r"), (".", ".")]


def test_enter_typed_before_the_chat_has_the_terminal_is_enter():
    master, slave = pty.openpty()
    with os.fdopen(slave, "r") as terminal:
        keyboard = Vt100Input(terminal)
        os.write(master, "Öne\rtwo\r".encode())
        early_keys(keyboard)
        keys = [key.key for key in get_typeahead(keyboard)]
    os.close(master)
    assert keys == [*"Öne", Keys.Enter, *"two", Keys.Enter]


@pytest.mark.parametrize("newline", ["\n", "\r", "\r\n", "\n\n"])
def test_a_pasted_line_does_not_bring_its_newline(make, talk, newline):
    studio = make((["."], "eos"))
    talk(studio, f"\x1b[200~Once upon{newline}\x1b[201~ a time\r" + CTRL_D)
    assert studio.backend.requests[0].prompt == "Once upon a time"
    lines = make((["."], "eos"))
    talk(lines, f"\x1b[200~Once\r\nupon{newline}\x1b[201~\r" + CTRL_D)
    assert lines.backend.requests[0].prompt == "Once\nupon"


def test_a_paste_before_text_keeps_its_newline(make, talk):
    studio = make((["."], "eos"))
    talk(studio, "a time\x01\x1b[200~Once upon\n\x1b[201~\r" + CTRL_D)
    assert studio.backend.requests[0].prompt == "Once upon\na time"


def test_in_vi_escape_is_a_key_of_its_own(make, talk):
    studio = make(([" one."], "length"), ([" two."], "length"), ([" three."], "length"))
    _, output = talk(studio, "Once\r" + ALT_ENTER + "\x1b\x1b[D" + "\x1b\x1b[A" + "ddi/quit\r", keys="vi")
    assert [request.prompt for request in studio.backend.requests] == ["Once", "Once one."]
    assert "branch" not in output


def test_in_emacs_alt_enter_is_a_new_line(make, talk):
    studio = make((["."], "eos"))
    talk(studio, f"Once{ALT_ENTER}upon\x1b[13;2ua\x1b[It\x1bOM" + CTRL_D)
    assert studio.backend.requests[0].prompt == "Once\nupon\nat"


def test_a_long_paste_stands_as_a_mark_in_the_line_and_is_sent_whole(make, talk):
    studio = make((["."], "eos"))
    long = "word " * 5_000
    history = InMemoryHistory()
    talk(studio, f"One \x1b[200~{long}\x1b[201~ two \x1b[201~three\r" + CTRL_D, history)
    assert studio.backend.requests[0].prompt == f"One {long} two three"
    assert history.get_strings() == ["One [pasted text 1: 25,000 characters] two three"]
