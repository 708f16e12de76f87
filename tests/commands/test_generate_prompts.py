"""`tinystory generate --prompts`, from the command line to the last line of the file."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from tinystory.cli import main
from tinystory.settings import BUILT_IN

PROMPTS = ("Tim had a big red drum", "Once", "The old frog", "Zoë ran home", "Once upon a time", "Tim")
SPEC = "top-k 60 | sample 1.2"


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch, tmp_path):
    """No test reads the user's settings, and standard input is an empty pipe."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (*(f"TINYSTORY_{name.upper()}" for name in BUILT_IN), "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b""), encoding="utf-8"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(PROMPTS), encoding="utf-8")
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.jsonl"


@pytest.fixture
def generate(checkpoint, file, capsys):
    """Run the command on the prompts: (exit code, the stories on standard output, standard error)."""

    def run(*argv, prompts=file):
        code = main(["generate", "--prompts", str(prompts), "-n", "12", "-m", str(checkpoint), *map(str, argv)])
        captured = capsys.readouterr()
        return code, [json.loads(one) for one in captured.out.splitlines()], captured.err

    return run


def stories(path):
    return [json.loads(one) for one in path.read_text().splitlines()]


def core(records):
    """Return the fields that do not depend on the clock, in order."""
    found = [{k: v for k, v in one.items() if k not in ("statistics", "threads", "device")} for one in records]
    return sorted(found, key=lambda one: (one["index"], one["story"]))


def test_a_line_has_what_the_story_of_its_prompt_and_seed_has(generate, checkpoint, capsys):
    code, found, err = generate("-d", SPEC, "-s", "7", "--num", "2", "--batch-size", "5", "--stop", "zzz")
    assert code == 0
    assert sorted((one["index"], one["story"]) for one in found) == [
        (i, n) for i in range(len(PROMPTS)) for n in (0, 1)
    ]
    assert len({tuple(one["token_ids"]) for one in found}) == len(
        found
    )  # neither prompts nor branches share their noise
    for one in found:
        arguments = [one["prompt"], "-d", one["spec"], "-s", str(one["seed"]), "-n", "12", "--num", "2", "--json"]
        main(["generate", *arguments, "-m", str(checkpoint), "--stop", "zzz"])
        alone = json.loads(capsys.readouterr().out)
        story = alone.pop("stories")[one["story"]]
        assert {k: v for k, v in one.items() if k in story and k != "statistics"} == {
            k: v for k, v in story.items() if k != "statistics"
        }
        assert set(alone) | set(story) <= set(one)
        assert set(one) - set(alone) - set(story) == {"index", "story", "event", "stop", "prompts"}
        assert one["prompt"] == PROMPTS[one["index"]]
        assert one["seed"] == 7 + one["index"]
        assert one["event"] == "end"
        assert set(story["statistics"]) == set(one["statistics"])
    assert f"{SPEC} · seed 7" in err


def test_the_batch_does_not_show(generate):
    whole = core(generate("-d", SPEC, "-s", "7", "-q")[1])
    for n in (1, 4):
        assert core(generate("-d", SPEC, "-s", "7", "--jsonl", "--batch-size", n)[1]) == whole
    assert generate("-d", SPEC, "-s", "7", "-q")[2] == ""


def test_equal_prompts_get_different_stories(generate, tmp_path):
    path = tmp_path / "same.txt"
    path.write_text("Tim\n" * 4)
    found = generate("-d", SPEC, "-s", "1", prompts=path)[1]
    assert len({one["completion"] for one in found}) == 4


def test_standard_input_is_read(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"One\nTwo\n"), encoding="utf-8"))
    assert sorted(one["prompt"] for one in generate("-d", "greedy", prompts="-")[1]) == ["One", "Two"]


