"""Commands that hold stories, decoders and models side by side."""

import math
import os
import re
from collections import Counter
from dataclasses import replace

from tinystory.decoding import Decoder, common_prefix
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import UsageError
from tinystory.evaluation.comparison import FEWEST, MOST
from tinystory.repl.commands.base import Reply, command, texts, whole_number
from tinystory.repl.pieces import spans
from tinystory.screen.blocks import Line, Printable, Spans, Table
from tinystory.story.lookback import decoder_of, request_of
from tinystory.story.tracing import TurnLogits, Verdict, parting, whatif
from tinystory.story.tree import PathToken, Turn
from tinystory.studio.recall import check_same_model, desk_request, eos_ids, token_name
from tinystory.studio.studio import Studio

__all__: list[str] = []

_PIECE = re.compile(r'(?:"(?:[^"\\]|\\.)*"?|[^";])+')
_CONTEXT = 60


@command("compare", "[SPEC ; SPEC ; …]", "go on by several decoders with the same luck, side by side", "specs")
def _compare(studio: Studio, argument: str) -> Reply:
    """From 2 to 8 decoders. Without SPECs: the one in use, and greedy. Each column becomes a branch of the tree.

    A story that is over is not gone on with: its latest piece is written once more. /diff tells where two columns
    part, and which stage parted them.
    """
    if argument:
        specs = [piece.strip() for piece in _PIECE.findall(argument) if piece.strip()]
    else:
        specs = [studio.spec, "sample 0.8" if studio.spec == "greedy" else "greedy"]
    if not FEWEST <= len(specs) <= MOST:
        raise UsageError(
            f"/compare takes from {FEWEST} to {MOST} decoders with `;` between them, not {len(specs)};"
            " /compare greedy ; sample 0.8 ; top-k 5"
        )
    decoders = [parse_spec(spec, studio.registry) for spec in specs]
    return Reply(requests=tuple(studio.compare(decoders)), titles=tuple(map(format_spec, decoders)))


@command("diff", "A B", "where the stories of two turns part, and which stage parted them")
def _diff(studio: Studio, argument: str) -> Reply:
    """A and B are numbers of /tree. The luck is coupled: with one seed, stories differ only where decoders do."""
    numbers = argument.split()
    if len(numbers) != 2:
        raise UsageError("/diff takes the numbers of two turns, like /diff 2 3; /tree shows them")
    a, b = (_turn(studio, number) for number in numbers)
    if a.vocabulary != b.vocabulary or a.vocabulary != studio.backend.vocabulary:
        raise UsageError("these stories are not both in the tokens of the model in use; /model takes another one")
    one, other = (_ids(studio, turn) for turn in (a, b))
    n = common_prefix(one, other)
    if n == min(len(one), len(other)):
        same = f"{a.id} and {b.id} are the same story" if len(one) == len(other) else ""
        shorter, longer = (a.id, b.id) if len(one) < len(other) else (b.id, a.id)
        return Reply((Line(same or f"they do not part: {shorter} is the beginning of {longer}"),))
    heads = [_brought(studio, turn, n) for turn in (a, b)]
    before = " ".join(studio.backend.detokenize(one[:n])[-2 * _CONTEXT :].split())[-_CONTEXT:].lstrip()
    rows = [
        (str(turn.id), token_name(studio, ids[n]), head.written.spec if head.written else "typed")
        for turn, ids, head in zip((a, b), (one, other), heads, strict=True)
    ]
    n_tokens = n - len(studio.backend.encode("", bos=True))
    where = Line(f"they part after {n_tokens:,} tokens: “…{before}”" if before else "they part at the beginning")
    return Reply((where, Table(tuple(rows), 2), Line(_why(studio, (a, b), heads, n))))


@command("whatif", "SPEC", "which tokens of the story another decoder could not have picked", argument="spec")
def _whatif(studio: Studio, argument: str) -> Reply:
    """They are red, or in brackets where there are no colours. Below: how probable the story is for that decoder.

    Everything after the beginning is judged, what you typed in between, too. The model is asked once more; nothing
    is written.
    """
    if not argument:
        raise UsageError("/whatif takes a decoder, like /whatif top-k 5")
    decoder = parse_spec(argument, studio.registry)
    request, ids = desk_request(studio)
    studio.backend.wait(lambda: False)
    logits = studio.backend.logits(ids, len(request.prompt_ids))
    verdict = whatif(decoder, request, ids, logits, eos_ids=eos_ids(studio))
    forbidden = dict(verdict.forbidden)

    def style(index: int, token: PathToken) -> str:
        return "mark" if index in forbidden else "bold" if index < len(request.prompt_ids) else ""

    story = Spans(tuple(spans(studio, style)))  # type: ignore[arg-type]
    return Reply((story, Line(""), *_verdict(decoder, verdict)))


