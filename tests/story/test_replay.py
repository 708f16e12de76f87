"""Replay: a session of many decoders is written again in the same way, and every change in its file is found."""

import json
import shutil
from dataclasses import replace

import platformdirs
import pytest
import torch
from keepers import keeper_of
from kept_session import KEPT
from safetensors.torch import load_file, save_file

from tinystory.checkpoint.hash import model_hash
from tinystory.checkpoint.shipped import DEFAULT_MODEL
from tinystory.cli import main
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec, shown_spec
from tinystory.repl.commands import execute
from tinystory.session.loading import load
from tinystory.story.replay import replay_turn
from tinystory.story.session_file import load_session
from tinystory.studio.backend import ModelBackend
from tinystory.studio.keeper import Keeper
from tinystory.studio.studio import Studio

SPECS = (
    "greedy",
    "sample 0.8",
    "top-k 5 | sample",
    "top-p 0.9 | sample 0.7",
    "min-p 0.1 | sample 1.2",
    "temperature 0.7 | top-k 40 | top-p 0.95 | sample",
    "top-k 40 | greedy",
    "temperature 1.5 | min-p 0.05 | sample",
    "min-p 0.02 | top-k 8 | sample 0.9",
    "top-p 0.5 | top-k 3 | sample 2",
)

SEARCH = '''
from dataclasses import dataclass
from tinystory.decoding import Commit, Finish, Search, Token, option


@dataclass(frozen=True)
class Straight(Search):
    """The likeliest token, at a pace of its own."""

    name = "straight"
    model: str = option("", help="another model to look at")

    def search(self, session, request, chain):
        if self.model:
            session.open(self.model)
        logits = session.prefill([request.prompt_ids])
        for n in range(request.max_new_tokens):
            token_id = int(logits[0].argmax())
            if token_id in session.eos_ids:
                yield Finish("eos")
                return
            yield Commit((Token.of(logits[0], token_id),))
            reason = request.interrupted()
            if reason:
                yield Finish(reason)
                return
            import torch

            logits = session.decode(torch.tensor([token_id]))
        yield Finish("length")
'''


@pytest.fixture(scope="module")
def search_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("decoders") / "straight.py"
    path.write_text(SEARCH)
    return path


@pytest.fixture(scope="module")
def registry(search_file):
    return discover([search_file], user_folder=None)


@pytest.fixture(scope="module")
def backend():
    backend = ModelBackend.open(None, "float32", "cpu")
    backend.wait(lambda: False)
    return backend


def new_studio(registry, backend, folder, **fields):
    studio = Studio(
        registry, parse_spec("sample 0.8", registry), backend=backend, open_model=None, max_tokens=12, **fields
    )
    Keeper(studio, folder)
    return studio


def write(studio, requests, cancel=lambda: False):
    for _ in studio.write(list(requests), cancel):
        pass


@pytest.fixture(scope="module")
def session(registry, backend, tmp_path_factory):
    """A session with ten specs and every way of going on."""
    studio = new_studio(registry, backend, tmp_path_factory.mktemp("data") / "sessions", seed=11)
    write(studio, [studio.next_turn("Once upon a time, a small owl")])
    for spec in SPECS:
        studio.decoder = parse_spec(spec, registry)
        write(studio, [studio.next_turn("")])
    studio.seed, studio.decoder = None, parse_spec("sample", registry)
    draws = iter(range(100, 110))
    studio.draw_seed = lambda: next(draws)
    write(studio, [studio.retry()])
    write(studio, studio.more(3))
    write(studio, [studio.edit(studio.text[:40] + " and a ti")])
    assert studio.tree.turn.written.heal
    write(studio, [studio.pick(5, backend.encode(" king", bos=False)[0])])
    studio.stop = (" the", " a", ".")
    write(studio, [limited(studio.next_turn(""), 60)])
    assert studio.tree.turn.hidden
    write(studio, [studio.next_turn("")])
    studio.stop = ()
    studio.seed = 3
    studio.decoder = parse_spec("sample 0.8", registry)
    write(studio, [limited(studio.begin("And they all lived happily ever after."), 60)])
    assert studio.tree.turn.ended
    calls = iter([False] * 4 + [True] * 1000)
    write(studio, [studio.begin("")], lambda: next(calls))
    assert studio.tree.turn.written.finish_reason == "cancelled"
    execute(studio, "/save ten", keeper_of(studio))
    keeper_of(studio).close()
    return keeper_of(studio).path


def limited(request, max_new_tokens):
    return replace(request, max_new_tokens=max_new_tokens)


