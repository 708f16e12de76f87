"""Commands that compare stories, decoders and models."""

import math
import os
import re
from collections import Counter
from dataclasses import replace

from tinystory.decoding import Decoder, common_prefix
from tinystory.decoding.spec import parse_spec, shown_spec, spec_as_shown
from tinystory.errors import UsageError
from tinystory.evaluation.comparison import FEWEST, MOST
from tinystory.repl.commands.base import Reply, command, texts, whole_number
from tinystory.repl.pieces import spans
from tinystory.screen.blocks import Line, Printable, Spans, Table
from tinystory.screen.colours import Style
from tinystory.story.lookback import decoder_of, request_of
from tinystory.story.tracing import TurnLogits, Verdict, parting, whatif
from tinystory.story.tree import PathToken, Turn
from tinystory.studio.recall import check_same_model, desk_request, eos_ids, n_bos_of, token_name
from tinystory.studio.studio import Studio

__all__: list[str] = []

_SPEC = re.compile(r'(?:"(?:[^"\\]|\\.)*"?|[^";])+')
_CONTEXT = 60


@command("compare", "[SPEC ; SPEC ; …]", "go on with several decoders and the same noise, side by side", "specs")
def _compare(studio: Studio, argument: str) -> Reply:
    """Give 2 to 8 decoders, or none for the one in use and greedy. Each column becomes a branch of the tree.

    If the story has ended, its latest turn is written again. /diff shows where two columns part, and which stage
    parted them.
    """
    if argument:
        specs = [spec.strip() for spec in _SPEC.findall(argument) if spec.strip()]
    else:
        specs = [studio.spec, "sample 0.8" if studio.spec == "greedy" else "greedy"]
    if not FEWEST <= len(specs) <= MOST:
        raise UsageError(
            f"/compare takes from {FEWEST} to {MOST} decoders with `;` between them, not {len(specs)};"
            " /compare greedy ; sample 0.8 ; top-k 5"
        )
    decoders = [parse_spec(spec, studio.registry) for spec in specs]
    return Reply(requests=tuple(studio.compare(decoders)), titles=tuple(map(shown_spec, decoders)))


@command("diff", "A B", "show where the stories of two turns part, and which stage parted them", "turn")
def _diff(studio: Studio, argument: str) -> Reply:
    """Give the numbers of two turns, as /tree shows them. With one seed, stories differ only where decoders differ."""
    numbers = argument.split()
    if len(numbers) != 2:
        raise UsageError("/diff takes the numbers of two turns, like /diff 2 3; /tree shows them")
    a, b = (_turn(studio, number) for number in numbers)
    if a.vocabulary != b.vocabulary or a.vocabulary != studio.backend.vocabulary:
        raise UsageError("this model does not have the vocabulary of both stories; /model changes the model")
    a_ids, b_ids = (_ids(studio, turn) for turn in (a, b))
    n = common_prefix(a_ids, b_ids)
    if n == min(len(a_ids), len(b_ids)):
        same = f"{a.id} and {b.id} are the same story" if len(a_ids) == len(b_ids) else ""
        shorter, longer = (a.id, b.id) if len(a_ids) < len(b_ids) else (b.id, a.id)
        return Reply((Line(same or f"they do not part: {shorter} is the beginning of {longer}"),))
    sources = [_source(studio, turn, n) for turn in (a, b)]
    before = " ".join(studio.backend.detokenize(a_ids[:n])[-2 * _CONTEXT :].split())[-_CONTEXT:].lstrip()
    rows = [
        (
            str(turn.id),
            token_name(studio, ids[n]),
            spec_as_shown(source.written.spec, studio.registry) if source.written else "typed",
        )
        for turn, ids, source in zip((a, b), (a_ids, b_ids), sources, strict=True)
    ]
    n_tokens = n - n_bos_of(studio, a_ids)
    where = Line(f"they part after {n_tokens:,} tokens: “…{before}”" if before else "they part at the beginning")
    return Reply((where, Table(tuple(rows), 2), Line(_why(studio, (a, b), sources, n))))


@command("whatif", "SPEC", "show which tokens of the story another decoder could not have picked", argument="spec")
def _whatif(studio: Studio, argument: str) -> Reply:
    """Show the tokens that SPEC could not have picked in red; without colours, in brackets.

    Below the story stands how probable it is for SPEC. All tokens after the prompt are judged, also those that you
    typed later. The model computes the story again; nothing is written.
    """
    if not argument:
        raise UsageError("/whatif takes a decoder, like /whatif top-k 5")
    decoder = parse_spec(argument, studio.registry)
    request, ids = desk_request(studio)
    studio.backend.wait(lambda: False)
    logits = studio.backend.logits(ids, len(request.prompt_ids))
    verdict = whatif(decoder, request, ids, logits, eos_ids=eos_ids(studio))
    forbidden = dict(verdict.forbidden)

    def style(index: int, _token: PathToken) -> Style:
        return "mark" if index in forbidden else "bold" if index < len(request.prompt_ids) else ""

    story = Spans(tuple(spans(studio, style)))
    return Reply((story, Line(""), *_verdict(decoder, verdict)))


