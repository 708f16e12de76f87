r"""The spec grammar: text that users type becomes a decoder.

    spec   = stage { "|" stage }              processors, then a sampler, then a search; the last two may be left out
    stage  = name { [ option "=" ] value }    a value without a name belongs to the first option
    value  = item { "," item } | ","          a list has commas; a comma alone is the empty list
    item   = word | string                    a string in double quotes has the escapes of JSON

A word has no spaces and none of the characters | ; , = " \ . White space between these parts does not matter. If the
first option of a stage is pairs (`bias cat=2 "red ball"=-3`), each `key=value` is a pair, unless the key is the name of
another option. A key in quotes always makes a pair. The opposite direction, a decoder as text, is in `spec_text`.
"""

import dataclasses
import json
import re
import typing
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinystory.decoding.options import Option, options_of
from tinystory.decoding.registry import Registry
from tinystory.decoding.spec_text import (
    example_of,
    format_spec,
    format_stage,
    format_value,
    has_pairs,
    implies_sample,
    shown_spec,
    shown_stage,
)
from tinystory.decoding.stages import Decoder, LogitsProcessor, Sampler, Search, Stage
from tinystory.errors import UsageError, meant
from tinystory.safe.reading import shown

__all__ = [
    "change_stage", "example_decoder", "example_of", "format_spec", "format_stage", "format_value", "parse_spec",
    "shown_spec", "shown_stage", "spec_as_shown",
]  # fmt: skip

_TOKEN = re.compile(r'(?P<space>\s+)|(?P<sign>[|=,])|(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>[^\s|;,="\\]+)', re.DOTALL)
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def parse_spec(text: str, registry: Registry) -> Decoder:
    """Read a spec.

    Args:
        text: a spec such as `temperature 0.8 | top-k 40`.
        registry: the stages. If a sampler is needed and none is written, its `sample` is used.

    Raises:
        UsageError: the spec is wrong. The message says where, and what is right.
    """
    groups: list[list[_Token]] = [[]]
    for token in _tokens(text):
        if token.kind == "|":
            groups.append([])
        else:
            groups[-1].append(token)
    if groups == [[]]:
        raise UsageError("the decoder spec is empty; try `sample 0.8`")
    if [] in groups:
        raise UsageError(f"the decoder spec has an empty stage, before or after a `|`: {shown(text)}")
    decoder = _assemble([_parse_stage(group, registry) for group in groups])
    if implies_sample(decoder):
        sample = registry.get("sample")()
        if not isinstance(sample, Sampler):
            raise UsageError("the stage sample is not a sampler here: write a sampler at the end of the spec")
        decoder = dataclasses.replace(decoder, sampler=sample)
    return decoder


def spec_as_shown(text: str, registry: Registry) -> str:
    """Return a recorded spec as people see it; if a stage is not installed, as it was recorded."""
    try:
        return shown_spec(parse_spec(text, registry))
    except UsageError:
        return text


def example_decoder(cls: type[Stage], registry: Registry) -> Decoder:
    """Return a decoder with one stage, from the stage's `example` or with its defaults.

    Raises:
        UsageError: the example is wrong.
    """
    return parse_spec(example_of(cls), registry)


def change_stage(stage: Stage, text: str) -> Stage:
    """Return a copy of a stage with new values for some options. New pairs are added to the pairs that it has.

    Args:
        stage: the stage; it is not changed.
        text: the new values, as they are written after the stage's name in a spec.

    Raises:
        UsageError: the text is wrong, as for `parse_spec`.
    """
    cls = type(stage)
    given = _given(cls, list(_tokens(text)))
    for declared in options_of(cls):
        if has_pairs(declared) and given.get(declared.field):
            given[declared.field] = {**getattr(stage, declared.field), **given[declared.field]}
    return _make(cls, {declared.field: getattr(stage, declared.field) for declared in options_of(cls)} | given)