@pytest.fixture
def changed(session, tmp_path):
    """Give a function that writes the session anew with something changed; `change` gets its JSON."""

    def write_anew(change):
        fields = json.loads(session.read_text(encoding="utf-8"))
        change(fields)
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(fields), encoding="utf-8")
        return path

    return write_anew


def replay(capsys, *argv):
    code = main(["replay", *map(str, argv)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def turn_of(fields, number):
    return next(turn for turn in fields["nodes"] if turn["id"] == number)


def test_a_session_of_ten_specs_comes_about_again(session, registry, capsys):
    code, out, err = replay(capsys, session)
    assert code == 0, out + err
    assert err == ""
    lines = out.splitlines()
    assert len(lines) == len(load_session(session).tree.turns) + 1
    assert all(line.endswith("ok") for line in lines[:-1])
    assert "turns are as recorded" in lines[-1]
    for spec in SPECS:
        shown = shown_spec(parse_spec(spec, registry))
        assert any(f" · {shown} · seed" in line for line in lines)


def test_a_session_of_an_earlier_tinystory_is_replayed_by_its_name(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(platformdirs, "user_data_path", lambda name: tmp_path / name)
    folder = tmp_path / "tinystory" / "sessions"
    folder.mkdir(parents=True)
    shutil.copy(KEPT, folder / "owl.json")
    code, out, err = replay(capsys, "owl")
    assert (code, err) == (0, "")
    assert "turn 10 · top-k 5 | sample 1 · seed 100 · 10 tokens · ok" in out.splitlines()
    assert out.endswith("14 of 14 turns are as recorded: 133 tokens, 0 numerical ties\n")
    code, out, err = replay(capsys, "owls")
    assert (code, out) == (3, "")
    assert "there is no file owls, and no session has this name: did you mean owl?" in err


def test_the_json_of_a_replay_is_one_object(session, capsys):
    code, out, _ = replay(capsys, session, "--json")
    fields = json.loads(out)
    assert code == 0
    assert fields["ok"] is True
    turns = load_session(session).tree.turns
    assert [row["node"] for row in fields["nodes"]] == list(turns)
    ends = sum(turn.ended for turn in turns.values())
    assert fields["tokens"] == sum(len(turn.written.tokens) for turn in turns.values()) + ends
    assert fields["ties"] / fields["tokens"] < 0.01
    assert {row["model_hash"] for row in fields["nodes"]} == {model_hash(DEFAULT_MODEL)}


def test_an_exported_story_replays_as_well(session, registry, backend, tmp_path, capsys):
    studio = new_studio(registry, backend, session.parent)
    keeper_of(studio).resume("ten")
    studio.goto(5)
    execute(studio, f"/export {tmp_path / 'story.json'}", keeper_of(studio))
    keeper_of(studio).close()
    code, out, _ = replay(capsys, tmp_path / "story.json")
    assert code == 0
    assert "5 of 5 turns" in out


def test_a_changed_token_is_caught_there(changed, capsys):
    def change(fields):
        tokens = turn_of(fields, 3)["written"]["tokens"]
        tokens[4][0] = 1000 if tokens[4][0] != 1000 else 1001

    code, out, _ = replay(capsys, changed(change))
    n_before = len(load_session(changed(lambda _: None)).tree.token_ids(2))
    assert code == 1
    assert "turn 3 is not as recorded" in out
    assert f"position {n_before + 4}: recorded" in out
    assert model_hash(DEFAULT_MODEL)[:12] in out
    assert "turn 4 ·" not in out


def test_a_changed_seed_is_caught_at_the_first_token_that_it_changes(changed, session, capsys, backend):
    path = changed(lambda fields: turn_of(fields, 4)["written"].update(seed=12))
    code, out, _ = replay(capsys, path, "--json")
    row = json.loads(out)["nodes"][-1]
    assert (code, row["node"], row["ok"]) == (1, 4, False)
    tree = load_session(session).tree
    position = row["difference"]["position"] - len(tree.token_ids(3))
    assert 0 <= position < 12
    assert row["tokens"] == position
    recorded = tree.turns[4].written.tokens[position].id
    assert row["difference"]["recorded"] == repr(backend.token_text(recorded))


def test_a_changed_spec_is_caught_where_it_picks_another_token(changed, session, capsys):
    path = changed(lambda fields: turn_of(fields, 3)["written"].update(spec="greedy"))
    code, out, _ = replay(capsys, path, "--json")
    row = json.loads(out)["nodes"][-1]
    assert (code, row["node"]) == (1, 3)
    tokens = load_session(session).tree.turns[3].written.tokens
    first = next(place for place, token in enumerate(tokens) if token.rank > 0)
    assert row["tokens"] == first


def test_changed_healing_and_numbers_are_caught(changed, session, capsys):
    tree = load_session(session).tree
    branch = next(turn.id for turn in tree.turns.values() if turn.written.number == 2)
    code, out, _ = replay(capsys, changed(lambda fields: turn_of(fields, branch)["written"].update(number=9)))
    assert code == 1
    assert f"turn {branch} is not as recorded" in out
    healed = next(turn.id for turn in tree.turns.values() if turn.written.heal)
    code, out, _ = replay(capsys, changed(lambda fields: turn_of(fields, healed)["written"].update(heal=" zo")))
    assert code == 1
    assert f"turn {healed} is not as recorded" in out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"finish_reason": "eos"}, "recorded (the end), picked"),
        ({"max_new_tokens": 5}, "12 tokens, ended by length"),
        ({"max_new_tokens": 50}, "12 tokens, ended by length"),
    ],
)
def test_an_end_that_was_none_is_caught(changed, capsys, change, said):
    code, out, _ = replay(capsys, changed(lambda fields: turn_of(fields, 2)["written"].update(change)))
    assert code == 1
    assert said in out


