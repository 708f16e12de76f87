"""The benchmark's arithmetic, rows, records and pictures; once as a whole, with the smallest settings (slow)."""

import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import __main__ as bench
from bench.eager import EagerLoop
from bench.history import append, curves, plot, read
from bench.ours import open_ours, our_writer, prompt_of, variants_of
from bench.pairs import Measurement, TimedRun, rates, run_pairs, times
from bench.parts.agree import in_agreement, measure_agreement
from bench.parts.decode import check, numerical_ties
from bench.parts.roofline import bytes_per_token, cache_bytes, copy_for, copying_speed, decoding_speed
from bench.parts.search import measure_search
from bench.parts.stages import example_of, measure_stages
from bench.parts.startup import limits, run_process
from bench.peers import PEERS, SPECS, Peer, open_peer
from bench.report import record_of, show
from bench.shapes import SHAPES, save_random, widened
from bench.subject import Settings, Subject
from bench.work import Work
from tinystory.checkpoint import read_header
from tinystory.checkpoint.shipped import DEFAULT_MODEL
from tinystory.decoding.plugins import discover
from tinystory.errors import TinystoryError, UsageError
from tinystory.model.config import ModelConfig
from tinystory.session.steps.numpy_step import NumpyStep

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(pairs=2, tokens=6, threads=1, rows=4, steps=8, variants=("float32",))


@pytest.fixture
def subject(checkpoint):
    return Subject("tiny", checkpoint, read_header(checkpoint).config, SETTINGS)


def measured(**changes):
    """A measurement with two pairs: 2 and 4 seconds of ours, 4 and 6 of theirs."""
    measurement = Measurement("start", "it", "s", lambda run: run.wall, **changes)
    for ours, theirs in ((2.0, 4.0), (4.0, 6.0)):
        measurement.note(TimedRun("", 0, ours), TimedRun("", 0, theirs))
    return measurement


# Pairs.


def test_less_time_is_a_ratio_above_one_and_more_tokens_too():
    assert measured().ratios == [2.0, 1.5]
    assert measured(more_is_better=True).ratios == [0.5, 4 / 6]


def test_a_limit_is_a_value_of_the_other_sides_own_run():
    measurement = measured(their_value=lambda run: run.wall + 1)
    assert (measurement.ours, measurement.theirs) == ([2, 4], [5, 7])


@pytest.mark.parametrize(
    ("aim", "met", "cell"), [(None, None, ""), (1.75, True, "1.75 ×, met"), (2, False, "2 ×, missed")]
)
def test_the_median_ratio_is_held_to_the_aim(aim, met, cell):
    measurement = measured(aim=aim)
    assert measurement.met is met
    assert measurement.row() == ["it, s", "transformers", "3.00", "5.00", "1.75 ×", "1.50 – 2.00", cell, "2"]
    found = measurement.as_json()
    assert (found["aim"], found["met"], found["ratio"]["median"], found["ours"]["values"]) == (aim, met, 1.75, [2, 4])


def test_the_side_that_comes_first_changes_with_every_pair():
    order = []

    def side(name, wall):
        def run():
            order.append(name)
            return TimedRun("", 0, wall)

        return run

    measurement = Measurement("start", "it", "s", lambda run: run.wall)
    run_pairs("it", 3, [measurement], side("ours", 1.0), side("theirs", 3.0))
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert measurement.ratios == [3, 3, 3]


def test_rates_count_tokens_by_both_clocks_and_hold_cpu_time_to_the_aim():
    by_cpu, by_wall = rates("decode", "it", "peer", 2)
    for measurement in (by_cpu, by_wall):
        measurement.note(TimedRun([], 2.0, 4.0, n_tokens=8), TimedRun([], 4.0, 4.0, n_tokens=8))
    assert (by_cpu.ours, by_cpu.theirs, by_cpu.met) == ([4], [2], True)
    assert (by_wall.ours, by_wall.ratios, by_wall.met) == ([2], [1], None)


