"""The Python interface: what a script or a notebook does with a model, a story, and a token of it."""

import doctest
import html.parser
import importlib
import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from kept_session import KEPT

import tinystory as ts
from tinystory.api.html import comparison_html, inside_html, story_html, trace_html, whatif_html
from tinystory.checkpoint.shipped import SHIPPED_MODELS
from tinystory.decoding import LogitsProcessor, option
from tinystory.decoding.plugins import discover
from tinystory.errors import CheckpointError, SessionError, UsageError
from tinystory.folders import sessions_folder
from tinystory.settings import random_seed


@pytest.fixture(scope="module")
def model():
    return ts.load()


@pytest.fixture(scope="module")
def story(model):
    return model.write("Once upon a time", "top-k 40 | sample 0.8", seed=7, max_new_tokens=12)


def test_every_name_is_there():
    for name in ts.__all__:
        assert getattr(ts, name) is not None
    assert set(ts.__all__) <= set(dir(ts))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ts.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "module", ["tinystory", *(f"tinystory.api.{name}" for name in ("model", "story", "comparison", "replay"))]
)
def test_the_examples_in_docstrings_run(module):
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted
    assert not results.failed


def test_the_first_story_needs_no_torch():
    code = (
        "import sys, tinystory as ts; print(ts.load().write('Once', 'greedy', max_new_tokens=5).text); "
        "sys.exit(bool({'torch', 'transformers', 'rich', 'prompt_toolkit'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.startswith("Once upon a")) == (0, True), result


def test_a_session_is_written_again(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    sessions_folder().mkdir(parents=True)
    content = KEPT.read_text(encoding="utf-8")
    (sessions_folder() / "owl.json").write_text(content, encoding="utf-8")
    replayed = ts.replay("owl")
    assert (replayed.ok, len(replayed.turns), replayed.n_turns) == (True, 14, 14)
    assert repr(replayed) == "<Replay of owl: 14 of 14 turns the same>"
    chat = json.loads(content)
    [first, *_] = [node for node in chat["nodes"] if node.get("written")]
    first["written"]["seed"] += 1
    (tmp_path / "changed.json").write_text(json.dumps(chat), encoding="utf-8")
    changed = ts.replay(tmp_path / "changed.json")
    assert not changed.ok
    for wrong in ("nowhere", tmp_path / "nowhere.json", 7):
        with pytest.raises((SessionError, UsageError), match=r"there is no session|the session is 7"):
            ts.replay(wrong)


def test_a_story_is_that_of_the_command_line(story, capsys):
    from tinystory.cli import main

    assert main(["generate", "Once upon a time", "-d", "top-k 40 | sample 0.8", "-s", "7", "-n", "12", "-q"]) == 0
    assert capsys.readouterr().out == story.text + "\n"
    assert story.prompt + story.completion == story.text
    assert "".join(token.text for token in story.tokens) == story.completion
    assert (story.seed, story.spec, story.finish_reason) == (7, "top-k 40 | sample 0.8", "length")
    again = story.model.write(story.prompt, story.spec, seed=story.seed, max_new_tokens=12)
    assert again.text == story.text
    assert repr(story).startswith("<Story 'Once upon a time")
    assert story.fields()["token_ids"] == [token.id for token in story.tokens]


def test_a_stream_is_the_story_in_pieces(model, story):
    pieces = list(model.stream("Once upon a time", story.spec, seed=7, max_new_tokens=12))
    assert "".join(map(str, pieces)) == story.completion
    assert [(token.text, token.id) for piece in pieces for token in piece.tokens] == [
        (token.text, token.id) for token in story.tokens
    ]


def test_random_seeds_differ_and_are_kept(model):
    assert {len(str(random_seed())) for _ in range(300)} == {6}  # short enough to type again
    seeds = {model.write("Once", max_new_tokens=1).seed for _ in range(5)}
    assert len(seeds) == 5
    assert {len(str(seed)) for seed in seeds} == {6}


def test_a_comparison_has_one_noise(model):
    both = ts.compare(
        model, "Once upon a time", ["top-k 1 | sample", "greedy", "sample 1.5"], seed=3, max_new_tokens=20
    )
    assert [story.spec for story in both] == ["top-k 1 | sample", "greedy", "sample 1.5"]
    assert both[0].text == both[1].text != both[2].text
    assert both.parting(0, 1) is None
    parting = both.parting(0, 2)
    assert parting.cause == "top-k 1 removed it"
    assert both[2].token_ids[parting.position] == parting.b_token
    assert len(both) == 3


def test_a_trace_is_the_funnel(story):
    trace = story.trace(3)
    assert [effect.stage for effect in trace.effects] == ["model", "top-k 40", "sample 0.8"]
    assert [effect.left for effect in trace.effects] == [2048, 40, 1]
    assert trace.token == story.tokens[3]
    assert sum(share for _, share in trace.alternatives) <= 1
    assert trace.alternatives[0][1] == max(share for _, share in trace.alternatives)
    assert story.trace(-1).position == 11
    for position in (12, -13):
        with pytest.raises(IndexError):
            story.trace(position)


def test_whatif_names_what_is_forbidden(story):
    verdict = story.whatif("top-k 1 | sample")
    unlikely = [index for index, token in enumerate(story.tokens) if token.rank > 0]
    assert [index for index, _ in verdict.forbidden] == unlikely
    assert verdict.log_prob == (-math.inf if unlikely else pytest.approx(0.0))
    assert story.whatif("sample 1").log_prob == pytest.approx(sum(token.logprob for token in story.tokens), abs=1e-3)


def test_inside_is_the_models_own(story):
    inside = story.inside(5)
    token = story.tokens[5]
    assert inside.token == token
    assert len(inside.layers) == 7
    assert math.log(inside.layers[-1].taken) == pytest.approx(token.logprob, abs=1e-3)
    assert inside.layers[-1].taken_rank == token.rank + 1
    assert inside.layers[-1].entropy == pytest.approx(token.entropy, abs=1e-2)
    assert 0 <= inside.decided_at <= 6
    assert float(inside.attention(2, 1).sum()) == pytest.approx(1, abs=1e-5)
    assert len(inside.without_parts("mean")) == 6 * 5
    other = inside.layers[-1].likeliest[-1][0]
    assert inside.without_parts(of=other) != inside.without_parts() == inside.without_parts(of=token.id)
    assert story.model.token_text(token.id) == token.text


def test_a_decoder_of_ones_own_can_be_entered_again(model):
    def define(least):
        @model.add_decoder
        @dataclass(frozen=True)
        class OnlyLow(LogitsProcessor):
            """Keep the tokens with low ids."""

            name = "only-low"
            most: int = option(least, help="the largest id", ge=1)

            def __call__(self, logits, step):
                kept = logits.clone()
                kept[self.most :] = -math.inf
                return kept

    for most in (300, 400):
        define(most)
        written = model.write("Once", "only-low | sample", seed=1, max_new_tokens=20)
        assert max(token.id for token in written.tokens) < most
    assert max(token.id for token in written.tokens) >= 300  # the second class has taken the place of the first


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.write("Once", "nonsense"), "no decoder stage is called"),
        (lambda model: model.write("Once", max_new_tokens=0), "whole number from 1"),
        (lambda model: model.write("Once", max_new_tokens=True), "whole number from 1"),
        (lambda model: model.write("Once", seed=-1), "whole number from 0"),
        (lambda model: model.write("Once", stop="The end"), "a list of texts"),
        (lambda model: model.write("Once", stop=[""]), "stop text is empty"),
        (lambda model: model.write(3), "the prompt is a int; it must be a text"),
        (lambda model: model.stream("Once", "top-k 0 | sample"), "top-k"),
        (lambda model: model.compare("Once", ["greedy"]), "from 2 to 8"),
        (lambda model: ts.load(dtype="float31"), "did you mean float32"),
        (lambda model: model.write("Once", "beam 2", max_new_tokens=4).trace(0), "search"),
    ],
)
def test_mistakes_are_told_at_once(model, call, message):
    with pytest.raises(UsageError, match=message):
        call(model)


