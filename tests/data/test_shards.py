"""Prepared stories: the same tokens as in memory, reused when nothing changed, never half there."""

import importlib.util
import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers

from tinystory.data import prepare as prepare_module
from tinystory.data.prepare import overlap, prepare, tokenize
from tinystory.data.selection import Selection
from tinystory.data.shards import TokenShards
from tinystory.data.sources import SourceReport
from tinystory.errors import TinystoryError, UsageError
from tinystory.safe import writing
from tinystory.text.tokenizer import END_OF_TEXT, Tokenizer


@pytest.fixture
def prepared(story_file, tokenizer, tmp_path):
    """The shared stories in shards of at most 1,000 bytes, at `tmp_path / "p"`."""
    return prepare(story_file, tokenizer, tmp_path / "p", shard_bytes=1000)


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).resolve().parents[2] / "scripts" / "prepare_data.py"
    spec = importlib.util.spec_from_file_location("scripts_prepare_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files_of(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def word_tokenizer(largest_id):
    """Words a, b and `<s>`, which is BOS and EOS; `b` has the largest id, and ids have gaps."""
    fast = FastTokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": largest_id}, unk_token="<s>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(fast, 0, frozenset({0}))


def test_a_story_becomes_bos_tokens_eos(tokenizer):
    [ids] = tokenize(["Once upon a time"], tokenizer)
    assert ids[0] == ids[-1] == 0
    assert tokenizer.detokenize(ids.tolist()) == "Once upon a time"


@settings(deadline=None, max_examples=25)
@given(
    stories=st.lists(st.text(max_size=40).map(lambda s: f"x{s.replace(END_OF_TEXT, '')}x"), min_size=1, max_size=12),
    shard_bytes=st.integers(1, 400),
    at_once=st.integers(1, 5),
)
def test_what_was_written_is_read_again(stories, shard_bytes, at_once, tokenizer, tmp_path_factory):
    directory = tmp_path_factory.getbasetemp() / "round_trip"
    source = directory.with_suffix(".jsonl")
    source.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_module, "_STORIES_AT_ONCE", at_once)
        shards = prepare(source, tokenizer, directory, shard_bytes=shard_bytes, rebuild=True)
    expected = tokenize(stories, tokenizer)
    assert [ids.tolist() for ids in shards] == [ids.tolist() for ids in expected]
    assert shards[-1].tolist() == expected[-1].tolist()
    assert shards.lengths().tolist() == [len(ids) for ids in expected]
    assert shards.n_tokens == sum(len(ids) for ids in expected)
    assert shards.text_bytes().tolist() == [len(story.encode()) for story in stories]
    assert shards.n_bytes == sum(len(story.encode()) for story in stories) == shards.report.bytes
    assert not shards.reused
    shards.verify()
    for shard in directory.rglob("tokens-*.bin"):  # bounded, but a story is never split
        alone = {ids.nbytes for ids in expected}
        assert shard.stat().st_size <= shard_bytes or shard.stat().st_size in alone


def test_a_story_is_a_read_only_view_into_the_file(prepared):
    ids = prepared[7]
    assert not ids.flags.owndata
    assert not ids.flags.writeable
    assert isinstance(ids.base.base, np.memmap) or isinstance(ids.base, np.memmap)
    assert type(ids) is np.ndarray  # slicing a memmap object is several times slower
    with pytest.raises(IndexError):
        prepared[len(prepared)]


def test_the_first_few_stories(prepared):
    few = prepared.first(3)
    assert len(few) == len(list(few)) == 3
    assert (few.n_tokens, few.n_bytes) == (prepared.lengths()[:3].sum(), prepared.text_bytes()[:3].sum())
    assert len(prepared.first(1000)) == len(prepared) == 60


@pytest.mark.parametrize(("largest_id", "dtype"), [(65_535, "<u2"), (65_536, "<u4")])
def test_ids_that_need_it_take_four_bytes(tmp_path, largest_id, dtype):
    (tmp_path / "a.txt").write_text("a b a")
    shards = prepare(tmp_path / "a.txt", word_tokenizer(largest_id), tmp_path / "p")
    assert shards[0].tolist() == [0, 1, largest_id, 1, 0]
    assert shards[0].dtype == np.dtype(dtype)


def test_a_vocabulary_without_ends_is_refused(story_file, tmp_path):
    words = word_tokenizer(2)
    for incomplete in (Tokenizer(words.fast, None, frozenset({0})), Tokenizer(words.fast, 0, frozenset())):
        with pytest.raises(UsageError, match="no BOS or EOS"):
            prepare(story_file, incomplete, tmp_path / "p")
    assert not (tmp_path / "p").exists()


