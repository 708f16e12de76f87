"""The story report: every measure by hand, its range and what it does not depend on, and the command that prints it."""

import dataclasses
import io
import itertools
import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.cli import main
from tinystory.commands.flags import parse_args
from tinystory.evaluation import copied, report
from tinystory.evaluation.copied import known_runs
from tinystory.evaluation.ngrams import distinct, ngram_count, ngrams, repeated, words
from tinystory.evaluation.report import balanced_quotes, describe_stories
from tinystory.settings import BUILT_IN

SHARES = (
    "distinct_1", "distinct_2", "distinct_3", "repeated_4grams", "ended_properly", "balanced_quotes", "unknown_words",
    "copied_8grams",
)  # fmt: skip

letters = st.lists(st.sampled_from("abc"), max_size=14)
texts = st.lists(st.text(alphabet="ab .\"“”'’\n", max_size=60), max_size=5)


def as_lists(runs):
    return [run.tolist() for run in runs]


# --- words and n-grams ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Once upon a time, there was Tim.", ["once", "upon", "a", "time", "there", "was", "tim"]),
        ("Don't! “Don’t!” DONʼT", ["don't"] * 3),
        ("'Hello,' said the boys' dog.", ["hello", "said", "the", "boys", "dog"]),
        ("an ice-cream\nfor_two – 3.5", ["an", "ice", "cream", "for", "two", "3", "5"]),
        ("Zoë, Zoe\u0308, ZOË", ["zoë"] * 3),  # composed, decomposed, upper case
        ("…!? — \n", []),
        ("", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@given(st.text(max_size=80))
def test_words_of_any_text_are_lower_case_and_words_again(text):
    found = words(text)
    assert all(word and not word.isspace() for word in found)
    assert words(" ".join(found)) == found


def test_ngrams_stay_in_order_and_may_be_longer_than_the_story():
    assert list(ngrams("abcd", 3)) == [("a", "b", "c"), ("b", "c", "d")]
    assert list(ngrams("ab", 3)) == []


# --- distinct-n ---


def test_distinct_by_hand():
    stories = [list("abab"), list("ab")]
    assert distinct(stories, 1) == 2 / 6
    assert distinct(stories, 2) == 2 / 4  # ab ba ab, ab: nothing reaches from one story into the next
    assert distinct(stories, 3) == 2 / 2
    assert distinct(stories, 4) == 1
    assert distinct(stories, 5) is None
    assert distinct([], 1) is None
    assert distinct(stories, 1, 0) is None
    with pytest.raises(ValueError, match="-1"):
        distinct(stories, 1, -1)


@settings(max_examples=60, deadline=None)
@given(stories=st.lists(letters, max_size=3), n=st.integers(1, 2), n_ngrams=st.integers(1, 5))
def test_distinct_of_a_part_is_the_mean_over_all_its_choices(stories, n, n_ngrams):
    every = [gram for story in stories for gram in ngrams(story, n)][:10]
    stories = [[gram] for gram in every]  # each n-gram a story of its own: cut down to what can be enumerated
    if not every:
        assert distinct(stories, 1, n_ngrams) is None
        return
    size = min(n_ngrams, len(every))
    choices = list(itertools.combinations(every, size))
    mean = math.fsum(len(set(choice)) for choice in choices) / len(choices) / size
    assert distinct(stories, 1, n_ngrams) == pytest.approx(mean, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(letters, min_size=1, max_size=4))
def test_distinct_falls_as_the_text_grows(stories):
    shares = [distinct(stories, 1, m) for m in range(1, sum(map(len, stories)) + 1)]
    assert shares == sorted(shares, reverse=True) or max(np.diff(shares), default=0) < 1e-12
    assert not shares or shares[0] == pytest.approx(1)


def test_distinct_of_a_large_part_is_exact():
    """A hundred thousand n-grams: no factorial overflows, nothing rounds to 0."""
    once, often = [f"w{i}" for i in range(50_000)], ["the"] * 50_000
    half = distinct([once, often], 1, 50_000)
    assert half == pytest.approx((25_000 + 1) / 50_000, rel=1e-12)
    assert distinct([once, often], 1) == 50_001 / 100_000


# --- one story ---


def test_repeated_by_hand():
    assert repeated(words("The cat sat on the mat. The cat sat on the hat."), 4) == (2, 9)
    assert repeated(list("aaaaaa"), 4) == (2, 3)
    assert repeated(list("abc"), 4) == (0, 0)
    assert repeated([], 4) == (0, 0)


@pytest.mark.parametrize(
    ("text", "balanced"),
    [
        ("", True),
        ("No quotes, it's true.", True),
        ('"A," he said. "B."', True),
        ('"A," he said. "B.', False),
        ("“A,” he said. “B.”", True),
        ("“A “B” C”", True),
        ("“A,” he said. “B.", False),
        ("”A“", False),
        ("“A”” “", False),
        ('“A"', False),
        ('“A" and "B”', True),
    ],
)
def test_balanced_quotes(text, balanced):
    assert balanced_quotes(text) is balanced


# --- what a reference text knows ---


def brute_force_runs(stories, reference):
    known = {gram for story in map(words, reference) for n in range(1, len(story) + 1) for gram in ngrams(story, n)}
    return [[longest_known(story[at:], known) for at in range(len(story))] for story in map(words, stories)]


def longest_known(story, known):
    return max((n for n in range(1, len(story) + 1) if tuple(story[:n]) in known), default=0)


@settings(max_examples=80, deadline=None)
@given(
    stories=st.lists(letters.map(" ".join), max_size=4),
    reference=st.lists(letters.map(lambda found: " ".join(found).replace("c", "d")), max_size=6),
    chunk=st.sampled_from([1, 5, 1000]),
)
def test_known_runs_equal_a_search_through_every_ngram(stories, reference, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copied, "_CHUNK_WORDS", chunk)
        found = known_runs(stories, iter(reference))
    assert as_lists(found) == brute_force_runs(stories, reference)


def test_a_run_ends_with_its_story_on_both_sides():
    assert as_lists(known_runs(["a b c", "c d"], ["a b", "c", "d c d"])) == [[2, 1, 1], [2, 1]]
    assert as_lists(known_runs(["a b c c d"], ["a b c", "c d"])) == [[3, 2, 1, 2, 1]]


def test_word_order_and_repetition_are_no_hash_collision():
    """Sums of word values would take a b for b a, and differ by nothing where words trade places."""
    assert as_lists(known_runs(["b a a b"], ["a b b b a"])) == [[2, 1, 2, 1]]
    shuffled = [f"w{i * 7 % 100}" for i in range(100)]
    found = known_runs([" ".join(shuffled)], [" ".join(f"w{i}" for i in range(100))])
    assert as_lists(found) == [[1] * 100]


def test_known_runs_of_nothing():
    assert known_runs([], ["a"]) == []
    assert as_lists(known_runs(["", "a b", "…"], [])) == [[], [0, 0], []]
    assert as_lists(known_runs(["", "a b"], ["", "!"])) == [[], [0, 0]]


# --- the report ---

STORY = "The big red cat sat on the very soft mat. It slept."  # 12 words
OTHER = "“Hi!” said the dog. “Bye"  # 5 words


def test_describe_by_hand():
    training = ["A big red cat sat on the very soft mat!", "The dog said hi."]
    found = describe_stories(
        [STORY, OTHER], n_tokens=[15, 8], finished=[True, True], runs=known_runs([STORY, OTHER], training)
    )
    assert dataclasses.asdict(found) == {
        "stories": 2,
        "words": 17,
        "mean_words": 8.5,
        "median_words": 8.5,
        "mean_tokens": 11.5,
        "median_tokens": 11.5,
        # 13 triples, none twice; of the 15 pairs none twice; of the 17 words "the" three times, the rest once
        "distinct_1": pytest.approx((14 * 13 / 17 + 1 - 4 * 3 * 2 / (17 * 16 * 15)) / 13),
        "distinct_2": pytest.approx(1),
        "distinct_3": 1,
        "distinct_ngrams": 13,
        "repeated_4grams": 0,
        "ended_properly": 0.5,
        "balanced_quotes": 0.5,
        "unknown_words": 3 / 17,  # it, slept, bye
        "copied_8grams": 2 / 5,  # "big … soft" and "red … mat"
        "longest_copied": 9,
    }


def test_a_mean_feels_one_long_story_and_a_median_does_not():
    found = describe_stories(["a b", "a b c", "a " * 40], n_tokens=[4, 5, 60])
    assert (found.mean_words, found.median_words) == (15, 3)
    assert (found.mean_tokens, found.median_tokens) == (23, 5)


def test_a_story_ends_properly_by_its_writer_and_with_a_sentence():
    ends = ["He left.", 'He said, "Bye!"', "“Why?” he asked. “Why?”", "The end…", "He left", "He left,", "", '"']
    assert describe_stories(ends).ended_properly == 4 / 8
    assert describe_stories(ends, finished=[False, True] * 4).ended_properly == 2 / 8


def test_repeats_are_pooled_and_not_looked_for_across_stories():
    found = describe_stories(["a b c d e", "a b c d e", "a b c d a b c d", "a"])
    assert found.repeated_4grams == 1 / (2 + 2 + 5)


def test_without_a_training_text_nothing_is_copied():
    runs = known_runs([STORY], [STORY])
    assert describe_stories([STORY], runs=runs).longest_copied == 12
    found = describe_stories([STORY], runs=runs, runs_in_training=False)
    assert (found.unknown_words, found.copied_8grams, found.longest_copied) == (0, None, None)
    found = describe_stories([STORY])
    assert (found.unknown_words, found.copied_8grams, found.longest_copied) == (None, None, None)


def test_the_distinct_figures_are_over_the_same_number_of_ngrams():
    a, b = ["a b c d. a b c d."], ["a b c d."] * 8
    assert (ngram_count(a), ngram_count(b)) == (6, 16)
    assert describe_stories(b).distinct_ngrams == 16
    both = [describe_stories(side, distinct_ngrams=6) for side in (a, b)]
    assert [side.distinct_ngrams for side in both] == [6, 6]
    assert both[0].distinct_3 == 4 / 6
    assert both[1].distinct_3 == distinct([words(story) for story in b], 3, 6) > describe_stories(b).distinct_3
    assert describe_stories(a, distinct_ngrams=99).distinct_ngrams == 6


def test_describe_nothing():
    found = describe_stories([])
    assert (found.stories, found.words, found.distinct_ngrams) == (0, 0, 0)
    assert found.mean_words is found.mean_tokens is found.ended_properly is None
    found = describe_stories(["", "…"], n_tokens=[0, 1], runs=known_runs(["", "…"], ["a"]))
    assert (found.stories, found.words, found.mean_words, found.median_tokens) == (2, 0, 0, 0.5)
    assert found.distinct_1 is found.repeated_4grams is found.unknown_words is found.copied_8grams is None
    assert found.longest_copied == 0
    assert found.ended_properly == 0.5
    assert found.balanced_quotes == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_tokens": [1]},
        {"finished": [True]},
        {"runs": [np.zeros(1, np.int32)]},
        {"runs": [np.zeros(2, np.int32)] * 2},
        {"distinct_ngrams": -1},
    ],
)
def test_what_does_not_belong_to_the_stories_is_refused(wrong):
    with pytest.raises(ValueError, match=r"."):
        describe_stories(["a b c", "a"], **wrong)


