"""The file that `tinystory decoders new` writes: a small decoder that works, to be changed into another."""

import re
from collections.abc import Mapping

__all__ = ["KINDS", "starter"]

_HEAD = '''"""{title}: what it does, in one line (and the paper or page that the method comes from).

The method in two or three sentences, which the pages about decoders show. As it stands,
{method}: your rule takes its place.

Try it:   tinystory generate "Once upon a time" --decoder-file {file} -d "{spec}"
Check it: tinystory decoders check {file}
Keep it:  put this file into the `decoders` folder of your tinystory configuration (~/.config/tinystory on Linux).
"""
'''

_PROCESSOR = '''
import math
from dataclasses import dataclass

from tinystory.decoding import LogitsProcessor, option


@dataclass(frozen=True)
class {cls}(LogitsProcessor):
    """Keep the tokens that are likely enough beside the likeliest."""

    name = "{name}"
    share: float = option(0.1, ge=0, le=1, neutral=0, help="share of the top probability a token must reach")

    def __call__(self, logits, step):
        """(V,) logits -> new ones; -inf removes a token, one must stay. Never called at the neutral value."""
        return logits.masked_fill(logits < logits.max() + math.log(self.share), -math.inf)
'''

_SAMPLER = '''
from dataclasses import dataclass

from tinystory.decoding import Sampler, draw, option


@dataclass(frozen=True)
class {cls}(Sampler):
    """Take the likeliest token now and then, else draw."""

    name = "{name}"
    chance: float = option(0.5, ge=0, le=1, help="how often the likeliest token is taken")

    def __call__(self, logits, step):
        """(V,) logits, at least one finite -> a token id. All luck comes from `step.noise`."""
        if step.noise("{name}").uniform() < self.chance:
            return int(logits.argmax())
        return draw(logits, step.noise())
'''

_SEARCH = '''
from dataclasses import dataclass

from tinystory.decoding import Commit, Finish, Search, Step, Token, option


@dataclass(frozen=True)
class {cls}(Search):
    """Take the token after which the model is surest of the next."""

    name = "{name}"
    width: int = option(4, ge=1, help="how many of the likeliest tokens to look ahead of")

    def search(self, session, request, chain):
        """Yield Commits (and Drafts, which are guesses), then one Finish; ask `request.interrupted()` after each."""
        token_ids, state = list(request.prompt_ids), chain.start(request)
        reason, most = request.interrupted(), session.max_seq_len - 1
        while not reason and len(token_ids) < len(request.prompt_ids) + request.max_new_tokens:
            seen = token_ids if len(token_ids) <= most else list(request.window(token_ids, most))
            (logits,) = session.prefill([seen])  # only what is new to the session is computed
            processed, received = chain.process(logits, Step(request, token_ids, session.eos_ids), state)
            best = processed.log_softmax(dim=-1).topk(min(self.width, len(processed)))
            ahead = session.prefill([[*seen, token_id] for token_id in best.indices.tolist()])
            token_id = int(best.indices[(best.values + ahead.log_softmax(dim=-1).amax(dim=-1)).argmax()])
            if token_id in session.eos_ids:
                reason = "eos"
                break
            state = chain.observe(state, token_id, received)
            token_ids.append(token_id)
            yield Commit((Token.of(logits, token_id),))
            reason = request.interrupted()
        yield Finish(reason or "length")
'''

KINDS: Mapping[str, tuple[str, str, str]] = {
    "processor": (_PROCESSOR, "it removes tokens below a share of the top probability (min-p)", "{name} | sample 0.8"),
    "sampler": (_SAMPLER, "it mixes greedy decoding and plain draws by chance", "top-k 40 | {name}"),
    "search": (_SEARCH, "it looks one token ahead of each of the likeliest", "top-k 40 | {name}"),
}
"""The kinds of decoder: the code of the starter, what it does, and a spec with it."""


def starter(name: str, kind: str, file: str) -> str:
    """The text of a decoder file.

    Args:
        name: the decoder's name, one that the registry takes.
        kind: a key of `KINDS`.
        file: what users type for the file.
    """
    code, method, spec = KINDS[kind]
    cls = "".join(word.capitalize() for word in name.split("-"))
    if re.search(rf"\b{cls}\b", code):  # `search`, `token`: the class must not hide what it builds on
        cls += "Decoder"
    title = name.replace("-", " ").capitalize()
    return (_HEAD + code).format(title=title, name=name, cls=cls, file=file, method=method, spec=spec.format(name=name))
