"""The command line: plain text, JSON, pipes, exit codes, defaults."""

import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys

import pytest

from tinystory.cli import main
from tinystory.commands.flags import COMMAND_SUMMARIES, parse_args
from tinystory.commands.generate import one
from tinystory.errors import OUT_OF_MEMORY
from tinystory.folders import config_file
from tinystory.safe.showing import visible
from tinystory.settings import BUILT_IN


class Bytes(io.TextIOWrapper):
    """Standard input that is no terminal."""

    def __init__(self, content=b""):
        super().__init__(io.BytesIO(content), encoding="utf-8")


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch, tmp_path):
    """No test reads the user's settings, and standard input is an empty pipe."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in BUILT_IN:
        monkeypatch.delenv(f"TINYSTORY_{name.upper()}", raising=False)
    monkeypatch.setattr(sys, "stdin", Bytes())


@pytest.fixture
def tiny(checkpoint, capsys):
    """Run a command on the tiny model: (exit code, standard output, standard error)."""

    def run(*argv, model=True):
        words = [*map(str, argv)]
        if model:
            words += ["-m", str(checkpoint)]
        code = main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_plain_output_is_prompt_story_and_one_newline(tiny):
    code, out, err = tiny("generate", "Once upon a time", "-d", "greedy", "-n", "20")
    assert code == 0
    assert out.startswith("Once upon a time")
    assert out.endswith("\n")
    assert "greedy" in err
    assert tiny("generate", "Once upon a time", "-d", "greedy", "-n", "20", "-q") == (0, out, "")


def test_a_model_that_goes_while_it_writes_costs_no_story(checkpoint, tmp_path, monkeypatch, capsys):
    """A training run may clear a checkpoint away; with it went the story, at the moment of telling its hash."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    write = one.write

    def write_and_clear(*arguments):
        shutil.rmtree(folder)
        yield from write(*arguments)

    monkeypatch.setattr(one, "write", write_and_clear)
    assert main(["generate", "Tim", "-n", "5", "--json", "-m", str(folder)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["completion"]
    assert found["model_hash"] == ""


def test_the_same_seed_gives_the_same_story_and_another_another(tiny):
    arguments = ["generate", "Tim", "-d", "top-k 40 | sample 0.8", "-n", "30", "-q", "-s"]
    assert tiny(*arguments, 7) == tiny(*arguments, 7)
    assert tiny(*arguments, 7)[1] != tiny(*arguments, 8)[1]


def test_json_does_without_a_version_of_torch(tiny, monkeypatch):
    """A first story needs no torch, so tinystory may be installed without it."""

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    code, out, _ = tiny("generate", "Tim", "-s", "7", "-n", "3", "--json")
    assert (code, json.loads(out)["versions"]["torch"]) == (0, None)


def test_json_holds_what_replays_the_story(tiny, checkpoint):
    code, out, _ = tiny("generate", "Tim", "-d", "sampling", "-s", "7", "-n", "12", "--json")
    found = json.loads(out)
    assert code == 0
    assert set(found) == {
        "prompt", "text", "completion", "spec", "seed", "token_ids", "finish_reason", "model", "model_hash", "dtype",
        "device", "threads", "compiled", "max_tokens", "versions", "statistics",
    }  # fmt: skip
    assert found["spec"] == "sample"
    assert found["seed"] == 7
    assert found["text"] == "Tim" + found["completion"]
    assert found["finish_reason"] in ("eos", "length")
    assert len(found["token_ids"]) <= 12
    assert len(found["model_hash"]) == 64
    assert {"tokens", "tokens_per_second", "bits_per_token"} <= set(found["statistics"])


def test_branches_differ_and_the_first_is_the_story_alone(tiny):
    arguments = ["generate", "Tim", "-d", "sample 1.5", "-s", "3", "-n", "15", "--json"]
    alone = json.loads(tiny(*arguments)[1])
    both = json.loads(tiny(*arguments, "--num", 2)[1])
    assert [len(both["stories"]), both["seed"], both["prompt"]] == [2, 3, "Tim"]
    assert both["stories"][0]["token_ids"] == alone["token_ids"] != both["stories"][1]["token_ids"]
    plain = tiny("generate", "Tim", "-d", "sample 1.5", "-s", "3", "-n", "15", "--num", 2, "-q")[1]
    first, second = (visible(story["text"]) for story in both["stories"])
    assert plain == f"{first}\n\n{second}\n"


def test_jsonl_streams_events_that_make_the_story(tiny):
    out = tiny("generate", "Tim", "-d", "greedy", "-n", "9", "--jsonl")[1]
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events[:-1]] == ["text"] * (len(events) - 1)
    assert events[-1]["event"] == "end"
    assert "".join(event["text"] for event in events[:-1]) == events[-1]["completion"]


def test_a_prompt_comes_from_a_pipe_and_chat_without_a_terminal_writes_one_story(tiny, monkeypatch):
    expected = tiny("generate", "Once upon", "-d", "greedy", "-n", "9", "-q")[1]
    for command in ("generate", "chat"):
        monkeypatch.setattr(sys, "stdin", Bytes(b"Once upon\n"))
        assert tiny(command, "-d", "greedy", "-n", "9", "-q")[:2] == (0, expected)
    monkeypatch.setattr(sys, "stdin", Bytes())
    assert tiny("-d", "greedy", "-n", "9", "-q")[0] == 0


@pytest.mark.parametrize("raw", [b"Once upon", b"Once upon\r\n", b"\xef\xbb\xbfOnce upon\n"])
def test_a_prompt_from_a_pipe_has_no_mark_and_no_carriage_return(tiny, monkeypatch, raw):
    monkeypatch.setattr(sys, "stdin", Bytes(raw))
    assert json.loads(tiny("generate", "-n", "1", "--json")[1])["prompt"] == "Once upon"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"Tim \xff\xfe ran", "is not UTF-8 text: the text is broken"),
        ("Once".encode("utf-16"), "is not UTF-8 text"),
        ("Once".encode("utf-16-be"), "is not UTF-8 text: the text has zero bytes"),
        (b"word " * 2**21, "which is too long for a prompt"),
    ],
)
def test_a_pipe_that_is_no_prompt_is_refused_in_one_line(tiny, monkeypatch, raw, reason):
    """Once, UTF-16 became a story, and ten megabytes were tokenised for more than a minute."""
    monkeypatch.setattr(sys, "stdin", Bytes(raw))
    code, out, err = tiny("generate", "-n", "1")
    assert (code, out) == (2, "")
    assert err.startswith("tinystory: standard input")
    assert reason in err
    assert err.count("\n") == 1