@settings(max_examples=80, deadline=None)
@given(stories=texts, reference=texts, finished=st.lists(st.booleans(), min_size=5, max_size=5), data=st.data())
def test_ranges_and_no_dependence_on_the_order_of_stories(stories, reference, finished, data):
    runs = known_runs(stories, reference)
    distinct_ngrams = data.draw(st.none() | st.integers(0, 20))
    n_tokens = [len(story) for story in stories]

    def found(order):
        return describe_stories(
            [stories[i] for i in order],
            n_tokens=[n_tokens[i] for i in order],
            finished=[finished[i] for i in order],
            runs=[runs[i] for i in order],
            distinct_ngrams=distinct_ngrams,
        )

    first = found(range(len(stories)))
    assert found(data.draw(st.permutations(range(len(stories))))) == first
    shares = [getattr(first, name) for name in SHARES]
    assert all(share is None or 0 <= share <= 1 for share in shares)
    assert (first.ended_properly is None) == (not stories)
    assert (first.unknown_words is None) == (not first.words)
    assert 0 <= first.longest_copied <= max((len(words(story)) for story in stories), default=0)
    assert (first.longest_copied >= 8) == bool(first.copied_8grams)


# --- the command ---


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch, tmp_path):
    """No test reads the user's settings."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in BUILT_IN:
        monkeypatch.delenv(f"TINYSTORY_{name.upper()}", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())


@pytest.fixture
def evaluate(checkpoint, story_file, capsys):
    """`tinystory eval` on the tiny model: (exit code, standard output, standard error)."""

    def run(*argv, data=story_file):
        words = ["eval", str(data), *map(str, argv), "-m", str(checkpoint)]
        code = main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def few(stories, tmp_path):
    """A file with twelve of the stories: quick to score."""
    path = tmp_path / "few.txt"
    path.write_text("\n<|endoftext|>\n".join(stories[::5]), encoding="utf-8")
    return path


def test_the_report_is_added_to_the_json(evaluate, few, stories, tokenizer):
    code, out, err = evaluate("--stories", 5, "-s", 7, "-n", 30, "--json", data=few)
    assert code == 0
    assert "cut off after 30 tokens" in err
    found = json.loads(out)
    before = json.loads(evaluate("--json", data=few)[1])
    assert {key: value for key, value in found.items() if key != "stories_report"} == before
    found = found["stories_report"]
    assert (found["spec"], found["seed"], found["max_tokens"], found["train"]) == ("sample 0.8", 7, 30, None)
    assert found["reference_stories"] == 7
    assert 1 <= found["cut_off"] <= 5
    data = stories[::5]
    real = [data[i] for i in (0, 2, 4, 7, 9)]
    others = [story for story in data if story not in real]
    expected = describe_stories(
        real,
        n_tokens=[len(tokenizer.encode(story, bos=False)) for story in real],
        runs=known_runs(real, others),
        runs_in_training=False,
        distinct_ngrams=found["model"]["distinct_ngrams"],
    )
    assert found["real"] == dataclasses.asdict(expected)
    assert found["model"]["stories"] == 5
    assert found["model"]["mean_tokens"] <= 30


def test_the_model_side_is_the_numbered_siblings_of_the_seed(evaluate, few, checkpoint, capsys, monkeypatch):
    arguments = ["--stories", 5, "-d", "top-k 40 | sample 0.9", "-n", 25, "--json"]
    found = json.loads(evaluate(*arguments, "-s", 3, data=few)[1])["stories_report"]
    assert (
        main(
            ["generate", "", "-d", found["spec"], "-s", "3", "-n", "25", "--num", "5", "--json", "-m", str(checkpoint)]
        )
        == 0
    )
    siblings = json.loads(capsys.readouterr().out)["stories"]
    texts = [story["text"] for story in siblings]
    expected = describe_stories(
        texts,
        n_tokens=[len(story["token_ids"]) for story in siblings],
        finished=[story["finish_reason"] == "eos" for story in siblings],
        distinct_ngrams=found["real"]["distinct_ngrams"],
    )
    assert dataclasses.replace(expected, unknown_words=found["model"]["unknown_words"]) == report.StoryReport(
        **found["model"]
    )
    monkeypatch.setattr("tinystory.commands.eval._TOGETHER", 2)
    assert json.loads(evaluate(*arguments, "-s", 3, data=few)[1])["stories_report"] == found
    assert json.loads(evaluate(*arguments, "-s", 4, data=few)[1])["stories_report"]["model"] != found["model"]


def test_a_drawn_seed_is_told(evaluate, few):
    arguments = ["--stories", 1, "-n", 5, "--json"]
    seeds = {json.loads(evaluate(*arguments, data=few)[1])["stories_report"]["seed"] for _ in range(2)}
    assert len(seeds) == 2


def test_with_a_training_text_copies_are_found(evaluate, few, story_file):
    """The validation stories are all in the training file here: they are copied from end to end."""
    arguments = ["--stories", 50, "-s", 1, "-n", 9, "--json", "--train", story_file]
    code, out, err = evaluate(*arguments, data=few)
    found = json.loads(out)["stories_report"]
    assert code == 0
    assert f"{few} has 12 stories: 12 of them are compared" in err
    assert (found["model"]["stories"], found["real"]["stories"]) == (50, 12)
    assert (found["real"]["unknown_words"], found["real"]["copied_8grams"]) == (0, 1)
    assert found["real"]["longest_copied"] == max(len(words(story)) for story in few.read_text().split("<|endoftext|>"))
    assert found["model"]["copied_8grams"] in (None, 0)
    assert found["model"]["longest_copied"] < 8
    assert found["model"]["unknown_words"] > 0.5
    assert found["train"] == str(story_file)


def test_the_table(evaluate, few):
    code, out, err = evaluate("--stories", 3, "-s", 7, "-n", 20, "--train", few, data=few)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("bits per byte")
    start = next(i for i, line in enumerate(lines) if "difference" in line)
    assert lines[start].split() == ["model", "real", "difference"]
    rows = {line[:26].strip(): line[26:].split() for line in lines[start + 1 :] if line}
    assert rows["stories"] == ["3", "3", "–"]
    assert rows["ended properly"][1] == "100.00%"
    assert rows["ended properly"][2:] == [f"{float(rows['ended properly'][0][:-1]) - 100:+.2f}", "pp"]
    assert {"distinct-2 (word pairs)", "copied 8-grams", "longest copied run, words"} <= set(rows)
    assert "sample 0.8, seed 7, at most 20 tokens" in out
    assert f"not in {few}" in out
    assert "\x1b" not in out + err
    assert "copied" not in evaluate("--stories", 3, "-s", 7, "-n", 20, data=few)[1]
    assert "difference" not in evaluate(data=few)[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--limit", 0], ["--limit is 0", "at least 1"]),
        (["--stories", 0], ["--stories is 0", "from 1 to"]),
        (["--stories", -3], ["--stories is -3"]),
        (["--stories", 10_001], ["10,000"]),
        (["--train", "train.txt"], ["--stories N"]),
        (["--stories", 2, "--train", "nowhere.txt"], ["nowhere.txt"]),
        (["--stories", 2, "--train", "{empty}"], ["blank.txt"]),
        (["--stories", 2, "-d", "topk 40"], ["top-k"]),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(evaluate, few, tmp_path, monkeypatch, arguments, words):
    blank = tmp_path / "blank.txt"
    blank.write_text("\n<|endoftext|>\n \n")
    monkeypatch.setattr("tinystory.writing.generate.write", None)
    code, out, err = evaluate(*(blank if word == "{empty}" else word for word in arguments), data=few)
    assert (code, out) == (2, "")
    assert err.startswith("tinystory: ")
    assert all(word in err for word in words), err


def test_data_without_a_story_and_data_with_one(evaluate, tmp_path):
    blank, single = tmp_path / "blank.txt", tmp_path / "single.txt"
    blank.write_text("\n<|endoftext|>\n \n")
    assert evaluate("--stories", 2, data=blank)[:2] == (2, "")
    single.write_text("A cat sat. It slept.")
    code, out, err = evaluate("--stories", 2, "-n", 9, "-s", 1, "--json", data=single)
    assert code == 0
    assert "has 1 stories" in err
    found = json.loads(out)["stories_report"]
    assert [found[side]["unknown_words"] for side in ("model", "real")] == [None, None]
    assert (found["real"]["stories"], found["reference_stories"]) == (1, 0)


@pytest.fixture
def say(tmp_path):
    """A decoder file with `say ID`, which picks one token for ever."""
    path = tmp_path / "say.py"
    path.write_text(
        '"""Always the same token."""\n'
        "from dataclasses import dataclass\n"
        "from tinystory.decoding import Sampler, option\n\n\n"
        "@dataclass(frozen=True)\n"
        "class Say(Sampler):\n"
        '    """Pick one token."""\n\n'
        '    name = "say"\n'
        '    token: int = option(0, ge=0, help="its id")\n\n'
        "    def __call__(self, logits, step):\n"
        "        return self.token\n"
    )
    return path


def test_a_model_that_ends_at_once_has_no_figures_for_words(evaluate, few, say):
    arguments = ["--stories", 3, "-d", "say 0", "--decoder-file", say, "--train", few, "-q"]
    code, out, err = evaluate(*arguments, "--json", data=few)
    assert (code, err) == (0, "")
    found = json.loads(out, parse_constant=pytest.fail)["stories_report"]
    model = found["model"]
    assert (model["stories"], model["words"], model["mean_tokens"], model["longest_copied"]) == (3, 0, 0, 0)
    assert model["distinct_1"] is model["unknown_words"] is model["copied_8grams"] is None
    assert (model["ended_properly"], found["cut_off"]) == (0, 0)
    out = evaluate(*arguments, data=few)[1]
    row = next(line for line in out.splitlines() if line.startswith("unknown words"))
    assert row.split()[-3:] == ["–", "0.00%", "–"]
    assert "distinct-1" not in out  # no number of n-grams is the same on both sides, but none
    assert "Distinct" not in out


def test_a_story_that_was_cut_off_has_not_ended_properly(evaluate, few, tokenizer, say):
    (full_stop,) = tokenizer.encode(".", bos=False)
    arguments = ["--stories", 2, "-d", f"say {full_stop}", "--decoder-file", say, "-n", 3, "--json"]
    found = json.loads(evaluate(*arguments, data=few)[1])["stories_report"]
    assert (found["cut_off"], found["model"]["median_tokens"], found["model"]["ended_properly"]) == (2, 3, 0)
    assert found["real"]["ended_properly"] == 1


def test_without_a_training_text_half_of_the_data_is_kept_as_the_reference(evaluate, few, say):
    arguments = ["--stories", 50, "-d", "say 0", "--decoder-file", say, "--json"]
    found = json.loads(evaluate(*arguments, data=few)[1])["stories_report"]
    assert [found["model"]["stories"], found["real"]["stories"], found["reference_stories"]] == [50, 6, 6]


def test_progress_is_shown_on_a_terminal_alone(evaluate, few, monkeypatch):
    arguments = ["--stories", 2, "-n", 4, "-s", 1, "--json"]
    silent = evaluate(*arguments, data=few)
    assert "writing" not in silent[2]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    shown = evaluate(*arguments, data=few)
    assert shown[:2] == silent[:2]
    assert "scoring" in shown[2]
    assert "writing" in shown[2]
    assert evaluate(*arguments, "-q", data=few) == (*silent[:2], "")
    monkeypatch.setenv("TERM", "dumb")
    assert evaluate(*arguments, data=few) == silent


def test_the_length_of_a_measured_story_is_not_the_one_for_writing(monkeypatch):
    monkeypatch.setenv("TINYSTORY_MAX_TOKENS", "5")
    assert parse_args(["generate"]).max_tokens == 5
    assert parse_args(["eval", "x"]).max_tokens == 1024
    assert parse_args(["eval", "x", "-n", "7"]).max_tokens == 7
