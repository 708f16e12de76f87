"""The pieces of a study, on values computed by hand."""

import math
import random

import numpy as np
import pytest

from tinystory.decoding.plugins import discover
from tinystory.errors import UsageError
from tinystory.evaluation import report
from tinystory.evaluation.bleu import self_bleu
from tinystory.evaluation.ngrams import rarefied
from tinystory.study import grid
from tinystory.study.bootstrap import Ratio, estimate, gap, jackknifed_distinct, plain, resamples
from tinystory.study.criterion import distances, rank, real_side
from tinystory.study.excerpts import real_groups
from tinystory.study.grid import decoders_of, read_grid, read_prompts
from tinystory.study.journal import Journal
from tinystory.study.measures import StoryGroup, comparable_ngrams, measured, profile_of, reference_of
from tinystory.study.page import _alike


def ratio(*groups):
    return Ratio(np.array(groups, float), np.ones((len(groups), len(groups[0]))))


# --- the page ---


def test_decoders_with_the_same_figures_get_a_line():
    rows = [("a", 1.0, 9.0), ("b", 2.0, 9.0), ("c | sample", 1.0, 8.0), ("d", 3.0, 9.0)]
    decoders = [
        {
            "spec": spec,
            "measures": {"words": {"value": value, "low": None, "high": None}},
            "tokens_per_cpu_second": speed,
        }
        for spec, value, speed in rows
    ]
    same = "`a` and `c | sample` have the same figures, because they wrote the same stories."
    assert _alike({"decoders": decoders}) == [same]
    assert _alike({"decoders": decoders[:2]}) == []