# --- reused, rebuilt ---


def test_the_same_is_reused_without_reading_a_story(prepared, story_file, tokenizer, tmp_path, monkeypatch):
    again = Tokenizer(FastTokenizer.from_str(tokenizer.to_json()), 0, frozenset({0}))
    monkeypatch.setattr(prepare_module, "read_stories", lambda *_, **__: pytest.fail("read the source"))
    found = prepare(story_file, again, tmp_path / "p", progress=lambda _: pytest.fail("worked"))
    assert found.reused
    assert found.build == prepared.build
    seeded = prepare(story_file, again, tmp_path / "p", selection=Selection(seed=1))  # with nothing to draw
    assert seeded.reused
    assert found.report == prepared.report == SourceReport(stories=60, bytes=prepared.n_bytes)


@pytest.mark.parametrize(
    "change", ["tokenizer", "selection", "column", "touched", "longer", "sources", "eos", "rebuild", "shard", "format"]
)
def test_whatever_differs_is_built_anew_and_the_old_build_goes(stories, tokenizer, tmp_path, change):
    source, directory = tmp_path / "a.txt", tmp_path / "p"
    source.write_text("<|endoftext|>".join(stories))
    options = {}
    old = prepare(source, tokenizer, directory)
    sources = source
    if change == "tokenizer":
        tokenizer = word_tokenizer(2)
    elif change == "selection":
        options["selection"] = Selection(0.5)
    elif change == "column":
        options["column"] = "text"
    elif change == "touched":
        os.utime(source, ns=(1, 1))
    elif change == "longer":
        source.write_text(source.read_text() + ".")
    elif change == "sources":
        sources = [source, source]
    elif change == "eos":
        tokenizer = Tokenizer(tokenizer.fast, 0, frozenset({1}))
    elif change == "rebuild":
        options["rebuild"] = True
    elif change == "shard":
        next(directory.rglob("tokens-*.bin")).write_bytes(b"")
    else:
        manifest = json.loads((directory / "manifest.json").read_text())
        (directory / "manifest.json").write_text(json.dumps(manifest | {"format": 0}))
    new = prepare(sources, tokenizer, directory, **options)
    assert not new.reused
    assert new.build != old.build
    new.verify()
    assert prepare(sources, tokenizer, directory, **options | {"rebuild": False}).build == new.build
    if change not in ("shard", "format"):  # a damaged build is swept only when it is old
        assert [path.name for path in directory.glob("build-*")] == [new.build]


def test_parts_of_a_split_are_prepared_side_by_side(story_file, tokenizer, tmp_path):
    train, test = (
        prepare(story_file, tokenizer, tmp_path / part, selection=Selection(test_split=0.3, part=part))
        for part in ("train", "test")
    )
    assert len(train) + len(test) == 60
    assert 0 < len(test) < len(train)
    assert train.report.not_selected == len(test)
    assert not {ids.tobytes() for ids in train} & {ids.tobytes() for ids in test}


# --- damage ---


@pytest.mark.parametrize("name", ["tokens-00000.bin", "offsets.bin", "text_bytes.bin"])
def test_a_file_of_another_size_or_gone_shows_at_once(prepared, tmp_path, name):
    path = tmp_path / "p" / prepared.build / name
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"\0", b""):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=f"{name} is damaged: [0-9,]+ bytes instead of"):
            TokenShards(tmp_path / "p")
    path.unlink()
    with pytest.raises(UsageError, match=f"cannot read .*{name}: No such file"):
        TokenShards(tmp_path / "p")


@pytest.mark.parametrize("name", ["tokens-00003.bin", "offsets.bin", "text_bytes.bin"])
def test_a_changed_byte_shows_when_asked_for(prepared, tmp_path, name):
    path = tmp_path / "p" / prepared.build / name
    content = bytearray(path.read_bytes())
    content[16] ^= 1  # of the offsets, the third: still rising
    path.write_bytes(content)
    opened = TokenShards(tmp_path / "p")
    with pytest.raises(UsageError, match=f"{name} is damaged: its SHA-256"):
        opened.verify()


