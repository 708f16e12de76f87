r"""The spec grammar: what users type, what is printed and what is stored, to decoder objects and back.

    spec   = stage { "|" stage }              processors, then a sampler, then a search; the last two may be left out
    stage  = name { [ option "=" ] value }    a value without a name is the first option's
    value  = item { "," item } | ","          a list has commas; a comma alone is the empty list
    item   = word | string                    a string in double quotes has JSON's escapes

A word is free of spaces and of | ; , = " \ . White space between these parts does not matter. A stage with an option
of pairs (`bias cat=2 "red ball"=-3`) takes every `key=value` whose key is no other option's name as a pair, and
whatever has a quoted key.
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
from tinystory.decoding.plugins import Registry
from tinystory.decoding.stages import Decoder, LogitsProcessor, Sampler, Search, Stage
from tinystory.errors import UsageError, nearest
from tinystory.safe.reading import shown

__all__ = ["change_stage", "example_decoder", "example_of", "format_spec", "format_stage", "format_value", "parse_spec"]

_TOKEN = re.compile(r'(?P<space>\s+)|(?P<sign>[|=,])|(?P<string>"(?:[^"\\]|\\.)*")|(?P<word>[^\s|;,="\\]+)', re.DOTALL)
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_PLAIN = re.compile(r'[^\s|;,="\\]+')
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def parse_spec(text: str, registry: Registry) -> Decoder:
    """Read a spec.

    Args:
        text: such as `temperature 0.8 | top-k 40`.
        registry: of the stages; `sample` is taken from it where no sampler is written and one is needed.

    Raises:
        UsageError: the spec is wrong; the message says where, and what would be right.
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
    if _implies_sample(decoder):
        sample = registry.get("sample")()
        if not isinstance(sample, Sampler):
            raise UsageError("the stage sample is not a sampler here: write a sampler at the end of the spec")
        decoder = dataclasses.replace(decoder, sampler=sample)
    return decoder


def format_spec(decoder: Decoder) -> str:
    """Write a decoder as its canonical spec: full names, the implied `sample` written, defaults left out.

    Equal decoders give equal text, and `parse_spec` reads it back as an equal decoder.
    """
    stages = [format_stage(stage) for stage in decoder.stages]
    if _implies_sample(decoder):
        stages.insert(len(decoder.processors), "sample")
    return " | ".join(stages)


def example_decoder(cls: type[Stage], registry: Registry) -> Decoder:
    """A decoder with a stage in it, as the stage's `example` has it or with the defaults.

    Raises:
        UsageError: the example is wrong.
    """
    return parse_spec(example_of(cls), registry)


def change_stage(stage: Stage, text: str) -> Stage:
    """A stage with some of its options set anew; pairs are added to those that it has.

    Args:
        stage: as it is.
        text: what would stand after its name in a spec.

    Raises:
        UsageError: the text is wrong, as for `parse_spec`.
    """
    cls = type(stage)
    given = _given(cls, list(_tokens(text)))
    for declared in options_of(cls):
        if _has_pairs(declared) and given.get(declared.field):
            given[declared.field] = {**getattr(stage, declared.field), **given[declared.field]}
    return _made(cls, {declared.field: getattr(stage, declared.field) for declared in options_of(cls)} | given)


def _implies_sample(decoder: Decoder) -> bool:
    return decoder.sampler is None and (decoder.search is None or decoder.search.takes_sampler)


@dataclass(frozen=True, slots=True)
class _Token:
    """`kind` is "item" or the sign itself; `text` is an item's meaning, with quotes and escapes undone."""

    kind: str
    text: str
    quoted: bool = False


def _tokens(text: str) -> Iterator[_Token]:
    stray = _NO_TEXT.search(text)
    if stray:
        raise UsageError(f"the decoder spec has {shown(stray[0])} as character {stray.start() + 1}, which is no text")
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
    return _made(cls, given)


def _given(cls: type[Stage], tokens: Sequence[_Token]) -> dict[str, Any]:
    """The values that are written after a stage's name, by field."""
    options = options_of(cls)
    given: dict[str, Any] = {}
    for key, items in _settings(cls, deque(tokens)):
        declared = _option_meant(cls, options, key)
        if _has_pairs(declared) and items != ():
            _add_pair(cls, declared, given.setdefault(declared.field, {}), key, items)
        elif declared.field in given:
            hint = " (a list is written with commas: `a,b`)" if typing.get_origin(declared.type) else ""
            raise UsageError(f"{cls.name}: {declared.name} is given twice{hint}")
        else:
            given[declared.field] = {} if _has_pairs(declared) else _read_value(cls, declared, items)
    return given


def _made(cls: type[Stage], fields: Mapping[str, Any]) -> Stage:
    try:
        return cls(**fields)
    except UsageError:
        raise
    except Exception as error:  # a check of the stage's own, in its __post_init__
        raise UsageError(f"{cls.name}: {' '.join(str(error).split())[:200]}") from error