def test_a_missing_model_is_told():
    with pytest.raises(CheckpointError, match="there is no directory"):
        ts.load("./nowhere")


class Inert(html.parser.HTMLParser):
    """Checks that HTML has no element and no attribute that can do anything."""

    def __init__(self):
        super().__init__()
        self.texts, self.open = [], []

    def handle_starttag(self, tag, attrs):
        assert tag in {"div", "span", "b", "p", "table", "tr", "td", "th"}
        assert {name for name, _ in attrs} <= {"style", "title"}
        assert "url(" not in dict(attrs).get("style", "")
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def inert(content):
    parser = Inert()
    parser.feed(content)
    assert not parser.open
    return "".join(parser.texts)


def test_everything_shows_itself_in_a_notebook(model, story):
    assert story.text in inert(story_html(story))
    both = ts.compare(model, "Once", ["greedy", "sample"], seed=1, max_new_tokens=4)
    shown = inert(comparison_html(both))
    assert all(one.text in shown and one.spec in shown for one in both)
    assert "top-k 40" in inert(trace_html(story.trace(2)))
    assert "could not have picked" in inert(whatif_html(story.whatif("top-k 2 | sample")))
    assert "layer 6" in inert(inside_html(story.inside(2)))
    assert story._repr_html_() == story_html(story)
    shares = story.trace(2)._repr_html_().count("inline-block")
    assert shares == 10