@pytest.mark.parametrize("story", [0, 5, 60])
def test_offsets_that_cannot_be_are_refused(prepared, tmp_path, story):
    path = tmp_path / "p" / prepared.build / "offsets.bin"
    offsets = np.fromfile(path, "<u8")
    offsets[story] = 2**60
    offsets.tofile(path)
    with pytest.raises(UsageError, match=r"offsets\.bin is damaged"):
        TokenShards(tmp_path / "p")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("build", "../p"),
        ("build", "build-0123456z"),
        ("build", None),
        ("stories", -1),
        ("stories", 1e999),
        ("stories", 10**30),
        ("dtype", "object"),
        ("dtype", []),
        ("shards", 3),
        ("shards", []),
        ("shards", [{"stories": 60}]),
        ("shards", [{"stories": 1000, "tokens": 1}, {"stories": -940, "tokens": 1}]),
        ("report", {"evil": 1}),
        ("sha256", 5),
        ("recipe", None),
    ],
)
def test_a_manifest_from_a_stranger_is_one_line(prepared, tmp_path, field, value):
    path = tmp_path / "p" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {field: value}))
    with pytest.raises(UsageError) as caught:
        TokenShards(tmp_path / "p")
    assert str(caught.value).isprintable()


def test_a_manifest_never_leads_out_of_its_folder(prepared, story_file, tokenizer, tmp_path):
    """Neither to read what lies elsewhere, nor to delete it as an older build."""
    directory, elsewhere = tmp_path / "p", tmp_path / "elsewhere"
    (directory / prepared.build).rename(elsewhere)
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"build": "../elsewhere"}))
    before = files_of(elsewhere)
    with pytest.raises(UsageError, match=r"manifest\.json is damaged"):
        TokenShards(directory)
    prepare(story_file, tokenizer, directory)
    assert files_of(elsewhere) == before


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"{" * 10_000])
def test_a_manifest_that_is_none_is_one_line(prepared, tmp_path, content):
    (tmp_path / "p" / "manifest.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"manifest\.json is damaged"):
        TokenShards(tmp_path / "p")


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path):
    for directory in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UsageError, match="holds no prepared stories"):
            TokenShards(directory)


# --- interrupted, disk full ---


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing_of_its_own(story_file, tokenizer, tmp_path, monkeypatch, error):
    monkeypatch.setattr(prepare_module, "_STORIES_AT_ONCE", 10)
    directory = tmp_path / "p"

    def stop(report):
        if report.stories == 30:
            assert list(directory.rglob("tokens-*.bin"))
            raise error

    with pytest.raises(error):
        prepare(story_file, tokenizer, directory, progress=stop)
    assert files_of(tmp_path) == []
    old = prepare(story_file, tokenizer, directory)
    before = files_of(tmp_path)
    with pytest.raises(error):
        prepare(story_file, tokenizer, directory, rebuild=True, progress=stop)
    assert files_of(tmp_path) == before
    assert TokenShards(directory).build == old.build
    old.verify()


def test_what_a_killed_process_leaves_never_looks_complete_and_is_swept_later(
    story_file, tokenizer, tmp_path, monkeypatch
):
    """Every moment at which a process may die leaves no manifest, or the old one."""
    directory = tmp_path / "p"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(prepare_module, "write_atomically", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError):
            prepare(story_file, tokenizer, directory)
    [left] = directory.glob("build-*")
    assert files_of(left)
    with pytest.raises(UsageError, match="holds no prepared stories"):
        TokenShards(directory)
    new = prepare(story_file, tokenizer, directory)
    assert left.exists()  # it might be at work still
    os.utime(left, (0, 0))
    (directory / "build-mine").mkdir()
    os.utime(directory / "build-mine", (0, 0))
    prepare(story_file, tokenizer, directory, rebuild=True)
    assert not left.exists()
    assert not (directory / new.build).exists()
    assert (directory / "build-mine").exists()


def test_an_interruption_after_the_last_rename_keeps_what_is_complete(story_file, tokenizer, tmp_path, monkeypatch):
    def sync(path):
        if (path / "manifest.json").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(writing, "sync_folder", sync)
    with pytest.raises(KeyboardInterrupt):
        prepare(story_file, tokenizer, tmp_path / "p")
    TokenShards(tmp_path / "p").verify()


