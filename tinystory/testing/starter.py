"""The file that `tinystory decoders new` writes: a small working decoder that its author then changes."""

import re
from collections.abc import Mapping

__all__ = ["KINDS", "starter"]

_HEAD = '''"""{title}: say here in one line what it does (and name the paper or page of the method).

Describe the method in two or three sentences, which the pages about decoders show. For now,
{method}. Put your rule in its place.

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
    """Keep the tokens that have at least a share of the top probability."""

    name = "{name}"
    share: float = option(0.1, ge=0, le=1, neutral=0, help="share of the top probability that a token must reach")

    def __call__(self, logits, step):
        """Return new (V,) logits. -inf removes a token; one must stay. It is never called at the neutral value."""
        return logits.masked_fill(logits < logits.max() + math.log(self.share), -math.inf)
'''

_SAMPLER = '''
from dataclasses import dataclass

from tinystory.decoding import Sampler, draw, option


@dataclass(frozen=True)
class {cls}(Sampler):
    """Pick the likeliest token now and then, and draw otherwise."""

    name = "{name}"
    chance: float = option(0.5, ge=0, le=1, help="the share of positions at which the likeliest token is picked")

    def __call__(self, logits, step):
        """Return a token id for (V,) logits. At least one is finite. Take all random numbers from `step.noise`."""
        if step.noise("{name}").uniform() < self.chance:
            return int(logits.argmax())
        return draw(logits, step.noise())
'''

_SEARCH = '''
from dataclasses import dataclass

from tinystory.decoding import Commit, Finish, Search, Step, Token, option


@dataclass(frozen=True)
class {cls}(Search):
    """Pick the token after which the model is most certain of the next one."""

    name = "{name}"
    width: int = option(4, ge=1, help="how many of the likeliest tokens are tried")

    def search(self, session, request, chain):
        """Yield Commits and Drafts, then one Finish. Ask `request.interrupted()` after each event."""
        token_ids, state = list(request.prompt_ids), chain.start(request)
        reason, most = request.interrupted(), session.max_seq_len - 1
        while not reason and len(token_ids) < len(request.prompt_ids) + request.max_new_tokens:
            seen = token_ids if len(token_ids) <= most else list(request.window(token_ids, most))
            (logits,) = session.prefill([seen])  # the session computes only new tokens
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
    "search": (_SEARCH, "it looks one token beyond each of the likeliest tokens", "top-k 40 | {name}"),
}
"""For each kind of stage: the code, a description of its method, and a spec that uses it."""


def starter(name: str, kind: str, file: str) -> str:
    """Return the text of a decoder file.

    Args:
        name: a valid name for the decoder.
        kind: a key of `KINDS`.
        file: the path that users type for the file.
    """
    code, method, spec = KINDS[kind]
    cls = "".join(word.capitalize() for word in name.split("-"))
    if re.search(rf"\b{cls}\b", code):  # such as `search`: the class must not hide a class that it uses
        cls += "Decoder"
    title = name.replace("-", " ").capitalize()
    return (_HEAD + code).format(title=title, name=name, cls=cls, file=file, method=method, spec=spec.format(name=name))
