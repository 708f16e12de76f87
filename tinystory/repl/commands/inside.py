"""The command /inside: what the model would have said after each layer, where its heads looked, what its parts do."""

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from tinystory.decoding import shrunk
from tinystory.errors import UsageError
from tinystory.repl.commands.base import Reply, command
from tinystory.safe.reading import shown
from tinystory.screen.blocks import Line, Printable, Spans, Table
from tinystory.screen.colours import Style
from tinystory.studio.recall import NEXT, desk_ids, index_of, place, token_name, whole_story
from tinystory.studio.studio import Studio
from tinystory.text.sentences import whole_sentences
from tinystory.text.tokenizer import Detokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from tinystory.inside.forward_pass import ForwardPass
    from tinystory.inside.heads import Gaze
    from tinystory.inside.layers import LayerGuess

__all__: list[str] = []

_N_GUESSES = 3
"""The number of tokens that a row of layers names."""

_SHARES = (0.02, 0.05, 0.1, 0.2)
"""The bounds between the five tints of a word, as shares of the weight that goes to words."""

_BITS = (0.1, 0.5, 1.0, 2.0)
"""The bounds between the five tints of a part, in bits."""


@command("inside", "[POS] [LAYER[.HEAD] | parts]", "look inside the model at POS: layers, attention, parts")
def _inside(studio: Studio, argument: str) -> Reply:
    """Count POS as in /top; without POS, see what would come next.

    Alone: what the model would have said after each layer, and how much each word counted for all heads together.
    LAYER or LAYER.HEAD, like 3 or 3.2: the words that the heads of this layer, or this head, looked at. parts: by how
    many bits the token of the story becomes less likely if a head, an attention or a feed-forward is left out.
    """
    position, _, view = argument.partition(" ")
    index = index_of(studio, position or NEXT, "/inside", beyond=True)
    heading = Line(place(studio, index), "dim")
    view = view.strip()
    if view == "parts":
        return Reply((heading, *_parts(studio, index)))
    chosen = _layer_and_head(view)
    studio.backend.wait(lambda: False)
    before = _before(studio, index)
    run = studio.backend.inspector.run((*before, *whole_story(studio)[index : index + 1]))
    return Reply((heading, *(_looked_at(studio, run, before, chosen) if view else _layers(studio, run, before))))


def _layer_and_head(view: str) -> tuple[int | None, int | None]:
    """Return the indices, from 0, in a text like "3" or "3.2"."""
    match = re.fullmatch(r"([1-9]\d{0,3})(?:\.([1-9]\d{0,3}))?", view)
    if view and not match:
        raise UsageError(
            f"/inside takes a layer like 3, a head like 3.2, or parts after the position, not {shown(view[:20])}"
        )
    layer, head = match.groups() if match else (None, None)
    return int(layer) - 1 if layer else None, int(head) - 1 if head else None


def _before(studio: Studio, index: int) -> tuple[int, ...]:
    """Return the tokens before an index, cut to the context of the model as the loop cuts them."""
    before = desk_ids(studio)[:index]
    most = studio.backend.session().max_seq_len - 1  # one place is left for the token of the story
    if len(before) <= most:
        return before
    return tuple(shrunk(before, partial(whole_sentences, studio.backend.tokenizer), most))


def _layers(studio: Studio, run: "ForwardPass", before: Sequence[int]) -> list[Printable]:
    """Return a row for each layer, the layer of the decision, and the story tinted by the mean of all heads."""
    from tinystory.inside.layers import decided_at, guesses

    layers = guesses(run, len(before), _N_GUESSES)
    last = layers[-1].layer
    rows = tuple(_layer_row(studio, guess, last) for guess in layers)
    decided = decided_at(layers)
    where = "its embeddings alone" if decided == 0 else f"layer {decided}"
    name = token_name(studio, layers[-1].likeliest[0][0])
    blocks: list[Printable] = [Table(rows), Line(f"{name} is the likeliest from {where} on")]
    if run.attention is None:
        return [*blocks, Line("this architecture does not give the weights of its attention", "dim")]
    return [*blocks, *_looked_at(studio, run, before, (None, None))]


def _layer_row(studio: Studio, guess: "LayerGuess", last: int) -> tuple[str, ...]:
    label = "embeddings" if guess.layer == 0 else f"layer {guess.layer}" + " (the model)" * (guess.layer == last)
    likeliest = "  ".join(f"{token_name(studio, token_id)} {share:.0%}" for token_id, share in guess.likeliest)
    taken = "" if guess.taken is None else f"taken: {guess.taken:.1%}, place {guess.taken_rank:,}"
    return (label, taken, likeliest) if taken else (label, likeliest)


