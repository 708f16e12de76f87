"""Shell completion, asked as a user asks: by Tab in a real shell."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest

from tinystory.cli import main
from tinystory.commands.completion import decoder_specs

pexpect = pytest.importorskip("pexpect")

SHELLS = ("bash", "zsh", "fish")
START = {
    "bash": "PS1='ready> '; bind 'set enable-bracketed-paste off'; bind 'set show-all-if-ambiguous on'",
    "zsh": "PS1='ready> '; unsetopt zle_bracketed_paste; zmodload zsh/zle; autoload -U compinit; compinit -D -u",
}
PLAIN = {"bash": ["--norc", "--noprofile"], "zsh": ["-f", "+o", "prompt_sp"]}


@pytest.fixture
def surroundings(tmp_path, monkeypatch):
    """A folder whose first program is this tinystory, and no plug-ins but our own."""
    program = tmp_path / "bin" / "tinystory"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tinystory "$@"\n')
    program.chmod(0o755)
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path),
        "TINYSTORY_NO_PLUGINS": "1", "TERM": "dumb", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def press_tab(shell, line, shown):
    """Return what the terminal shows after the line is typed and Tab pressed, up to the words looked for."""
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    if shell == "fish":  # it has a command for just that
        script = f"tinystory completion fish | source; complete -C {shlex.quote(line)}"
        return subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, check=True).stdout
    terminal = pexpect.spawn(shell, PLAIN[shell], encoding="utf-8", timeout=30, dimensions=(50, 200))
    terminal.sendline(f'{START[shell]}; eval "$(tinystory completion {shell})"; echo set""up')
    terminal.expect("setup\r\n.*ready> ")
    terminal.send(line + ("\t\t" if shell == "zsh" else "\t"))  # the first may only add what all answers begin with
    seen = ""
    while not all(word in seen for word in shown):
        try:
            seen += terminal.read_nonblocking(4096, timeout=10)
        except pexpect.TIMEOUT:
            break
    terminal.close(force=True)
    return seen


@pytest.mark.slow
@pytest.mark.tty
@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("tinystory gen", ["generate"]),
        ("tinystory generate --dec", ["--decoder", "--decoder-file"]),
        ("tinystory generate -d top-", ["top-k", "top-p"]),
        ("tinystory -d 'top-k 40 | sam", ["top-k 40 | sample 0.8"]),
        ("tinystory chat --the", ["--theme"]),
        ("tinystory generate -m mod", ["models/"]),
    ],
)
def test_tab_completes(surroundings, shell, line, shown):
    seen = press_tab(shell, line, shown)
    assert all(word in seen for word in shown), seen


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_printed_and_names_the_program(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "tinystory" in script
    assert "_ARGCOMPLETE" in script


def test_another_shell_is_one_line_with_the_three(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["completion", "tcsh"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(shell in error for shell in SHELLS)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("top-", {"top-k", "top-p"}),
        ("top-k", {"top-k", "top-k 40"}),  # an only answer would close the quotes
        ("top-k 40", {"top-k 40", "top-k 40 |"}),
        ("top-k 7", {"top-k 7", "top-k 7 |"}),
        ("top-k 40 |", {"top-k 40 | sample", "top-k 40 | greedy"}),
        ("gre", {"greedy"}),
    ],
)
def test_a_spec_goes_on_by_whole_words(typed, offered):
    found = decoder_specs(typed)
    assert offered <= set(found)
    assert all(word.startswith(typed) for word in found)


def test_a_name_that_is_none_offers_nothing():
    assert decoder_specs("topk ") == {}


ASK = """
import os, sys
os._exit = sys.exit
from tinystory.cli import main
try:
    main([])
finally:
    heavy = {"torch", "transformers", "datasets"} & set(sys.modules)
    assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("tinystory decoders top-", {"top-a", "top-h", "top-k", "top-n-sigma", "top-p"}),
        ("tinystory --resume ow", {"owl"}),
        ("tinystory --theme ", {"auto", "dark", "light"}),
        ("tinystory --keys v", {"vi"}),
        ("tinystory generate On", set()),  # a prompt: files are no help
        ("tinystory replay st", {"story.json"}),
        ("tinystory replay ow", {"owl"}),
        ("tinystory page o", {"owl", "out"}),
        ("tinystory generate --decoder=min-", {"--decoder=min-length", "--decoder=min-p"}),
    ],
)
def test_each_value_has_its_answers_without_torch(surroundings, tmp_path, line, answers):
    session = tmp_path / "data" / "tinystory" / "sessions" / "owl.json"
    session.parent.mkdir(parents=True)
    for path in (session, tmp_path / "story.json", tmp_path / "Once.txt"):
        path.write_text("{}")
    asked = {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_SUPPRESS_SPACE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "out"),
        "COMP_LINE": line, "COMP_POINT": str(len(line)), "XDG_DATA_HOME": str(tmp_path / "data"),
    }  # fmt: skip
    result = subprocess.run([sys.executable, "-c", ASK], env=os.environ | asked, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert set((tmp_path / "out").read_text().split("\013")) == (answers or {""})


def test_without_a_question_from_a_shell_the_library_is_not_imported():
    code = "import sys, tinystory.cli as c; c.main(['config']); sys.exit('argcomplete' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
