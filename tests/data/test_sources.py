"""Stories from every kind of source, what is counted, what is an error, and which of them are selected."""

import json
import os
import time
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.checkpoint import hub
from tinystory.data import records, separators
from tinystory.data.selection import Selection
from tinystory.data.sources import SourceReport, find_sources, read_stories
from tinystory.errors import UsageError

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module", autouse=True)
def no_progress_bars():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def read(*arguments, **options):
    """The stories of sources, and what was counted."""
    report = SourceReport()
    return list(read_stories(*arguments, report=report, **options)), report


def one_line_error(*arguments, **options):
    with pytest.raises(UsageError) as caught:
        read(*arguments, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


def arrow_text(*values):
    """A string column that may hold broken UTF-8, as other programs write it."""
    binary = pa.array(values, pa.binary())
    return pa.StringArray.from_buffers(len(values), *binary.buffers()[1:], binary.buffers()[0], binary.null_count)


# --- text ---


def test_stories_stand_between_separators(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_bytes(
        b"One.\nTwo lines.\n<|endoftext|>\n\n  Second. <|endoftext|>Third, same line."
        b"\n<|endoftext|>\n<|endoftext|>\n   \n<|endoftext|>Broken \xff byte.\n<|endoftext|>\n"
    )
    found, report = read(path)
    assert found == ["One.\nTwo lines.", "Second.", "Third, same line.", "Broken \ufffd byte."]
    assert report == SourceReport(stories=4, bytes=sum(len(s.encode()) for s in found), empty=2, broken_utf8=1)
    assert str(report) == "4 stories, 55 bytes; 2 empty and left out; 1 with broken UTF-8, repaired"


@settings(deadline=None, max_examples=60)
@given(
    stories=st.lists(st.text(st.sampled_from("aé <|\n\r"), max_size=30), max_size=6),
    extra=st.sampled_from(["", "x"]),
    block=st.integers(1, 40),
)
def test_where_a_block_of_the_file_ends_does_not_matter(stories, extra, block, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "blocks.txt"
    text = "<|endoftext|>".join([*stories, extra, "end"])
    path.write_bytes(text.encode())
    expected = [s.replace("\r\n", "\n").replace("\r", "\n").strip() for s in text.split("<|endoftext|>")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(separators, "_BLOCK_BYTES", block)
        assert read(path)[0] == [s for s in expected if s]


def test_a_leading_separator_and_a_byte_order_mark_are_no_story(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_bytes(b"\xef\xbb\xbf\n<|endoftext|>One.\r\nTwo.<|endoftext|>")
    assert read(path) == (["One.\nTwo."], SourceReport(stories=1, bytes=9))


def test_a_huge_line_takes_time_in_proportion(tmp_path, monkeypatch):
    """Each byte was once copied for every block that followed it."""
    path = tmp_path / "line.txt"
    path.write_bytes(b"word " * 3_200_000)
    monkeypatch.setattr(records, "_BLOCK_BYTES", 2048)
    started = time.process_time()
    [story] = read_stories(path)
    assert time.process_time() - started < 2
    assert len(story) == 15_999_999


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(separators, "_BLOCK_BYTES", 2**16)
    path, story = tmp_path / f"many{suffix}", "a story " * 50
    path.write_text((story + "<|endoftext|>" if suffix == ".txt" else f'{{"text": "{story}"}}\n') * 8_000)
    assert path.stat().st_size > 3_200_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_stories(path)) == 8_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_a_row_group(tmp_path, monkeypatch):
    path = tmp_path / "many.parquet"
    table = pa.table({"text": [f"{n} " + "a story " * 50 for n in range(40_000)]})
    pq.write_table(table, path, compression="none", row_group_size=40_000)
    assert path.stat().st_size > 16_000_000
    del table
    before, largest = pa.total_allocated_bytes(), 0
    for n, _ in enumerate(read_stories(path)):
        if n % 300 == 0:
            largest = max(largest, pa.total_allocated_bytes() - before)
    assert 100_000 < largest < 6_000_000


def test_text_without_an_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    for module in (records, separators):
        monkeypatch.setattr(module, "_MAX_RECORD_BYTES", 5000)
    monkeypatch.setattr(separators, "_BLOCK_BYTES", 1000)
    (tmp_path / "a.txt").write_text("word " * 3000)
    (tmp_path / "a.jsonl").write_text('{"text": "' + "word " * 3000)
    assert "without <|endoftext|>" in one_line_error(tmp_path / "a.txt")
    assert "has a line of 5,000 bytes or more" in one_line_error(tmp_path / "a.jsonl")


# --- JSON lines ---


def test_json_lines_give_text_else_story_else_the_column_asked_for(tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text(
        '{"id": 1, "text": " One. ", "story": "Other.", "body": "Body."}\n\n{"text": "Two.<|endoftext|>Three."}'
    )
    assert read(path)[0] == ["One.", "Two.", "Three."]
    assert read(path, column="body") == (["Body."], SourceReport(stories=1, bytes=5, unreadable=1))
    path.write_text('{"story": "A story."}')
    assert read(path)[0] == ["A story."]


def test_lines_without_a_text_are_counted(tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"text": "One."}\n[1]\nnot json\n{"text": null}\n{"other": "x"}\n' + b"[" * 100_000 + b"\n"
        b'{"text": ""}\n{"text": "broken \xff byte"}\n{"text": "half \\ud83d pair"}\n{"text": "\\ud83d\\ude00"}'
    )
    found, report = read(path)
    assert found == ["One.", "broken \ufffd byte", "half \ufffd\ufffd\ufffd pair", "😀"]
    assert (report.stories, report.unreadable, report.empty, report.broken_utf8) == (4, 5, 1, 2)


def test_each_line_may_have_its_own_column(tmp_path):
    """The first line once decided, and 19 of 20 stories were lost without an error."""
    path = tmp_path / "stories.jsonl"
    lines = [
        {"text": "First."},
        {"note": 1},
        {"text": None, "story": "Second."},
        *({"story": f"{n}."} for n in range(19)),
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    found, report = read(path)
    assert found == ["First.", "Second.", *(f"{n}." for n in range(19))]
    assert report.unreadable == 1


def test_a_column_that_hardly_any_line_has_is_refused(tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text('{"body": "One."}\n' + '{"story": "Two."}\n' * 19)
    message = one_line_error(path, column="body")
    assert message == f"19 records of {path} have no text, and only 1 have one; name the right --column"


# --- encodings ---


@pytest.mark.parametrize(
    "story", ["Zoë said “café” – and left…", "It’s Zoë’s.", "Il était là, à l’école", "She said “café”"]
)
@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
def test_windows_1252_is_read_as_what_it_is(tmp_path, story, suffix):
    raw = story.encode("cp1252")
    path = tmp_path / f"stories.{suffix}"
    path.write_bytes(
        raw + b"<|endoftext|>Plain." if suffix == "txt" else b'{"text": "' + raw + b'"}\n{"text": "Plain."}'
    )
    found, report = read(path)
    assert found == [story, "Plain."]
    assert (report.windows_1252, report.broken_utf8) == (1, 0)
    assert "1 in Windows-1252, read as such" in str(report)


@pytest.mark.parametrize(
    "raw", [b"Zo\xc3\xab and \x93", b"cut \xe2\x80", b"bad \xff", b"half \xed\xa0\xbd pair", b"none \x81"]
)
def test_broken_utf8_is_not_taken_for_windows_1252(tmp_path, raw):
    (tmp_path / "a.txt").write_bytes(raw)
    [story], report = read(tmp_path / "a.txt")
    assert "\ufffd" in story
    assert (report.windows_1252, report.broken_utf8) == (0, 1)


def test_zero_bytes_and_mojibake_are_counted(tmp_path):
    mojibake = "It’s Zoë.".encode().decode("cp1252")
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(["A. " * 2000, "a \0 b", mojibake, "Ça va, Â!"]))
    report = read(tmp_path / "a.txt")[1]
    assert (report.zero_bytes, report.mojibake) == (1, 1)
    assert "1 with zero bytes" in str(report)
    assert "1 with characters such as â€™" in str(report)


# --- parquet and saved datasets ---


def test_parquet_gives_its_text_column_broken_or_not(tmp_path):
    table = pa.table({"n": [1, 2, 3, 4, 5], "text": arrow_text(b"One.", b"broken \xff", None, b"", b"Two.")})
    pq.write_table(table, tmp_path / "stories.parquet", row_group_size=2)
    found, report = read(tmp_path / "stories.parquet")
    assert found == ["One.", "broken \ufffd", "Two."]
    assert (report.unreadable, report.empty, report.broken_utf8) == (1, 1, 1)


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string())]
)
def test_any_arrow_kind_of_text_is_text(tmp_path, kind):
    pq.write_table(pa.table({"story": pa.array(["One.", "Two."]).cast(kind)}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet")[0] == ["One.", "Two."]


def test_a_saved_dataset_is_read(tmp_path):
    saved = datasets.Dataset.from_dict({"text": [" One. ", "", "Two."]})
    saved.save_to_disk(tmp_path / "plain")
    saved.select([2, 0]).save_to_disk(tmp_path / "chosen")
    datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "validation")}
    ).save_to_disk(tmp_path / "splits")
    assert read(str(tmp_path / "plain")) == (["One.", "Two."], SourceReport(stories=2, bytes=8, empty=1))
    assert read(tmp_path / "chosen")[0] == ["Two.", "One."]
    assert read(tmp_path / "splits", split="validation")[0] == ["validation"]
    assert "has no split 'test'; it has train, validation" in one_line_error(tmp_path / "splits", split="test")
    (tmp_path / "plain" / "state.json").write_text("{")
    assert "damaged dataset folder" in one_line_error(tmp_path / "plain")


# --- the hub ---


@pytest.mark.parametrize("streaming", [False, True])
def test_the_hub_name_goes_to_load_dataset(monkeypatch, streaming):
    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming))
        data = datasets.Dataset.from_dict({"text": ["From the hub.", None]})
        return data.to_iterable_dataset() if streaming else data

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "dataset_problem", lambda name: None)
    found, report = read("roneneldan/TinyStories", split="validation", streaming=streaming)
    assert found == ["From the hub."]
    assert report.unreadable == 1
    assert asked == [("roneneldan/TinyStories", "validation", streaming)]