@command("versus", "MODEL MODEL…", "the story from its first words on by several models, side by side", "folders")
def _versus(studio: Studio, argument: str) -> Reply:
    """2 to 8 folders or hub ids, say the checkpoints of one run; in quotes where a name has spaces.

    Prompt, seed and decoder are the same for each. It is to look at only: no column becomes a branch of the tree.
    """
    names = [os.path.expanduser(name) for name in texts(argument, "/versus")] if argument else []
    if not FEWEST <= len(names) <= MOST:
        raise UsageError(f"/versus takes from {FEWEST} to {MOST} models, not {len(names)}; /versus default runs/a/last")
    backends = tuple(studio.open_model(name) for name in names)
    return Reply(titles=_short(names), versus=backends)


def _turn(studio: Studio, number: str) -> Turn:
    """The turn of a number as typed."""
    last = max(studio.tree.turns, default=0)
    if not last:
        raise UsageError("nothing has been written yet")
    return studio.tree.turns[whole_number(number, "/diff", 1, last)]


def _ids(studio: Studio, turn: Turn) -> tuple[int, ...]:
    """A story's tokens, and its end where it has come to one."""
    ends = eos_ids(studio)
    return (*studio.tree.token_ids(turn.id), *([min(ends)] if turn.ended and ends else []))


def _brought(studio: Studio, turn: Turn, index: int) -> Turn:
    """The turn that brought the token at an index of a story; the end is its last node's."""
    path = studio.tree.path(turn.id)
    return studio.tree.turns[path[index].turn] if index < len(path) else turn


def _why(studio: Studio, turns: tuple[Turn, Turn], heads: list[Turn], index: int) -> str:
    """Why two stories part at an index, in a line."""
    for turn, head in zip(turns, heads, strict=True):
        if head.written is None or index < len(request_of(studio.tree, head.id, studio.backend.tokenizer).prompt_ids):
            return f"why: in {turn.id}, that is where you typed or took something else"
        check_same_model(studio, head)
    tellings = _tellings(studio, heads, index)
    try:
        found = parting(*tellings, eos_ids=eos_ids(studio))
    except UsageError as error:
        return f"why is not known: {error}"
    if found is None:
        return "why is not known: computed once more, they do not part"
    side = {"a": f" (in {turns[0].id})", "b": f" (in {turns[1].id})"}.get(found.side, "")
    return f"why: {found.cause}{side}"


def _tellings(studio: Studio, heads: list[Turn], index: int) -> tuple[TurnLogits, TurnLogits]:
    """Both pieces, up to the token where they part, as written from one prompt: the longer of the two.

    What a stage remembers of tokens before that, which only some do, is taken to be nothing.
    """
    tokenizer, tree = studio.backend.tokenizer, studio.tree
    requests = [request_of(tree, head.id, tokenizer) for head in heads]
    start = max(len(request.prompt_ids) for request in requests)
    found = []
    for head, request in zip(heads, requests, strict=True):
        assert head.written is not None
        ids = (*request.prompt_ids, *(token.id for token in head.written.tokens), *_end(studio, head))[: index + 1]
        whole = len(request.prompt_ids) == start
        # What is to be healed has been, within the tokens that are now the prompt's.
        written = head.written if whole else replace(head.written, heal="")
        decoder = decoder_of(written, studio.registry, tokenizer)
        found.append((decoder, replace(request, prompt_ids=ids[:start]), ids, studio.backend.logits(ids, start)))
    return found[0], found[1]


def _end(studio: Studio, turn: Turn) -> tuple[int, ...]:
    return (min(eos_ids(studio)),) if turn.ended and eos_ids(studio) else ()


def _verdict(decoder: Decoder, verdict: Verdict) -> list[Printable]:
    """The figures under a story that has been judged."""
    n_forbidden, n_tokens = len(verdict.forbidden), verdict.n_tokens
    spec = format_spec(decoder)
    if n_forbidden:
        text = f"{spec} could not have picked {n_forbidden:,} of {n_tokens:,} tokens:"
        removed = Counter(stage for _, stage in verdict.forbidden).most_common()
        blocks: list[Printable] = [Line(text), Table(tuple((stage, f"removed {n:,}") for stage, n in removed), 2)]
    else:
        blocks = [Line(f"{spec} could have written all of the {n_tokens:,} tokens")]
    if verdict.bits_per_token is None or verdict.log_prob is None:
        return [*blocks, Line("how probable they are its sampler does not tell", "dim")]
    if n_forbidden == n_tokens:
        return blocks
    others = "the others have" if n_forbidden else "they have"
    total = "" if n_forbidden else f", together 2^{verdict.log_prob / math.log(2):,.1f}"
    return [*blocks, Line(f"{others} {abs(verdict.bits_per_token):.3f} bits per token under it{total}")]


def _short(names: list[str]) -> tuple[str, ...]:
    """The names without the folders that all are in."""
    folders = [os.path.dirname(os.path.abspath(name)) if os.path.dirname(name) else "" for name in names]
    folder = os.path.commonpath(folders) if all(folders) else ""
    return tuple(os.path.relpath(name, folder) if folder else name for name in names)
