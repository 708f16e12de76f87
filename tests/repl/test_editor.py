"""The user's own editor, for a story and for the input line, whatever it does with the file."""

import sys

import pytest
from scripted_chat import CTRL_D

from tinystory.errors import UsageError
from tinystory.repl.editor import edit_text

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the editors are scripts of a POSIX shell")
CTRL_X_CTRL_E = "\x18\x05"
FAULTS = {
    "fails": "exit 3",
    "is killed": "kill -KILL $$",
    "leaves no UTF-8": "printf 'Once \\377' > $1",
    "removes the file": "rm $1",
    "removes the folder": "rm -r $(dirname $1)",
    "leaves a folder": "rm $1; mkdir $1",
    "leaves a pipe": "rm $1; mkfifo $1",
    "leaves an endless file": "rm $1; ln -s /dev/zero $1",
}


@pytest.fixture
def editor(tmp_path, monkeypatch):
    """Return a function that makes a script the editor; the file is its $1."""

    def use(script):
        path = tmp_path / "editor"
        path.write_text(script)
        monkeypatch.setenv("EDITOR", f"sh {path}")
        monkeypatch.setenv("VISUAL", " ")

    return use


@pytest.mark.parametrize("script", FAULTS.values(), ids=FAULTS)
def test_an_editor_that_fails_changes_nothing(editor, script):
    editor(script)
    with pytest.raises(UsageError, match="the text has not changed"):
        edit_text("Once")


@pytest.mark.parametrize("command", ["/no/such/editor", '"not closed'])
def test_a_command_that_is_no_editor_is_an_error(monkeypatch, command):
    monkeypatch.setenv("VISUAL", command)
    with pytest.raises(UsageError, match="failed"):
        edit_text("Once")


def test_what_editors_add_on_their_own_is_no_edit(editor):
    editor("true")
    assert edit_text("a\r\nb\n") is None
    editor("printf '\\357\\273\\277a\\r\\nb\\r\\n' > $1")
    assert edit_text("a\nb") is None
    assert edit_text("Once") == "a\nb"


@pytest.fixture
def talk_after_editing(talk, monkeypatch):
    """Return a function that types a text, opens the editor, and types more after that."""

    def converse(studio, before, after, **settings):
        def edit(text):
            talk.later(after)  # with the other keys, these would come before the editor
            return edit_text(text)

        monkeypatch.setattr("tinystory.repl.app.edit_text", edit)
        return talk(studio, before, **settings)

    return converse


@pytest.mark.parametrize(("mode", "key"), [("emacs", CTRL_X_CTRL_E), ("vi", "\x1bv")])
def test_the_input_line_in_the_editor(make, talk_after_editing, editor, mode, key):
    editor("printf ' upon a time' >> $1")
    studio = make((["."], "eos"))
    talk_after_editing(studio, "Once" + key, "\r" + CTRL_D, keys=mode)
    assert studio.backend.requests[0].prompt == "Once upon a time"


@pytest.mark.parametrize("script", [FAULTS["leaves no UTF-8"], FAULTS["removes the file"]])
def test_an_editor_that_fails_leaves_the_input_line(make, talk_after_editing, editor, script):
    editor(script)
    studio = make((["."], "eos"))
    _, output = talk_after_editing(studio, "Once" + CTRL_X_CTRL_E, "\r" + CTRL_D)
    assert output.count("the text has not changed") == 1
    assert "unexpected" not in output
    assert studio.backend.requests[0].prompt == "Once"
