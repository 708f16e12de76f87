"""Decoders, stages and values written as text: canonical specs, and examples for error messages. It reads no spec."""

import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from typing import Any

from tinystory.decoding.options import Option, options_of
from tinystory.decoding.stages import Decoder, Stage

__all__ = [
    "TEMPERATURE", "example_of", "format_spec", "format_stage", "format_value", "has_pairs", "implies_sample",
    "shown_spec", "shown_stage", "stage_names", "temperature_notes", "temperatures",
]  # fmt: skip

TEMPERATURE = "temperature"
"""The name of the stage, and of the option of samplers, that divides the logits."""
_PLAIN = re.compile(r'[^\s|;,="\\]+')


def format_spec(decoder: Decoder) -> str:
    """Write a decoder as its canonical spec: full names, with the implied `sample`, without defaults.

    Equal decoders give equal text, and `parse_spec` reads the text back as an equal decoder.
    """
    return _spec_text(decoder, with_first=False)


def shown_spec(decoder: Decoder) -> str:
    """Write a decoder as people see it: as the canonical spec, but each stage has the value of its first option.

    `min-p 0.1` stays `min-p 0.1`, although 0.1 is the default. `parse_spec` reads this text, too.
    """
    return _spec_text(decoder, with_first=True)


def _spec_text(decoder: Decoder, *, with_first: bool) -> str:
    stages = [_stage_text(stage, with_first=with_first) for stage in decoder.stages]
    if implies_sample(decoder):
        stages.insert(len(decoder.processors), "sample")
    return " | ".join(stages)


def implies_sample(decoder: Decoder) -> bool:
    """Return True if a decoder needs a sampler and has none, so that `sample` is used."""
    return decoder.sampler is None and (decoder.search is None or decoder.search.takes_sampler)


def format_stage(stage: Stage) -> str:
    """Write one stage as it is in a canonical spec."""
    return _stage_text(stage, with_first=False)


def shown_stage(stage: Stage) -> str:
    """Write one stage as people see it, with the value of its first option."""
    return _stage_text(stage, with_first=True)


def _stage_text(stage: Stage, *, with_first: bool) -> str:
    parts = [stage.name]
    options = options_of(type(stage))
    for declared in options:
        value = getattr(stage, declared.field)
        needed = declared.required or (with_first and declared is options[0] and value not in ("", ()))
        if not needed and value == declared.default:
            continue
        if isinstance(value, Mapping):
            other_options = {other.name for other in options[1:]}
            parts += [_format_pair(key, value[key], other_options) for key in sorted(value)] or [","]
        else:
            text = format_value(value)
            parts.append(text if declared is options[0] else f"{declared.name}={text}")
    return " ".join(parts)


def _format_pair(key: str, number: float, other_options: set[str]) -> str:
    """Write `key=number`. Quotes mark a key that would otherwise read as the name of an option."""
    must_quote = key.replace("_", "-") in other_options
    return f"{_quote(key) if must_quote else _format_item(key)}={_format_item(number)}"


def format_value(value: Any) -> str:
    """Write the value of an option as it is in a spec: a number, a text, yes or no, a list, or pairs."""
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


def stage_names(decoder: Decoder) -> list[tuple[str, str]]:
    """Return how each stage with options is named in a decoder, such as `top-k#2` for the second, and its spec."""
    names = [stage.name for stage in decoder.stages]
    numbered = (
        f"{stage.name}#{names[: index + 1].count(stage.name)}" if names.count(stage.name) > 1 else stage.name
        for index, stage in enumerate(decoder.stages)
    )
    stages = zip(numbered, decoder.stages, strict=True)
    return [(name, shown_stage(stage)) for name, stage in stages if options_of(type(stage))]


def temperatures(decoder: Decoder) -> list[tuple[int, Option]]:
    """Return where a decoder has a temperature: the index of the stage, and the stage's option.

    A stage called `temperature` has it as its first option; another stage, such as `sample`, as an option of that name.
    """
    places = []
    for index, stage in enumerate(decoder.stages):
        options = options_of(type(stage))
        named = next((declared for declared in options if declared.name == TEMPERATURE), None)
        declared = options[0] if stage.name == TEMPERATURE and options else named
        if declared is not None:
            places.append((index, declared))
    return places


def temperature_notes(decoder: Decoder) -> list[str]:
    """Return a line if two temperatures of a decoder multiply, which is rarely meant; else no line."""
    hot = [
        decoder.stages[index]
        for index, declared in temperatures(decoder)
        if getattr(decoder.stages[index], declared.field) != 1
    ]
    if len(hot) < 2:
        return []
    names = " and ".join(map(shown_stage, hot))
    return [f"{names} both divide the logits, so the temperatures multiply: keep one of them"]


def _quote(text: str) -> str:
    """Put a text in double quotes. Characters that a terminal does not show are escaped, too."""
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else json.dumps(c)[1:-1] for c in text) + '"'


def has_pairs(declared: Option) -> bool:
    """Return True if the value of an option is pairs such as `cat=2`."""
    return typing.get_origin(declared.type) is Mapping


def example_of(cls: type[Stage], declared: Option | None = None) -> str:
    """Return an example of a stage in a spec. If an option is given, the example has a value for it."""
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
    if has_pairs(declared):
        return "cat=2"
    if kinds[0] is bool:
        return "yes"
    if kinds[0] is str:
        return _format_item((*declared.choices, "cat")[0])
    bounds = [bound for bound in (declared.ge, declared.gt, declared.le, declared.lt) if bound is not None]
    inside = [sum(bounds) / len(bounds), bounds[0] + 1, bounds[0] - 1] if bounds else []
    fitting = (x for x in (1, 0.5, 2, *bounds, *inside) if not dataclasses.replace(declared, type=kinds[0]).problem(x))
    return _format_item(next(fitting, 1))
