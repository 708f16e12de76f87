"""Files of prompts, batches of them, and the file their stories are written to."""

import io
import json
import os
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.data.prompts import PromptFile, digest
from tinystory.errors import UsageError
from tinystory.model.config import ModelConfig
from tinystory.training.ranks import local_rank, place_among_ranks
from tinystory.writing.batches import PlannedStory, rows_that_fit, story_batches
from tinystory.writing.story_lines import StoryLines, line

SUBJECT = {"prompts": "abc", "spec": "greedy"}


# --- prompts ---


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("a.txt", b"One day \r\n\n  Tim had a", ["One day", "Tim had a"]),
        ("a.txt", b"\xef\xbb\xbfOne\n", ["One"]),
        ("a", "one\u2028still one\x0band so\nTim".encode(), ["one\u2028still one\x0band so", "Tim"]),
        ("a.txt", b"One day\n\nTim\n<|endoftext|>\nThe owl \n<|endoftext|>\n", ["One day\n\nTim", "The owl"]),
        ("a.txt", b"One\r\nday\rhere<|endoftext|>Tim\r\n", ["One\nday\nhere", "Tim"]),
        ("a.yml", b'- a\n- " "\n- "b"\n', ["a", "b"]),
        (
            "a.yml",
            b"\xef\xbb\xbf---\n- 'a: b'\n- |\n  One\n  day\n- >-\n  Tim\n  ran\n-\n",
            ["a: b", "One\nday", "Tim ran"],
        ),
        ("a.yaml", b"['No', \"12\", No way, 12 owls, '~']", ["No", "12", "No way", "12 owls", "~"]),
    ],
)
def test_prompts_are_read_again_and_again(tmp_path, name, raw, expected):
    path = tmp_path / name
    path.write_bytes(raw)
    with PromptFile(path) as prompts:
        assert list(prompts) == list(prompts) == expected
        assert prompts.count == len(expected)
        assert prompts.digest == digest(expected) != digest(expected[1:])


def test_a_separator_across_two_blocks_is_found(tmp_path, monkeypatch):
    for n in range(1, 30):
        monkeypatch.setattr("tinystory.data.prompts._BLOCK_BYTES", n)
        path = tmp_path / "a.txt"
        path.write_text("one\ntwo<|endoftext|>three\nfour")
        with PromptFile(path) as prompts:
            assert list(prompts) == ["one\ntwo", "three\nfour"]


def test_a_pipe_and_standard_input_are_read_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"One\nTwo\n")))
    with PromptFile(Path("-")) as prompts:
        assert [prompts.count, *prompts, *prompts] == [2, "One", "Two", "One", "Two"]
    read, write = os.pipe()
    os.write(write, b"One\n")
    os.close(write)
    with PromptFile(Path(f"/dev/fd/{read}")) as prompts:
        assert [*prompts, *prompts] == ["One", "One"]
    os.close(read)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.txt", b"", "has no prompt"),
        ("a.txt", b"<|endoftext|>\n \n", "has no prompt"),
        ("a.txt", b"one\ntw\xff\n", "not UTF-8 text: its line 2"),
        ("a.txt", b"one<|endoftext|>tw\xff", "not UTF-8 text: its text 2"),
        ("a.txt", b"x" * 2**24, "its line 1 of .* which is too long for a prompt"),
        ("a.txt", b"a<|endoftext|>" + b"x" * 2**21, "its text 2 of .* which is too long for a prompt"),
        ("a.txt", "One day".encode("utf-16"), "not UTF-8 text: its line 1 is broken"),
        ("a.txt", "One day".encode("utf-16-le"), "not UTF-8 text: its line 1 has zero bytes"),
        ("a.yaml", b"\xff", "not UTF-8"),
        ("a.yaml", b"- " + b"x" * 2**21, "which is too long for a prompt"),
        ("a.yaml", b"- &a One\n- *a\n", "its item 1 begins with an alias"),
        ("a.yaml", b"- One\n- *a\n", "its item 2 begins with an alias"),
        ("a.yaml", b"- !!timestamp x\n", "its item 1 begins with .* a tag"),
        ("a.yaml", b"- !!int ''\n", "its item 1 begins with .* a tag"),
        ("a.yaml", b"!!python/tuple [a]\n", "the list begins with an alias"),
        ("a.yaml", b"- a\n- No\n", "its item 2 is a number, a date or a word like yes"),
        ("a.yaml", b"- 2001-01-01\n", "put quotes around it"),
        ("a.yaml", b"- ~\n", "put quotes around it"),
        ("a.yaml", b"- {<<: [a, b]}\n", "its item 1 is not a text"),
        ("a.yaml", b"- Tim said: no\n", "its item 1 is not a text; put quotes"),
        ("a.yaml", b"[" * 10**5, "its item 1 is not a text"),
        ("a.yaml", b"a: b", "write `- ` before each text"),
        ("a.yaml", b"One", "write `- ` before each text"),
        ("a.yaml", b"", "it is empty"),
        ("a.yaml", b"- a\n--- \n- b\n", "something after the list"),
        ("a.yaml", b'- "a', "is not YAML: while scanning"),
        ("a.yaml", b"- a\x1b", "is not YAML"),
        ("a.jsonl", b"{}", "not from .jsonl"),
    ],
)
def test_what_is_no_file_of_prompts_is_refused(tmp_path, name, raw, message):
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=message):
        PromptFile(path)


