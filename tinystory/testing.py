"""For authors of decoders: checks that any stage has to pass, and a session without weights to try it on.

from tinystory.testing import conformance

def test_conformance():
    assert not conformance(MyProcessor(0.5))
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from tinystory.decoding import (
    Commit,
    Decoder,
    Draft,
    Event,
    Finish,
    FinishReason,
    LogitsProcessor,
    Request,
    Sampler,
    Search,
    Stage,
    Step,
    Token,
    draw,
)
from tinystory.errors import TinystoryError, UsageError
from tinystory.loop import run
from tinystory.noise import Noise
from tinystory.options import is_neutral, options_of
from tinystory.plugins import Registry
from tinystory.spec import format_spec, parse_spec
from tinystory.toy_session import Call, ToySession, ToyVocabulary

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Call", "Problem", "ToySession", "ToyVocabulary", "conformance"]


@dataclass(frozen=True)
class Problem:
    """A rule of the decoder contract that a stage breaks."""

    check: str
    detail: str

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}"


@dataclass(frozen=True)
class _Draw(Sampler):
    """Plain sampling, so that this module needs no concrete decoder."""

    name = "sample"

    def __call__(self, logits: "Tensor", step: Step) -> int:
        return draw(logits, step.noise())


class _Report:
    """Keeps the first problem of each check."""

    def __init__(self) -> None:
        self.problems: dict[str, Problem] = {}

    def expect(self, holds: bool, check: str, detail: str) -> bool:
        if not holds:
            self.problems.setdefault(check, Problem(check, detail))
        return holds


def conformance(
    subject: Stage | Decoder,
    *,
    vocab_sizes: Sequence[int] = (1, 2, 7, 32),
    session: Callable[..., ToySession] = ToySession,
    max_new_tokens: int = 12,
) -> list[Problem]:
    """Check a stage, or a whole decoder, against the decoder contract.

    A processor is called on logits that are random, tied, removed (−inf), extreme (±1e4) and of several sizes, a
    sampler likewise; then whole stories are written on toy sessions, with every way for a story to end.

    Args:
        subject: an instance, its options set to something that bites.
        vocab_sizes: sizes V of the logits that single stages are called with.
        session: makes the sessions for whole stories; called with keyword arguments of ToySession.
        max_new_tokens: of ordinary stories, at most 60; more for a search that refuses so few.

    Returns:
        What is wrong, the first instance of each kind; empty when nothing is.
    """
    report = _Report()
    decoder = subject if isinstance(subject, Decoder) else _around(subject)
    for stage in decoder.stages:
        _check_declaration(stage, report)
        if not isinstance(stage, Search) and not is_neutral(stage):  # a chain never calls a neutral stage
            for vocab_size in vocab_sizes:
                _check_calls(stage, vocab_size, report)
    _check_spec(decoder, report)
    if not report.problems:  # a stage that fails alone fails in every story too
        _Stories(decoder, session, report, max_new_tokens).check()
    return list(report.problems.values())


def _around(stage: Stage) -> Decoder:
    """A whole decoder around one stage."""
    if isinstance(stage, Search):
        return Decoder((), _Draw() if stage.takes_sampler else None, stage)
    if isinstance(stage, Sampler):
        return Decoder((), stage)
    if isinstance(stage, LogitsProcessor):
        return Decoder((stage,), _Draw())
    raise TypeError(f"{stage!r} is no LogitsProcessor, Sampler or Search")


def _check_declaration(stage: Any, report: _Report) -> None:
    """The class could be loaded as a plug-in, and its neutral value is one."""
    try:
        Registry().add(type(stage), "here")
    except TinystoryError as error:
        report.expect(False, "declaration", str(error).removeprefix("here: "))
        return
    doc = type(stage).__doc__ or ""
    told = doc.strip() and not doc.startswith(f"{type(stage).__name__}(")  # what @dataclass puts there is no help
    report.expect(bool(told), "docstring", "the class does not say what it does; lists and help show its first line")
    neutral = {o.field: o.neutral for o in options_of(type(stage)) if o.neutral is not dataclasses.MISSING}
    if neutral and stage.kind == "processor":
        try:
            off = dataclasses.replace(stage, **neutral)
        except TinystoryError as error:
            report.expect(False, "neutral value", f"is not allowed: {error}")
        else:
            report.expect(not Decoder((off,)).chain.processors, "neutral value", "does not switch the stage off")


def _check_spec(decoder: Decoder, report: _Report) -> None:
    registry = Registry()
    try:
        for cls in dict.fromkeys(type(stage) for stage in decoder.stages):
            registry.add(cls, "here")
        if "sample" not in registry.names():
            registry.add(_Draw, "testing")
        text = format_spec(decoder)
        report.expect(parse_spec(text, registry) == decoder, "spec", f"`{text}` reads back as another decoder")
    except TinystoryError as error:
        report.expect(False, "spec", str(error))


class _Moment(NamedTuple):
    """A call and what came of it."""

    label: str
    logits: "Tensor"
    token_ids: list[int]
    state: Any
    output: Any
    token_id: int


def _cases(vocab_size: int) -> "Iterator[tuple[str, Tensor]]":
    """Logits that break careless stages; (V,) float32."""
    import torch

    random = Noise(0, "conformance", 0, vocab_size)
    normal = torch.from_numpy(random.gumbel(np.arange(vocab_size)).astype(np.float32))
    sparse = normal.clone()
    sparse[torch.from_numpy(random.uniform(np.arange(vocab_size) + vocab_size) < 0.5)] = -torch.inf
    sparse[-1] = 0.0
    only = torch.full((vocab_size,), -torch.inf)
    only[vocab_size // 2] = -3.0
    yield "random", normal
    yield "ties", normal.round()
    yield "all equal", torch.zeros(vocab_size)
    yield "half of them -inf", sparse
    yield "one token left", only
    yield "all negative", normal - 50.0
    yield "huge", normal.sign() * 1e4
    yield "one far ahead", torch.where(torch.arange(vocab_size) == 0, 1e4, -1e4)
    yield "random again", normal.flip(0)


def _request(prompt: Sequence[int], max_new_tokens: int, vocab_size: int = 32, **others: Any) -> Request:
    """A story whose tokens are text, with somebody who always chooses the likeliest."""

    def choose(logits: "Tensor", step: Step) -> int:
        return int(logits.argmax())

    vocabulary = ToyVocabulary(vocab_size)
    return Request(tuple(prompt), max_new_tokens, 1, vocabulary=vocabulary, choose=choose, **others)


def _check_calls(stage: Stage, vocab_size: int, report: _Report) -> None:
    """Call a processor or sampler along a story, then again from its older states."""
    prompt = [index % vocab_size for index in (0, 5, 3, 5, 3)]
    request = _request(prompt, 16, vocab_size, opener=ToySession(vocab_size=vocab_size).open)
    eos_ids = frozenset({1} if vocab_size > 1 else ())

    def call(logits: "Tensor", token_ids: list[int], state: Any) -> Any:
        return stage(logits, Step(request, token_ids, eos_ids, state))  # type: ignore[operator]

    moments: list[_Moment] = []
    label = "at the start"
    try:
        state = stage.start(request)
        for label, logits in _cases(vocab_size):
            where = f"V={vocab_size}, {label}"
            before, ids_before = logits.clone(), list(prompt)
            output = call(logits, prompt, state)
            pure = logits.equal(before) and prompt == ids_before
            report.expect(pure, "purity", f"the stage modifies what it is given ({where})")
            report.expect(_same(call(before, prompt, state), output), "determinism", f"two calls differ ({where})")
            check = _check_logits if isinstance(stage, LogitsProcessor) else _check_token
            if not pure or not check(output, before, where, report):
                return
            token_id = int(output.argmax()) if isinstance(stage, LogitsProcessor) else int(output)
            moments.append(_Moment(where, before, list(prompt), state, output, token_id))
            state = stage.observe(state, token_id, before)
            prompt = [*prompt, token_id]
        for moment, following in zip(moments[-2::-1], moments[:0:-1], strict=True):
            again = call(moment.logits, moment.token_ids, moment.state)
            report.expect(_same(again, moment.output), "older state", f"replays differently ({moment.label})")
            label = moment.label
            state = stage.observe(moment.state, moment.token_id, moment.logits)
            again = call(following.logits, following.token_ids, state)
            report.expect(_same(again, following.output), "older state", f"goes on differently ({moment.label})")
    except Exception as error:
        report.expect(False, "call", f"{type(error).__name__}: {error} (V={vocab_size}, {label})")


def _same(one: Any, other: Any) -> bool:
    return bool(one.equal(other)) if hasattr(one, "equal") else bool(one == other)


def _check_logits(output: Any, logits: "Tensor", where: str, report: _Report) -> bool:
    import torch

    if not isinstance(output, torch.Tensor):
        return report.expect(False, "output", f"is {type(output).__name__}, not a tensor ({where})")
    shaped = output.shape == logits.shape and output.dtype == logits.dtype
    return (
        report.expect(shaped, "output", f"is {tuple(output.shape)} {output.dtype}, not like the input ({where})")
        and report.expect(not bool(output.isnan().any()), "finite or −inf", f"there is NaN ({where})")
        and report.expect(not bool((output == torch.inf).any()), "finite or −inf", f"there is +inf ({where})")
        and report.expect(bool((output > -torch.inf).any()), "support", f"no token is left ({where})")
        and report.expect(
            not bool((output[logits == -torch.inf] > -torch.inf).any()), "support", f"a removed token is back ({where})"
        )
    )


def _check_token(output: Any, logits: "Tensor", where: str, report: _Report) -> bool:
    try:
        token_id = int(output)
    except (TypeError, ValueError):
        return report.expect(False, "output", f"is {type(output).__name__}, not a token id ({where})")
    allowed = 0 <= token_id < len(logits) and float(logits[token_id]) > -float("inf")
    return report.expect(allowed, "support", f"token {token_id} was removed or does not exist ({where})")


class _Story(NamedTuple):
    token_ids: tuple[int, ...]
    reason: str
    model_calls: int


class _Stories:
    """Whole stories by one decoder, each on a fresh toy session."""

    def __init__(
        self, decoder: Decoder, new_session: Callable[..., ToySession], report: _Report, max_new_tokens: int
    ) -> None:
        self.decoder = decoder
        self.max_new_tokens = max_new_tokens
        self.new_session = new_session
        self.expect = report.expect

    def check(self) -> None:
        """Write stories that end in every way."""
        plain = self.write("a plain story")
        if plain is None:  # every other story would only fail again
            return
        self.expect(plain == self.write("the same again"), "determinism", "one seed gives two stories")
        for limit in (0, 1, 2, 7):
            endless = self.write(f"a limit of {limit}", max_new_tokens=limit, refusable=limit > 0, eos_logit=-np.inf)
            if endless:
                ended = f"ends by {endless.reason} with {len(endless.token_ids)} tokens"
                self.expect(ended == f"ends by length with {limit} tokens", "max_new_tokens", f"{limit}: {ended}")
        self.check_interruptions()
        self.check_company()
        searching = self.decoder.search is not None
        self.write("an overflowing story", searching, exact=False, max_new_tokens=20, max_seq_len=8)
        self.write("a long prompt", searching, exact=False, prompt=range(2, 14), max_seq_len=8)
        self.write("a session that cannot rewind or reorder", searching, can_rewind=False, can_reorder=False)

    def check_interruptions(self) -> None:
        """Stop, cancel, and a consumer that goes away."""
        whole = self.write("an endless story", eos_logit=-np.inf)
        if whole is None:
            return
        stopped = self.write("a stopped story", stop=lambda n_tokens: n_tokens >= 2, eos_logit=-np.inf)
        self.expect(stopped is None or stopped.reason == "stop", "stop", "a stop after two tokens is not heard")
        cancelled = self.write("a cancelled story", cancel=lambda calls: calls >= 3, eos_logit=-np.inf)
        if cancelled and whole.model_calls > 5:
            late = cancelled.reason != "cancelled" or cancelled.model_calls > 5
            self.expect(not late, "cancel", f"after call 3 it went on to call {cancelled.model_calls}")
        events = run(self.new_session(), [(self.decoder, _request((0, 5, 3), self.max_new_tokens))])
        try:
            next(events)
            events.close()  # type: ignore[attr-defined]
        except Exception as error:
            self.expect(False, "early close", f"{type(error).__name__}: {error}")

    def check_company(self) -> None:
        """Stories written together are those written alone."""
        prompts = [(0, 5, 3), (0, 7), (0, 2, 2, 2)]
        alone = [self.write("a story alone", prompt=prompt) for prompt in prompts]
        requests = [_request(prompt, self.max_new_tokens) for prompt in prompts]
        together: list[list[int]] = [[], [], []]
        try:
            for index, event in run(self.new_session(), [(self.decoder, request) for request in requests]):
                if isinstance(event, Commit):
                    together[index] += [token.id for token in event.tokens]
        except Exception as error:
            self.expect(False, "together", f"{type(error).__name__}: {error}")
            return
        for story, token_ids in zip(alone, together, strict=True):
            same = story is None or list(story.token_ids) == token_ids
            self.expect(same, "together", "a story comes out differently when others are written with it")

    def write(
        self,
        what: str,
        refusable: bool = False,
        *,
        exact: bool = True,
        prompt: Sequence[int] = (0, 5, 3),
        max_new_tokens: int | None = None,
        stop: Callable[[int], bool] = lambda n_tokens: False,
        cancel: Callable[[int], bool] = lambda model_calls: False,
        **session_options: Any,
    ) -> _Story | None:
        """Write one story and check its events; None when there is none to judge.

        Args:
            what: names the case in the report.
            refusable: whether the decoder may refuse it with a UsageError.
            exact: whether the model sees the whole story, so that log-probabilities can be checked.
            prompt: token ids.
            max_new_tokens: limit; None is the ordinary one.
            stop: given the number of tokens committed.
            cancel: given the number of times the model was run.
            session_options: of ToySession.
        """
        session = self.new_session(**session_options)
        if max_new_tokens is None:
            max_new_tokens = self.max_new_tokens
        events: list[Event] = []
        tokens: list[Token] = []

        def model_calls() -> int:
            return sum(call.verb in ("prefill", "decode") for call in session.calls)

        request = _request(
            prompt,
            max_new_tokens,
            session.vocab_size,
            stop=lambda: stop(len(tokens)),
            cancel=lambda: cancel(model_calls()),
        )
        try:
            for _, event in run(session, [(self.decoder, request)]):
                events.append(event)
                if isinstance(event, Commit):
                    tokens += event.tokens
        except Exception as error:
            refused = refusable and isinstance(error, UsageError)
            self.expect(refused, "story", f"{what}: {type(error).__name__}: {error}")
            return None
        last = events[-1] if events else None
        known = all(isinstance(event, Commit | Draft | Finish) for event in events)
        finishes = sum(isinstance(event, Finish) for event in events)
        self.expect(known, "events", f"{what}: there is something else than Commit, Draft and Finish")
        self.expect(finishes == 1, "events", f"{what}: there are {finishes} Finish events, not one")
        if not self.expect(isinstance(last, Finish), "events", f"{what}: the last event is no Finish"):
            return None
        assert isinstance(last, Finish)
        self.expect(last.reason in get_args(FinishReason), "events", f"{what}: the finish reason is {last.reason!r}")
        n_new = len(tokens)
        self.expect(n_new <= max_new_tokens, "max_new_tokens", f"{what}: {n_new} tokens, {max_new_tokens} allowed")
        self.check_tokens(what, session, list(prompt), tokens, exact)
        return _Story(tuple(token.id for token in tokens), last.reason, model_calls())

    def check_tokens(
        self, what: str, session: ToySession, story: list[int], tokens: Sequence[Token], exact: bool
    ) -> None:
        """Committed tokens exist, are no EOS, and carry the model's own log-probability."""
        for token in tokens:
            if not self.expect(0 <= token.id < session.vocab_size, "tokens", f"{what}: there is no token {token.id}"):
                return
            self.expect(token.id not in session.eos_ids, "tokens", f"{what}: an EOS token is committed")
            own = float(session.logits_after(story).log_softmax(dim=-1)[token.id])
            close = abs(token.logprob - own) < 1e-3 or token.logprob == own  # both may be −inf
            self.expect(
                close or not exact, "logprob", f"{what}: {token.logprob:.4f} is given where the model has {own:.4f}"
            )
            story = [*story, token.id]
