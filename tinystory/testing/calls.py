"""The first half of the conformance kit: the declaration of a stage, its spec, and single calls."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tinystory.decoding import Decoder, LogitsProcessor, Sampler, Search, Stage, Step, draw
from tinystory.decoding.options import is_neutral, options_of
from tinystory.decoding.plugins import Registry
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import TinystoryError, one_line
from tinystory.noise import Noise
from tinystory.testing.findings import Findings
from tinystory.testing.toy_session import ToySession, toy_request

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PlainDraw", "check_stages"]


@dataclass(frozen=True)
class PlainDraw(Sampler):
    """Plain sampling. With it, the kit needs no concrete decoder."""

    name = "sample"

    def __call__(self, logits: "Tensor", step: Step) -> int:
        """Draw a token from the softmax of (V,) logits."""
        return draw(logits, step.noise())


def check_stages(decoder: Decoder, vocab_sizes: Sequence[int], findings: Findings) -> None:
    """Check each stage of a decoder alone, then the decoder's spec.

    Args:
        decoder: the stages, with options that have an effect.
        vocab_sizes: the sizes V of the logits that they are called with.
        findings: gets the results.
    """
    for stage in decoder.stages:
        if not _check_declaration(stage, findings):
            continue
        if not isinstance(stage, Search) and not is_neutral(stage):  # a chain never calls a neutral stage
            for vocab_size in vocab_sizes:
                _check_calls(stage, vocab_size, findings)
    _check_spec(decoder, findings)


def _check_declaration(stage: Any, findings: Findings) -> bool:
    """Check the class, its docstring and its neutral value. Return False if the class cannot be loaded."""
    try:
        Registry().add(type(stage), "here")
    except TinystoryError as error:
        findings.expect(False, "declaration", str(error).removeprefix("here: "))
        return False
    findings.expect(True, "declaration", "")
    doc = type(stage).__doc__ or ""
    is_written = doc.strip() and not doc.startswith(f"{type(stage).__name__}(")  # else @dataclass has made it
    findings.expect(
        bool(is_written), "docstring", "the class does not say what it does; lists and help show its first paragraph"
    )
    neutral = {o.field: o.neutral for o in options_of(type(stage)) if o.neutral is not dataclasses.MISSING}
    if neutral and stage.kind == "processor":
        try:
            off = dataclasses.replace(stage, **neutral)
        except TinystoryError as error:
            findings.expect(False, "neutral value", f"is not allowed: {error}")
        else:
            findings.expect(not Decoder((off,)).chain.processors, "neutral value", "does not switch the stage off")
    return True


def _check_spec(decoder: Decoder, findings: Findings) -> None:
    registry = Registry()
    try:
        for cls in dict.fromkeys(type(stage) for stage in decoder.stages):
            registry.add(cls, "here")
        if "sample" not in registry.names():
            registry.add(PlainDraw, "testing")
        text = format_spec(decoder)
        findings.expect(parse_spec(text, registry) == decoder, "spec", f"`{text}` reads back as another decoder")
    except TinystoryError as error:
        findings.expect(False, "spec", str(error))


class _RecordedCall(NamedTuple):
    """One call of a stage with its arguments, its result, and the token that was picked."""

    label: str
    logits: "Tensor"
    token_ids: list[int]
    state: Any
    output: Any
    token_id: int


def _cases(vocab_size: int) -> "Iterator[tuple[str, Tensor]]":
    """Yield (V,) float32 logits that break careless stages, each with a label."""
    import torch

    noise = Noise(0, "conformance", 0, vocab_size)
    gumbel = torch.from_numpy(noise.gumbel(np.arange(vocab_size)).astype(np.float32))
    sparse = gumbel.clone()
    sparse[torch.from_numpy(noise.uniform(np.arange(vocab_size) + vocab_size) < 0.5)] = -torch.inf
    sparse[-1] = 0.0
    only = torch.full((vocab_size,), -torch.inf)
    only[vocab_size // 2] = -3.0
    yield "random", gumbel
    yield "ties", gumbel.round()
    yield "all equal", torch.zeros(vocab_size)
    yield "half of them -inf", sparse
    yield "one token left", only
    yield "all negative", gumbel - 50.0
    yield "huge", gumbel.sign() * 1e4
    yield "one far ahead", torch.where(torch.arange(vocab_size) == 0, 1e4, -1e4)
    yield "random again", gumbel.flip(0)


def _check_calls(stage: Stage, vocab_size: int, findings: Findings) -> None:
    """Call a processor or sampler along a story, and then again from its older states."""
    prompt = [index % vocab_size for index in (0, 5, 3, 5, 3)]
    request = toy_request(prompt, 16, vocab_size, opener=ToySession(vocab_size=vocab_size).open)
    eos_ids = frozenset({1} if vocab_size > 1 else ())

    def call(logits: "Tensor", token_ids: list[int], state: Any) -> Any:
        return stage(logits, Step(request, token_ids, eos_ids, state))  # type: ignore[operator]

    calls: list[_RecordedCall] = []
    label = "at the start"
    try:
        state = stage.start(request)
        for label, logits in _cases(vocab_size):
            where = f"V={vocab_size}, {label}"
            before, ids_before = logits.clone(), list(prompt)
            output = call(logits, prompt, state)
            pure = logits.equal(before) and prompt == ids_before
            findings.expect(pure, "purity", f"the stage modifies its arguments ({where})")
            findings.expect(_same(call(before, prompt, state), output), "determinism", f"two calls differ ({where})")
            check = _check_logits if isinstance(stage, LogitsProcessor) else _check_token
            if not pure or not check(output, before, where, findings):
                return
            token_id = int(output.argmax()) if isinstance(stage, LogitsProcessor) else int(output)
            calls.append(_RecordedCall(where, before, list(prompt), state, output, token_id))
            state = stage.observe(state, token_id, before)
            prompt = [*prompt, token_id]
        for older, newer in zip(calls[-2::-1], calls[:0:-1], strict=True):
            again = call(older.logits, older.token_ids, older.state)
            findings.expect(_same(again, older.output), "older state", f"a replay differs ({older.label})")
            label = older.label
            state = stage.observe(older.state, older.token_id, older.logits)
            again = call(newer.logits, newer.token_ids, state)
            findings.expect(_same(again, newer.output), "older state", f"the next call differs ({older.label})")
        findings.expect(True, "call", "")
    except (Exception, SystemExit) as error:
        findings.expect(False, "call", f"{one_line(error, kind=True)} (V={vocab_size}, {label})")


def _same(output: Any, expected: Any) -> bool:
    return bool(output.equal(expected)) if hasattr(output, "equal") else bool(output == expected)


def _check_logits(output: Any, logits: "Tensor", where: str, findings: Findings) -> bool:
    import torch

    if not isinstance(output, torch.Tensor):
        return findings.expect(False, "output", f"it is a {type(output).__name__}, not a tensor ({where})")
    shaped = output.shape == logits.shape and output.dtype == logits.dtype
    return (
        findings.expect(shaped, "output", f"it is {tuple(output.shape)} {output.dtype}, not like the input ({where})")
        and findings.expect(not bool(output.isnan().any()), "finite or −inf", f"there is NaN ({where})")
        and findings.expect(not bool((output == torch.inf).any()), "finite or −inf", f"there is +inf ({where})")
        and findings.expect(bool((output > -torch.inf).any()), "support", f"no token is left ({where})")
        and findings.expect(
            not bool((output[logits == -torch.inf] > -torch.inf).any()), "support", f"a removed token is back ({where})"
        )
    )


def _check_token(output: Any, logits: "Tensor", where: str, findings: Findings) -> bool:
    try:
        token_id = int(output)
    except (TypeError, ValueError):
        return findings.expect(False, "output", f"it is a {type(output).__name__}, not a token id ({where})")
    findings.expect(True, "output", "")
    allowed = 0 <= token_id < len(logits) and float(logits[token_id]) > -float("inf")
    return findings.expect(allowed, "support", f"token {token_id} was removed or does not exist ({where})")