# --- prompts and grid ---


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "One day \n\n Tim had a\n", ("One day", "Tim had a")),
        ("a.txt", "One day\n\nTim\n<|endoftext|>\nThe owl \n<|endoftext|>\n", ("One day\n\nTim", "The owl")),
        ("a.yaml", '---\n- |-\n  One day\n\n  Tim saw a \n- "The\\u00eb owl"\n', ("One day\n\nTim saw a", "Theë owl")),
        ("a.yml", "- a\n- b\n- ' '\n", ("a", "b")),
    ],
)
def test_prompts_are_lines_texts_or_a_list(tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert read_prompts(path) == expected
    assert read_prompts(path, 2) == expected[:2]


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.txt", b"one\n", "has 1 prompts"),
        ("a.txt", b"one\n\xff\n", "not UTF-8"),
        ("a.yaml", b"a: b\n", "not a YAML list of texts"),
        ("a.yaml", b"- 1\n- b\n", "not a YAML list of texts"),
        ("a.yaml", b"- [\n", "is not YAML"),
        ("a.yaml", b"!!python/object/apply:os.system [ls]\n", "is not YAML"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused(tmp_path, name, raw, message):
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=message):
        read_prompts(path)
    with pytest.raises(UsageError, match="cannot read"):
        read_prompts(tmp_path / "none.txt")


def test_the_prompts_of_the_paper_are_read(shared_data):
    prompts = read_prompts(shared_data / "prompts" / "tinystories-evaluation-prompts.yaml")
    assert len(prompts) == 44
    assert prompts[4].endswith("Why don't we")


def test_a_grid_is_lines_without_comments(tmp_path):
    path = tmp_path / "grid.txt"
    path.write_text("# these two\n greedy\n\nsampling 0.8\nsample 0.8\n", encoding="utf-8")
    decoders, skipped = decoders_of(read_grid(path), discover())
    assert list(decoders) == ["greedy", "sample 0.8"]
    assert not skipped
    path.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no decoder spec"):
        read_grid(path)


def test_what_is_not_installed_is_left_out_only_where_that_is_asked_for():
    specs = ["greedy", "zigzag 3 | sample"]
    decoders, skipped = decoders_of(specs, discover(), skip_unknown=True)
    assert list(decoders) == ["greedy"]
    assert skipped == {specs[1]: "zigzag is not installed"}
    with pytest.raises(UsageError, match="zigzag"):
        decoders_of(specs, discover())
    with pytest.raises(UsageError, match="top-k 0"):
        decoders_of(["top-k 0 | sample"], discover(), skip_unknown=True)
    with pytest.raises(UsageError, match="no decoder is left"):
        decoders_of(specs[1:], discover(), skip_unknown=True)


def test_the_built_in_grid_has_no_mistake_in_what_is_installed():
    decoders, skipped = decoders_of(grid.BUILT_IN_GRID, discover(), skip_unknown=True)
    assert len(decoders) + len(skipped) == len(grid.BUILT_IN_GRID)
    assert "sample 0.8" in decoders


# --- self-BLEU ---


def test_self_bleu_of_texts_that_share_their_beginning():
    # Precisions 4/5, 3/4, 2/3, 1/2: their product is 1/5.
    assert self_bleu([list("abcde"), list("abcdf")]) == pytest.approx([0.2**0.25] * 2)


def test_self_bleu_clips_by_the_best_of_the_others_and_punishes_shortness():
    first, second, third = list("aaaa"), list("aabbcc"), list("ddddddddd")
    # "aaaa": the others have "a" twice, "a a" once, no longer one; its length 4 is nearest to 6.
    expected = (2 / 4 * 1 / 3 * 0.1 / 2 * 0.1 / 1) ** 0.25 * math.exp(1 - 6 / 4)
    # The third shares nothing, and is longer than its nearest.
    alone = (0.1 / 9 * 0.1 / 8 * 0.1 / 7 * 0.1 / 6) ** 0.25
    found = self_bleu([first, second, third])
    assert found[0] == pytest.approx(expected)
    assert found[2] == pytest.approx(alone)


def test_self_bleu_of_equal_and_of_short_texts():
    assert self_bleu([list("abcd"), list("abcd"), list("abc")]) == pytest.approx([1, 1, None])
    assert self_bleu([list("abcd")]) == [None]
    assert self_bleu([]) == []


# --- figures and intervals ---


def test_resamples_draw_as_many_prompts_and_are_the_same_each_time():
    weights = resamples(7, 50)
    assert weights.shape == (50, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert (weights == resamples(7, 50)).all()
    assert (weights != resamples(7, 50, seed=1)).any()


def test_a_ratio_is_of_sums_in_each_group_and_then_a_mean():
    measure = Ratio(np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[2.0, 2.0], [3.0, 1.0]]))
    assert plain(measure, 2).tolist() == [1 / 4, 3 / 4]
    assert measure.by_group(np.array([[2.0, 0.0]]))[:, 0].tolist() == [1 / 2, 1]
    found = estimate(measure, resamples(2))
    assert (found.value, found.low, found.high) == (0.5, 0, 0.75)


def test_the_interval_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(5).normal(10, 2, 400)
    found = estimate(Ratio(values[None], np.ones((1, 400))), resamples(400))
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_nothing_to_measure_is_none():
    found = estimate(Ratio(np.zeros((1, 3)), np.zeros((1, 3))), resamples(3, 20))
    assert (found.value, found.low, found.high) == (None, None, None)


def test_the_gap_of_profiles_by_hand():
    # Two prompts, two buckets: means 2 and 5 against 1 and 1, with three quarters of the weight on the first.
    sums, counts = np.array([[[4.0, 5.0], [4.0, 0.0]]]), np.array([[[2.0, 1.0], [2.0, 0.0]]])
    measure = gap(sums, counts, np.array([[1.0, 1.0]]), np.array([[0.75, 0.25]]))
    assert plain(measure, 2).tolist() == [0.75 * 1 + 0.25 * 4]
    # Without the first prompt the second bucket is empty, and does not count; without the second nothing changes much.
    assert measure.without.tolist() == [[1.0, 0.75 * 1 + 0.25 * 4]]


