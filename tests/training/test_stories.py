"""The stories of a run: prepared folders, RUN/data, what a run that goes on takes, and its notes."""

import dataclasses
import json
import shutil

import pytest

from tinystory.data.prepare import prepare
from tinystory.data.selection import Selection
from tinystory.errors import UsageError
from tinystory.training.config import DataConfig, resolve_changes, resolve_run
from tinystory.training.stories import load_stories


@pytest.fixture
def prepared(story_file, tokenizer, tmp_path):
    """A folder as scripts/prepare_data.py makes it with --fraction 0.5 --test-split 0.2 --seed 3."""
    for name, part in (("train", "train"), ("valid", "test")):
        prepare(story_file, tokenizer, tmp_path / "p" / name, selection=Selection(0.5, 0.2, part, 3))
    return tmp_path / "p"


def resolved(folder, preset=None, **given):
    return resolve_run(preset, None, {"data": str(folder), **given}).data


def test_a_run_records_the_choices_of_a_prepared_folder_and_not_its_own_defaults(prepared):
    data = resolved(prepared)
    assert (data.fraction, data.test_split, data.split_seed, data.valid) == (0.5, 0.2, 3, ())
    assert resolved(prepared, fraction=0.5, split_seed=3) == data


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"valid": "other.txt"}, "prepared with valid none, not with valid other.txt"),
        ({"fraction": 0.1}, r"fraction 0\.5, not with fraction 0\.1; prepare it again .*--fraction"),
        ({"test_split": 0.1}, r"test_split 0\.2, not with test_split 0\.1"),
        ({"split_seed": 0}, "split_seed 3, not with split_seed 0"),
        ({"column": "body", "separator": "---"}, "column none, separator none, not with column body, separator ---"),
        ({"preset": "gpt2-tiny"}, r"fraction 0\.5, test_split 0\.2, not with fraction 0\.1, test_split 0\.1"),
        ({"data": ["P", "other.txt"]}, "it must be the only --data"),
    ],
)
def test_a_choice_that_contradicts_a_prepared_folder_is_refused(prepared, given, words):
    preset = given.pop("preset", None)
    sources = [str(prepared) if name == "P" else name for name in given.pop("data", ["P"])]
    with pytest.raises(UsageError, match=words):
        resolve_run(preset, None, {"data": sources, **given})


def test_a_prepared_folder_may_have_validation_stories_of_their_own_or_none(prepared, story_file, tokenizer, tmp_path):
    other = tmp_path / "other"
    prepare(story_file, tokenizer, other / "train")
    with pytest.raises(UsageError, match=r"no validation stories: .* or give --test-split 0 to train without"):
        resolved(other)
    alone = resolved(other, test_split=0.0)
    assert load_stories(tmp_path, alone, tokenizer, None, print).valid is None
    shutil.copytree(prepared / "valid", other / "valid")
    data = resolved(other)
    assert (data.valid, data.test_split) == ((str(other / "valid"),), 0.0)
    assert resolved(other, "gpt2-tiny", fraction=1.0).valid == data.valid  # its test_split is for data without them
    with pytest.raises(UsageError, match=r"test_split 0\.0, not with test_split 0\.1"):
        resolved(other, test_split=0.1)
    assert load_stories(tmp_path, data, tokenizer, None, print).valid is not None
    assert load_stories(tmp_path, resolved(other, test_split=0.0), tokenizer, None, print).valid is None


@pytest.fixture
def begun(stories, tokenizer, tmp_path):
    """A run that has prepared its stories: its data, and the hashes."""
    source = tmp_path / "mine.txt"
    source.write_text("<|endoftext|>".join(stories[:30]))
    data = DataConfig(data=(str(source),), test_split=0.3)
    return source, data, load_stories(tmp_path / "run", data, tokenizer, None, print).hashes


@pytest.mark.parametrize("change", ["other content", "gone", "nothing"])
def test_a_run_goes_on_with_its_own_stories_whatever_has_become_of_the_source(begun, tokenizer, tmp_path, change):
    source, data, hashes = begun
    if change == "gone":
        source.unlink()
    elif change == "other content":
        source.write_text("Another story.<|endoftext|>And one more.")
    for known in (hashes, {}):  # a run of an older version has no hashes
        assert load_stories(tmp_path / "run", data, tokenizer, known, print).hashes == hashes


def test_lost_stories_are_made_again_from_the_same_source_and_from_no_other(begun, tokenizer, tmp_path):
    source, data, hashes = begun
    original = source.read_text()
    shutil.rmtree(tmp_path / "run" / "data" / "valid")
    assert load_stories(tmp_path / "run", data, tokenizer, hashes, print).hashes == hashes
    shutil.rmtree(tmp_path / "run" / "data")
    source.write_text("Another story.<|endoftext|>" * 30)
    with pytest.raises(UsageError, match="are not those with which this run was begun"):
        load_stories(tmp_path / "run", data, tokenizer, hashes, print)
    source.write_text(original)
    assert load_stories(tmp_path / "run", data, tokenizer, hashes, print).hashes == hashes
    source.unlink()
    shutil.rmtree(tmp_path / "run" / "data")
    with pytest.raises(UsageError, match=r"mine\.txt: no such file"):
        load_stories(tmp_path / "run", data, tokenizer, hashes, print)


def test_a_changed_byte_of_the_stories_ends_a_run_that_goes_on(begun, tokenizer, tmp_path):
    _, data, hashes = begun
    [tokens] = (tmp_path / "run" / "data" / "train").glob("build-*/tokens-00000.bin")
    raw = bytearray(tokens.read_bytes())
    raw[3] ^= 1
    tokens.write_bytes(raw)
    with pytest.raises(UsageError, match="its SHA-256 is not that of the manifest"):
        load_stories(tmp_path / "run", data, tokenizer, hashes, print)