def test_a_long_prompt_and_broken_utf8_on_the_command_line(tiny):
    assert tiny("generate", "x" * (2**20 + 1), "-n", "1")[0] == 2
    assert tiny("generate", "é" * (2**19 + 1), "-n", "1")[2].count("\n") == 1
    assert tiny("generate", "Tim \udcff", "-d", "greedy", "-n", "3", "-q")[1].startswith("Tim \ufffd")


def test_a_stop_text_ends_the_story_and_is_not_part_of_it(tiny):
    whole = json.loads(tiny("generate", "Tim", "-d", "greedy", "-n", "30", "--json")[1])["completion"]
    stop = whole[5:8]
    found = json.loads(tiny("generate", "Tim", "-d", "greedy", "-n", "30", "--json", "--stop", stop)[1])
    assert found["finish_reason"] == "stop"
    assert found["completion"] == whole[: whole.index(stop)]


def test_a_story_longer_than_the_context_goes_on_with_one_notice(tiny):
    code, out, err = tiny("generate", "Once upon a time. " * 40, "-d", "greedy", "-n", "100", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["finish_reason"] in ("eos", "length")
    err = tiny("generate", "Once upon a time. " * 40, "-d", "greedy", "-n", "100")[2]
    assert err.count("its oldest sentences") == 1


def test_text_cannot_steer_the_terminal(tiny):
    out = tiny("generate", "\x1b[2Jred\u202e", "-d", "greedy", "-n", "2", "-q")[1]
    assert out.startswith("␛[2Jred<U+202E>")


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["generate", "-d", "topk 40"], 2, ["top-k"]),
        (["generate", "-d", "top-k 0"], 2, ["k must be an integer ≥ 1"]),
        (["generate", "--num", "0"], 2, ["from 1 to"]),
        (["generate", "--stop", ""], 2, ["stop text is empty"]),
        (["generate", "--device", "quantum"], 2, ["not available", "cpu"]),
        (["generate", "--device", "meta"], 2, ["not available", "cpu"]),
        (["generate", "--decoder-file", "nowhere.py"], 2, ["nowhere.py"]),
        (["eval", "nowhere.txt"], 2, ["nowhere.txt"]),
        (["decoders", "gredy"], 2, ["greedy"]),
        (["info", "./nowhere"], 3, ["nowhere"]),
        (["generate", "-m", "./nowhere"], 3, ["nowhere"]),
        (["generate", "-m", "./" + "x" * 10**5], 3, ["there is no directory xxx", "give a checkpoint's directory"]),
        (["replay", "x" * 10**5], 3, ["cannot read xxx", "File name too long"]),
    ],
)
def test_a_mistake_is_one_or_two_lines_with_its_exit_code(tiny, argv, code, words):
    takes_model = argv[0] in ("generate", "eval") and "-m" not in argv
    got, out, err = tiny(*argv, model=takes_model)
    assert got == code
    assert out == ""
    assert err.startswith("tinystory: ")
    assert err.count("\n") <= 2
    assert all(word in err for word in words), err
    assert len(err) < 1100


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["gnerate"], "did you mean generate?"),
        (["don't"], '"don\'t" is not a command; there are chat, generate,'),
        (["Once", "upon"], "a story begins with `tinystory chat TEXT` or `tinystory generate TEXT`"),
        (["x" * 10**5], "is not a command"),
        (["generate", "Once", "upon"], "'upon' does not belong here; put a text with spaces in quotes"),
        (["generate", "Once", "don't"], '"don\'t" does not belong here'),
        (["generate", "--num", "don't"], 'argument --num: it must be a whole number, not "don\'t"'),
        (["eval", "x", "--limit", "1" * 10**4], "argument --limit: it must be a whole number"),
        (["generate", "--seed=3", "--sed=3"], "--sed is not a flag here; did you mean --seed?"),
        (["generate", "--color", "don't"], 'color must be auto, always or never, not "don\'t"'),
        (
            ["export", "default", "--to", "gguff", "-o", "x"],
            "argument --to: 'gguff' is not possible; did you mean gguf?",
        ),
        (["completion", "it's"], 'argument SHELL: "it\'s" is not possible; there are bash, zsh, fish'),
        (["generate", f"--quiet={'x' * 10**5}"], "ignored explicit argument"),
        (["generate", "\n\x1b[2J", "\n\x1b[2J"], "does not belong here"),
        (["generate", "--sed", "3"], "did you mean --seed?"),
        (["generate", "-n", "0"], "whole number from 1"),
        (["generate", "-s", "x"], "whole number or random"),
        (["generate", "--dtype", "int3"], "float32, bfloat16, float16 or int8"),
        (["import", "x.bin"], "-o/--out"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(capsys, argv, word):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert word in err
    assert err.count("\n") == 1
    assert len(err) < 1100
    assert "\x1b" not in err


def test_flag_over_environment_over_file_over_built_in(monkeypatch):
    assert parse_args(["generate"]).max_tokens == 256
    config_file().parent.mkdir(parents=True)
    config_file().write_text('max_tokens = 11\ndecoder = "greedy"\nseed = 0\n')
    args = parse_args(["generate"])
    assert (args.max_tokens, args.decoder, args.seed) == (11, "greedy", 0)
    monkeypatch.setenv("TINYSTORY_MAX_TOKENS", "12")
    assert parse_args(["generate"]).max_tokens == 12
    assert parse_args(["generate", "-n", "13"]).max_tokens == 13
    assert parse_args(["generate", "-s", "0"]).seed == 0
    assert parse_args(["generate", "-s", "random"]).seed is None


@pytest.mark.parametrize(
    ("content", "word"),
    [("max_token = 3", "did you mean max_tokens?"), ("max_tokens = 'many'", "from 1 to"), ("= 3", "cannot be read")],
)
def test_a_wrong_configuration_file_is_one_line(capsys, content, word):
    config_file().parent.mkdir(parents=True)
    config_file().write_text(content)
    assert main(["info"]) == 2
    err = capsys.readouterr().err
    assert word in err
    assert "config.toml" in err


def test_info_and_decoders_give_json(tiny, checkpoint):
    found = json.loads(tiny("info", checkpoint, "--json", model=False)[1])
    assert {"family", "parameters", "config", "hash", "provenance"} <= set(found)
    assert found["family"] == "llama"
    assert "provenance" in tiny("info", checkpoint, model=False)[1]
    decoders = {one["name"]: one for one in json.loads(tiny("decoders", "--json", model=False)[1])}
    assert {"greedy", "sample", "top-k", "top-p", "min-p", "temperature"} <= set(decoders)
    assert {"name", "kind", "summary", "source", "options"} <= set(decoders["top-k"])
    assert decoders["sample"]["kind"] == "sampler"
    assert json.loads(tiny("decoders", "top-p", "--json", model=False)[1])["name"] == "top-p"
    assert "2202" not in tiny("decoders", "min-p", model=False)[1]
    assert "integer ≥ 1" in tiny("decoders", model=False)[1]
    shown = tiny("decoders", "top-k", model=False)[1]
    assert "e.g. `top-k 40`" in shown
    assert "how many tokens stay" in shown, "one decoder is shown with its options' help"


def test_eval_takes_column_and_separator_and_tells_what_it_found(tiny, stories, tmp_path):
    rows, text = tmp_path / "a.jsonl", tmp_path / "a.txt"
    rows.write_text("\n".join(json.dumps({"id": n, "body": story}) for n, story in enumerate(stories[:6])))
    text.write_text("\n\n".join(stories[:6]))
    common = ("--limit", 2, "--json")
    by_column = tiny("eval", rows, "--column", "body", *common)
    found = tiny("eval", text, *common)
    assert by_column[0] == found[0] == 0
    assert json.loads(by_column[1])["bits_per_byte"] == json.loads(found[1])["bits_per_byte"]
    assert "taken from between blank lines" in found[2]
    assert tiny("eval", text, "--separator", "---", *common)[0] == 2


def test_eval_gives_the_contract_keys(tiny, story_file):
    code, out, _ = tiny("eval", story_file, "--limit", 3, "--json")
    found = json.loads(out)
    assert code == 0
    assert {"bits_per_byte", "nats_per_token", "perplexity", "accuracy", "tokens", "bytes", "stories"} <= set(found)
    assert found["stories"] == 3
    assert "bits per byte" in tiny("eval", story_file, "--limit", 3)[1]
    cut = json.loads(tiny("eval", story_file, "--limit", 3, "--json", "--cut")[1])
    assert cut["tokens"] == 3 * 64 < found["tokens"]


def test_an_unexpected_error_is_one_line_and_v_shows_the_rest(tiny, monkeypatch, capsys):
    def fail(args):
        raise RuntimeError("boom\nsecond line")

    monkeypatch.setattr("tinystory.commands.info.run", fail)
    assert main(["info"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["info", "-v"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried 4 bytes"
        ),
    ],
)
def test_memory_that_is_used_up_is_no_unexpected_error(monkeypatch, capsys, error):
    def fail(_options):
        raise error

    monkeypatch.setattr("tinystory.commands.info.run", fail)
    assert main(["info"]) == 1
    assert capsys.readouterr().err == f"tinystory: {OUT_OF_MEMORY}\n"


def test_a_file_that_is_no_session_is_3_and_a_difference_is_1(tmp_path, capsys):
    """Once, both were 1, and a script could not tell a damaged file from a story that differs."""
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "bad.json").write_text("{")
    for name in ("none.json", "pipe.json", "bad.json", "."):
        assert main(["replay", str(tmp_path / name)]) == 3
        assert capsys.readouterr().err.count("\n") == 1