def _settings(cls: type[Stage], tokens: deque[_Token]) -> Iterator[tuple[_Token | None, tuple[str, ...]]]:
    """Group what stands after a stage's name into (key or None, items)."""

    def item() -> str:
        if tokens and tokens[0].kind == "item":
            return tokens.popleft().text
        found = f"`{tokens[0].text}` stands" if tokens else "nothing stands"
        raise UsageError(f"{cls.name}: {found} where a value should be (commas in lists, spaces between options)")

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


def _option_meant(cls: type[Stage], options: Sequence[Option], key: _Token | None) -> Option:
    """The option that a setting is for."""
    if not options:
        raise UsageError(f"{cls.name} takes no value: write just `{cls.name}`")
    pairs = options[0] if _has_pairs(options[0]) else None  # the registry takes such an option only as the first
    if key is None:
        return options[0]
    if not (pairs and key.quoted):
        for declared in options:
            if declared.name == key.text.replace("_", "-") and declared is not pairs:
                return declared
    if pairs:
        return pairs
    names = [declared.name for declared in options]
    near = nearest(key.text, names)
    hint = f"did you mean `{near}`?" if near else f"it has {', '.join(names)}"
    raise UsageError(f"{cls.name} has no option {shown(key.text)}: {hint}")


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
    found = shown(",".join(items)) if items else "an empty list"
    raise UsageError(
        f"{cls.name}: {declared.name} must be {declared.range}, not {found}; e.g. `{example_of(cls, declared)}`"
    )


def _read_item(kind: type, text: str) -> int | float | bool | str:
    """One value; ValueError or KeyError when it is of another type."""
    if kind is bool:
        return {"yes": True, "no": False}[text]
    if kind is str:
        return text
    if not (_INTEGER if kind is int else _NUMBER).fullmatch(text):
        raise ValueError(text)
    return int(text) if kind is int else float(text)


def _assemble(stages: Sequence[Stage]) -> Decoder:
    """Put the stages into their roles; their order is checked here."""
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


def format_stage(stage: Stage) -> str:
    """Write one stage as it stands in a canonical spec."""
    parts = [stage.name]
    options = options_of(type(stage))
    for declared in options:
        value = getattr(stage, declared.field)
        if not declared.required and value == declared.default:
            continue
        if isinstance(value, Mapping):
            names = {other.name for other in options[1:]}
            for key in sorted(value):
                quoted = key.replace("_", "-") in names
                parts.append(f"{_quote(key) if quoted else _format_item(key)}={_format_item(value[key])}")
            if not value:
                parts.append(",")
        else:
            text = format_value(value)
            parts.append(text if declared is options[0] else f"{declared.name}={text}")
    return " ".join(parts)


def format_value(value: Any) -> str:
    """Write an option's value as it stands in a spec: a number, a text, yes or no, a list, or pairs."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_format_item(number)}" for key, number in value.items()) or ","
    return ",".join(map(_format_item, value)) or "," if isinstance(value, tuple) else _format_item(value)


def _format_item(value: str | bool | int | float) -> str:
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value.isprintable() else _quote(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    return repr(float(value) + 0.0).removesuffix(".0")  # + 0.0 makes −0.0, which equals 0, print as 0


def _quote(text: str) -> str:
    """In double quotes; what does not show on a terminal is escaped as well."""
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else json.dumps(c)[1:-1] for c in text) + '"'


def _has_pairs(declared: Option) -> bool:
    return typing.get_origin(declared.type) is Mapping


def example_of(cls: type[Stage], declared: Option | None = None) -> str:
    """How the stage may be written, with a value for one option where that is wanted."""
    options = options_of(cls)
    text = cls.example
    if not text:
        values = [(o.name, _example_value(o)) for o in options if o.required or o is options[0]]
        text = " ".join(
            [cls.name, *(value if name == options[0].name else f"{name}={value}" for name, value in values)]
        )
    if declared and declared is not options[0] and f" {declared.name}=" not in text:
        text += f" {declared.name}={_example_value(declared)}"
    return text


def _example_value(declared: Option) -> str:
    if not declared.required:
        return format_value(declared.default)
    kinds = typing.get_args(declared.type) or (declared.type,)
    if _has_pairs(declared):
        return "cat=2"
    if kinds[0] is bool:
        return "yes"
    if kinds[0] is str:
        return _format_item((*declared.choices, "cat")[0])
    bounds = [bound for bound in (declared.ge, declared.gt, declared.le, declared.lt) if bound is not None]
    inside = [sum(bounds) / len(bounds), bounds[0] + 1, bounds[0] - 1] if bounds else []
    fitting = (x for x in (1, 0.5, 2, *bounds, *inside) if not dataclasses.replace(declared, type=kinds[0]).problem(x))
    return _format_item(next(fitting, 1))