def test_a_hostile_story_is_inert(model):
    hostile = '<script>alert(1)</script><img src=x onerror=alert(1)> " onmouseover="x \x1b[31m &amp;'
    shown = inert(story_html(model.write(hostile, "greedy", max_new_tokens=3)))
    assert "<script>alert(1)</script>" in shown
    assert "\x1b" not in shown


def test_logits_are_those_of_the_session(model, story):
    logits = model.logits(story.token_ids, len(story.prompt_ids))
    assert logits.shape == (12, 2048)
    expected = torch.tensor([token.logprob for token in story.tokens])
    picked = logits.log_softmax(-1)[torch.arange(12), [token.id for token in story.tokens]]
    assert torch.allclose(picked, expected, atol=1e-3)


def test_a_warning_about_a_model_is_a_warning_of_python(tmp_path):
    folder = shutil.copytree(SHIPPED_MODELS["mini"], tmp_path / "mini")
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.1}')
    with pytest.warns(UserWarning, match=r"would write with repetition_penalty 1\.1"):
        ts.load(str(folder)).write("Once", "greedy", max_new_tokens=2)


def test_a_broken_decoder_file_is_a_warning_of_python(monkeypatch):
    registry = discover(user_folder=None)
    registry.warnings.append("a\x1b[31m.py is broken")
    monkeypatch.setattr("tinystory.api.model.discover", lambda: registry)
    with pytest.warns(UserWarning, match=r"^a␛\[31m\.py is broken$"):
        ts.load("mini")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: ts.load(1), "the model is 1; it must be a name, a folder or a hub id"),
        (lambda model: model.write("Once", 1), "the decoder is 1; it must be a spec"),
        (lambda model: model.write("Once", None), "the decoder is None; it must be a spec"),
        (lambda model: model.write("Once", stop=[1]), "stop takes a list of texts"),
        (lambda model: model.write("Once", stop=None), "stop takes a list of texts"),
        (lambda model: model.write("Once", seed=10**5000), "seed is a whole number of 16,610 bits"),
        (lambda model: model.compare("Once", None), "compare takes a list of decoders"),
        (lambda model: model.compare("Once", "greedy"), "compare takes a list of decoders"),
    ],
)
def test_a_value_of_a_wrong_type_is_named(model, call, message):
    with pytest.raises(UsageError, match=message):
        call(model)


def test_what_a_user_should_know_about_a_model_is_one_warning(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 99_999}))

    def write_twice():
        model = ts.load(str(folder))
        for _ in range(2):
            model.logits(model.write("a", "greedy", max_new_tokens=2).token_ids)

    with pytest.warns(UserWarning, match="eos_token_id is 99999") as caught:
        write_twice()
    assert [warning.filename for warning in caught] == [__file__]
