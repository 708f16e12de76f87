"""The tools for authors of decoders: a first file, and the report of its checks and its cost."""

import json
import os
import subprocess
import sys

import pytest

from tinystory.cli import main
from tinystory.commands.completion import _checkable
from tinystory.commands.decoders import check as decoders_check
from tinystory.decoding import LogitsProcessor
from tinystory.decoding.plugins import discover, load_file, name_problem
from tinystory.decoding.spec import example_decoder
from tinystory.errors import UsageError
from tinystory.testing import conformance, examine
from tinystory.testing.findings import CHECKS, Findings
from tinystory.testing.starter import KINDS, starter


@pytest.fixture
def tell(capsys, tmp_path, monkeypatch):
    """Return a function that runs `tinystory decoders` without a model: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decoders_check, "_decode_step", lambda: 500.0)

    def call(*words):
        code = main(["decoders", *map(str, words)])
        return code, *capsys.readouterr()

    return call


# A new file.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["quiet-words", "search", "token", "logits-processor", "x"])
def test_a_new_file_is_a_decoder_that_conforms(tmp_path, kind, name):
    path = tmp_path / "it.py"
    path.write_text(starter(name, kind, path.name))
    [cls] = load_file(path)
    assert (cls.name, cls.kind) == (name, kind)
    if name == "quiet-words":
        assert conformance(example_decoder(cls, discover([path], user_folder=None))) == []
    assert max(map(len, path.read_text().splitlines())) <= 120


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_file_does_what_its_head_says(kind, tell, tmp_path, checkpoint, capsys):
    code, out, err = tell("new", "quiet-words", "--kind", kind)
    assert (code, out) == (0, "quiet_words.py\n")
    assert "decoders check quiet_words.py" in err
    text = (tmp_path / "quiet_words.py").read_text()
    [spec] = [line.split('"')[-2] for line in text.splitlines() if line.startswith("Try it:")]
    words = ["generate", "Once", "-m", str(checkpoint), "-n", "5", "-d", spec, "--decoder-file", "quiet_words.py"]
    assert main([*words, "-q"]) == 0
    assert capsys.readouterr().out.startswith("Once")


def test_a_new_file_never_takes_the_place_of_another(tell, tmp_path):
    (tmp_path / "mine.py").write_text("precious")
    code, out, err = tell("new", "mine")
    assert (code, out) == (2, "")
    assert "mine.py is there already" in err
    assert (tmp_path / "mine.py").read_text() == "precious"
    assert tell("new", "mine", "-o", tmp_path / "other.py")[0] == 0
    assert tell("new", "ours", "-o", tmp_path / "no" / "folder.py")[0] == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["new"], "say what the decoder is called"),
        (["new", "Quiet_Words"], "lower-case letters"),
        (["new", "new"], "means something else"),
        (["new", "top-k"], "called top-k already"),
        (["new", "sampling"], "called sampling already"),
        (["check"], "say what to check"),
        (["check", "missing.py"], "no decoder file"),
        (["check", "top-kk"], "did you mean `top-k`"),
        (["top-k", "top-p"], "one decoder is shown at a time"),
        (["top-k", "--kind", "search"], "go with"),
    ],
)
def test_mistakes_are_one_line(tell, tmp_path, words, told):
    code, out, err = tell(*words)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_no_decoder_takes_the_place_of_a_word_of_the_command(tmp_path):
    assert name_problem("check")
    assert name_problem("checks") is None
    path = tmp_path / "it.py"
    path.write_text(starter("new", "processor", "it.py"))
    with pytest.raises(UsageError, match="means something else"):
        load_file(path)


# The report.


def test_the_report_lists_every_check_and_the_cost(tell):
    code, out, _ = tell("check", "min-p")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1 : 1 + len(CHECKS)]] == ["ok"] * len(CHECKS)
    assert "microseconds a token on this CPU at V=2048" in out
    assert "% of the shipped model's 500 microseconds" in out


def test_the_report_as_data(tell):
    code, out, _ = tell("check", "top-k 5 | sample 0.7", "--json")
    [report] = json.loads(out)
    assert code == 0
    assert report["passed"] is True
    assert (report["name"], report["kind"], report["spec"]) == ("top-k", "processor", "top-k 5 | sample 0.7")
    outcomes = {check["name"]: check["outcome"] for check in report["checks"]}
    assert outcomes.keys() == CHECKS.keys()
    assert outcomes.pop("neutral value") == "not run"
    assert set(outcomes.values()) == {"ok"}
    assert report["microseconds_per_token"] > 0


def test_a_failure_is_told_and_is_exit_code_1(tell, tmp_path):
    text = starter("bad", "processor", "bad.py")
    (tmp_path / "bad.py").write_text(text.replace("masked_fill(", "fill_(0).masked_fill("))
    code, out, _ = tell("check", "bad.py")
    assert code == 1
    assert "failed   purity" in out
    assert "modifies its arguments" in out
    assert "not run  story" in out


def test_a_stage_that_leaves_the_program_fails_like_any_other(tell, tmp_path):
    """Such a stage once ended the check without any message."""
    text = starter("bad", "processor", "bad.py")
    (tmp_path / "bad.py").write_text(text.replace("(self, logits, step):", "(self, logits, step):\n        exit(0)"))
    code, out, _ = tell("check", "bad.py")
    assert code == 1
    assert "failed   call" in out
    assert "SystemExit: 0" in out


def test_a_broken_file_is_exit_code_2(tell, tmp_path):
    (tmp_path / "bad.py").write_text("import nothing_of_the_sort")
    code, out, err = tell("check", "bad.py")
    assert (code, out) == (2, "")
    assert "bad.py:1: ModuleNotFoundError" in err


def test_every_decoder_of_a_file_is_checked_and_a_search_tells_its_model_calls(tell, tmp_path):
    one, other = starter("one", "processor", "x"), starter("other", "search", "x")
    (tmp_path / "two.py").write_text(
        one + other.partition('"""\n\n')[2].replace("width: int = option(4", "width: int = option(3")
    )
    code, out, _ = tell("check", "two.py", "--json")
    reports = {report["name"]: report for report in json.loads(out)}
    assert code == 0
    assert reports.keys() == {"one", "other"}
    assert reports["other"]["model_tokens_per_token"] == pytest.approx(4, abs=0.2)
    assert reports["one"]["model_tokens_per_token"] == 1


def test_a_stage_that_was_never_called_does_not_pass_in_silence(tell):
    assert "never called" in tell("check", "min-p 0")[1]


def test_what_the_kit_looks_at_has_a_name():
    with pytest.raises(KeyError):
        Findings().expect(True, "beauty", "")
    assert [check.name for check in examine(LogitsProcessorThatIsNone())] == list(CHECKS)


class LogitsProcessorThatIsNone(LogitsProcessor):
    """This is not a dataclass."""

    name = "none"


def test_files_and_decoders_are_offered_for_a_check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "top_of_the_world.py").write_text("")
    assert {"top-k", "top_of_the_world.py"} <= set(_checkable("top"))


def test_a_new_file_is_written_without_torch(tmp_path):
    code = "import sys; from tinystory.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "decoders", "new", "mine", "-q"]
    assert subprocess.run(command, cwd=tmp_path, env={**os.environ}, check=False).returncode == 0