def test_an_end_that_is_missing_is_caught(changed, session, capsys):
    ended = next(turn for turn in load_session(session).tree.turns.values() if turn.ended)
    path = changed(lambda fields: turn_of(fields, ended.id)["written"].update(finish_reason="length"))
    code, out, _ = replay(capsys, path)
    assert code == 1
    assert "ended by length" in out


def test_another_text_than_its_tokens_spell_is_caught(changed, capsys):
    code, out, _ = replay(
        capsys, changed(lambda fields: turn_of(fields, 2).update(own=turn_of(fields, 2)["own"][::-1]))
    )
    assert code == 1
    assert "turn 2 is not as recorded" in out
    assert "its tokens do not spell" in out


def test_tokens_of_another_vocabulary_are_caught_before_the_model_sees_them(changed, capsys):
    def change(fields):
        turn_of(fields, 1)["written"]["tokens"][2][0] = 10**6

    code, out, _ = replay(capsys, changed(change))
    assert code == 1
    assert "token id 1000000" in out


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    """The shipped model with one tensor a little different."""
    folder = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(DEFAULT_MODEL, folder)
    weights = load_file(folder / "model.safetensors")
    name = sorted(name for name in weights if "layers.0" in name and weights[name].dim() == 2)[0]
    noise = torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(1))
    weights[name] = (weights[name].float() + 0.3 * noise).to(weights[name].dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_changed_weight_shows_in_the_hash_and_in_a_token(session, changed, other_model, capsys):
    ours, theirs = model_hash(DEFAULT_MODEL), model_hash(other_model)
    code, out, _ = replay(capsys, session, "-m", other_model)
    assert code == 1
    assert f"another model: recorded {ours[:12]}" in out
    assert theirs[:12] in out

    def forge(fields):
        for turn in fields["nodes"]:
            turn["written"]["model_hash"] = theirs

    code, out, _ = replay(capsys, changed(forge), "-m", other_model, "--json")
    rows = json.loads(out)["nodes"]
    assert code == 1
    assert rows[-1]["difference"]["position"] > 0
    assert all(row["ok"] for row in rows[:-1])


def test_the_model_is_one_that_the_file_names_only_where_it_is_here(changed, other_model, capsys):
    def rename(fields):
        for turn in fields["nodes"]:
            turn["written"]["model"] = "some-body/some-model"

    code, _, err = replay(capsys, changed(rename))
    assert code == 3
    assert "some-body/some-model" in err
    assert "-m" in err
    assert len(err.splitlines()) == 2
    assert replay(capsys, changed(rename), "-m", "default")[0] == 0

    def here(fields):
        for turn in fields["nodes"]:
            turn["written"]["model"] = str(other_model)

    assert replay(capsys, changed(here))[0] == 3
    assert "another model" in replay(capsys, changed(here), "-m", other_model)[1]


def test_a_spec_that_is_not_here_is_a_line(changed, capsys):
    code, _, err = replay(capsys, changed(lambda fields: turn_of(fields, 2)["written"].update(spec="nowhere 3")))
    assert code == 2
    assert "turn 2: no decoder stage is called 'nowhere'" in err


def test_a_search_is_run_again(registry, backend, search_file, tmp_path, capsys):
    studio = new_studio(registry, backend, tmp_path, seed=1)
    studio.decoder = parse_spec("straight", registry)
    write(studio, [studio.next_turn("Once upon a time")])
    studio.stop = (".",)
    write(studio, [limited(studio.next_turn(""), 80)])
    calls = iter([False] * 3 + [True] * 1000)
    write(studio, [studio.begin("The owl")], lambda: next(calls))
    keeper_of(studio).close()
    path = keeper_of(studio).path
    code, out, err = replay(capsys, path, "--decoder-file", search_file)
    assert code == 0, out + err
    assert "not checked: a search that was cancelled" in out
    assert "2 of 3 turns are as recorded" in out
    assert out.endswith("; 1 could not be checked\n")
    fields = json.loads(path.read_text())
    fields["nodes"][0]["written"]["tokens"][3][0] = 777
    path.write_text(json.dumps(fields))
    code, out, _ = replay(capsys, path, "--decoder-file", search_file)
    assert code == 1
    assert "· 3 tokens · differs" in out


def test_a_recorded_decoder_reaches_no_model_that_is_not_here(registry, backend, search_file, tmp_path, capsys):
    studio = new_studio(registry, backend, tmp_path, seed=1)
    studio.decoder = parse_spec("straight", registry)
    write(studio, [studio.next_turn("Once upon a time")])
    keeper_of(studio).close()
    path = keeper_of(studio).path
    path.write_text(path.read_text().replace('"spec":"straight"', '"spec":"straight some-body/model"'))
    code, _, err = replay(capsys, path, "--decoder-file", search_file)
    assert code == 2
    assert "some-body/model, which does not ship with tinystory: a replay opens no other" in err


OPENING = '''
from dataclasses import dataclass
from tinystory.decoding import LogitsProcessor, option


@dataclass(frozen=True)
class Looking(LogitsProcessor):
    """Opens a model that its `models()` does not name."""

    name = "looking"
    model: str = option("", help="the model")

    def start(self, request):
        if self.model:
            request.open(None if "/" in self.model else self.model).open(self.model)

    def __call__(self, logits, step):
        return logits.clone()
'''


def test_a_replayed_chain_opens_only_what_its_decoder_names_as_when_it_was_written(changed, tmp_path, capsys):
    file = tmp_path / "looking.py"
    file.write_text(OPENING)
    path = changed(lambda fields: turn_of(fields, 2)["written"].update(spec="looking default | greedy"))
    code, _, err = replay(capsys, path, "--decoder-file", file)
    assert code == 2
    assert "turn 2: a stage opens the model default, but its `models()` does not name it" in err
    path = changed(lambda fields: turn_of(fields, 2)["written"].update(spec="looking some-body/model | greedy"))
    code, _, err = replay(capsys, path, "--decoder-file", file)
    assert code == 2
    assert "turn 2: the decoder opens the model some-body/model, which does not ship with tinystory" in err


def test_a_turn_whose_decoder_opens_a_folder_is_left_out_and_the_others_are_checked(changed, capsys):
    """One such turn once ended the whole replay, and no flag allowed it."""
    code, out, err = replay(
        capsys, changed(lambda fields: turn_of(fields, 2)["written"].update(spec="sample | speculative /some/where"))
    )
    assert code == 0, err
    assert "not checked: its decoder opens /some/where, which does not ship with tinystory" in out
    assert out.endswith("; 1 could not be checked\n")


def test_a_tie_is_counted_and_passed(registry, session, monkeypatch):
    """Logits that differ by less than rounding can change, so that another token has the highest one."""
    tree = load_session(session).tree
    turn = tree.turns[2]
    model = load()
    import tinystory.story.replay as module

    def moved(decoder, request, token_ids, logits, *, eos_ids):
        for n, row in enumerate(logits):
            best = int(row.argmax())
            other = (best + 1) % len(row)
            if n == 5:
                row[other] = row[best] + 5e-4
        yield from retrace(decoder, request, token_ids, logits, eos_ids=eos_ids)

    retrace = module.retrace
    monkeypatch.setattr(module, "retrace", moved)
    result = replay_turn(tree, turn, model, registry)
    assert turn.written.spec == "greedy"
    assert (result.ties, result.difference, result.tokens) == (1, None, 12)


def test_a_file_that_is_no_session_is_a_line(tmp_path, capsys):
    path = tmp_path / "a.json"
    path.write_text("[]")
    assert replay(capsys, path)[0] == 3
    code, _, err = replay(capsys, tmp_path / "nothing.json")
    assert code == 3
    assert "No such file" in err
    assert len(err.splitlines()) == 1