def test_merges_and_aliases_cost_nothing(tmp_path):
    """Once, a few hundred bytes of merge keys took more than 40 seconds."""
    path = tmp_path / "a.yaml"
    merges = "- &a0 {k: v}\n" + "".join(f"- &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9))
    for text in (merges, "- &a " + "x" * 10**6 + "\n" + "- *a\n" * 3000):
        path.write_text(text)
        started = time.process_time()
        with pytest.raises(UsageError, match="its item 1"):
            PromptFile(path)
        assert time.process_time() - started < 1


def test_a_device_and_an_endless_pipe_do_not_fill_the_disk(tmp_path, monkeypatch):
    (tmp_path / "zero.txt").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="neither a file nor a pipe"):
        PromptFile(tmp_path / "zero.txt")

    class Endless(io.RawIOBase):
        content = b"One day\n"

        def readable(self):
            return True

        def readinto(self, buffer):
            buffer[:] = (self.content * len(buffer))[: len(buffer)]
            return len(buffer)

    monkeypatch.setattr("tinystory.data.prompts._MOST_PIPE_BYTES", 10**5)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Endless())))
    with pytest.raises(UsageError, match="standard input has more than 100,000 bytes"):
        PromptFile(Path("-"))
    monkeypatch.setattr(Endless, "content", b"\0")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Endless())))
    with pytest.raises(UsageError, match="zero bytes"):
        PromptFile(Path("-"))
    (tmp_path / "a.txt").write_text("One day\n" * 20_000)
    with (tmp_path / "a.txt").open() as file:  # a file as standard input ends by itself
        monkeypatch.setattr(sys, "stdin", file)
        with PromptFile(Path("-")) as prompts:
            assert prompts.count == 20_000


def test_of_many_prompts_only_one_is_held(tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("".join(f"Once upon a time there was number {n} of them\n" for n in range(30_000)))
    tracemalloc.start()
    with PromptFile(path) as prompts:
        assert sum(1 for _ in prompts) == prompts.count == 30_000
    assert tracemalloc.get_traced_memory()[1] < 2**20 < path.stat().st_size
    tracemalloc.stop()


# --- batches ---


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text("ab ", min_size=1, max_size=30), max_size=50), st.integers(1, 5))
def test_every_story_is_in_one_batch_with_others_like_it(tokenizer, texts, rows):
    places = [PlannedStory(index, number, text) for index, text in enumerate(texts) for number in range(2)]
    found = list(story_batches(places, tokenizer, rows))
    assert sorted((one.index, one.number) for batch in found for one in batch) == [(p.index, p.number) for p in places]
    assert all(1 <= len(batch) <= rows for batch in found)
    for one in (one for batch in found for one in batch):
        assert list(one.prompt_ids) == tokenizer.encode(texts[one.index])
    lengths = [len(one.prompt_ids) for batch in found for one in batch]
    assert lengths == sorted(lengths, reverse=True)  # so few are all one stretch


def test_batches_take_no_more_places_than_they_sort(tokenizer):
    taken = []
    endless = (taken.append(n) or PlannedStory(n, 0, "Tim") for n in iter(int, 1))
    found = story_batches(endless, tokenizer, 2)
    assert [len(next(found)) for _ in range(3)] == [2, 2, 2]
    assert len(taken) == 128