def test_the_same_command_goes_on_from_any_byte(generate, out):
    arguments = ("-d", SPEC, "--num", "2", "--batch-size", "3", "-o", out)
    code, printed, err = generate(*arguments)  # with a seed of its own
    assert (code, printed) == (0, [])
    assert "12 of 12 stories are in" in err
    raw, whole = out.read_bytes(), core(stories(out))
    for n in (len(raw), len(raw) - 1, len(raw) // 2, raw.index(b"\n") + 5, raw.index(b"\n") + 1):
        out.write_bytes(raw[:n])
        assert generate(*arguments)[0] == 0
        assert core(stories(out)) == whole
        kept = raw[:n].rfind(b"\n") + 1
        assert out.read_bytes()[:kept] == raw[:kept]


def test_what_is_done_is_not_done_again(generate, out, monkeypatch):
    generate("-d", "greedy", "-o", out)
    before = out.read_bytes()
    monkeypatch.setattr("tinystory.commands.generate.many._Writer", None)
    assert generate("-d", "greedy", "-o", out)[:2] == (0, [])
    assert out.read_bytes() == before


def test_more_branches_are_added(generate, out):
    generate("-d", SPEC, "-s", "7", "-o", out)
    generate("-d", SPEC, "-s", "7", "-o", out, "--num", "3")
    assert core(stories(out)) == core(generate("-d", SPEC, "-s", "7", "--num", "3")[1])


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["-d", "sample"], "spec"),
        (["-s", "8"], "seed"),
        (["-n", "13"], "max tokens"),
        (["--stop", "x"], "stop"),
        (["-m", "mini"], "model hash"),
        (["--dtype", "bfloat16"], "dtype"),
    ],
)
def test_a_file_of_other_stories_is_refused(generate, out, argv, word):
    generate("-d", "greedy", "-s", "7", "-o", out)
    before = out.read_bytes()
    code, _, err = generate("-d", "greedy", "-s", "7", "-o", out, *argv)
    assert (code, err.count("\n")) == (2, 1)
    assert f"stories with {word}" in err
    assert out.read_bytes() == before


def test_other_prompts_are_refused(generate, out, tmp_path):
    generate("-d", "greedy", "-s", "7", "-o", out)
    other = tmp_path / "other.txt"
    other.write_text("Tim\nTom\n")
    code, _, err = generate("-d", "greedy", "-s", "7", "-o", out, prompts=other)
    assert (code, "stories with prompts" in err) == (2, True)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--prompts", "FILE", "Once"], "PROMPT and --prompts"),
        (["--prompts", "FILE", "--json"], "leave out --json"),
        (["--prompts", "FILE", "--batch-size", "0"], "--batch-size is 0"),
        (["--prompts", "FILE", "--num", "0"], "--num is 0"),
        (["--prompts", "FILE", "-o", "none/out.jsonl"], "cannot write none/out.jsonl"),
        (["--prompts", "FILE", "-o", "FILE"], "no file of stories"),
        (["--prompts", "none.txt"], "cannot read none.txt"),
        (["--prompts", "/dev/null"], "has no prompt"),
        (["Once", "-o", "out.jsonl"], "-o belongs to --prompts"),
        (["Once", "--batch-size", "3"], "--batch-size belongs to --prompts"),
    ],
)
def test_a_mistake_is_one_line(checkpoint, file, capsys, argv, words):
    argv = [str(file) if one == "FILE" else one for one in argv]
    assert main(["generate", *argv, "-m", str(checkpoint)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert captured.err.count("\n") == 1


def test_a_prompt_without_a_token_keeps_no_other_from_its_story(generate, monkeypatch):
    """In a vocabulary without BOS that does not have its characters."""
    encode = "tinystory.text.tokenizer.Tokenizer.encode_batch"
    monkeypatch.setattr(encode, lambda _self, texts: [[] if text == "Tim" else [65] for text in texts])
    load = "tinystory.commands.generate.many.load_to_write"

    def without_bos(*arguments):
        from tinystory.commands.shared.models import load_to_write

        model = load_to_write(*arguments)
        model.tokenizer.bos_id, model.tokenizer.prefix = None, ()
        return model

    monkeypatch.setattr(load, without_bos)
    code, found, err = generate("-d", "greedy")
    assert code == 1
    assert sorted(one["index"] for one in found) == [0, 1, 2, 3, 4]
    assert "this model's vocabulary has no BOS" in err
    assert "the prompt with index 5" in err


def test_a_full_disk_is_one_line(generate):
    code, _, err = generate("-d", "greedy", "-o", "/dev/full", "-q")
    assert (code, err.count("\n")) == (1, 1)
    assert "No space left" in err


def test_a_line_now_and_then_where_standard_error_is_no_terminal(generate, out, monkeypatch):
    monkeypatch.setattr("tinystory.commands.generate.many._NOTICE_SECONDS", 0)
    err = generate("-d", "greedy", "-o", out)[2]
    assert re.findall(r"^\d+ of 6 stories · [\d,]+ tokens/s$", err, re.MULTILINE)
    assert len(err.splitlines()) == 7


def test_ranks_share_the_prompts(generate, out, monkeypatch):
    whole = core(generate("-d", SPEC, "-s", "7", "--num", "2")[1])
    monkeypatch.setenv("WORLD_SIZE", "4")
    told = []
    for rank in range(4):
        monkeypatch.setenv("RANK", str(rank))
        code, printed, err = generate("-d", SPEC, "-s", "7", "--num", "2", "-o", out)
        assert (code, printed) == (0, [])
        told.append(err)
    parts = [out.with_name(f"out.jsonl.{rank}-of-4") for rank in range(4)]
    assert [{one["index"] for one in stories(part)} for part in parts] == [{0, 4}, {1, 5}, {2}, {3}]
    assert f"cat {out}.*-of-4 > {out}" in told[0]
    assert told[1:] == ["", "", ""]
    out.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert core(stories(out)) == whole
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert "12 of 12 stories are in" in generate("-d", SPEC, "-s", "7", "--num", "2", "-o", out)[2]


def test_stories_that_an_interrupt_cuts_off_are_not_kept(generate, out, monkeypatch):
    class AfterSomeLooks(list):
        looks = 0

        def __bool__(self):
            self.looks += 1
            return self.looks > 40

    interrupts = SimpleNamespace(received=AfterSomeLooks([15]))
    monkeypatch.setattr("tinystory.commands.generate.many.Interrupts", lambda: nullcontext(interrupts))
    code, _, err = generate("-d", "greedy", "-o", out, "--batch-size", "3")
    assert code == 143
    kept = stories(out)
    assert 3 <= len(kept) < 6
    assert all(one["finish_reason"] in ("eos", "length") for one in kept)
    assert f"{len(kept)} of 6 stories" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-s", "1"], "give -o FILE"),
        (["-o", "x"], "agree on a seed"),
        (["-o", "x", "-s", "1", "--prompts", "-"], "standard input"),
    ],
)
def test_what_ranks_cannot_share_is_one_line(generate, monkeypatch, argv, words):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = generate(*argv)
    assert (code, err.count("\n"), words in err) == (2, 1, True)