def test_times_are_seconds_of_both_clocks():
    by_cpu, by_wall = times("studio", "it", "peer")
    for measurement in (by_cpu, by_wall):
        measurement.note(TimedRun([], 1.0, 3.0), TimedRun([], 4.0, 6.0))
    assert (by_cpu.unit, by_cpu.ratios, by_wall.unit, by_wall.ratios) == ("CPU s", [4], "s", [2])


# The roofline.


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_per_token_count_a_head_but_no_table(tied):
    config = ModelConfig.llama(100, 2, 4, 16, 32, 24, n_kv_head=2, tied_head=tied)
    block = 16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24 + 2 * 16
    weights = 100 * 16 + 2 * block + 16
    cached = 2 * 2 * 2 * 4  # keys and values, layers, key heads, head size
    assert bytes_per_token(config, 4, 1) == 4 * (weights + 5 * cached)
    assert bytes_per_token(config, 4, 3) == 4 * (weights + 6 * cached)  # 5, 6 and 7 positions
    assert bytes_per_token(config, 4, 1, "int8") == 2 * block + 16 + 4 * (100 * 16 + 5 * cached)


def test_bytes_per_token_of_gpt2_leave_its_positions_out():
    with_many = bytes_per_token(ModelConfig.gpt2(50, 1, 2, 8, 64), 0, 1)
    assert with_many == bytes_per_token(ModelConfig.gpt2(50, 1, 2, 8, 16), 0, 1)


def test_speeds_are_bytes_by_cpu_time():
    assert decoding_speed(3e9, TimedRun([], 2.0, 9.0, n_tokens=4)) == 6
    assert copying_speed(TimedRun([], 2.0, 9.0, n_bytes=8e9)) == 4


def test_a_copy_counts_what_it_reads_and_writes():
    source, target = torch.ones(64).numpy(), torch.zeros(64).numpy()
    run = copy_for(0.0, source, target)
    assert run.n_bytes == 2 * 64 * 4
    assert target.sum() == 64


@pytest.mark.parametrize(("text", "size"), [("32768K\n", 2**25), ("2M", 2**21), ("much", 2**25), ("", 2**25)])
def test_the_size_of_the_cache(text, size, tmp_path):
    (tmp_path / "size").write_text(text)
    assert cache_bytes(tmp_path / "size") == size
    assert cache_bytes(tmp_path / "none") == 2**25


# Models and peers.


def test_a_random_model_is_a_checkpoint_of_the_shape_asked(tmp_path):
    save_random(tmp_path / "tiny", SHAPES["tiny"])
    header = read_header(tmp_path / "tiny")
    assert header.config == SHAPES["tiny"]


def test_a_widened_vocabulary_has_every_id_once_and_the_same_texts():
    from tokenizers import Tokenizer as FastTokenizer

    before = (DEFAULT_MODEL / "tokenizer.json").read_text(encoding="utf-8")
    wide, narrow = FastTokenizer.from_str(widened(before, 3000)), FastTokenizer.from_str(before)
    assert sorted(wide.get_vocab().values()) == list(range(3000))
    text = "Once upon a time, word2999 was Zoë's."
    assert wide.encode(text).ids == narrow.encode(text).ids


def test_the_plain_loop_writes_our_greedy_story(subject):
    loaded = open_ours(subject)
    work = Work(prompt_of(loaded), 30)
    ours, theirs = our_writer(loaded, "greedy", 30)(), EagerLoop(subject.directory).write(work)
    check(subject, loaded.session, work, "loop", ours, theirs, exact=True)
    assert len(theirs) == 30
    assert subject.checks["greedy"]["loop"]["same"] or subject.checks["greedy"]["loop"]["numerical_ties"]


def test_the_plain_loop_draws_among_the_likeliest(subject):
    loop, prompt = EagerLoop(subject.directory), (0, 40, 41)
    likeliest = set(loop.forward(torch.tensor([prompt]), 0).topk(5).indices.tolist())
    drawn = {loop.write(Work(prompt, 1, top_k=5, temperature=3.0))[0] for _ in range(60)}
    assert len(drawn) > 1
    assert drawn <= likeliest


