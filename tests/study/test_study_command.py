"""`tinystory study`, from the command line to the page, with a tiny model."""

import io
import json
import re
import sys

import pytest
import torch

from tinystory.cli import main
from tinystory.data.prompts import digest
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.session.loading import load
from tinystory.settings import BUILT_IN
from tinystory.study import collection
from tinystory.study.collection import Plan, collect
from tinystory.study.excerpts import real_groups
from tinystory.study.findings import findings
from tinystory.study.journal import Journal

SPECS = ("greedy", "top-k 60 | sample", "sample")
PROMPTS = ("Once upon a time", "The old frog", "Tim")

BROKEN = '''
from dataclasses import dataclass
from tinystory.decoding import LogitsProcessor

@dataclass(frozen=True)
class Wall(LogitsProcessor):
    """Remove every token."""
    name = "wall"
    def __call__(self, logits, step):
        return logits.masked_fill(logits < float("inf"), -float("inf"))
'''


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch, tmp_path):
    """No test reads the user's settings, and standard input is an empty pipe."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in BUILT_IN:
        monkeypatch.delenv(f"TINYSTORY_{name.upper()}", raising=False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b""), encoding="utf-8"))


@pytest.fixture(scope="module")
def model(checkpoint):
    return load(str(checkpoint))


@pytest.fixture(scope="module")
def real(model, stories):
    return real_groups(stories, PROMPTS, model.tokenizer, 12)[:3]


@pytest.fixture(scope="module")
def plan():
    registry = discover()
    return Plan(PROMPTS, {spec: parse_spec(spec, registry) for spec in SPECS}, (5, 6), 1, 12)


def collected(model, plan, real, journal):
    return collect(model.session, model.tokenizer, plan, real, journal)


def untimed(records):
    return [{key: value for key, value in record.items() if key != "cpu_seconds"} for record in records]


@pytest.fixture(scope="module")
def journal(model, plan, real, tmp_path_factory):
    """The result of the whole plan, written in one go."""
    found = Journal(tmp_path_factory.mktemp("whole") / "journal.jsonl", {})
    assert collected(model, plan, real, found) == {}
    return found


@pytest.fixture
def study(checkpoint, story_file, tmp_path, capsys):
    """Run the command: (exit code, standard output, standard error)."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")

    def run(*argv):
        fixed = ["--real", story_file, "--prompts", prompts, "-n", 40, "-m", checkpoint, "-o", tmp_path / "out"]
        code = main(["study", *map(str, (*fixed, *argv))])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# --- collecting ---


def test_a_study_stopped_anywhere_goes_on_to_the_same_records(model, plan, real, journal, tmp_path, monkeypatch):
    lines = journal.path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 3 + 6 + 3  # what it is about, real groups, decoders times seeds, excerpts
    for n_lines, cut in ((0, 0), (2, 10), (7, 30), (11, 1), (len(lines), 0)):
        path = tmp_path / f"{n_lines}.jsonl"
        path.write_bytes(b"".join(lines[:n_lines]) + b"".join(lines[n_lines:])[:cut])
        done = []
        again = Journal(path, {})
        n_kept = len(again.records)
        collect(model.session, model.tokenizer, plan, real, again, lambda *call: done.append(call))  # noqa: B023
        assert untimed(again.records) == untimed(journal.records)
        assert untimed(map(json.loads, path.read_bytes().splitlines()[1:])) == untimed(journal.records)
        assert n_kept == max(0, n_lines - 1)
        assert len(done) - 1 == 12 - n_kept  # nothing is done twice
        assert done[-1] == (12 - n_kept, 12 - n_kept, "")


