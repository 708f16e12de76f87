"""The readers of text files and lines that are tried, each with the files of `text_seeds`."""

import json
import os
import re
from contextlib import contextmanager
from functools import cache, partial
from unittest.mock import patch

from . import text_seeds as seeds
from .harness import Target
from .mutations import any_value, mutated_bytes, mutated_json, mutated_lines, mutated_text

LONGEST_ARGUMENT = 2**17 - 1
"""Bytes of the longest argument that Linux hands over."""

SPEC = "sample 0.8"
"""The decoder of the study's journal."""


@contextmanager
def _homes(folder):
    """Let the files of the user lie in a folder; the hub is not asked."""
    names = {f"XDG_{name}_HOME": str(folder) for name in ("CONFIG", "STATE", "CACHE", "DATA")}
    with patch.dict(os.environ, {**names, "HF_HUB_OFFLINE": "1"}):
        yield


def _put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- specs ---


@cache
def _registry():
    from tinystory.decoding.plugins import discover

    return discover(user_folder=None)


def _make_spec(random):
    case = mutated_text(random, random.choice(seeds.SPECS), seeds.SPEC_WORDS + seeds.SPECS)
    return case[:LONGEST_ARGUMENT]


def _read_spec(case, _folder):
    """Read a spec as the shell hands it over; what is understood keeps its meaning when it is written again."""
    from tinystory.decoding.spec import format_spec, parse_spec

    text = format_spec(parse_spec(os.fsdecode(case), _registry()))
    assert format_spec(parse_spec(text, _registry())) == text


# --- TOML ---


def _toml(value, inner=False):
    """Return a document as TOML; what TOML does not have stands there as JSON has it."""
    if isinstance(value, dict) and not inner:
        return "".join(f"{_key(key)} = {_toml(item, True)}\n" for key, item in value.items())
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_toml(item, True)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item, True) for item in value) + "]"
    return "nan" if value != value else json.dumps(value, ensure_ascii=False)


def _key(key):
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key)


def _make_toml(document, others, random):
    if random.random() < 0.3:
        return mutated_text(random, _toml(document), seeds.TOML_WORDS)
    try:
        changed = json.loads(mutated_json(random, document, others))
        text = _toml(changed)
    except (ValueError, RecursionError, AttributeError):  # damaged bytes, or no object: they are a case, too
        return mutated_bytes(random, _toml(document).encode())
    return text.encode(errors="surrogatepass")


def _read_config(case, folder):
    from tinystory.folders import config_file
    from tinystory.settings import resolve_settings

    with _homes(folder):
        _put(config_file(), case)
        for setting in resolve_settings(environment={}):
            assert setting.shown


def _read_presets(case, folder):
    """Read presets as the studio does, with each spec; a damaged file is set aside with a warning."""
    from tinystory.decoding.spec import parse_spec
    from tinystory.errors import UsageError
    from tinystory.folders import presets_file
    from tinystory.studio.presets import preset_names, read_presets

    with _homes(folder):
        path = _put(presets_file(), case)
        preset_names()
        presets, warning = read_presets()
        for aside in path.parent.glob("*.damaged-*"):
            aside.unlink()
    if warning:
        raise UsageError(warning)
    for spec in presets.values():
        parse_spec(spec, _registry())


def _read_run_toml(case, folder):
    """Resolve a run's file as scripts/train.py does, to the shape of its model."""
    from tinystory.training.config import resolve_run

    with _homes(folder):
        config = resolve_run(None, _put(folder / "run.toml", case), {})
    config.model.model_config(100)


# --- sessions and runs ---


@cache
def _session():
    return seeds.session()


def _make_session(random):
    if random.random() < 0.1:
        return mutated_bytes(random, json.dumps(_session()).encode())
    return mutated_json(random, _session(), [_session()])


def _read_session(case, folder):
    """Read a session, its row in the list of sessions, and every story of it; what is read can be written again."""
    from tinystory.story.branches import Branches
    from tinystory.story.session_file import encode, load_session, read_summary
    from tinystory.story.tree import ROOT

    path = _put(folder / "session.json", case)
    chat = load_session(path)
    read_summary(path)
    for number in list(chat.tree.turns):
        chat.tree.text(number)
        chat.tree.token_ids(number)
    Branches(chat.tree).groups(ROOT)
    path.write_bytes(encode(chat))
    assert encode(load_session(path)) == path.read_bytes()


@cache
def _run_json():
    from tinystory.training.config import RunConfig

    hashes = {"train": "ab" * 32, "valid": "cd" * 32}
    history = [{"step": 10, "changed": {"lr": [0.1, 0.2]}}]
    return {**RunConfig().to_json(), "history": history, "stories": hashes}


def _make_run(random):
    if random.random() < 0.7:
        return mutated_json(random, _run_json(), [_run_json()])
    name = random.choice(["history", "stories"])
    return json.dumps({**_run_json(), name: any_value(random)}).encode()