def test_a_full_disk_is_one_error_and_leaves_nothing(story_file, tokenizer, tmp_path):
    directory = tmp_path / "p"
    old = prepare(story_file, tokenizer, directory, selection=Selection(fraction=0.2))
    before = files_of(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        for target in (directory, tmp_path / "new"):
            with pytest.raises(
                TinystoryError, match=r"cannot write .*: File too large; what was there before"
            ) as caught:
                prepare(story_file, tokenizer, target)
            assert caught.value.exit_code == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files_of(tmp_path) == before
    old.verify()


def test_a_place_that_cannot_be_written_is_one_line(story_file, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TinystoryError, match=r"cannot write .*file/p: Not a directory"):
        prepare(story_file, tokenizer, tmp_path / "file" / "p")


def test_a_source_without_a_story_writes_nothing(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text(" \n<|endoftext|>\n")
    for source in (tmp_path / "a.txt", tmp_path / "gone.txt"):
        with pytest.raises(UsageError):
            prepare(source, tokenizer, tmp_path / "p")
    assert files_of(tmp_path) == ["a.txt"]


# --- the script ---


def test_the_script_prepares_both_parts_reports_and_reuses(script, story_file, tokenizer, tmp_path, capsys):
    tokens = tmp_path / "tokenizer.json"
    tokens.write_text(tokenizer.to_json())
    command = ["--data", str(story_file), "--tokenizer", str(tokens), "--out", str(tmp_path / "o"), "--verify"]
    assert script.main([*command, "--test-split", "0.3"]) == 0
    out = capsys.readouterr().out
    train, valid = TokenShards(tmp_path / "o" / "train"), TokenShards(tmp_path / "o" / "valid")
    assert f"{len(train)} stories" in out
    assert f"{len(valid)} stories" in out
    assert out.count("written") == 2
    assert len(train) + len(valid) == 60
    assert script.main([*command, "--test-split", "0.3"]) == 0
    assert capsys.readouterr().out.count("reused") == 2
    assert script.main([*command, "--valid", str(story_file)]) == 0
    assert len(TokenShards(tmp_path / "o" / "valid")) == len(TokenShards(tmp_path / "o" / "train")) == 60


@pytest.mark.parametrize(
    ("options", "code", "fragment"),
    [
        (["--data", "gone.txt"], 2, "prepare_data: gone.txt: no such file"),
        (["--tokenizer", "vocab.txt"], 3, "vocab.txt is not valid JSON"),
        (["--fraction", "2"], 2, "fraction is 2.0"),
        (["--test-split", "0.1", "--valid", "x"], 2, "either --valid or --test-split"),
    ],
)
def test_the_script_turns_mistakes_into_a_line(
    script, story_file, tokenizer, tmp_path, capsys, monkeypatch, options, code, fragment
):
    monkeypatch.chdir(tmp_path)
    Path("tokenizer.json").write_text(tokenizer.to_json())
    Path("vocab.txt").write_text("a b c")
    command = ["--data", str(story_file), "--tokenizer", "tokenizer.json", "--out", "o"]
    assert script.main([*command, *options]) == code
    captured = capsys.readouterr()
    assert fragment in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_the_script_stops_at_ctrl_c(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "run", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert script.main(["--data", "a", "--tokenizer", "b", "--out", "c"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_separator_is_part_of_what_stories_are_made_from(tokenizer, tmp_path):
    source = tmp_path / "a.txt"
    source.write_text("One.\nTwo.\n---\nThree.\n")
    assert len(prepare(source, tokenizer, tmp_path / "p")) == 1
    assert len(prepare(source, tokenizer, tmp_path / "p", separator="---")) == 2
    assert prepare(source, tokenizer, tmp_path / "p", separator="---").reused
    assert prepare(source, tokenizer, tmp_path / "p").report.notes != []


def test_the_same_stories_have_the_same_hash_and_a_shared_one_is_counted(stories, tokenizer, tmp_path):
    def prepared(name, part):
        (tmp_path / f"{name}.txt").write_text("<|endoftext|>".join(part))
        return prepare(tmp_path / f"{name}.txt", tokenizer, tmp_path / name)

    some, same, others = prepared("a", stories[:20]), prepared("b", stories[:20]), prepared("c", stories[18:30])
    assert some.content_hash() == same.content_hash() != others.content_hash()
    assert (overlap(some, others), overlap(others, some), overlap(some, same)) == (2, 2, 20)


def test_the_script_takes_a_separator_and_tells_what_it_found(script, stories, tokenizer, tmp_path, capsys):
    (tmp_path / "t.json").write_text(tokenizer.to_json())
    (tmp_path / "a.txt").write_text("\n\n".join(stories))
    command = ["--data", str(tmp_path / "a.txt"), "--tokenizer", str(tmp_path / "t.json"), "--out", str(tmp_path / "o")]
    assert script.main(command) == 0
    shown = capsys.readouterr()
    assert "60 stories" in shown.out
    assert "taken from between blank lines" in shown.err
    assert script.main([*command, "--separator", "---"]) == 2
    assert script.main([*command, "--separator", "\\n"]) == 0
    assert "120 stories" in capsys.readouterr().out
