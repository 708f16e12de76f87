"""Standard streams that are closed, or lead to a full disk: nothing is lost in silence, and the exit code is right."""

import errno
import io
import os
import subprocess
import sys

import pytest

from tinystory.cli import main


class Full(io.TextIOBase):
    """A stream to a full disk: a write seems to work, and the flush fails."""

    def __init__(self, descriptor):
        self.descriptor = descriptor

    def write(self, text):
        return len(text)

    def flush(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fileno(self):
        return self.descriptor

    def close(self):
        """Do not flush; Python closes the stream when it is gone."""


def code_of(argv):
    try:
        return main(argv)
    except SystemExit as end:
        return end.code


@pytest.fixture
def full(tmp_path):
    with (tmp_path / "file").open("w") as file:
        yield Full(file.fileno())


@pytest.mark.parametrize(
    "argv", [["--help"], ["generate", "--help"], ["--version"], ["config"], ["completion", "bash"]]
)
def test_output_to_a_full_disk_is_an_error(monkeypatch, capsys, full, argv):
    monkeypatch.setattr(sys, "stdout", full)
    assert main(argv) == 1
    assert sys.stdout is full
    assert capsys.readouterr().err == "tinystory: cannot read or write: No space left on device\n"


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["config"], ["config", "--json"], ["completion", "bash"]])
def test_output_that_is_closed_is_an_error(monkeypatch, capsys, argv):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(argv) == 1
    assert sys.stdout is None
    assert capsys.readouterr().err == "tinystory: cannot read or write: standard output is closed\n"


@pytest.mark.parametrize(("argv", "code"), [(["config"], 0), (["info", "./nowhere"], 3), (["gnerate"], 2)])
def test_notices_that_cannot_be_written_change_no_exit_code(monkeypatch, capsys, full, argv, code):
    for stream in (full, None):
        monkeypatch.setattr(sys, "stderr", stream)
        assert code_of(argv) == code
        assert sys.stderr is stream
    assert ("setting" in capsys.readouterr().out) == (code == 0)


NOISY = """
from dataclasses import dataclass
from tinystory.decoding import LogitsProcessor
print("noise")

@dataclass(frozen=True)
class Noisy(LogitsProcessor):
    "Print a word at each token."
    name = "noisy"

    def __call__(self, logits, step):
        print("noise")
        return logits
"""


@pytest.mark.parametrize("form", [["--json"], ["--jsonl"], ["--num", "2"], ["--prompts", "prompts.txt"]])
def test_what_a_decoder_prints_stays_out_of_the_output(checkpoint, tmp_path, monkeypatch, capsys, form):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noisy.py").write_text(NOISY)
    (tmp_path / "prompts.txt").write_text("Tim")
    prompt = [] if "--prompts" in form else ["Tim"]
    argv = ["generate", *prompt, *form, "-d", "noisy | greedy", "--decoder-file", "noisy.py", "-n", "3", "-s", "1"]
    assert main([*argv, "-m", str(checkpoint)]) == 0
    out, err = capsys.readouterr()
    assert "Tim" in out
    assert "noise" not in out
    assert err.count("noise") > 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("--help > /dev/full", 1, "No space left"),
        ("--version > /dev/full", 1, "No space left"),
        ("info ./nowhere 2> /dev/full", 3, ""),
        ("gnerate 2> /dev/full", 2, ""),
        ("generate Once -n 2 2> /dev/full", 0, ""),
        ("generate Once -n 2 >&-", 1, "standard output is closed"),
        ("generate -n 2 <&-", 0, ""),
        ("generate Once -n 2 <&- 2>&-", 0, ""),
        ("generate Once -n 2 <&- >&- 2>&-", 1, ""),
        ("generate Once -n 2 | true", 0, ""),
        ("--help | true", 0, ""),
    ],
)
def test_a_process_with_such_streams_exits_with_the_right_code(arguments, code, words, tmp_path):
    """Python itself exits with 120 if a stream cannot be flushed at the end."""
    script = f"set -o pipefail; {sys.executable} -m tinystory {arguments}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path):
    """Otherwise what a library prints would be written into the file of stories."""
    (tmp_path / "prompts.txt").write_text("Once\nTim\n")
    command = "generate --prompts prompts.txt -o out.jsonl -n 2 >&-"
    script = f"{sys.executable} -m tinystory {command}"
    subprocess.run(["bash", "-c", script], check=True, cwd=tmp_path, capture_output=True)
    assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 2
    assert os.listdir(tmp_path).count("out.jsonl") == 1