@dataclass(frozen=True, slots=True)
class _Token:
    """One part of a spec. `kind` is "item" or the sign itself; `text` is the item without quotes and escapes."""

    kind: str
    text: str
    quoted: bool = False


def _tokens(text: str) -> Iterator[_Token]:
    stray = _NO_TEXT.search(text)
    if stray:
        raise UsageError(f"character {stray.start() + 1} of the decoder spec is {shown(stray[0])}, which is not text")
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            rest = shown(text[position:])
            if text[position] == '"':
                raise UsageError(f"a double quote is not closed: {rest}")
            raise UsageError(f"`{text[position]}` must stand inside double quotes: {rest}")
        position = match.end()
        if match.lastgroup == "sign":
            yield _Token(match[0], match[0])
        elif match.lastgroup == "word":
            yield _Token("item", match[0])
        elif match.lastgroup == "string":
            yield _Token("item", _unquote(match[0]), quoted=True)


def _unquote(quoted: str) -> str:
    try:
        text: str = json.loads(quoted, strict=False)
        text.encode()  # refuses half of a surrogate pair
    except ValueError:
        raise UsageError(
            f'{shown(quoted)} has a wrong escape; inside double quotes write \\" for a quote and \\\\ for a backslash'
        ) from None
    return text


def _parse_stage(tokens: Sequence[_Token], registry: Registry) -> Stage:
    if tokens[0].kind != "item":
        raise UsageError(f"a stage begins with its name, not with `{tokens[0].text}`")
    cls = registry.get(tokens[0].text)
    if len(tokens) > 1 and tokens[1].kind == "=":
        raise UsageError(f"{cls.name} is a stage, not an option: leave the `=` out, as in `{example_of(cls)}`")
    given = _given(cls, tokens[1:])
    for declared in options_of(cls):
        if declared.required and declared.field not in given:
            raise UsageError(f"{cls.name} needs {declared.name}, {declared.range}; e.g. `{example_of(cls)}`")
    return _make(cls, given)


def _given(cls: type[Stage], tokens: Sequence[_Token]) -> dict[str, Any]:
    """Return the values that are written after a stage's name, by field."""
    options = options_of(cls)
    given: dict[str, Any] = {}
    for key, items in _settings(cls, deque(tokens)):
        declared = _option_for(cls, options, key)
        if has_pairs(declared) and items != ():
            _add_pair(cls, declared, given.setdefault(declared.field, {}), key, items)
        elif declared.field in given:
            hint = " (a list is written with commas: `a,b`)" if typing.get_origin(declared.type) else ""
            raise UsageError(f"{cls.name}: {declared.name} is given twice{hint}")
        else:
            given[declared.field] = {} if has_pairs(declared) else _read_value(cls, declared, items)
    return given


def _make(cls: type[Stage], fields: Mapping[str, Any]) -> Stage:
    try:
        return cls(**fields)
    except UsageError:
        raise
    except Exception as error:  # the stage checks its options itself, in __post_init__
        raise UsageError(f"{cls.name}: {' '.join(str(error).split())[:200]}") from error


def _settings(cls: type[Stage], tokens: deque[_Token]) -> Iterator[tuple[_Token | None, tuple[str, ...]]]:
    """Yield the parts after a stage's name as pairs (key or None, items)."""

    def item() -> str:
        if tokens and tokens[0].kind == "item":
            return tokens.popleft().text
        mistake = f"`{tokens[0].text}` stands" if tokens else "there is nothing"
        raise UsageError(f"{cls.name}: {mistake} where a value should be (commas in lists, spaces between options)")

    while tokens:
        key = None
        if len(tokens) > 1 and tokens[0].kind == "item" and tokens[1].kind == "=":
            key, _ = tokens.popleft(), tokens.popleft()
        if tokens and tokens[0].kind == ",":
            tokens.popleft()
            yield key, ()
            continue
        items = [item()]
        while tokens and tokens[0].kind == ",":
            tokens.popleft()
            items.append(item())
        yield key, tuple(items)