def test_the_interval_of_a_small_gap_is_about_the_gap():
    """Resampling the absolute differences themselves would give an interval above the figure."""
    luck = np.random.default_rng(1)
    sums = luck.normal(2, 1, (1, 40, 12))
    measure = gap(sums, np.ones_like(sums), np.full((1, 12), 2.0), np.full((1, 12), 1 / 12))
    found = estimate(measure, resamples(40))
    assert found.low < found.value < found.high
    assert found.value == pytest.approx(np.abs(sums.mean(axis=1) - 2).mean())


def texts(seed, n=6):
    luck = random.Random(seed)
    return [[luck.choice("abcdefg") for _ in range(luck.randint(8, 15))] for _ in range(n)]


def test_distinct_is_that_of_the_report_with_and_without_each_story():
    stories, m = texts(1), 20
    measure = jackknifed_distinct([stories], 2, m)
    assert plain(measure, 6)[0] == pytest.approx(report.distinct(stories, 2, m))
    # All weight on one story moves the figure by that story's pseudo-value.
    without = [report.distinct(stories[:i] + stories[i + 1 :], 2, m) for i in range(6)]
    pseudo = [6 * report.distinct(stories, 2, m) - 5 * one for one in without]
    moved = measure.by_group(np.array([[0, 0, 6.0, 0, 0, 0]]))[0, 0]
    assert moved == pytest.approx(report.distinct(stories, 2, m) + pseudo[2] - sum(pseudo) / 6)
    found = estimate(measure, resamples(6))
    assert found.low < found.value < found.high
    assert np.isnan(plain(jackknifed_distinct([stories], 2, 0), 6)[0])


def test_rarefied_counts_kinds():
    assert rarefied(np.array([2, 0, 2]), 2) == pytest.approx(5 / 3)
    assert rarefied(np.array([1, 1, 1]), 3) == 3


# --- measures ---

ONE = StoryGroup(
    (" a b c d a b c d e f.", " Once more a hal", ""),
    ([1.0] * 16 + [3.0] * 2, [2.0], []),
    (True, False, False),
)
OTHER = StoryGroup(
    (" a b c d e f g h i j.", " x y z w. ", " p q r s t?"), ([2.0] * 4, [1.0, 3.0], [4.0]), (True, False, True)
)


def test_every_measure_of_a_small_group():
    profile = profile_of([ONE], 20)
    assert profile.mean() == [pytest.approx(18 / 17), 3]
    reference = np.array([[1.0, 1.0]]), np.array([[0.5, 0.5]])
    found = measured([ONE], profile, reference, distinct_ngrams=0, vocabulary={"a", "b", "once"})
    figures = {name: plain(measure, 3)[0] for name, measure in found.items()}
    assert figures["bits_gap"] == pytest.approx(0.5 / 17 + 0.5 * 2)
    assert figures["bits_per_token"] == pytest.approx(24 / 19)
    assert figures["repeated_4grams"] == 1 / 8
    assert figures["ended_properly"] == 1 / 3
    assert figures["unknown_words"] == 7 / 13
    assert figures["words"] == 14 / 3
    assert np.isnan(figures["distinct_2"])
    assert "unknown_words" not in measured([ONE], profile, reference, distinct_ngrams=0, vocabulary=None)


def test_the_reference_is_all_real_groups_or_all_but_one():
    profile = profile_of([ONE, OTHER, OTHER], 20)
    means, shares = reference_of(profile)
    assert means.tolist() == [[pytest.approx((18 + 16 * 2) / (17 + 14)), 3]]
    assert shares.tolist() == [[pytest.approx(31 / 33), pytest.approx(2 / 33)]]
    means, _ = reference_of(profile, leave_one_out=True)
    assert means[0].tolist() == [pytest.approx(16 / 7), pytest.approx(np.nan, nan_ok=True)]
    assert means[1].tolist() == [pytest.approx((18 + 16) / (17 + 7)), 3]