def _looked_at(
    studio: Studio, run: "ForwardPass", before: Sequence[int], chosen: tuple[int | None, int | None]
) -> list[Printable]:
    """Return the words before the token, tinted by the weight that the chosen heads gave to them."""
    from tinystory.inside.heads import gaze

    bos_id = studio.backend.tokenizer.bos_id
    seen = gaze(run, len(before), bos_id)
    layer, head = chosen
    shares = seen.words(layer, head).tolist()
    name = _name_of_heads(layer, head)
    bos = seen.bos_share if layer is None else seen.bos_share[layer : layer + 1]
    bos = bos if head is None else bos[:, head : head + 1]
    idle = f"; {float(bos.mean()):.0%} of the weight goes to BOS, the rest counts as 100%" if seen.has_bos else ""
    blocks: list[Printable] = [
        Line(f"where {name} looked{idle}"),
        Spans(_tinted_words(studio, before, shares)),
        Spans(_legend()),
    ]
    return blocks if head is not None else [*blocks, *_map_of_heads(studio, seen, before, layer)]


def _name_of_heads(layer: int | None, head: int | None) -> str:
    if layer is None:
        return "all heads together"
    return f"the heads of layer {layer + 1}" if head is None else f"head {head + 1} of layer {layer + 1}"


def _tinted_words(studio: Studio, before: Sequence[int], shares: Sequence[float]) -> tuple[tuple[str, Style], ...]:
    detokenizer = Detokenizer(studio.backend.tokenizer)
    pieces = [
        (detokenizer.add(token_id), _tint(share, _SHARES)) for token_id, share in zip(before, shares, strict=True)
    ]
    return tuple(piece for piece in (*pieces, (detokenizer.finish(), "")) if piece[0])


def _tint(value: float, bounds: Sequence[float]) -> Style:
    """Return the tint of a value: dim below the first bound, and the hotter the more bounds it reaches."""
    n_reached = sum(value >= bound for bound in bounds)
    return cast(Style, f"heat{n_reached}" if n_reached else "dim")


def _legend() -> tuple[tuple[str, Style], ...]:
    pieces: list[tuple[str, Style]] = [("share of the weight: ", ""), ("below 2%", "dim")]
    for n, bound in enumerate(_SHARES, start=1):
        pieces += [("  ", ""), (f"{bound:.0%}", cast(Style, f"heat{n}"))]
    return tuple(pieces)


def _map_of_heads(studio: Studio, seen: "Gaze", before: Sequence[int], layer: int | None) -> list[Printable]:
    """Return a row for each layer: the word at which each head looked most, or BOS."""
    layers = range(len(seen.weights)) if layer is None else [layer]
    rows = []
    for n in layers:
        heads = [_favourite(studio, weights, before, seen.has_bos) for weights in seen.weights[n]]
        rows.append((f"layer {n + 1}", "  ".join(f"{head}: {text}" for head, text in enumerate(heads, start=1))))
    return [Line("what each head looked at most", "dim"), Table(tuple(rows))]


def _favourite(studio: Studio, weights: "Tensor", before: Sequence[int], has_bos: bool) -> str:
    index = int(weights.argmax())
    name = "BOS" if has_bos and index == 0 else token_name(studio, before[index])
    return f"{name} {float(weights[index]):.0%}"


def _parts(studio: Studio, index: int) -> list[Printable]:
    """Return a row for each layer: by how many bits the token becomes less likely without each of its parts."""
    story = whole_story(studio)
    if index >= len(story):
        raise UsageError("/inside POS parts asks about a token of the story; give its position, like -1")
    studio.backend.wait(lambda: False)
    token_id = story[index]
    found = list(studio.backend.inspector.effects(_before(studio, index), token_id))
    pieces: list[tuple[str, Style]] = []
    layer = -1
    for effect in found:
        if effect.part.layer != layer:
            layer = effect.part.layer
            pieces.append((f"\nlayer {layer + 1}: " if layer else f"layer {layer + 1}: ", ""))
        label = f"{effect.part.head + 1}" if effect.part.head is not None else effect.part.kind
        pieces += [(f"{label} {effect.bits:+.1f}", _tint(effect.bits, _BITS)), ("  ", "")]
    worst = max(found, key=lambda effect: effect.bits)
    without = token_name(studio, worst.likeliest)
    change = (
        f"without {worst.part}, {token_name(studio, token_id)} is {2 ** min(worst.bits, 60):,.1f} times less likely"
    )
    verdict = (
        f"{change}, and {without} the likeliest" if worst.bits > 0 and math.isfinite(worst.bits) else "no part helps it"
    )
    return [
        Line(f"how many bits {token_name(studio, token_id)} loses if a part is left out (heads by number)"),
        Spans(tuple(pieces)),
        Line(verdict),
    ]