def test_a_story_that_is_not_greedy_is_noticed(subject):
    loaded = open_ours(subject)
    prompt_ids = prompt_of(loaded)
    ids = our_writer(loaded, "greedy", 6)()
    assert numerical_ties(loaded.session, prompt_ids, ids) <= 1
    with pytest.raises(TinystoryError, match="greedy token 2 is not the likeliest"):
        numerical_ties(loaded.session, prompt_ids, [*ids[:2], (ids[2] + 1) % 300])
    with pytest.raises(TinystoryError, match=r"wrote 6 tokens and .* 5; both were asked for 6"):
        check(subject, loaded.session, Work(prompt_ids, 6), "loop", ids, ids[:5], exact=True)


def test_several_rows_are_written_whole(subject):
    assert len(our_writer(open_ours(subject), "sample 0.8", 6, n_rows=3)()) == 18


def test_a_story_longer_than_the_context_is_refused(subject):
    subject.settings = replace(SETTINGS, tokens=64)
    with pytest.raises(UsageError, match="may have 64 tokens together"):
        open_ours(subject)


def refuse(subject, stack):
    raise NotImplementedError("not\nthis kind of model")


def test_a_peer_that_cannot_be_had_is_left_out_with_one_line(subject, monkeypatch):
    monkeypatch.setitem(PEERS, "missing", Peer("no_such_module", refuse))
    monkeypatch.setitem(PEERS, "unable", Peer("torch", refuse))
    with ExitStack() as stack:
        assert open_peer("missing", subject, stack) is None
        assert open_peer("unable", subject, stack) is None
    assert subject.notes == [
        "missing is left out: pip install no_such_module",
        "unable is left out: not this kind of model",
    ]


def test_a_search_that_is_missing_is_left_out_and_one_that_is_there_is_measured(subject, monkeypatch):
    monkeypatch.setattr("bench.parts.search.SEARCHES", {"no-such-search 4": "greedy", "top-k 5 | sample": "greedy"})
    found = measure_search(subject)
    assert [(measurement.what, measurement.peer) for measurement in found] == [("top-k 5 | sample", "greedy")] * 2
    assert subject.notes == ["no-such-search 4 is left out: no decoder stage is called 'no-such-search'"]


# Stages.


def test_agreement_counts_the_tokens_before_a_story_parts_from_the_plain_models(subject, monkeypatch):
    assert in_agreement([3, 4, 5], [3, 4, 5]) == 3
    assert in_agreement([3, 4, 5], [3, 9, 5]) == 1
    subject.settings = replace(SETTINGS, variants=("float32", "int8"))
    found = {(m.what, m.unit): m for m in measure_agreement(subject)}
    for how in ("one by one", "20 rows"):
        stories = found[f"greedy, float32, {how}", "stories"]
        assert (stories.ours, stories.theirs, stories.met) == ([20], [20], True)
        tokens = found[f"greedy, int8, {how}", "tokens before a story parts"]
        assert 0 <= tokens.ours[0] <= tokens.theirs[0] == 20 * SETTINGS.tokens
        assert found[f"greedy, int8, {how}", "stories"].aim is None


def test_a_path_that_writes_another_story_is_seen(subject, monkeypatch):
    monkeypatch.setattr(NumpyStep, "logits", lambda self, hidden: np.roll(_LOGITS(self, hidden), 1, axis=1))
    found = [m for m in measure_agreement(subject) if m.unit == "stories"]
    assert [m.met for m in found] == [False] * 4


_LOGITS = NumpyStep.logits


def test_variants_in_compiled_code_are_left_out_where_there_is_none(subject, monkeypatch):
    subject.settings = replace(SETTINGS, variants=("float32", "compiled", "int8"))
    monkeypatch.setattr("tinystory.session.steps.compiled_code.compiled_code", lambda: None)
    for _ in range(2):
        assert variants_of(subject) == ("float32", "int8")
    (note,) = subject.notes
    assert "is left out" in note