# --- in processes of their own ---


@pytest.fixture
def started(checkpoint, tmp_path):
    """Start the command in a process, on so many prompts that it takes a while; it is ended with the test."""
    prompts = tmp_path / "many.txt"
    prompts.write_text("Once upon a time\nTim had a\n" * 100)
    processes = []

    def start(*argv, **environment):
        command = [sys.executable, "-m", "tinystory", "generate", "--prompts", prompts, "-m", checkpoint, "-s", "7"]
        process = subprocess.Popen(
            [*map(str, command), *map(str, argv)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        )  # fmt: skip
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_lines(path, n, process):
    while not path.exists() or path.read_bytes().count(b"\n") < n:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)


@pytest.mark.slow
def test_an_interrupt_keeps_what_is_finished_and_a_kill_too(started, out):
    arguments = ("-d", "sample 1.2", "-n", "40", "--batch-size", "4", "-o", out)
    process = started(*arguments)
    wait_for_lines(out, 4, process)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "the same command goes on from here" in err
    kept = stories(out)
    assert 4 <= len(kept) < 200
    assert all(one["finish_reason"] in ("eos", "length") for one in kept)
    process = started(*arguments)
    wait_for_lines(out, len(kept) + 4, process)
    process.kill()
    process.communicate()
    process = started(*arguments)
    assert process.wait(timeout=120) == 0, process.stderr.read()
    found = stories(out)
    assert found[: len(kept)] == kept
    assert sorted(one["index"] for one in found) == list(range(200))


def test_a_reader_that_leaves_ends_it_silently(started):
    process = started("-n", "40", "-q")
    assert process.stdout.readline().startswith('{"index": ')
    process.stdout.close()
    process.stdout = None
    assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == 0


@pytest.mark.slow
def test_two_processes_with_ranks_write_all(started, out):
    processes = [started("-n", "8", "-o", out, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    found = [one["index"] for rank in range(2) for one in stories(out.with_name(f"out.jsonl.{rank}-of-2"))]
    assert sorted(found) == list(range(200))


@pytest.mark.slow
def test_under_torchrun(checkpoint, file, out):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tinystory",
        "generate", "--prompts", file, "-m", checkpoint, "-s", "7", "-n", "8", "-o", out,
    ]  # fmt: skip
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr
    found = [one["index"] for rank in range(2) for one in stories(out.with_name(f"out.jsonl.{rank}-of-2"))]
    assert sorted(found) == list(range(len(PROMPTS)))
    assert "cat " in result.stderr
