"""The spec grammar: specs read back as the same decoder, and every mistake gives one short line."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinystory.decoding import Decoder, LogitsProcessor, Search, option
from tinystory.decoding.plugins import Registry, discover
from tinystory.decoding.spec import format_spec, parse_spec, shown_spec, spec_as_shown
from tinystory.errors import UsageError
from tinystory_decoders.greedy import Greedy
from tinystory_decoders.min_p import MinP
from tinystory_decoders.sample import Sample
from tinystory_decoders.temperature import Temperature
from tinystory_decoders.top_k import TopK
from tinystory_decoders.top_p import TopP


class Identity(LogitsProcessor):
    def __call__(self, logits, step):
        return logits


@dataclass(frozen=True)
class Knobs(Identity):
    name = "knobs"
    text: str = option("a b", help="any text")
    count: int = option(3, ge=-5, le=10**40, help="a whole number")
    share: float = option(0.5, help="a number")
    loud: bool = option(False, help="on or off")
    n_best: int = option(1, ge=1, help="has a hyphen")


@dataclass(frozen=True)
class Lists(Identity):
    name = "lists"
    words: tuple[str, ...] = option(help="some words")
    numbers: tuple[float, ...] = option((1.0, 2.5), ge=-100, help="some numbers")
    ids: tuple[int, ...] = option((), help="some ids")


@dataclass(frozen=True)
class Bias(Identity):
    name = "bias"
    words: Mapping[str, float] = option(help="added to each word")
    any_case: bool = option(True, help="whether case matters not")


@dataclass(frozen=True)
class Mode(Identity):
    name = "mode"
    low: float = option(help="lower")
    high: float = option(gt=2, le=3, help="upper")
    style: str = option("calm", choices=("calm", "wild"), help="how")

    def __post_init__(self):
        super().__post_init__()
        if self.low > self.high:
            raise ValueError("low is above high")


class Loop(Search):
    def search(self, session, request, chain):
        yield from ()


@dataclass(frozen=True)
class Beam(Loop):
    name = "beam"
    width: int = option(4, ge=1, help="rows")


@dataclass(frozen=True)
class BestOf(Loop):
    name = "best-of"
    takes_sampler = True
    n: int = option(4, ge=1, help="rows")


REGISTRY = Registry()
for _cls in (Knobs, Lists, Bias, Mode, Beam, BestOf, Greedy, MinP, Sample, Temperature, TopK, TopP):
    REGISTRY.add(_cls, f"test {_cls.__name__}")

numbers = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["words", "any-case", "any_case", "a=b", ","]
)
processors = st.one_of(
    st.builds(TopK, st.integers(1, 10**6)),
    st.builds(TopP, st.floats(0, 1, exclude_min=True)),
    st.builds(MinP, st.floats(0, 1)),
    st.builds(Temperature, st.floats(0, exclude_min=True, allow_infinity=False)),
    st.builds(Knobs, words, st.integers(-5, 10**40), numbers, st.booleans(), st.integers(1)),
    st.builds(
        Lists,
        st.lists(words).map(tuple),
        st.lists(st.floats(-100, 1e300)).map(tuple),
        st.lists(st.integers()).map(tuple),
    ),
    st.builds(Bias, st.dictionaries(words, numbers), st.booleans()),
    st.builds(Mode, st.floats(-9, 2), st.floats(2, 3, exclude_min=True), st.sampled_from(["calm", "wild"])),
)
samplers = st.one_of(st.builds(Greedy), st.builds(Sample, st.floats(0, exclude_min=True, allow_infinity=False)))
endings = st.one_of(
    st.tuples(samplers, st.none() | st.builds(BestOf, st.integers(1, 99))),
    st.tuples(st.none(), st.builds(Beam, st.integers(1, 99))),
)
decoders = st.builds(
    lambda processors, ending: Decoder(tuple(processors), *ending), st.lists(processors, max_size=3), endings
)


@given(decoders)
@settings(deadline=None, max_examples=300)
@example(Decoder((Bias({"any_case": -1.5, "words": 2.0, "": -0.0, "red ball": 1e300}),), Greedy()))
@example(Decoder((Lists(("",), (), (0,)), Lists((), (1.0,))), Sample()))
def test_a_spec_reads_back_as_the_same_decoder(decoder):
    text = format_spec(decoder)
    assert text.isprintable()
    again = parse_spec(text, REGISTRY)
    assert again == decoder
    assert format_spec(again) == text
    assert parse_spec(shown_spec(decoder), REGISTRY) == decoder


@given(decoders, st.data())
@settings(deadline=None, max_examples=100)
def test_white_space_between_the_parts_does_not_matter(decoder, data):
    text = format_spec(decoder)
    outside, quoted, escaped = [], False, False
    for character in text:
        if not quoted and character in "|=,":
            outside.append(data.draw(st.sampled_from(["", " ", "\n\t"])) + character + " ")
        else:
            outside.append(character)
        quoted ^= character == '"' and not escaped
        escaped = character == "\\" and not escaped
    assert parse_spec("".join(outside), REGISTRY) == decoder


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("sample", "sample"),
        ("sample 1.0", "sample"),
        ("sample 0.80", "sample 0.8"),
        ("top-k 40", "top-k 40 | sample"),
        ("top-k k=40|greedy", "top-k 40 | greedy"),
        ("temperature 1 | top-p 1", "temperature 1 | top-p 1 | sample"),
        ("min-p 1e-1", "min-p | sample"),
        ("top-k 3 | top-k 2", "top-k 3 | top-k 2 | sample"),
        ("top-k 3 | beam", "top-k 3 | beam"),
        ("top-k 3 | beam 5", "top-k 3 | beam 5"),
        ("best-of", "sample | best-of"),
        ("greedy | best-of n=2", "greedy | best-of 2"),
        ("knobs count=4 n_best=2 loud=yes", "knobs count=4 loud=yes n-best=2 | sample"),
        ('knobs x n-best=2 "count"=4', "knobs x count=4 n-best=2 | sample"),
        ('knobs ""', 'knobs "" | sample'),
        ('knobs "\\u0041\\n|"', 'knobs "A\\n|" | sample'),
        ("lists red, blue ids = +1, -2", "lists red,blue ids=1,-2 | sample"),
        ('lists "a,b",c numbers=,', 'lists "a,b",c numbers=, | sample'),
        ('bias cat=+2.0 "red ball"=-3 any-case=no', 'bias cat=2 "red ball"=-3 any-case=no | sample'),
        ('bias "any-case"=1 words=2', 'bias "any-case"=1 words=2 | sample'),
        ("bias b=1 a=2", "bias a=2 b=1 | sample"),
        ("bias ,", "bias , | sample"),
        ("mode high=2.5 1.50", "mode 1.5 high=2.5 | sample"),
    ],
)
def test_canonical_form(text, canonical):
    assert format_spec(parse_spec(text, REGISTRY)) == canonical


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("min-p 0.1", "min-p 0.1 | sample 1"),
        ("min-p | sample", "min-p 0.1 | sample 1"),
        ("top-k 3 | beam", "top-k 3 | beam 4"),
        ("knobs loud=yes | greedy", 'knobs "a b" loud=yes | greedy'),
    ],
)
def test_people_see_the_number_that_they_typed(typed, shown):
    """`min-p 0.1` was shown as `min-p`, because 0.1 is the default."""
    assert shown_spec(parse_spec(typed, REGISTRY)) == shown
    assert spec_as_shown(format_spec(parse_spec(typed, REGISTRY)), REGISTRY) == shown
    assert spec_as_shown("not-installed 3", REGISTRY) == "not-installed 3"


def test_an_alias_is_written_as_the_real_name():
    registry = discover(user_folder=None)
    assert format_spec(parse_spec("sampling 0.7", registry)) == "sample 0.7"


def test_a_sampler_is_implied_only_where_one_is_taken():
    assert parse_spec("top-k 3", REGISTRY).sampler == Sample()
    assert parse_spec("best-of", REGISTRY).sampler == Sample()
    assert parse_spec("beam", REGISTRY).sampler is None
    assert format_spec(Decoder((TopK(3),))) == "top-k 3 | sample"
    assert format_spec(Decoder((TopK(3),), None, BestOf())) == "top-k 3 | sample | best-of"
    assert format_spec(Decoder((TopK(3),), None, Beam())) == "top-k 3 | beam"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the decoder spec is empty; try `sample 0.8`"),
        (" \n", "the decoder spec is empty; try `sample 0.8`"),
        ("top-k 40 |", "empty stage"),
        ("| top-k 40", "empty stage"),
        ("top-k 40 || greedy", "empty stage"),
        ("topk 40", "no decoder stage is called 'topk': did you mean `top-k`?"),
        ("TopK 40", "did you mean `top-k`?"),
        ("top_k 40", "did you mean `top-k`?"),
        ("tempreature 1", "did you mean `temperature`?"),
        ("zzzzz", "/decoders and `tinystory decoders` list them"),
        ("= 3", "a stage begins with its name, not with `=`"),
        ("top-k=40", "top-k is a stage, not an option: leave the `=` out, as in `top-k 40`"),
        ("top-k", "top-k needs k, an integer ≥ 1; e.g. `top-k 40`"),
        ("top-k 0", "top-k: k must be an integer ≥ 1, not '0'; e.g. `top-k 40`"),
        ("top-k 4.0", "top-k: k must be an integer ≥ 1, not '4.0'; e.g. `top-k 40`"),
        ("top-k ٣", "top-k: k must be an integer ≥ 1"),
        ("top-k 1_0", "top-k: k must be an integer ≥ 1"),
        ("top-k 1,2", "top-k: k must be an integer ≥ 1, not '1,2'"),
        ("top-k ,", "not an empty list"),
        ("top-k 40 50", "top-k: k is given twice"),
        ("top-k 40 k=40", "top-k: k is given twice"),
        ("top-k 40 kk=2", "top-k has no option 'kk': did you mean `k`?"),
        ("top-k 40 zebra=2", "top-k has no option 'zebra': it has k"),
        ("knobs nbest=2", "knobs has no option 'nbest': did you mean `n-best`?"),
        ("greedy 3", "greedy takes no value: write just `greedy`"),
        ("sample 0,8", "sample: temperature must be a number > 0, not '0,8'; e.g. `sample 0.8`"),
        ("sample nan", "sample: temperature must be a number > 0"),
        ("sample inf", "sample: temperature must be a number > 0"),
        ("sample 1e999", "sample: temperature must be a number > 0"),
        ("top-p 1.5", "top-p: p must be a number > 0 and ≤ 1, not '1.5'; e.g. `top-p 0.9`"),
        ("knobs loud=true", "knobs: loud must be yes or no, not 'true'; e.g. `knobs \"a b\" loud=no`"),
        ("knobs count=", "knobs: there is nothing where a value should be"),
        ("knobs count==3", "knobs: `=` stands where a value should be"),
        ("lists a,", "lists: there is nothing where a value should be"),
        ("lists a, b=3", "lists: `=` stands where a value should be"),
        ("lists a b", "lists: words is given twice (a list is written with commas: `a,b`)"),
        ("lists a numbers=1,-200", "lists: numbers must be a list separated by commas ≥ -100, not '1,-200'"),
        ("lists", "lists needs words, a list separated by commas; e.g. `lists cat`"),
        ("bias", "bias needs words, pairs word=number; e.g. `bias cat=2`"),
        ("bias cat", "bias needs pairs word=number, not 'cat'; e.g. `bias cat=2`"),
        ("bias cat=x", "bias: 'cat' needs a finite number, not 'x'; e.g. `bias cat=2`"),
        ("bias cat=1 cat=2", "bias: 'cat' is given twice"),
        ("mode 1", "mode needs high, a number > 2 and ≤ 3; e.g. `mode 1 high=3`"),
        ("mode 1 high=2.5 style=mad", "mode: style must be calm or wild, not 'mad'; e.g. `mode 1 high=3 style=calm`"),
        ("mode 2.7 high=2.5", "mode: low is above high"),
        ("greedy | sample", "greedy and sample are both samplers: keep one"),
        ("beam | best-of", "beam and best-of are both searches: keep one"),
        ("greedy | beam", "beam picks the tokens itself: leave the sampler greedy out"),
        ("beam | greedy", "beam picks the tokens itself: leave the sampler greedy out"),
        ("best-of | greedy", "a search comes last: write greedy before best-of"),
        ("greedy | top-k 3", "processors come before the sampler: write top-k before greedy"),
        ("beam | top-k 3", "processors come before the search: write top-k before beam"),
        ('knobs "red', "a double quote is not closed: '\"red'"),
        ("top-k 3; greedy", "`;` must stand inside double quotes: '; greedy'"),
        ("knobs a\\b", "`\\` must stand inside double quotes"),
        ('knobs "\\q"', "has a wrong escape"),
        ('knobs "\\ud800"', "has a wrong escape"),
        ("top-k\0 3", "character 6 of the decoder spec is '\\x00', which is not text"),
        ("knobs \x1b[2J", "character 7 of the decoder spec is '\\x1b', which is not text"),
        ("knobs \udcff", "character 7 of the decoder spec is '\\udcff', which is not text"),
    ],
)
def test_what_is_wrong_is_said(text, message):
    with pytest.raises(UsageError) as caught:
        parse_spec(text, REGISTRY)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_first_option_that_fails_shows_its_default():
    with pytest.raises(UsageError, match=r"e\.g\. `beam 4`$"):
        parse_spec("beam 0", REGISTRY)


fragments = st.sampled_from(
    [*'|=,;"\\ \n\0é', "top-k", "bias", "lists", "mode", "sample", "beam", "best-of", "1", "0.5", "k", "cat", '"a b"']
)


@given(st.text(max_size=40) | st.lists(fragments, max_size=12).map(" ".join) | st.lists(fragments).map("".join))
@settings(deadline=None, max_examples=500)
def test_any_input_parses_or_gives_a_short_clean_error(text):
    message, decoder = "", None
    try:
        decoder = parse_spec(text, REGISTRY)
    except UsageError as error:
        message = str(error)
    assert message.isprintable()
    assert len(message) < 400
    if decoder:
        assert parse_spec(format_spec(decoder), REGISTRY) == decoder


@pytest.mark.parametrize(
    "text",
    ["x" * 100_000, "top-k " + "9" * 100_000, '"' + "\\" * 99_999, "knobs " + "k=" * 50_000, "|" * 100_000,
     "\x1b" * 100_000, "lists " + "a," * 50_000, "bias " + "a=" * 50_000, "top-k " + "x " * 50_000,
     "mode style=" + "w" * 100_000, "greedy | " * 10_000, "top-k 1 " + "z" * 100_000 + "=1"],
    ids=lambda text: text[:8].encode("unicode_escape").decode(),
)  # fmt: skip
def test_a_huge_input_gives_a_short_clean_error(text):
    with pytest.raises(UsageError) as caught:
        parse_spec(text, REGISTRY)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_huge_list_is_read():
    words = tuple(f"word{n}" for n in range(20_000))
    assert parse_spec(format_spec(Decoder((Lists(words),), Greedy())), REGISTRY).processors == (Lists(words),)