def test_distinct_is_taken_over_what_all_but_the_nearly_silent_have():
    words = " ".join("abcdefghij")
    full = StoryGroup((words, words, words), ([], [], []), (True,) * 3)
    short = StoryGroup((words, "a b c d e", ""), ([], [], []), (True,) * 3)
    silent = StoryGroup(("a", "", ""), ([], [], []), (True,) * 3)
    assert comparable_ngrams([[full]], [full]) == 16
    assert comparable_ngrams([[short], [full]], [full]) == 16  # 3 are too few
    assert comparable_ngrams([[silent]], [short]) == 3
    reference = np.ones((1, 1)), np.ones((1, 1))
    figures = measured([silent], profile_of([silent], 1), reference, distinct_ngrams=3, vocabulary=None)
    assert np.isnan(plain(figures["distinct_2"], 3)[0])
    assert np.isnan(plain(figures["self_bleu"], 3)[0])


# --- the criterion ---


def test_distance_is_the_mean_of_doublings_in_spreads_of_real_stories():
    real = real_side(
        {
            "bits_gap": ratio([0.1, 0.1], [0.3, 0.3]),
            "ended_properly": ratio([1.0, 0.0], [0.5, 0.5]),  # no spread: both are a half
            "distinct_2": ratio([0.7, 0.7], [0.9, 0.9]),
            "words": ratio([9.0, 9.0], [1.0, 1.0]),
        },
        2,
    )
    assert list(real) == ["bits_gap", "distinct_2"]
    spread = math.sqrt(0.02)
    assert real["bits_gap"].mean == pytest.approx(0.2)
    assert real["distinct_2"].spread == pytest.approx(spread)
    near = {"bits_gap": ratio([0.05, 0.05]), "distinct_2": ratio([0.8 - 3 * spread] * 2)}
    weights = np.ones((1, 2))
    assert distances(near, real, weights) == pytest.approx([(0 + 2) / 2])  # a smaller gap is no distance
    far = near | {"bits_gap": ratio([0.2 + 7 * spread] * 2)}
    assert distances(far, real, weights) == pytest.approx([(3 + 2) / 2])
    missing = near | {"distinct_2": Ratio(np.zeros((1, 2)), np.zeros((1, 2)))}
    assert distances(missing, real, weights).tolist() == [np.inf]
    assert distances(near, {}, weights).tolist() == [np.inf]


def test_the_winner_and_who_is_tied_with_it():
    drawn = {"a": np.full(100, 1.0), "b": np.full(100, 2.0), "c": np.full(100, 2.0), "d": np.full(100, np.inf)}
    drawn["b"][:5] = 0.9
    drawn["c"][:4] = 0.9
    assert rank({"d": np.inf, "c": 2, "b": 2.1, "a": 1}, drawn) == (["a", "c", "b", "d"], ["b"])
    assert rank({"d": np.inf}, drawn) == (["d"], [])


# --- real stories ---


def test_real_stories_are_divided_after_as_many_words_as_the_prompt_has(tokenizer, stories):
    prompts = ("Tim had a big", "", "One")
    groups = real_groups(iter(["too short", *stories]), prompts, tokenizer, 25)
    assert len(groups) == 12
    first = groups[0]
    for excerpt, story, n_words in zip(first, stories, (4, 0, 1), strict=False):
        given = " ".join(story.split()[:n_words])
        assert tokenizer.detokenize(excerpt.prompt_ids) == given
        assert story.startswith(given + excerpt.text)
        assert len(excerpt.token_ids) == 25
        assert not excerpt.finished
    whole = real_groups(stories, prompts, tokenizer, 300)[0][0]
    assert whole.finished
    assert tokenizer.detokenize([*whole.prompt_ids, *whole.token_ids]) == stories[0]
    n_tokens = len(whole.token_ids)
    assert not real_groups(stories, prompts, tokenizer, n_tokens)[0][0].finished  # a decoder could not have ended it
    assert real_groups(stories, prompts, tokenizer, n_tokens + 1)[0][0].finished