def test_a_batch_in_the_works_is_all_that_an_interrupt_loses(model, plan, real, tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal.jsonl", {})
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*arguments)

    write = collection.write
    monkeypatch.setattr(collection, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collected(model, plan, real, journal)
    assert [record["kind"] for record in Journal(journal.path, {}).records] == ["real"] * 3 + ["stories"] * 2


def test_another_decoder_and_another_seed_are_added_to_what_is_there(model, plan, real, journal, tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(journal.path.read_bytes())
    more = Plan(PROMPTS, {**plan.decoders, "sample 0.5": parse_spec("sample 0.5", discover())}, (5, 6, 7), 1, 12)
    again = Journal(path, {})
    collected(model, more, real, again)
    added = again.records[len(journal.records) :]
    written = [(record["spec"], record["seed"]) for record in added if record["kind"] == "stories"]
    assert written == [("greedy", 7), ("top-k 60 | sample", 7), ("sample", 7)] + [("sample 0.5", s) for s in (5, 6, 7)]
    assert [list(record["impossible"]) for record in added if record["kind"] == "coverage"] == [["sample 0.5"]] * 3


def test_the_stories_are_those_of_generate_with_the_prompts_number(journal, checkpoint, capsys):
    [record] = [r for r in journal.records if r["kind"] == "stories" and (r["spec"], r["seed"]) == ("sample", 6)]
    main(["generate", PROMPTS[1], "-d", "sample", "-s", "6", "-n", "12", "--num", "2", "-m", str(checkpoint), "--json"])
    story = json.loads(capsys.readouterr().out)["stories"][1]
    assert record["stories"][1]["completion"] == story["completion"]
    assert sum(record["stories"][1]["bits"]) / 12 == pytest.approx(story["statistics"]["bits_per_token"], abs=1e-3)
    assert record["cpu_seconds"] > 0


def test_coverage_and_surprise_are_those_of_the_models_own_logits(model, real, journal):
    excerpt = real[0][1]
    ids = (*excerpt.prompt_ids, *excerpt.token_ids)
    assert not excerpt.finished
    session = model.session.open()
    first = session.prefill([list(excerpt.prompt_ids)])[0]
    logits = torch.cat([first[None], session.decode(torch.tensor([excerpt.token_ids[:-1]]))[0]])
    recorded = torch.tensor(ids[len(excerpt.prompt_ids) :])
    bits = -logits.log_softmax(-1)[torch.arange(12), recorded] / torch.tensor(2.0).log()
    [scored] = [record for record in journal.records if record["kind"] == "real" and record["group"] == 0]
    assert scored["bits"][1] == pytest.approx(bits.tolist(), abs=1e-3)
    [found] = [record["impossible"] for record in journal.records if record["kind"] == "coverage"][1:2]
    ranks = (logits > logits[torch.arange(12), recorded][:, None]).sum(dim=-1)
    n_outside = [int((ranks >= k).sum()) for k in (1, 60)]
    assert found == {"greedy": [n_outside[0], 12], "top-k 60 | sample": [n_outside[1], 12], "sample": [0, 12]}
    assert 0 < n_outside[1] < n_outside[0]


def test_the_end_of_a_real_story_is_judged_too(model, plan, stories, tmp_path):
    whole = real_groups(stories, PROMPTS, model.tokenizer, 300)[:3]
    journal = Journal(tmp_path / "journal.jsonl", {})
    collected(model, Plan(PROMPTS, {"sample": plan.decoders["sample"]}, (0,), 1, 4), whole, journal)
    [first, *_] = [record["impossible"]["sample"] for record in journal.records if record["kind"] == "coverage"]
    assert first == [0, len(whole[0][0].token_ids) + 1]


def test_findings_have_every_figure_and_its_interval(plan, real, journal):
    found = findings(plan, real, journal.records, vocabulary={"once", "a", "the"})
    assert {row["spec"] for row in found["decoders"]} == set(SPECS)
    rows = {row["spec"]: row for row in found["decoders"]}
    for row in rows.values():
        for name, figure in row["measures"].items():
            if figure["value"] is not None:
                assert figure["low"] <= figure["high"], name
    impossible = {spec: row["measures"]["impossible"]["value"] for spec, row in rows.items()}
    assert 0 == impossible["sample"] < impossible["top-k 60 | sample"] <= impossible["greedy"] <= 1
    bits = {spec: row["measures"]["bits_per_token"]["value"] for spec, row in rows.items()}
    assert bits["greedy"] < bits["top-k 60 | sample"] < bits["sample"]
    assert rows["greedy"]["tokens"] == sum(
        len(story["bits"]) for r in journal.records if r.get("spec") == "greedy" for story in r["stories"]
    )
    # What was written for another plan does not count.
    one = Plan(PROMPTS, {"greedy": plan.decoders["greedy"]}, (6,), 1, 12)
    [alone] = findings(one, real, journal.records)["decoders"]
    assert alone["measures"]["bits_per_token"] == rows["greedy"]["measures"]["bits_per_token"]
    assert alone["tokens"] == rows["greedy"]["tokens"] / 2
    assert json.loads(json.dumps(found)) == found


# --- the command ---


def test_table_json_page_and_plots(study, story_file, tmp_path):
    page = tmp_path / "docs" / "study.md"
    arguments = ["-d", "greedy", "-d", "top-k 60 | sample", "--train", story_file, "--seeds", 2, "--page", page]
    code, out, err = study(*arguments)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert re.split(r"\s{2,}", lines[0].strip())[:4] == ["decoder", "distance", "bits gap", "bits/token"]
    assert lines[1].startswith("    real stories") or "real stories" in lines[1]
    assert "Nearest to real stories: " in out
    found = json.loads((tmp_path / "out" / "study.json").read_text(encoding="utf-8"))
    assert found["winner"] in ("greedy", "top-k 60 | sample")
    assert found["winner"] == found["decoders"][0]["spec"]
    assert found["seeds"] == [0, 1]
    assert found["real"]["measures"]["unknown_words"]["value"] == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith(
        "# The decoder study\n\n`tinystory study -d greedy -d 'top-k 60 | sample' --prompts prompts.txt"
    )
    assert str(tmp_path) not in text
    assert "`top-k 60 \\| sample 1`" in text
    for link in re.findall(r"!\[\w+\]\((.*?)\)", text):
        assert (page.parent / link).read_bytes().startswith(b"\x89PNG")
    assert text.count("![") == 2
    # The criterion stands before the results, and a second run changes nothing.
    assert text.index("## The criterion") < text.index("## Results") < text.index("| **real stories** |")
    code, out, _ = study(*arguments, "--json")
    assert json.loads(out) == found
    assert page.read_text(encoding="utf-8") == text


def test_an_interrupt_says_how_to_go_on(study, monkeypatch):
    def interrupted(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(collection, "write", interrupted)
    assert study("-d", "greedy", "--seeds", 1) == (130, "", "tinystory: stopped; the same command goes on from here\n")


def test_a_changed_study_is_refused_in_one_line(study):
    assert study("-d", "greedy", "--seeds", 1)[0] == 0
    for change, what in ((("-n", 13), "max tokens 40, not 13"), (("--limit", 2), "prompts ")):
        code, out, err = study("-d", "greedy", "--seeds", 1, *change)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert what in err
        assert "give another -o" in err


def test_openings_of_the_real_stories_are_the_prompts_and_a_grid_comes_from_a_file(
    checkpoint, story_file, stories, tmp_path, capsys
):
    grid = tmp_path / "grid.txt"
    grid.write_text("sample\nzigzag 2 | sample\n", encoding="utf-8")
    arguments = ["--grid", grid, "--limit", 2, "--seeds", 1, "-n", 8, "--real", story_file, "-o", tmp_path / "out"]
    assert main(["study", *map(str, arguments), "-m", str(checkpoint)]) == 0
    assert capsys.readouterr().err == "tinystory: 1 decoders of the grid are left out: zigzag is not installed\n"
    subject = json.loads((tmp_path / "out" / "journal.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert digest([story.split(".")[0] + "." for story in stories[:2]]) in json.dumps(subject)
    page = (tmp_path / "out" / "study.md").read_text(encoding="utf-8")
    assert "## Not measured\n\n- `zigzag 2 | sample`: zigzag is not installed" in page


def test_a_decoder_that_fails_is_named_and_the_others_are_measured(study, tmp_path):
    wall = tmp_path / "wall.py"
    wall.write_text(BROKEN, encoding="utf-8")
    arguments = ["--seeds", 1, "--decoder-file", wall, "-d", "wall | greedy"]
    code, out, err = study(*arguments, "-d", "greedy", "--json")
    assert code == 0
    found = json.loads(out)
    assert [row["spec"] for row in found["decoders"]] == ["greedy"]
    assert "no token is left" in found["failed"]["wall | greedy"]
    assert err.count("\n") == 1
    code, _, err = study(*arguments)
    assert code == 1
    assert "every decoder failed" in err


def test_without_matplotlib_there_is_a_page_without_plots(study, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = study("-d", "greedy", "--seeds", 1)
    assert code == 0
    assert err == "tinystory: plots need matplotlib: pip install 'tinystory[train]'\n"
    assert "![" not in (tmp_path / "out" / "study.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", 0), "--seeds is 0"),
        (("--search-seeds", 0), "--search-seeds is 0"),
        (("--limit", 1), "--limit is 1; a study needs at least 2"),
        (("-s", "random"), "give a number, not random"),
        (("-d", "gredy"), "did you mean `greedy`"),
        (("--real", "none.txt"), "no such file"),
        (("--prompts", "none.txt"), "cannot read none.txt"),
    ],
)
def test_mistakes_are_one_line(study, arguments, message, tmp_path):
    code, out, err = study("-d", "greedy", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
