"""The second half of the conformance kit: whole stories on toy sessions, with every way in which a story can end."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import numpy as np

from tinystory.decoding import Commit, Decoder, Draft, Event, Finish, FinishReason, Token
from tinystory.decoding.loop import run
from tinystory.errors import UsageError, one_line
from tinystory.testing.findings import Findings
from tinystory.testing.toy_session import ToySession, toy_request

__all__ = ["check_stories"]

_LENGTHS = (12, 60, 240)
"""The length of an ordinary story is the first of these that the decoder does not refuse."""

_PATIENCE = 20
"""A story counts as endless if it is this number of tokens longer than its limit."""


def check_stories(
    decoder: Decoder, session: Callable[..., ToySession], max_new_tokens: int | None, findings: Findings
) -> None:
    """Write stories with a decoder, each on a session of its own.

    Args:
        decoder: the whole decoder.
        session: makes the sessions. It is called with keyword arguments of ToySession.
        max_new_tokens: the length of ordinary stories. None means 12, or more if a search refuses 12.
        findings: gets the results.
    """
    if max_new_tokens is None:
        accepted = (n for n in _LENGTHS if not _refuses(decoder, session(**_room(n)), n))
        max_new_tokens = next(accepted, _LENGTHS[0])
    _Stories(decoder, partial(session, **_room(max_new_tokens)), max_new_tokens, findings).check()


def _room(max_new_tokens: int) -> dict[str, int]:
    """Return options of a toy session whose context holds a story of this length."""
    return {"max_seq_len": 256} if max_new_tokens > 60 else {}


def _refuses(decoder: Decoder, session: ToySession, max_new_tokens: int) -> bool:
    """Return True if a decoder refuses such a short story at once."""
    try:
        next(run(session, [(decoder, toy_request((0, 5, 3), max_new_tokens))]), None)
    except UsageError:
        return True
    except Exception:  # the stories will show this error
        return False
    return False


class _Story(NamedTuple):
    token_ids: tuple[int, ...]
    reason: str
    model_calls: int


class _Stories:
    """Whole stories of one decoder, each on a new toy session."""

    def __init__(
        self, decoder: Decoder, new_session: Callable[..., ToySession], max_new_tokens: int, findings: Findings
    ) -> None:
        self.decoder = decoder
        self.max_new_tokens = max_new_tokens
        self.new_session = new_session
        self.expect = findings.expect

    def check(self) -> None:
        """Write stories that end in every possible way."""
        plain = self.write("a plain story")
        if plain is None:  # every other story would fail in the same way
            return
        self.expect(plain == self.write("the same again"), "determinism", "one seed gives two different stories")
        for limit in (0, 1, 2, 7):
            endless = self.write(f"a limit of {limit}", max_new_tokens=limit, refusable=limit > 0, eos_logit=-np.inf)
            if endless:
                end = f"ends by {endless.reason} with {len(endless.token_ids)} tokens"
                self.expect(end == f"ends by length with {limit} tokens", "max_new_tokens", f"{limit}: {end}")
        self.check_interruptions()
        self.check_batch()
        searching = self.decoder.search is not None
        self.write("an overflowing story", searching, exact=False, max_new_tokens=20, max_seq_len=8)
        self.write("a long prompt", searching, exact=False, prompt=range(2, 14), max_seq_len=8)
        self.write("a session that cannot rewind or reorder", searching, can_rewind=False, can_reorder=False)

    def check_interruptions(self) -> None:
        """Check a stop, a cancel, and a consumer that leaves early."""
        whole = self.write("an endless story", eos_logit=-np.inf)
        if whole is None:
            return
        stopped = self.write("a stopped story", stop=lambda n_tokens: n_tokens >= 2, eos_logit=-np.inf)
        if stopped:
            self.expect(stopped.reason == "stop", "stop", "a stop after two tokens does not end the story")
        cancelled = self.write("a cancelled story", cancel=lambda calls: calls >= 3, eos_logit=-np.inf)
        if cancelled and whole.model_calls > 5:
            is_late = cancelled.reason != "cancelled" or cancelled.model_calls > 5
            self.expect(
                not is_late, "cancel", f"cancelled after call 3, it continued until call {cancelled.model_calls}"
            )
        events = run(
            self.new_session(),
            [(self.decoder, toy_request((0, 5, 3), self.max_new_tokens))],
        )
        try:
            next(events)
            events.close()  # type: ignore[attr-defined]
        except Exception as error:
            self.expect(False, "early close", f"{one_line(error, kind=True)}")
        else:
            self.expect(True, "early close", "")

    def check_batch(self) -> None:
        """Check that stories written together equal those written alone."""
        prompts = [(0, 5, 3), (0, 7), (0, 2, 2, 2)]
        alone = [self.write("a story alone", prompt=prompt) for prompt in prompts]
        requests = [toy_request(prompt, self.max_new_tokens) for prompt in prompts]
        together: list[list[int]] = [[], [], []]
        try:
            for index, event in run(self.new_session(), [(self.decoder, request) for request in requests]):
                if isinstance(event, Commit):
                    together[index] += [token.id for token in event.tokens]
                if len(together[index]) > self.max_new_tokens + _PATIENCE:
                    break
        except Exception as error:
            self.expect(False, "together", f"{one_line(error, kind=True)}")
            return
        for story, token_ids in zip(alone, together, strict=True):
            same = story is None or list(story.token_ids) == token_ids
            self.expect(same, "together", "a story differs if others are written with it")

    def write(
        self,
        case: str,
        refusable: bool = False,
        *,
        exact: bool = True,
        prompt: Sequence[int] = (0, 5, 3),
        max_new_tokens: int | None = None,
        stop: Callable[[int], bool] = lambda n_tokens: False,
        cancel: Callable[[int], bool] = lambda model_calls: False,
        **session_options: Any,
    ) -> _Story | None:
        """Write one story and check its events.

        Args:
            case: the name of the case in the report.
            refusable: True if the decoder may refuse the story with a UsageError.
            exact: True if the model sees the whole story, so that log-probabilities can be checked.
            prompt: token ids.
            max_new_tokens: the limit; None means that of ordinary stories.
            stop: gets the number of committed tokens and returns True to stop.
            cancel: gets the number of model calls and returns True to cancel.
            session_options: options of ToySession.

        Returns:
            The story; None if it was refused, or failed, or did not end.
        """
        session = self.new_session(**session_options)
        if max_new_tokens is None:
            max_new_tokens = self.max_new_tokens
        events: list[Event] = []
        tokens: list[Token] = []

        def model_calls() -> int:
            return sum(call.verb in ("prefill", "decode") for call in session.calls)

        request = toy_request(
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
                if len(tokens) > max_new_tokens + _PATIENCE:
                    break
        except Exception as error:
            is_refused = refusable and isinstance(error, UsageError)
            self.expect(is_refused, "story", f"{case}: {one_line(error, kind=True)}")
            return None
        self.expect(True, "story", "")
        n_new = len(tokens)
        self.expect(n_new <= max_new_tokens, "max_new_tokens", f"{case}: {n_new} tokens, {max_new_tokens} allowed")
        reason = self.check_events(case, events)
        if reason is None:
            return None
        self.check_tokens(case, session, list(prompt), tokens, exact)
        return _Story(tuple(token.id for token in tokens), reason, model_calls())

    def check_events(self, case: str, events: Sequence[Event]) -> FinishReason | None:
        """Check the kinds and the order of events. Return the finish reason; None if the last event is no Finish."""
        last = events[-1] if events else None
        are_events = all(isinstance(event, Commit | Draft | Finish) for event in events)
        n_finishes = sum(isinstance(event, Finish) for event in events)
        self.expect(are_events, "events", f"{case}: an event is not a Commit, Draft or Finish")
        self.expect(n_finishes == 1, "events", f"{case}: there are {n_finishes} Finish events, not one")
        if not self.expect(isinstance(last, Finish), "events", f"{case}: the last event is not a Finish"):
            return None
        assert isinstance(last, Finish)
        self.expect(last.reason in get_args(FinishReason), "events", f"{case}: the finish reason is {last.reason!r}")
        return last.reason

    def check_tokens(
        self, case: str, session: ToySession, story: list[int], tokens: Sequence[Token], exact: bool
    ) -> None:
        """Check that committed tokens exist, are not EOS, and have the model's own log-probability."""
        for token in tokens:
            if not self.expect(0 <= token.id < session.vocab_size, "tokens", f"{case}: there is no token {token.id}"):
                return
            self.expect(token.id not in session.eos_ids, "tokens", f"{case}: an EOS token is committed")
            expected = float(session.logits_after(story).log_softmax(dim=-1)[token.id])
            is_close = abs(token.logprob - expected) < 1e-3 or token.logprob == expected  # both may be −inf
            detail = f"{case}: the token has {token.logprob:.4f}, but the model gives {expected:.4f}"
            self.expect(is_close or not exact, "logprob", detail)
            story = [*story, token.id]