def test_every_stage_has_an_example_that_can_be_timed():
    for _, cls, source in discover().classes():
        if cls.kind != "search" and source == "tinystory":
            spec, stage = example_of(cls)
            assert isinstance(stage, cls)
            assert spec.startswith(cls.name)


@pytest.mark.slow
def test_stages_are_timed_as_tensors_and_where_they_can_as_arrays(subject, monkeypatch):
    monkeypatch.setattr("bench.parts.stages.VOCABULARIES", (320,))
    monkeypatch.setattr("bench.parts.stages.SECONDS", 0.0)
    subject.settings = replace(SETTINGS, pairs=1)
    found = {measurement.what: measurement for measurement in measure_stages(subject)}
    assert {"greedy, V = 320", "greedy, V = 320, array", "top-p 0.9, V = 320"} <= set(found)
    assert "top-k 40 | sample" not in " ".join(found)
    alone = {note.split()[0] for note in subject.notes}  # what needs a second model, or somebody to ask
    assert alone == {"expert-amateur", "guidance", "human"}
    assert all(measurement.ours[0] > 0 for measurement in found.values())


# Processes.


def test_a_process_is_timed_to_the_first_byte_after_the_prompt():
    slow = "import sys, time; print('Once', end='', flush=True); time.sleep(0.2); print(' upon')"
    run = run_process([sys.executable, "-S", "-c", slow], "Once")
    assert run.output == "Once upon"
    assert run.wall >= 0.2
    assert run.peak > 1


@pytest.mark.parametrize("code", ["print('Once', end='')", "print('Twice upon')", "raise SystemExit('no model')"])
def test_a_process_that_writes_no_story_is_an_error(code):
    with pytest.raises(TinystoryError, match=r"failed: (its output is not|no model)"):
        run_process([sys.executable, "-S", "-c", code], "Once")


def test_the_limits_of_time_and_memory(subject):
    weights = subject.config.n_parameters * 4 / 1e6
    found = {measurement.peer: measurement for measurement in limits(subject, "it", "greedy", without_torch=True)}
    for measurement in found.values():
        measurement.note(TimedRun("", 1.0, 0.5, 100.0), TimedRun("", 1.0, 2.0, 200.0))
    assert found["import torch + 0.4 s"].theirs == [2.4]
    assert found["0.8 s"].ratios == [1.6]
    assert found["import torch + 1.5 × weights + 30 MB"].theirs == [pytest.approx(230 + 1.5 * weights)]
    assert "0.8 s" not in {m.peer for m in limits(subject, "it", "top-p 0.9", without_torch=False)}


# Reports.


def record(subject, **changes):
    measurements = [measured(aim=1, **changes), *rates("decode", "greedy | it", "peer")]
    for measurement in measurements[1:]:
        measurement.note(TimedRun([], 1.0, 1.0, n_tokens=5), TimedRun([], 2.0, 2.0, n_tokens=5))
    return measurements, record_of(measurements, [subject], subject.settings)


def test_the_record_has_all_that_a_figure_depends_on(subject):
    subject.notes += ["beam is left out", "beam is left out"]
    _, found = record(subject)
    assert found["models"]["tiny"]["parameters"] == subject.config.n_parameters
    assert found["notes"] == ["beam is left out"]
    assert {"processor", "cores", "load"} <= found["machine"].keys()
    assert {"python", "torch", "tinystory"} <= found["versions"].keys()
    assert (found["pairs"], found["threads"], len(found["measurements"])) == (2, 1, 3)


def test_markdown_has_a_table_for_each_part_and_escapes_bars(subject, capsys):
    subject.checks["greedy"] = {"peer": {"same": True, "numerical_ties": 0}}
    measurements, found = record(subject)
    show(measurements, found, markdown=True)
    out = capsys.readouterr().out
    assert out.startswith("| start | beside | tinystory | other | ratio | range | aim | pairs |\n| --- | --- | ---: |")
    assert r"| greedy \| it, tokens / CPU s | peer | 5.00 | 2.50 | 2.00 × |" in out
    assert "greedy token ids beside peer: the same, numerical ties: 0" in out