@command("versus", "MODEL MODEL…", "write the story again from its prompt with several models, side by side", "folders")
def _versus(studio: Studio, argument: str) -> Reply:
    """Give 2 to 8 models: folders, such as the checkpoints of one run, or hub ids. Quote a name that has spaces.

    All models get the same prompt, seed and decoder. The stories are only shown: no column becomes a branch.
    """
    names = [os.path.expanduser(name) for name in texts(argument, "/versus")] if argument else []
    if not FEWEST <= len(names) <= MOST:
        raise UsageError(f"/versus takes from {FEWEST} to {MOST} models, not {len(names)}; /versus default runs/a/last")
    backends = tuple(studio.open_model(name) for name in names)
    return Reply(titles=_short_names(names), versus=backends)


def _turn(studio: Studio, number: str) -> Turn:
    """Return the turn of a typed number."""
    last = max(studio.tree.turns, default=0)
    if not last:
        raise UsageError("nothing has been written yet")
    turn = studio.tree.turns.get(whole_number(number, "/diff", 1, last))
    if turn is None:  # a column in which nothing was written leaves its number free
        raise UsageError(f"there is no turn {number}; /tree shows them")
    return turn


def _ids(studio: Studio, turn: Turn) -> tuple[int, ...]:
    """Return the tokens of a story, with an EOS token if the model ended it."""
    return (*studio.tree.token_ids(turn.id), *_end(studio, turn))


def _source(studio: Studio, turn: Turn, index: int) -> Turn:
    """Return the turn that added the token at an index of a story. Its last turn added the EOS token."""
    path = studio.tree.path(turn.id)
    return studio.tree.turns[path[index].turn] if index < len(path) else turn


def _why(studio: Studio, turns: tuple[Turn, Turn], sources: list[Turn], index: int) -> str:
    """Return in one line why two stories part at an index; `sources` are the turns that added the tokens there."""
    for turn, source in zip(turns, sources, strict=True):
        if source.written is None or index < _n_prompt(studio, source):
            return f"why: in {turn.id}, that is where you typed or took something else"
        check_same_model(studio, source)
    try:
        cause = parting(*_turn_logits(studio, sources, index), eos_ids=eos_ids(studio))
    except UsageError as error:
        return f"why is not known: {error}"
    if cause is None:
        return "why is not known: when they are computed again, they do not part"
    side = {"a": f" (in {turns[0].id})", "b": f" (in {turns[1].id})"}.get(cause.side, "")
    return f"why: {cause.cause}{side}"


def _n_prompt(studio: Studio, turn: Turn) -> int:
    """Return how many tokens the model was given before it wrote a turn."""
    return len(request_of(studio.tree, turn.id, studio.backend.tokenizer).prompt_ids)


def _turn_logits(studio: Studio, turns: list[Turn], index: int) -> tuple[TurnLogits, TurnLogits]:
    """Return two turns up to the token at an index, as if both were written from the longer of their prompts.

    A stage that remembers earlier tokens begins without them.
    """
    tokenizer, tree = studio.backend.tokenizer, studio.tree
    requests = [request_of(tree, turn.id, tokenizer) for turn in turns]
    start = max(len(request.prompt_ids) for request in requests)
    results = []
    for turn, request in zip(turns, requests, strict=True):
        assert turn.written is not None
        ids = (*request.prompt_ids, *(token.id for token in turn.written.tokens), *_end(studio, turn))[: index + 1]
        whole = len(request.prompt_ids) == start
        # A cut word was healed within the tokens that are now part of the prompt.
        written = turn.written if whole else replace(turn.written, heal="")
        decoder = decoder_of(written, studio.registry, tokenizer)
        results.append((decoder, replace(request, prompt_ids=ids[:start]), ids, studio.backend.logits(ids, start)))
    return results[0], results[1]


def _end(studio: Studio, turn: Turn) -> tuple[int, ...]:
    """Return an EOS token if the model ended the turn with one."""
    return (min(eos_ids(studio)),) if turn.ended and eos_ids(studio) else ()


def _verdict(decoder: Decoder, verdict: Verdict) -> list[Printable]:
    """Return the figures under a story that a decoder has judged."""
    n_forbidden, n_tokens = len(verdict.forbidden), verdict.n_tokens
    spec = shown_spec(decoder)
    if n_forbidden:
        text = f"{spec} could not have picked {n_forbidden:,} of {n_tokens:,} tokens:"
        removed = Counter(stage for _, stage in verdict.forbidden).most_common()
        blocks: list[Printable] = [Line(text), Table(tuple((stage, f"removed {n:,}") for stage, n in removed), 2)]
    else:
        blocks = [Line(f"{spec} could have written all of the {n_tokens:,} tokens")]
    if verdict.bits_per_token is None or verdict.log_prob is None:
        return [*blocks, Line("its sampler does not know how probable the tokens are", "dim")]
    if n_forbidden == n_tokens:
        return blocks
    subject = "the others have" if n_forbidden else "they have"
    total = "" if n_forbidden else f", together 2^{verdict.log_prob / math.log(2):,.1f}"
    return [*blocks, Line(f"{subject} {abs(verdict.bits_per_token):.3f} bits per token with this decoder{total}")]


def _short_names(names: list[str]) -> tuple[str, ...]:
    """Return the names without the folder that all of them share."""
    folders = [os.path.dirname(os.path.abspath(name)) if os.path.dirname(name) else "" for name in names]
    folder = os.path.commonpath(folders) if all(folders) else ""
    return tuple(os.path.relpath(name, folder) if folder else name for name in names)