def test_a_stream_that_does_not_tell_its_columns_or_breaks(monkeypatch):
    def rows(column):
        for _ in range(3000):
            yield {column: "One."}
        raise ConnectionError("the line went dead\nsecond line")

    streams = {
        "org/good": datasets.IterableDataset.from_generator(rows, gen_kwargs={"column": "story"}),
        "org/other": datasets.IterableDataset.from_generator(rows, gen_kwargs={"column": "body"}),
    }
    monkeypatch.setattr(hub, "dataset_problem", lambda name: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **_: streams[name])
    stories = read_stories("org/good", streaming=True)
    assert next(stories) == "One."
    with pytest.raises(UsageError, match=r"cannot read the next rows of org/good: the line went dead"):
        list(stories)
    assert "no column 'text' or 'story'; it has body" in one_line_error("org/other", streaming=True)


def test_no_hub_is_one_line_soon_and_silent(monkeypatch, capfd):
    """The library itself would retry, and log it, for half a minute."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", "/nowhere")
    started = time.monotonic()
    message = one_line_error("org/name")
    assert time.monotonic() - started < 10
    assert message.startswith("there is no file or folder org/name, and the Hugging Face hub cannot be reached")
    assert capfd.readouterr() == ("", "")
    assert datasets.config.HF_HUB_OFFLINE is False


def test_no_such_hub_dataset_and_errors_of_loading(monkeypatch):
    def load_dataset(name, **_):
        raise ValueError('Unknown split "nope".\nA second line')

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for problem in (None, "the hub cannot be reached"):  # a cached dataset that fails for another reason says that
        monkeypatch.setattr(hub, "dataset_problem", lambda name, problem=problem: problem)
        assert one_line_error("org/name", split="nope") == 'cannot load org/name: Unknown split "nope". A second line'


@pytest.mark.parametrize("streaming", [False, True])
def test_a_cached_hub_dataset_works_without_the_hub(tmp_path, monkeypatch, streaming):
    datasets.Dataset.from_dict({"text": ["One.", "Two."]}).to_parquet(tmp_path / "d.parquet")
    cache = tmp_path / "cache"
    datasets.load_dataset("parquet", data_files=str(tmp_path / "d.parquet"), cache_dir=str(cache))
    [info] = cache.rglob("dataset_info.json")
    cached = cache / "org___name" / "default" / "0.0.0" / ("a" * 40)
    cached.parent.mkdir(parents=True)
    info.parent.rename(cached)
    (cached / "parquet-train.arrow").rename(cached / "name-train.arrow")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr(hub, "dataset_problem", lambda name: "the hub cannot be reached")
    assert read("org/name", streaming=streaming)[0] == ["One.", "Two."]
    assert one_line_error("org/other", streaming=streaming) == "the hub cannot be reached"


# --- several, globs, errors ---


def test_several_sources_come_one_after_the_other_and_globs_sorted(tmp_path):
    (tmp_path / "b.txt").write_text("B.")
    (tmp_path / "a.txt").write_text("A.<|endoftext|>AA.")
    (tmp_path / "c.jsonl").write_text('{"text": "C."}')
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.txt").write_text("D.")
    found, report = read([tmp_path / "c.jsonl", str(tmp_path / "*.txt")])
    assert found == ["C.", "A.", "AA.", "B."]
    assert report.stories == 4
    assert read(str(tmp_path / "**" / "*.txt"))[0] == ["A.", "AA.", "B.", "D."]
    (tmp_path / "[x].txt").write_text("A file of that very name.")
    assert read(str(tmp_path / "[x].txt"))[0] == ["A file of that very name."]


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("gone.txt", None, "no such file or folder, and not the name of a hub dataset"),
        ("owner/name.jsonl", None, "no such file or folder, and not the name of a hub dataset"),
        ("\x1b[2J.txt", None, "␛[2J.txt matches no file"),
        ("x" * 300, None, "File name too long"),
        ("*.parquet", None, "matches no file"),
        (".", None, "not a folder written by save_to_disk; if it has files of stories, name the files"),
        ("empty.txt", b"", "is empty"),
        ("empty.jsonl", b"", "is empty"),
        ("empty.parquet", b"", "is empty"),
        ("blank.txt", b"\n<|endoftext|>\n\n<|endoftext|>\n", "has no story (1 empty, 0 without a text)"),
        ("null.jsonl", b'{"text": 1}\n', "has no story (0 empty, 1 without a text)"),
        ("utf16.txt", "A story.".encode("utf-16"), "is not UTF-8 text"),
        ("text.jsonl", b"Once upon a time.\nThe end.\n", "none of its first 2 lines is an object"),
        ("long.jsonl", b"1\n" * 5000, "none of its first 100 lines is an object"),
        ("stories.json", b"[]", "stories come from .txt, .jsonl or .parquet files, not from .json"),
        ("stories.txt.gz", b"x", "not from .gz"),
        ("a.jsonl", b'{"title": "x", "a\\u001b[1m\\nb": 2}', "no column 'text' or 'story'; it has title, a␛[1m b"),
        ("damaged.parquet", b"PAR1 but no more PAR1", "is damaged, or is not a parquet file"),
    ],
)
def test_a_source_that_cannot_be_used_is_one_line(tmp_path, monkeypatch, name, content, fragment):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "dataset_problem", lambda name: pytest.fail("asked the hub"))
    if content is not None:
        Path(name).write_bytes(content)
    assert fragment in one_line_error(name)


def test_more_columns_than_fit_a_line_are_cut_short(tmp_path):
    pq.write_table(pa.table({f"c{n}": [0] for n in range(40)}), tmp_path / "wide.parquet")
    assert one_line_error(tmp_path / "wide.parquet").endswith("it has " + ", ".join(f"c{n}" for n in range(12)) + ", …")
    pq.write_table(pa.table({"x" * 300_000: [0]}), tmp_path / "wide.parquet")
    assert len(one_line_error(tmp_path / "wide.parquet")) < 300


def test_parquet_errors_name_column_kind_and_damage(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [1, 2], "title": ["a", "b"]}), path)
    assert "the column 'text' of" in one_line_error(path)
    assert "has int64, not text" in one_line_error(path)
    assert "has no column 'body'; it has text, title" in one_line_error(path, column="body")
    pq.write_table(pa.table({"text": [f"story {n}" for n in range(200)]}), path)
    raw = bytearray(path.read_bytes())
    raw[4:80] = b"\x55" * 76
    path.write_bytes(raw)  # the footer is whole, so that it shows only when the rows are read
    assert "is damaged, or is not a parquet file" in one_line_error(path)


def test_pipes_and_forbidden_files_are_refused_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.txt")
    assert "is not a regular file" in one_line_error(tmp_path / "pipe.txt")
    (tmp_path / "secret.txt").write_text("A.")

    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(os, "open", refuse)
    assert one_line_error(tmp_path / "secret.txt") == f"cannot read {tmp_path}/secret.txt: Permission denied"


def test_errors_come_before_the_first_story_is_taken(tmp_path):
    (tmp_path / "good.txt").write_text("A story.")
    (tmp_path / "bad.txt").write_text("")
    with pytest.raises(UsageError, match=r"bad\.txt is empty"):
        read_stories([tmp_path / "good.txt", tmp_path / "bad.txt"])
    with pytest.raises(UsageError, match="no source of stories"):
        read_stories([])


# --- fingerprints ---


def test_a_fingerprint_changes_with_the_files_and_holds_no_folder(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("A.")

    def fingerprint(name, split="train"):
        return [source.fingerprint(split) for source in find_sources(name)]

    before = fingerprint(path)
    assert before == fingerprint(path, "validation")
    assert str(tmp_path) not in json.dumps(before)
    os.utime(path, ns=(0, 1))
    assert fingerprint(path) != before
    datasets.Dataset.from_dict({"text": ["A."]}).save_to_disk(tmp_path / "saved")
    saved = fingerprint(tmp_path / "saved")
    assert saved != fingerprint(tmp_path / "saved", "validation")
    os.utime(tmp_path / "saved" / "state.json", ns=(0, 1))
    assert fingerprint(tmp_path / "saved") != saved
    assert fingerprint("org/name") == [{"hub": "org/name", "split": "train"}]


# --- selection ---

TEXTS = [f"Story number {n}." for n in range(2000)]


def kept(**options):
    selection = Selection(**options)
    return {text for text in TEXTS if selection.keeps(text)}


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(), split=st.floats(0.01, 0.9), fraction=st.floats(0.05, 1))
def test_both_parts_are_the_whole_and_share_nothing(seed, split, fraction):
    options = {"seed": seed, "test_split": split, "fraction": fraction}
    train, test = kept(**options), kept(**options, part="test")
    assert not train & test
    assert train | test == kept(seed=seed, fraction=fraction)
    n = len(train | test)
    assert abs(n - 2000 * fraction) <= 6 * (2000 * fraction * (1 - fraction)) ** 0.5 + 1
    assert abs(len(test) - n * split) <= 6 * (n * split * (1 - split)) ** 0.5 + 1


def test_larger_shares_contain_smaller_ones_and_seeds_differ():
    assert kept(fraction=0.1) < kept(fraction=0.3) < kept()
    assert kept(test_split=0.1, part="test") < kept(test_split=0.3, part="test")
    assert kept(fraction=0.5) != kept(fraction=0.5, seed=1)
    # the same stories are chosen on every machine and in every version
    assert sorted(kept(fraction=0.001, seed=7)) == ["Story number 1231."]


def test_selection_follows_the_text_wherever_it_stands(tmp_path):
    """Neither the order of stories nor the files they are in matter, and duplicates go the same way."""
    (tmp_path / "one.txt").write_text("<|endoftext|>".join(TEXTS))
    (tmp_path / "two.txt").write_text("<|endoftext|>".join([*reversed(TEXTS), *TEXTS[:500]]))
    selection = Selection(0.5, 0.2, "test", seed=3)
    first, report = read(tmp_path / "one.txt", selection=selection)
    second, _ = read(tmp_path / "two.txt", selection=selection)
    assert set(first) == set(second) == kept(fraction=0.5, test_split=0.2, part="test", seed=3)
    assert report.not_selected + report.stories == 2000


def test_a_selection_of_nothing_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("A.<|endoftext|>B.")
    message = one_line_error(tmp_path / "a.txt", selection=Selection(1e-12))
    assert message == "none of 2 stories is left: fraction 1e-12, test_split 0.0, the train part"


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"fraction": 0}, "fraction is 0; it must be above 0"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"fraction": float("nan")}, "fraction is nan"),
        ({"test_split": 1.0}, "test_split is 1.0"),
        ({"test_split": -0.1}, "test_split is -0.1"),
        ({"part": "valid"}, "part is 'valid'"),
        ({"part": "test"}, "no test part"),
    ],
)
def test_a_selection_out_of_range_names_the_range(options, fragment):
    with pytest.raises(UsageError, match=fragment):
        Selection(**options)
