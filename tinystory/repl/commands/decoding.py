"""Commands that show and change the decoder."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, replace
from typing import cast

from tinystory.decoding import Decoder, LogitsProcessor, Sampler, Search, Stage
from tinystory.decoding.options import Option, is_neutral, options_of, summary
from tinystory.decoding.plugins import Registry
from tinystory.decoding.spec import (
    change_stage,
    format_spec,
    format_stage,
    format_value,
    parse_spec,
    shown_spec,
    shown_stage,
    spec_as_shown,
)
from tinystory.decoding.spec_text import TEMPERATURE, temperature_notes, temperatures
from tinystory.docstrings import docstring
from tinystory.errors import UsageError, meant
from tinystory.repl.commands.base import Reply, command
from tinystory.safe.reading import shown
from tinystory.screen.blocks import Line, Printable, Table
from tinystory.story.tracing import changed
from tinystory.studio.presets import SUGGESTED, check_name, read_presets, unknown_preset, write_presets
from tinystory.studio.recall import eos_ids, turn_logits
from tinystory.studio.studio import Studio

__all__: list[str] = []


@command("decoder", "[SPEC]", "show or change how each token is picked", argument="spec")
def _decoder(studio: Studio, argument: str) -> Reply:
    """Give SPEC as stages joined by `|`: logits processors in their order, then a sampler, then a search.

    greedy · sample 0.8 · top-k 40 | sample 0.8 · temperature 0.8 | top-p 0.9 | sample
    Only the stages of the spec are used. /decoders lists all stages. Without SPEC, /decoder shows the stages in use,
    and how many picks of the latest turn each of them changed.
    """
    if argument:
        return _use(studio, parse_spec(argument, studio.registry))
    stages = studio.decoder.stages
    rows = [row for index in range(len(stages)) for row in _stage_rows(stages, index)]
    return Reply((Line(shown_spec(studio.decoder), "bold"), Table(tuple(rows), indent=2), *_effects(studio)))


@command("set", "STAGE OPTION=VALUE…", "change one stage of the decoder", argument="stage")
def _set(studio: Studio, argument: str) -> Reply:
    """Change only the options that are given.

    /set top-k 20 · /set sample temperature=0.7 · /set top-p#2 0.5 (the second top-p of the decoder)
    """
    name, _, values = argument.partition(" ")
    if not name:
        raise UsageError(
            f"/set takes a stage and a value, like /set top-k 40; the decoder is {shown_spec(studio.decoder)}"
        )
    place = _find_stage(studio, name, values)
    stage = studio.decoder.stages[place]
    if not values.strip():
        options = "; ".join(f"{option.name}, {option.range}" for option in options_of(type(stage)))
        raise UsageError(f"/set {name} takes a value: {options}" if options else f"{stage.name} has nothing to set")
    return _use(studio, _with_stage(studio.decoder, place, change_stage(stage, values)))


@command(
    "temperature", "[N]", "set the temperature where the decoder has one: in `sample`, or in a stage", "", ("temp",)
)
def _temperature(studio: Studio, argument: str) -> Reply:
    """Set the temperature of the decoder, a number above 0: below 1 favours likely tokens, above 1 unlikely ones.

    It stands in `sample`, or in a stage `temperature`. If the decoder has none, a stage is added. Without N, see it.
    """
    decoder = studio.decoder
    places = temperatures(decoder)
    hot = [(index, option) for index, option in places if getattr(decoder.stages[index], option.field) != 1]
    if not argument:
        values = [f"{shown_stage(decoder.stages[index])}" for index, _ in hot or places[-1:]]
        return Reply((Line(f"temperature: {' and '.join(values) or 'none'}"),))
    if len(hot) > 1:
        choices = " or ".join(f"/set {decoder.stages[index].name} {argument}" for index, _ in hot)
        raise UsageError(f"{shown_spec(decoder)} has {len(hot)} temperatures, which multiply: {choices}")
    if places:
        index, option = (hot or places)[-1]
        return _use(
            studio, _with_stage(decoder, index, change_stage(decoder.stages[index], f"{option.name}={argument}"))
        )
    if decoder.sampler is not None and decoder.sampler.name == "greedy":
        raise UsageError(f"greedy takes the likeliest token at any temperature: /decoder sample {argument}")
    (plain,) = parse_spec(f"{TEMPERATURE} 1", studio.registry).processors
    added = cast(LogitsProcessor, change_stage(plain, argument))
    return _use(studio, replace(decoder, processors=(added, *decoder.processors)))


@command("reset", "", "go back to the decoder with which the chat began")
def _reset(studio: Studio, argument: str) -> Reply:
    return _use(studio, studio.first_decoder)


@command("preset", "save|load|list|rm …", "keep decoders under names of your own", "preset")
def _preset(studio: Studio, argument: str) -> Reply:
    """Keep the decoder in use with /preset save NAME, or another one with /preset save NAME SPEC.

    All chats share the presets, which are in the file presets.toml of the configuration folder. One preset always
    exists, `suggested`: the decoder whose stories are nearest to real ones (docs/study.md).
    """
    action, _, rest = argument.partition(" ")
    name, _, spec = rest.strip().partition(" ")
    if action not in _PRESET_ACTIONS:
        near = meant(action, _PRESET_ACTIONS)
        hint = near.question or f"it has {', '.join(_PRESET_ACTIONS)}"
        error = UsageError(f"/preset does not know {shown(action)}: {hint}" if action else f"/preset: {hint}")
        raise error.correcting(action, near.name)
    if (spec and action != "save") or (name and action == "list"):
        raise UsageError(f"/preset {action} takes {'nothing' if action == 'list' else 'just a NAME'} after it")
    if action == "save":  # refuse a wrong name before a file is read
        check_name(name)
    decoder = parse_spec(spec, studio.registry) if spec else studio.decoder
    try:
        presets, warning = read_presets()
    except UsageError as error:
        if action in ("save", "rm"):  # they would replace a file that nobody has read
            raise
        presets, warning = {}, str(error)
    try:
        reply = _PRESET_ACTIONS[action](studio, presets, name, decoder)
    except UsageError as error:
        correction = error.correction or ("", None)
        raise UsageError(f"{warning}\n{error}" if warning else str(error)).correcting(*correction) from error
    return replace(reply, blocks=(Line(warning, "note"), *reply.blocks)) if warning else reply


def _save_preset(studio: Studio, presets: dict[str, str], name: str, decoder: Decoder) -> Reply:
    before = presets.get(name)
    write_presets({**presets, name: format_spec(decoder)})
    instead = f" (it was {before})" if before not in (None, format_spec(decoder)) else ""
    return Reply((Line(f"{name}: {shown_spec(decoder)}{instead}"),))


def _load_preset(studio: Studio, presets: dict[str, str], name: str, decoder: Decoder) -> Reply:
    specs = {"suggested": SUGGESTED, **presets}
    if name not in specs:
        raise unknown_preset(name, specs)
    return _use(studio, parse_spec(specs[name], studio.registry))


def _list_presets(studio: Studio, presets: dict[str, str], name: str, decoder: Decoder) -> Reply:
    hint = () if presets else (Line("/preset save NAME saves the decoder in use", "dim"),)
    specs = sorted({"suggested": SUGGESTED, **presets}.items())
    return Reply((Table(tuple((name, spec_as_shown(spec, studio.registry)) for name, spec in specs)), *hint))


def _remove_preset(studio: Studio, presets: dict[str, str], name: str, decoder: Decoder) -> Reply:
    if name not in presets:
        raise unknown_preset(name, presets)
    write_presets({other: spec for other, spec in presets.items() if other != name})
    return Reply((Line(f"{name} is removed; it was {presets[name]}"),))


_PRESET_ACTIONS = {"save": _save_preset, "load": _load_preset, "list": _list_presets, "rm": _remove_preset}


@command("decoders", "[NAME]", "list the stages of which decoders are made, or explain one", argument="decoder")
def _decoders(studio: Studio, argument: str) -> Reply:
    """List the stages of tinystory, of installed packages, of the decoders folder and of --decoder-file.

    Six stages come first, one for each idea: take the likeliest token; draw one; keep a fixed number of tokens, a share
    of the probability, or what is likely beside the best; search for a whole text.
    """
    if not argument:
        return Reply(tuple(_stage_list(studio.registry)))
    cls = studio.registry.get(argument)
    facts = [("kind", cls.kind), *(("option", _option_text(option)) for option in options_of(cls))]
    if cls.example:
        facts.append(("e.g.", cls.example))
    facts.append(("from", studio.registry.source(argument)))
    return Reply((Line(cls.name, "bold"), Line(docstring(cls)), Table(tuple(facts), indent=2)))


_FIRST = ("greedy", "sample", "top-k", "top-p", "min-p", "beam")
"""The stages with which /decoders begins. The others change or combine one of these ideas. In docs/study.md, three of
the four chains that came nearest to real stories have one of the three in the middle; greedy and beam came last, so
they show what goes wrong without any noise."""


def _stage_list(registry: Registry) -> Iterator[Printable]:
    """Yield the six stages to begin with, the names of the others by their kind, and warnings."""
    classes = {name: cls for name, cls, _ in registry.classes()}
    first = [name for name in _FIRST if name in classes]
    yield Line("to begin with:", "bold")
    yield Table(tuple((_with_value(classes[name]), summary(classes[name])) for name in first), indent=2)
    yield Line("the others:", "bold")
    others = {
        plural: [name for name, cls in classes.items() if cls.kind == kind and name not in first]
        for kind, plural in (("processor", "processors"), ("sampler", "samplers"), ("search", "searches"))
    }
    yield Table(tuple((plural, ", ".join(names)) for plural, names in others.items() if names), indent=2)
    yield Line("/decoders NAME explains one; /decoder top-k 40 | sample 0.8 joins two", "dim")
    yield from (Line(warning, "note") for warning in registry.warnings)


def _with_value(cls: type[Stage]) -> str:
    """Return a stage as it may be typed, with a value of its first option."""
    options = options_of(cls)
    return cls.example or (f"{cls.name} {format_value(options[0].default)}" if options else cls.name)


def _use(studio: Studio, decoder: Decoder) -> Reply:
    notes = () if temperature_notes(studio.decoder) else temperature_notes(decoder)
    studio.decoder = decoder
    return Reply((Line(f"decoder: {shown_spec(decoder)}"), *(Line(note, "note") for note in notes)))


def _find_stage(studio: Studio, name: str, values: str) -> int:
    """Return the index of a stage that a user named: by its name, and by its number if the name stands twice.

    Args:
        studio: the studio with the decoder.
        name: the name as the user typed it.
        values: what the user typed after it; if the decoder has no such stage, the message shows where it would stand.
    """
    plain, _, number = name.partition("#")
    plain = studio.registry.get(plain).name  # resolves an alias
    stages = studio.decoder.stages
    places = [index for index, stage in enumerate(stages) if stage.name == plain]
    if not places:
        if plain == TEMPERATURE and (heated := temperatures(studio.decoder)):
            owner = studio.decoder.stages[heated[-1][0]]
            raise UsageError(
                f"the temperature stands in {shown_stage(owner)}: /temperature {values or 'N'} sets it there"
            )
        spec = _spec_with(studio, plain, values)
        hint = f"; add it with /decoder {spec}" if spec else ""
        raise UsageError(f"{plain} is no stage of {shown_spec(studio.decoder)}{hint}")
    if not number and len(places) == 1:
        return places[0]
    if number.isdecimal() and 1 <= int(number[:9]) <= len(places):
        return places[int(number) - 1]
    if len(places) == 1:
        raise UsageError(f"{plain} stands once in {shown_spec(studio.decoder)}: leave out #{number[:20]}")
    raise UsageError(f"{plain} stands {len(places)} times: choose from {plain}#1 to {plain}#{len(places)}")


def _spec_with(studio: Studio, name: str, values: str) -> str:
    """Return the decoder's spec with a stage added at its place; empty if there is no valid spec.

    The stage has the values that the user typed, or else those of its example.
    """
    cls, decoder = studio.registry.get(name), studio.decoder
    before = [format_stage(stage) for stage in decoder.processors]
    after = [format_stage(stage) for stage in (decoder.sampler, decoder.search) if stage and cls.kind == "processor"]
    for added in (f"{name} {values}", cls.example or name) if values else (cls.example or name,):
        with suppress(UsageError):
            return shown_spec(parse_spec(" | ".join((*before, added, *after)), studio.registry))
    return ""


def _with_stage(decoder: Decoder, place: int, stage: Stage) -> Decoder:
    """Return the decoder with another stage at an index of its `stages`."""
    if isinstance(stage, LogitsProcessor):
        before, after = decoder.processors[:place], decoder.processors[place + 1 :]
        return replace(decoder, processors=(*before, stage, *after))
    return (
        replace(decoder, sampler=stage) if isinstance(stage, Sampler) else replace(decoder, search=cast(Search, stage))
    )


def _effects(studio: Studio) -> Iterator[Printable]:
    """Yield how many picks of the latest turn each stage changed, or why that is not known."""
    turn = studio.tree.turn
    if turn is None or turn.written is None:
        return
    if studio.backend.loading:
        yield Line("when the model is loaded, /decoder also shows how many picks each stage changed", "dim")
        return
    if turn.written.spec != studio.spec:
        text = (
            f"the turn on the desk was written by {spec_as_shown(turn.written.spec, studio.registry)};"
            " /whatif and /compare show what this decoder changes"
        )
        yield Line(text, "dim")
        return
    try:
        decoder, request, ids, logits = turn_logits(studio, turn)
    except UsageError as error:
        yield Line(str(error), "dim")
        return
    stages = decoder.chain.stages
    counts = changed(decoder, request, ids, logits, eos_ids=eos_ids(studio))
    n_tokens = len(ids) - len(request.prompt_ids)
    yield Line(f"in the {n_tokens} tokens of the turn on the desk:", "dim")
    *processors, (sampler, n_unlikely) = zip(map(shown_stage, stages), counts, strict=True)
    rows = [(spec, f"changed {n} pick{'' if n == 1 else 's'}" if n else "changed nothing") for spec, n in processors]
    unlikely = f"did not pick the likeliest possible token {n_unlikely} time{'' if n_unlikely == 1 else 's'}"
    yield Table((*rows, (sampler, unlikely)), indent=2)


def _stage_rows(stages: Sequence[Stage], place: int) -> list[tuple[str, ...]]:
    """Return the rows of one stage: its options, their values and what they mean."""
    stage = stages[place]
    off = is_neutral(stage)
    rows = [
        (f"{option.name} = {format_value(getattr(stage, option.field))}", f"{option.help} ({option.range})")
        for option in options_of(type(stage))
    ] or [("", summary(type(stage)))]
    if off:
        rows[0] = (f"off: {rows[0][0]}", rows[0][1])
    same = [index for index, other in enumerate(stages) if other.name == stage.name]
    name = stage.name if len(same) == 1 else f"{stage.name}#{same.index(place) + 1}"
    return [(name if index == 0 else "", *row) for index, row in enumerate(rows)]


def _option_text(option: Option) -> str:
    default = "" if option.required else f" [{format_value(option.default)}]"
    neutral = "" if option.neutral is MISSING else f"; off at {format_value(option.neutral)}"
    return f"{option.name}{default}: {option.range}; {option.help}{neutral}"
