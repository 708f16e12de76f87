"""Options: one declaration gives the check of the range, its text, and the neutral value."""

import dataclasses
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinystory.decoding import Decoder, LogitsProcessor, option
from tinystory.decoding.options import is_neutral, options_of, summary
from tinystory.docstrings import docstring
from tinystory.errors import UsageError


@dataclass(frozen=True)
class Everything(LogitsProcessor):
    name = "everything"
    a_number: float = option(0.5, ge=0, lt=1, neutral=0, help="a share")
    count: int = option(3, gt=0, le=9, neutral=1, help="a whole number")
    loud: bool = option(False, help="on or off")
    style: str = option("calm", choices=("calm", "wild"), help="how")
    words: tuple[str, ...] = option((), help="words")
    weights: tuple[float, ...] = option((), ge=0, help="weights")
    ids: tuple[int, ...] = option((), le=5, help="ids")


@dataclass(frozen=True)
class Pairs(LogitsProcessor):
    name = "pairs"
    words: Mapping[str, float] = option(help="words", le=10)


@dataclass(frozen=True)
class More(Everything):
    name = "more"
    extra: int = option(1, help="one more")


def test_options_come_in_the_order_written_with_hyphens():
    names = ["a-number", "count", "loud", "style", "words", "weights", "ids"]
    assert [o.name for o in options_of(Everything)] == names
    assert [o.name for o in options_of(More)] == [*names, "extra"]
    assert [o.name for o in options_of(Everything)] == names  # the subclass has a list of its own
    assert options_of(Everything)[0].field == "a_number"
    assert options_of(Everything)[1].type is int


def test_required_and_neutral():
    (words,) = options_of(Pairs)
    assert words.required
    assert words.neutral is dataclasses.MISSING
    assert not options_of(Everything)[0].required
    assert not is_neutral(Pairs({}))
    assert not is_neutral(Everything(a_number=0.0))
    assert is_neutral(Everything(a_number=0.0, count=1, loud=True))
    assert Decoder((Everything(0.0, 1), Everything())).chain.processors == (Everything(),)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (0, "a number ≥ 0 and < 1"),
        (1, "an integer > 0 and ≤ 9"),
        (2, "yes or no"),
        (3, "calm or wild"),
        (4, "a list separated by commas"),
        (5, "a list separated by commas ≥ 0"),
    ],
)
def test_the_range_in_words(index, words):
    assert options_of(Everything)[index].range == words
    assert options_of(Pairs)[0].range == "pairs word=number"


@pytest.mark.parametrize(
    "good",
    [{"a_number": 0}, {"a_number": 0.999}, {"count": 9}, {"loud": True}, {"style": "wild"}, {"words": ("a", "")},
     {"weights": (0, 1.5)}, {"ids": (-7, 5)}],
)  # fmt: skip
def test_good_values(good):
    assert Everything(**good)


@pytest.mark.parametrize(
    "bad",
    [{"a_number": 1}, {"a_number": -1e-9}, {"a_number": float("nan")}, {"a_number": True}, {"a_number": "0.5"},
     {"a_number": None}, {"count": 0}, {"count": 10}, {"count": 2.0}, {"count": True}, {"count": 10**400},
     {"loud": 1}, {"loud": "yes"}, {"style": "mad"}, {"style": ("calm",)}, {"words": "abc"}, {"words": ["a"]},
     {"words": (1,)}, {"weights": (1, -1)}, {"weights": 3.0}, {"weights": (float("inf"),)}, {"ids": (1.0,)},
     {"ids": (6,)}],
)  # fmt: skip
def test_bad_values_name_the_stage_the_option_and_the_range(bad):
    with pytest.raises(UsageError) as caught:
        Everything(**bad)
    (field,) = bad
    declared = next(o for o in options_of(Everything) if o.field == field)
    assert str(caught.value).startswith(f"everything: {declared.name} must be {declared.range}, not ")
    assert str(caught.value).endswith(f"({declared.help})")


@pytest.mark.parametrize("bad", [{"a": 11}, {"a": "x"}, {"a": float("nan")}, (), "abc", [("a", 1)]])
def test_bad_pairs(bad):
    with pytest.raises(UsageError, match="pairs: words must be pairs word=number, not "):
        Pairs(bad)
    assert Pairs({"a": 1, "b": -2.5})


@given(st.one_of(st.text(min_size=200), st.just("\x1b[2J\n"), st.binary(), st.lists(st.integers(), min_size=99)))
def test_any_value_is_shown_short_and_clean(value):
    with pytest.raises(UsageError) as caught:
        Everything(style=value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_descriptions_are_there_where_python_forgets_docstrings(tmp_path, monkeypatch):
    """Under `python -OO`, a dataclass would be described by the call that makes it."""
    path = tmp_path / "forgetful.py"
    path.write_text('import dataclasses\n\n@dataclasses.dataclass\nclass Mine:\n    """Add\n    nothing."""\n')
    module = types.ModuleType("forgetful")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "forgetful", module)
    exec(compile(path.read_text(), str(path), "exec", optimize=2), vars(module))
    assert "Add" not in docstring(module.Mine)
    monkeypatch.setattr("tinystory.docstrings._FORGOTTEN", True)
    assert docstring(module.Mine) == "Add\nnothing."
    assert summary(module.Mine) == "Add nothing."
    assert docstring(int) == docstring(type("New", (), {})) == ""