def test_the_seed_of_a_run_does_not_change_which_stories_are_held_out(story_file, tokenizer, tmp_path):
    def held_out(**given):
        data = resolved(story_file, test_split=0.2, **given)
        return load_stories(tmp_path / str(len(list(tmp_path.iterdir()))), data, tokenizer, None, print).hashes["valid"]

    assert held_out(seed=1) == held_out(seed=2) == held_out()
    assert held_out(split_seed=1) != held_out()


def test_what_is_held_out_and_what_is_not_is_told(stories, story_file, tokenizer, tmp_path):
    told = []
    (tmp_path / "few.txt").write_text("<|endoftext|>".join(stories[:5]))
    few = DataConfig(data=(str(tmp_path / "few.txt"),), test_split=0.02)
    found = load_stories(tmp_path / "few", few, tokenizer, None, told.append)
    assert (len(found.training), found.valid) == (5, None)
    assert "no story is held out" in told[-1]
    assert list(load_stories(tmp_path / "few", few, tokenizer, found.hashes, print).hashes) == ["train"]
    none = DataConfig(data=(str(story_file),), test_split=0.0)
    assert len(load_stories(tmp_path / "none", none, tokenizer, None, told.append).training) == 60
    shared = DataConfig(data=(str(story_file),), valid=(str(tmp_path / "few.txt"),))
    load_stories(tmp_path / "shared", shared, tokenizer, None, told.append)
    assert told[-1] == "5 of 5 validation stories are training stories, too"


def test_an_earlier_start_leaves_no_validation_stories(story_file, tokenizer, tmp_path):
    data = DataConfig(data=(str(story_file),), test_split=0.2)
    assert load_stories(tmp_path, data, tokenizer, None, print).valid is not None
    assert load_stories(tmp_path, DataConfig(data=data.data, test_split=0.0), tokenizer, None, print).valid is None


def test_prepared_stories_with_another_bos_or_eos_are_refused(prepared, tokenizer, tmp_path):
    """The model would be told of ends that it has never seen."""
    from tinystory.text.tokenizer import Tokenizer

    for bos, eos, words in ((5, 0, "5 and 0"), (0, 7, "0 and 7")):
        other = Tokenizer(tokenizer.fast, bos, frozenset({eos}))
        with pytest.raises(UsageError, match=f"have BOS and EOS 0 and 0, but the vocabulary has {words}"):
            load_stories(tmp_path, resolved(prepared), other, None, print)


def test_what_a_vocabulary_cannot_spell_is_counted(word_tokenizer_json, tokenizer, story_file, tmp_path):
    from tokenizers import Tokenizer as Fast

    from tinystory.text.tokenizer import Tokenizer

    content = json.loads(word_tokenizer_json)
    content["model"]["vocab"] |= {"<unk>": 5}
    content["model"]["unk_token"] = "<unk>"
    words = Tokenizer(Fast.from_str(json.dumps(content)), 0, frozenset({0}))
    (tmp_path / "a.txt").write_text("once upon a hill<|endoftext|>upon a time<|endoftext|>a b c")
    stories = prepare(tmp_path / "a.txt", words, tmp_path / "a")
    assert words.n_unknown(stories) == 3
    assert words.n_unknown(stories.first(2)) == 1
    assert tokenizer.n_unknown(prepare(story_file, tokenizer, tmp_path / "b")) == 0
    dropping = {"type": "BPE", "vocab": {"<s>": 0, "a": 1}, "merges": [], "unk_token": None, "byte_fallback": False}
    drops = Tokenizer(Fast.from_str(json.dumps(content | {"model": dropping})), 0, frozenset({0}))
    assert drops.n_unknown(stories) == 1


def test_validation_stories_and_a_part_that_is_held_out_exclude_each_other():
    """--test-split was once dropped beside --valid, and recorded as if it held."""
    with pytest.raises(UsageError, match="give either valid or test_split, not both"):
        resolved("a.txt", valid="b.txt", test_split=0.1)
    for preset in (None, "gpt2-tiny"):
        config = resolve_run(preset, None, {"data": "a.txt", "valid": "b.txt"})
        assert config.data.test_split == 0.0
        assert resolve_changes(config, preset, None, {"data": "a.txt", "valid": "b.txt"}) == {}


def test_a_manifest_without_a_recipe_is_a_line(prepared):
    path = prepared / "train" / "manifest.json"
    content = json.loads(path.read_text())
    del content["recipe"]["sources"]
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"manifest\.json is damaged; prepare the stories again"):
        resolved(prepared)


def test_many_stories_that_were_taken_for_one_do_not_begin_a_run(stories, tokenizer, tmp_path):
    """A file with a story in each line once was "1 stories"."""
    (tmp_path / "a.txt").write_text("\n".join(" ".join(story.split()) for story in stories))
    lines = DataConfig(data=(str(tmp_path / "a.txt"),))
    with pytest.raises(UsageError, match=r"only one story to learn from: .*one story of 60 lines; --separator '\\n'"):
        load_stories(tmp_path / "run", lines, tokenizer, None, print)
    apart = dataclasses.replace(lines, separator="\\n")
    assert len(load_stories(tmp_path / "run", apart, tokenizer, None, print).training) > 50
    alone = dataclasses.replace(lines, test_split=0.0)
    assert len(load_stories(tmp_path / "run", alone, tokenizer, None, print).training) == 1