def test_info_takes_the_model_as_a_flag_too(tiny, checkpoint):
    plain = json.loads(tiny("info", checkpoint, "--json", model=False)[1])
    assert json.loads(tiny("info", "--json")[1]) == plain


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("info >&-", 1, "standard output is closed"),
        ("info -m ./nowhere 2>&-", 3, ""),
        ("info > /dev/full", 1, "No space left"),
        ("decoders | true", 0, ""),
    ],
)
def test_closed_and_full_outputs_are_no_crash(arguments, code, words, tmp_path):
    """Once: "unexpected error", or the error's text on standard output."""
    script = f"set -o pipefail; {sys.executable} -m tinystory {arguments}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert words in result.stderr
    assert "unexpected" not in result.stderr
    assert "nowhere" not in result.stdout


def test_every_command_has_help(capsys):
    for command in COMMAND_SUMMARIES:
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
        assert "usage: tinystory" in capsys.readouterr().out


def test_help_and_version_import_nothing_heavy():
    """Counts modules, not seconds, so that a busy machine cannot fail it."""
    code = (
        "import sys, contextlib\n"
        "from tinystory.cli import main\n"
        "for argv in (['--help'], ['--version'], ['generate', '--help']):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main(argv)\n"
        "main(['decoders', '--json'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'tokenizers', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_closed_pipe_ends_silently(checkpoint):
    """`tinystory generate … | head -c 1` in a real process, with an interrupt thrown in for company."""
    command = [sys.executable, "-m", "tinystory", "generate", "Tim", "-m", str(checkpoint), "-n", "4000", "-q"]
    read, write = os.pipe()
    process = subprocess.Popen(command, stdout=write, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    os.close(write)
    assert os.read(read, 1) == b"T"
    os.close(read)
    assert process.communicate(timeout=120)[1] == b""
    assert process.returncode == 0


@pytest.mark.parametrize("spec", ["human", "words kite,owl", "sample | speculative draft=nowhere"])
def test_a_decoder_that_refuses_its_work_leaves_standard_output_empty(spec, capsys):
    """The prompt was once printed before the error."""
    assert main(["generate", "Once", "-n", "5", "-d", spec]) in (2, 3)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tinystory: ")