def _option_for(cls: type[Stage], options: Sequence[Option], key: _Token | None) -> Option:
    """Return the option that a key belongs to."""
    if not options:
        raise UsageError(f"{cls.name} takes no value: write just `{cls.name}`")
    pairs = options[0] if has_pairs(options[0]) else None  # the registry allows such an option only as the first
    if key is None:
        return options[0]
    if not (pairs and key.quoted):
        for declared in options:
            if declared.name == key.text.replace("_", "-") and declared is not pairs:
                return declared
    if pairs:
        return pairs
    names = [declared.name for declared in options]
    near = meant(key.text, names, "`{}`")
    hint = near.question or f"it has {', '.join(names)}"
    raise UsageError(f"{cls.name} has no option {shown(key.text)}: {hint}").correcting(key.text, near.name)


def _add_pair(
    cls: type[Stage], pairs: Option, mapping: dict[str, float], key: _Token | None, items: tuple[str, ...]
) -> None:
    if key is None:
        raise UsageError(f"{cls.name} needs {pairs.range}, not {shown(','.join(items))}; e.g. `{example_of(cls)}`")
    if key.text in mapping:
        raise UsageError(f"{cls.name}: {shown(key.text)} is given twice")
    if len(items) != 1 or not _NUMBER.fullmatch(items[0]) or pairs.problem({key.text: float(items[0])}):
        raise UsageError(
            f"{cls.name}: {shown(key.text)} needs a finite number, not {shown(','.join(items))}; "
            f"e.g. `{example_of(cls)}`"
        )
    mapping[key.text] = float(items[0])


def _read_value(cls: type[Stage], declared: Option, items: tuple[str, ...]) -> Any:
    try:
        if typing.get_origin(declared.type) is tuple:
            value: Any = tuple(_read_item(typing.get_args(declared.type)[0], item) for item in items)
        else:
            (item,) = items
            value = _read_item(declared.type, item)
        if not declared.problem(value):
            return value
    except (KeyError, ValueError):
        pass
    given = shown(",".join(items)) if items else "an empty list"
    advice = declared.advice(float(items[0])) if len(items) == 1 and _NUMBER.fullmatch(items[0]) else ""
    raise UsageError(
        f"{cls.name}: {declared.name} must be {declared.range}, not {given}; e.g. `{example_of(cls, declared)}`"
        + (f", or {advice}" if advice else "")
    )


def _read_item(kind: type, text: str) -> int | float | bool | str:
    """Return one value. Raise ValueError or KeyError if the text is not of this type."""
    if kind is bool:
        return {"yes": True, "no": False}[text]
    if kind is str:
        return text
    if not (_INTEGER if kind is int else _NUMBER).fullmatch(text):
        raise ValueError(text)
    return int(text) if kind is int else float(text)


def _assemble(stages: Sequence[Stage]) -> Decoder:
    """Return a decoder of these stages. Raise UsageError if their order is wrong."""
    processors: list[LogitsProcessor] = []
    sampler: Sampler | None = None
    search: Search | None = None
    for stage in stages:
        if isinstance(stage, Search):
            if search:
                raise UsageError(f"{search.name} and {stage.name} are both searches: keep one")
            if sampler and not stage.takes_sampler:
                raise UsageError(f"{stage.name} picks the tokens itself: leave the sampler {sampler.name} out")
            search = stage
        elif isinstance(stage, Sampler):
            if sampler:
                raise UsageError(f"{sampler.name} and {stage.name} are both samplers: keep one")
            if search and not search.takes_sampler:
                raise UsageError(f"{search.name} picks the tokens itself: leave the sampler {stage.name} out")
            if search:
                raise UsageError(f"a search comes last: write {stage.name} before {search.name}")
            sampler = stage
        elif isinstance(stage, LogitsProcessor):
            last = search or sampler
            if last:
                raise UsageError(f"processors come before the {last.kind}: write {stage.name} before {last.name}")
            processors.append(stage)
    return Decoder(tuple(processors), sampler, search)
