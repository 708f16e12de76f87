"""Check that the session without torch equals the torch session, and that torch is not imported."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.checkpoint import load_model, read_header
from tinystory.checkpoint.shipped import find_model
from tinystory.decoding import Request, Step
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.errors import CheckpointError, UsageError
from tinystory.session.loading import load_header, load_without_torch
from tinystory.session.native import NativeSession
from tinystory.session.numpy_session import Logits, NumpySession, suffices
from tinystory.writing.generate import Ended, StoryRequest, write

REGISTRY = discover(user_folder=None)
CLOSE = {"atol": 2e-4, "rtol": 1e-4}


def stories(model, spec, prompts, n=60):
    requests = [
        StoryRequest(prompt, parse_spec(spec, REGISTRY), seed=seed, max_new_tokens=n)
        for seed, prompt in enumerate(prompts, start=1)
    ]
    events = write(model.session, model.tokenizer, requests)
    return {event.story: event.result.token_ids for event in events if isinstance(event, Ended)}


SPECS = (
    "greedy",
    "sample 0.8",
    "temperature 0.9 | top-k 40 | sample 0.8",
    "min-p 0.05 | xtc | sample",
    "top-p 0.9 | sample",
    "epsilon 0.002 | top-a 0.1 | sample",
)


@pytest.mark.parametrize("spec", SPECS)
def test_the_shipped_model_writes_the_same_stories(spec):
    name, header = find_model("default")
    prompts = ["Once upon a time", "", "Tim had a red ball. He " * 8, 'The sun was hot and Mia said, "']
    assert stories(load_without_torch(name, header), spec, prompts) == stories(
        load_header(name, header, "float32", "cpu"), spec, prompts
    )


@pytest.fixture(scope="module")
def pair(checkpoint):
    header = read_header(checkpoint)
    return NumpySession(header, 0, frozenset({0})), NativeSession(load_model(header), 0, frozenset({0}))


ids = st.integers(0, 299)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_history_equals_the_torch_session(pair, data):
    """The history has prompts longer than one step takes, rows of several lengths, copies and cuts."""
    sessions = [one.open() for one in pair]

    def expect(verb, *args):
        ours, theirs = (getattr(one, verb)(*args) for one in sessions)
        if ours is not None:
            assert isinstance(ours, Logits)
            torch.testing.assert_close(torch.from_numpy(ours.numpy()), theirs, **CLOSE)

    expect("prefill", data.draw(st.lists(st.lists(ids, min_size=1, max_size=45), min_size=1, max_size=3)))
    for verb in data.draw(st.lists(st.sampled_from(["one", "two", "rewind", "reorder"]), max_size=4)):
        n_rows = len(sessions[0]._cache.rows)
        if verb == "rewind":
            lengths = [len(row) for row in sessions[0]._cache.rows]
            expect("rewind", [data.draw(st.integers(0, max(0, min(3, n - 1)))) for n in lengths])
        elif verb == "reorder":
            expect("reorder", data.draw(st.lists(st.integers(0, n_rows - 1), min_size=1, max_size=4)))
        else:
            many = [data.draw(st.lists(ids, min_size=2, max_size=2)) for _ in range(n_rows)]
            expect("decode", many if verb == "two" else [row[0] for row in many])
    expect("prefill", [[5, 6, 7], [5, 6, 8, 9]])
    for ours, theirs in zip(sessions[0].hidden(), sessions[1].hidden(), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours.numpy()), theirs, **CLOSE)


def test_torch_is_not_imported():
    code = (
        "import sys; from tinystory.cli import main\n"
        "code = main('generate Once -n 3 -s 1 --num 2 --json -d'.split() + ['top-k 5 | sample 0.8'])\n"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'transformers', 'datasets')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"threads": 1' in done.stdout


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from([-np.inf, -2.0, 0.0, 1.5, 3.0]), min_size=1, max_size=9), st.data())
def test_logits_answer_like_a_tensor(values, data):
    logits, tensor = np.array(values, np.float32).view(Logits), torch.tensor(values)
    k = data.draw(st.integers(1, len(values)))
    assert logits.topk(k).values.tolist() == tensor.topk(k).values.tolist()
    bound = data.draw(st.sampled_from(values))
    assert logits.masked_fill(logits < bound, -np.inf).tolist() == tensor.masked_fill(tensor < bound, -np.inf).tolist()
    assert int(logits.argmax()) == int(tensor.argmax())
    filled = logits.index_fill(0, logits.argmin(), 7.0), tensor.index_fill(0, tensor.argmin(), 7.0)
    assert filled[0].tolist() == filled[1].tolist()
    if max(values) > -np.inf:
        np.testing.assert_allclose(logits.softmax(dim=-1), tensor.softmax(dim=-1), rtol=1e-6)
    assert type(logits / 0.5) is Logits
    assert type(logits.numpy(force=True)) is np.ndarray


TIED = {
    "all equal": np.zeros(3000),
    "equal where the cut is": np.repeat([5.0, 4.0, 3.0, -np.inf], 10),
    "two are left": np.array([-np.inf, 1.0, 1.0, -np.inf]),
    "one is left": np.array([-np.inf, 1.0]),
    "a large vocabulary": np.repeat([9.0, 1.0, 0.0], 3000),
}


@pytest.mark.parametrize("case", TIED)
def test_no_stage_imports_torch_where_logits_are_equal(case, monkeypatch):
    """`top-p` once imported it there. Each stage leaves as many tokens as with torch, and the sampler picks one."""
    values = TIED[case].astype(np.float32)
    step = Step(Request((0,), 1, seed=1), [0], frozenset({1}))
    specs = ["temperature 0.5", "min-p 0.9", "xtc 1", "epsilon 0.2", "top-a 0.9", "greedy", "sample 0.8"]
    specs += [f"top-p {p}" for p in (0.01, 0.3, 0.5, 0.75, 0.99)] + [f"top-k {k}" for k in (1, 2, 15, 9999)]
    stages = [parse_spec(spec, REGISTRY).stages[0] for spec in specs]
    without_torch = {cls for _, cls, source in REGISTRY.classes() if cls.takes_arrays and source == "tinystory"}
    assert {type(stage) for stage in stages} == without_torch
    with_torch = [stage(torch.tensor(values), step) for stage in stages]
    monkeypatch.setitem(sys.modules, "torch", None)  # an import now fails
    for stage, expected in zip(stages, with_torch, strict=True):
        result = stage(values.view(Logits), step)
        if stage.kind == "sampler":
            assert result == expected
        else:
            assert sorted(result.tolist()) == sorted(expected.tolist()), stage


def test_what_it_is_not_for():
    header = find_model("default")[1]
    greedy = parse_spec("top-k 40 | greedy", REGISTRY)
    assert suffices(header, greedy, "float32", "cpu")
    assert not suffices(header, greedy, "bfloat16", "cpu")
    assert not suffices(header, greedy, "float32", "cuda")
    assert not suffices(header, parse_spec("typical 0.9", REGISTRY), "float32", "cpu")
    assert not suffices(dataclasses.replace(header, config=None), greedy, "float32", "cpu")
    long = dataclasses.replace(header.config, max_seq_len=100_000)
    assert not suffices(dataclasses.replace(header, config=long), greedy, "float32", "cpu")


def test_damaged_weights_are_refused(checkpoint, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in checkpoint.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    header = read_header(copy)
    weights = copy / "model.safetensors"
    whole = bytearray(weights.read_bytes())
    entry = header.tensors["model.norm.weight"]
    whole[entry.start : entry.start + 4] = np.float32(np.nan).tobytes()
    weights.write_bytes(whole)
    with pytest.raises(CheckpointError, match="holds NaN or infinity"):
        NumpySession(header, 0, frozenset())
    weights.write_bytes(whole[: entry.start + 2])
    with pytest.raises(CheckpointError, match="became shorter"):
        NumpySession(header, 0, frozenset())
    weights.unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        NumpySession(header, 0, frozenset())


def test_it_opens_no_other_model(pair):
    with pytest.raises(UsageError, match="cannot open another model"):
        pair[0].open("mini")


def test_a_comparison_does_not_import_torch_either():
    code = (
        "import sys; from tinystory.cli import main\n"
        "code = main('compare Once -n 3 -s 1 -q -d greedy -d'.split() + ['top-k 5 | sample 0.8'])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at /proc, which is Linux's")
@pytest.mark.parametrize("ended_by", ["a prompt", "a signal"])
def test_torch_is_imported_while_the_prompt_is_on_its_way(ended_by):
    """A late prompt finds torch imported, and leaving during the import does not crash."""
    command = [sys.executable, "-m", "tinystory", "generate", "-q", "-n", "3", "-s", "1", "-d", "typical 0.9 | sample"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    maps = Path(f"/proc/{process.pid}/maps")
    give_up = time.monotonic() + 120
    while "libtorch" not in maps.read_text() and time.monotonic() < give_up:
        time.sleep(0.05)
    assert "libtorch" in maps.read_text()
    if ended_by == "a signal":
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=120) == ("", "")
        assert process.returncode == 130
    else:
        out, err = process.communicate("Once upon a", timeout=120)
        assert (out.startswith("Once upon a"), err, process.returncode) == (True, "", 0)


@pytest.mark.parametrize("stray", [-1, 300])
def test_an_id_outside_the_vocabulary_is_named(pair, stray):
    """For a negative id, the message once named the largest id of the prompt."""
    for session in pair:
        with pytest.raises(UsageError, match=f"token id {stray}; this vocabulary has 0 to 299"):
            session.open().prefill([[5, stray, 7]])