def _read_run(case, folder):
    """Read run.json as `--resume` does, with the names of checkpoints and the log in the same folder."""
    from tinystory.training.config import RunConfig
    from tinystory.training.plotting import read_metrics
    from tinystory.training.run import Run

    for name in ("run.json", "latest.json", "metrics.jsonl"):
        _put(folder / name, case)
    _put(folder / "tokenizer.json", b"{}")
    run = Run(folder)
    read_metrics(folder / "metrics.jsonl")
    run.named("latest")
    config = _configuration(run)
    run.story_hashes()
    run.remember(config.changed({"epochs": 3}), 20, {})
    assert RunConfig.from_json(json.loads((folder / "run.json").read_text())).training.epochs == 3


def _configuration(run):
    """Return the configuration of a run; its vocabulary has a target of its own."""
    from tinystory.text.tokenizer import Tokenizer

    with patch.object(Tokenizer, "from_file", lambda path: path):
        return run.configuration()[0]


# --- lines ---


def _make_lines(records, random):
    return mutated_lines(random, random.choice(records))


def _read_story_lines(case, folder):
    """Go on with a file of stories, as `generate --prompts -o` does."""
    from tinystory.writing.story_lines import StoryLines

    with StoryLines(_put(folder / "stories.jsonl", case), seeds.SUBJECT, 3, 2) as lines:
        lines.add({"index": 2, "story": 1, "seed": (lines.seed or 0) + 2, **seeds.SUBJECT})
        n_done = lines.n_done
    with StoryLines(folder / "stories.jsonl", seeds.SUBJECT, 3, 2) as lines:
        assert lines.n_done == n_done


def _read_journal(case, folder):
    """Go on with a study as far as it looks for what is done, and compute what its page says of that."""
    from tinystory.study.collection import Plan, _covering, _scoring, _writing
    from tinystory.study.findings import _impossible, _speed
    from tinystory.study.journal import Journal

    plan = Plan(("Once", "A"), {SPEC: _decoder()}, (1,), 1, 9)
    with Journal(_put(folder / "journal.jsonl", case), seeds.STUDY) as journal:
        list(_scoring(None, None, [[], []], journal))
        list(_writing(None, None, plan, journal, {}))
        list(_covering(None, None, plan, [None, None], journal))
        _impossible(SPEC, 1, journal.records)
        _speed(plan, SPEC, journal.records)


@cache
def _decoder():
    from tinystory.decoding.spec import parse_spec

    return parse_spec(SPEC, _registry())


# --- prompts and stories ---


def _make_prompts(random):
    if random.random() < 0.6:
        return b"yaml " + mutated_text(random, seeds.PROMPTS_YAML.decode(), seeds.YAML_WORDS)
    return b"txt " + _make_stories(random)


def _read_prompts(case, folder):
    from tinystory.data.prompts import PromptFile

    suffix, content = case.split(b" ", 1)
    with PromptFile(_put(folder / f"prompts.{suffix.decode()}", content)) as prompts:
        assert len(list(prompts)) == prompts.count > 0
        for prompt in prompts:
            prompt.encode()


def _make_stories(random):
    between = random.choice(["\n<|endoftext|>\n", "\n\n", "\n", "<|endoftext|>", "\r\n---\r\n"])
    return mutated_text(random, between.join(seeds.STORIES), seeds.TEXT_WORDS)


def _make_data(random):
    if random.random() < 0.5:
        return b"txt " + _make_stories(random)
    return b"jsonl " + mutated_lines(random, random.choice([seeds.DATA_RECORDS, seeds.OTHER_DATA_RECORDS]))


def _read_data(case, folder):
    from tinystory.data.sources import SourceReport, read_stories

    suffix, content = case.split(b" ", 1)
    report = SourceReport()
    path = _put(folder / f"stories.{suffix.decode()}", content)
    for story in read_stories(path, report=report):
        story.encode()
    assert str(report)


def _make_history(random):
    return mutated_text(random, seeds.HISTORY, seeds.HISTORY_WORDS)


def _read_history(case, folder):
    """Read the history of the input line, add a line, and find it again. It refuses nothing."""
    from tinystory.repl.history import open_history

    path = _put(folder / "history", case)
    list(open_history(path).load_history_strings())
    open_history(path).store_string("told")
    assert next(iter(open_history(path).load_history_strings())) == "told"


TARGETS = (
    Target("spec", _make_spec, _read_spec),
    Target("session", _make_session, _read_session),
    Target("config", partial(_make_toml, seeds.CONFIG, [seeds.PRESETS]), _read_config),
    Target("presets", partial(_make_toml, seeds.PRESETS, [seeds.CONFIG]), _read_presets),
    Target("run-toml", partial(_make_toml, seeds.RUN_TOML, [seeds.CONFIG]), _read_run_toml),
    Target("run", _make_run, _read_run),
    Target("story-lines", partial(_make_lines, [seeds.STORY_RECORDS]), _read_story_lines),
    Target("journal", partial(_make_lines, [seeds.STUDY_RECORDS]), _read_journal),
    Target("prompts", _make_prompts, _read_prompts),
    Target("data", _make_data, _read_data),
    Target("history", _make_history, _read_history),
)