def test_too_few_real_stories_are_an_error(tokenizer, stories):
    assert len(real_groups(stories[:11], ("One", "Two", "Three"), tokenizer, 9)) == 3
    with pytest.raises(UsageError, match="for 2 groups of 3; a study needs 3"):
        real_groups(stories[:8], ("One", "Two", "Three"), tokenizer, 9)


# --- the journal ---

SUBJECT = {"model_hash": "abc", "max_tokens": 20}


def test_a_journal_goes_on_after_any_loss_at_its_end(tmp_path):
    path = tmp_path / "journal.jsonl"
    records = [{"kind": "a", "text": "Zoë\n"}, {"kind": "b"}]
    with Journal(path, SUBJECT) as journal:
        for record in records:
            journal.add(record)
    whole = path.read_bytes()
    ends = [n for n in range(len(whole) + 1) if whole[:n].endswith(b"\n")]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with Journal(path, SUBJECT) as again:
            n_whole = max(0, sum(end <= length for end in ends) - 1)
            assert again.records == records[:n_whole]
            for record in records[n_whole:]:
                again.add(record)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("content", [b"My diary, without a newline", b"My diary\n"])
def test_a_file_of_somebody_else_is_no_journal_and_stays_as_it_is(tmp_path, content):
    """A file without a newline was once taken for a lost last line, and replaced."""
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is not the journal of a study: give another -o"):
        Journal(path, SUBJECT)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({}, "kind is missing"),
        ({"kind": "real", "group": 0, "bits": [7]}, r"bits\[0\]"),
        ({"kind": "stories", "spec": "sample", "seed": 1, "first": {}}, "first must be a whole number"),
        ({"kind": "coverage", "story": 0, "impossible": {"sample": [1]}}, "'sample' must have two counts"),
    ],
)
def test_a_record_without_its_fields_is_named_and_the_file_stays(tmp_path, record, words):
    path = tmp_path / "journal.jsonl"
    with Journal(path, SUBJECT) as journal:
        journal.add(record)
    content = path.read_bytes()
    with pytest.raises(UsageError, match=f"line 2 of .* is damaged .*{words}.*: delete this line"):
        Journal(path, SUBJECT)
    assert path.read_bytes() == content


def test_a_journal_of_another_subject_or_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, SUBJECT) as journal:
        journal.add({"kind": "a"})
    with pytest.raises(UsageError, match="has a study with model hash abc, not xyz: give another -o"):
        Journal(path, SUBJECT | {"model_hash": "xyz"})
    before = path.read_bytes()
    path.write_bytes(before.replace(b'{"kind"', b'{"ki\0d') + b'{"kind":"b"}\n')
    with pytest.raises(UsageError, match=r"line 2 of .* is damaged"):
        Journal(path, SUBJECT)


@pytest.mark.parametrize(
    ("story", "opening"),
    [
        ("Once upon a time, there was a cat. It slept.", "Once upon a time, there was a cat."),
        ('"Look!" said Tim. It was a kite.', '"Look!"'),
        ("One day a boy\nran home\nand then it rained", ""),
        (" ".join(f"w{i}" for i in range(40)), " ".join(f"w{i}" for i in range(16))),
        ("The end.", ""),
        ("", ""),
        ("Hi. ", ""),
    ],
)
def test_an_opening_is_the_first_sentence_or_the_first_words(story, opening):
    from tinystory.study.excerpts import openings

    assert openings(iter([story]), 1) == ((opening,) if opening else ())


def test_openings_are_used_up():
    from tinystory.study.excerpts import openings

    stories = iter(["A b. C d.", "none", "E f. G h.", "I j. K l."])
    assert openings(stories, 2) == ("A b.", "E f.")
    assert list(stories) == ["I j. K l."]