def test_a_large_model_has_fewer_rows():
    small = ModelConfig.llama(300, 2, 2, 32, 64, 48)
    assert rows_that_fit(small) == rows_that_fit(None) == 32
    assert 1 < rows_that_fit(ModelConfig.llama(32000, 32, 32, 2048, 2048, 5632)) < 32
    assert rows_that_fit(ModelConfig.llama(32000, 32, 32, 4096, 8192, 11008)) == 1


# --- ranks ---


def test_the_place_among_ranks_is_what_torchrun_says(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (place_among_ranks(), local_rank()) == ((0, 1), 0)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert (place_among_ranks(), local_rank()) == ((3, 4), 1)
    for rank, size in (("4", "4"), ("-1", "4"), ("x", "4"), ("0", "0"), ("0", "")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", size)
        with pytest.raises(UsageError, match="do not fit together"):
            place_among_ranks()


# --- the stories' file ---


def record(index, number=0, seed=7, **others):
    return {"index": index, "story": number, "seed": seed + index, **SUBJECT, **others}


def lines_of(path, **options):
    return StoryLines(path, SUBJECT, 10, 2, **options)


@pytest.mark.slow
def test_a_file_of_stories_goes_on_after_any_loss_at_its_end(tmp_path):
    whole = b"".join(map(line, (record(4), record(4, 1), record(0))))
    for n in range(len(whole) + 1):
        path = tmp_path / "out.jsonl"
        path.write_bytes(whole[:n])
        n_whole = whole[:n].count(b"\n")
        with lines_of(path) as lines:
            assert lines.n_done == n_whole
            assert lines.seed == (7 if n_whole else None)
            assert [lines.has(4, 0), lines.has(4, 1), lines.has(0, 0)] == [n_whole > i for i in range(3)]
            lines.add(record(9, 1))
            lines.sync()
            assert lines.has(9, 1)
        assert [json.loads(one)["index"] for one in path.read_bytes().splitlines()] == [*[4, 4, 0][:n_whole], 9]


@pytest.mark.parametrize("spec", ["a\n" * 500, "", "\x1b[2J" * 99, ["x"] * 999])
def test_a_story_made_in_another_way_is_refused_in_one_line(tmp_path, spec):
    path = tmp_path / "out.jsonl"
    path.write_bytes(line(record(1, spec=spec)))
    with pytest.raises(UsageError, match=r"has stories with spec .*, not .*: give another -o") as caught:
        lines_of(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300 + len(str(path))


def test_more_siblings_may_be_asked_for_and_fewer(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(line(record(1)) + line(record(1, 1)) + line(record(1, 1)))
    for n_siblings, n_done in ((1, 1), (2, 2), (3, 2)):
        with StoryLines(path, SUBJECT, 2, n_siblings) as lines:
            assert lines.n_done == n_done
            assert not lines.has(0, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"My diary, without a newline", "is no file of stories"),
        (b'{"tinystory_study": 1}\n', "is no file of stories"),
        (line(record(1)) + b"My diary\n", "is no file of stories"),
        (line(record(1)) + b'{"index": 2\n', "line 2 .* is damaged"),
        (b'{"index": 2, "story": -1, "seed": 1}\n', "line 1 .* is damaged"),
        (b'{"index": "2"}\n', "line 1 .* is damaged"),
        (line(record(1, spec="sample")), "stories with spec sample, not greedy"),
        (line(record(1, prompts="abd")), "stories with prompts abd, not abc"),
        (line(record(1, seed=8)), "stories with seed 8, not 7"),
        (line(record(10)), "not among the prompts"),
        (b'{"index": 2, "story": 0, "seed": 9}\n', "stories with prompts None"),
    ],
)
def test_another_file_is_refused_and_stays_as_it_is(tmp_path, content, message):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        lines_of(path, seed=7)
    assert path.read_bytes() == content


def test_stories_of_two_seeds_are_refused_where_none_is_given(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(line(record(1)) + line(record(2, seed=8)))
    with pytest.raises(UsageError, match="stories with seed 8, not 7"):
        lines_of(path)


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
def test_two_at_once_are_refused(tmp_path):
    with lines_of(tmp_path / "out.jsonl"), pytest.raises(UsageError, match="another process is writing"):
        lines_of(tmp_path / "out.jsonl")
    lines_of(tmp_path / "out.jsonl").__exit__(None, None, None)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"cannot write .*: No such file"):
        lines_of(tmp_path / "none" / "out.jsonl")
    with lines_of(Path("/dev/full")) as lines, pytest.raises(OSError, match="No space left"):
        lines.add(record(1))