def test_history_keeps_every_run_and_survives_a_cut_line(subject, tmp_path):
    path = tmp_path / "history.jsonl"
    assert read(path) == []
    for _ in range(2):
        append(path, record(subject)[1])
    path.write_text(path.read_text() + '{"date": "20')
    found = read(path)
    assert [len(run["measurements"]) for run in found] == [3, 3]
    lines = curves(found)
    assert list(lines) == ["start", "decode"]
    assert lines["start"] == {"it, s, beside transformers, threads: 1": [(1, 1.75), (2, 1.75)]}


def test_a_history_that_cannot_be_written_is_one_line(subject, tmp_path):
    with pytest.raises(TinystoryError, match="cannot write"):
        append(tmp_path, record(subject)[1])


@pytest.mark.parametrize("n_runs", [1, 2])
@pytest.mark.slow
def test_one_run_is_drawn_as_bars_and_several_as_lines(n_runs, subject, tmp_path):
    pytest.importorskip("matplotlib")
    plot([record(subject)[1]] * n_runs, tmp_path / "picture.svg")
    assert "<svg" in (tmp_path / "picture.svg").read_text()


def test_nothing_to_draw_and_unknown_suffixes_are_said(subject, tmp_path):
    with pytest.raises(UsageError, match="nothing was measured"):
        plot([], tmp_path / "picture.svg")
    with pytest.raises(UsageError, match=r"\.svg or \.png"):
        plot([record(subject)[1]], tmp_path / "picture.gif")


# The command.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "decoding"], "there is no 'decoding'; there are start, memory, decode"),
        (["--model-shape", "9x9"], "there is no '9x9'; there are default, 8x384"),
        (["--pairs", "0"], "--pairs is 0; it must be at least 1"),
        (["--plot", "a.gif"], "must end in .svg or .png"),
        (["-m", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_mistakes_are_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert bench.main(arguments) in (2, 3)
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") <= 2


def test_the_recorded_commands_are_still_understood():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    lines = re.findall(r"python -m bench (--.*)", page)
    assert len(lines) >= 5
    for line in lines:
        options = bench.options_of(bench.parse_args(shlex.split(line, comments=True)))
        assert set(options.parts) < set(bench.PARTS)


def test_help_names_every_part_and_the_command(capsys):
    with pytest.raises(SystemExit) as caught:
        bench.parse_args(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m bench ")
    assert all(re.search(rf"^    {part} ", out, re.MULTILINE) for part in bench.PARTS)


def test_no_part_imports_another_part_and_none_is_called_by_an_old_name():
    for path in (ROOT / "bench" / "parts").glob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert "from bench.parts" not in source, path
    for path in (*(ROOT / "bench").rglob("*.py"), *(ROOT / "docs").glob("*.md")):
        assert not re.search(r"scripts/bench|bench\.py\b", path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_the_whole_benchmark_with_the_smallest_settings(tmp_path):
    """Every part on a random model; those that are missing are noted, and nothing else is."""
    flags = ["--model-shape", "tiny", "--pairs", "1", "--tokens", "4", "--steps", "1", "--markdown"]
    files = ["--json", tmp_path / "run.json", "--history", tmp_path / "history.jsonl", "--plot", tmp_path / "bars.png"]
    command = [sys.executable, "-m", "bench", *flags, *files]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C.UTF-8"}
    )
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "run.json").read_text())
    parts = {measurement["part"] for measurement in found["measurements"]}
    assert parts >= {"start", "memory", "decode", "batch", "roofline", "stages", "studio"}
    assert {m["what"] for m in found["measurements"] if m["part"] == "decode"} >= set(SPECS)
    assert read(tmp_path / "history.jsonl") == [found]
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert all("is left out" in note or "is skipped" in note for note in found["notes"])
