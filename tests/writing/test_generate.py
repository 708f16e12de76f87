"""Stories as text: streams, seeds, stop texts, the context window."""

import functools
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models

from tinystory.checkpoint import load_model, read_header
from tinystory.decoding import Decoder, Request, Sampler, Step
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.errors import UsageError
from tinystory.session.loading import load
from tinystory.text.sentences import whole_sentences
from tinystory.text.tokenizer import Detokenizer, Tokenizer
from tinystory.writing.generate import Ended, StoryRequest, Text, Trimmed, write
from tinystory.writing.stops import StopFilter, check_stops

TIE = 1e-3
"""A numerical tie: batches of another shape may round such near scores the other way."""


@pytest.fixture(scope="module")
def model(checkpoint):
    return load(str(checkpoint))


@pytest.fixture(scope="module")
def spec():
    registry = discover(user_folder=None)
    return lambda text: parse_spec(text, registry)


@functools.cache
def plain_model(directory):
    """Return the model of a checkpoint in plain torch; a session has only what it computes with."""
    return load_model(read_header(directory)).eval()


def end_of(model, *requests):
    ended = [event for event in write(model.session, model.tokenizer, requests) if isinstance(event, Ended)]
    return [event.result for event in sorted(ended, key=lambda event: event.story)]


def same_but_for_ties(model, story, other):
    """Return whether two stories are equal, or differ first at a numerical tie of the two best tokens."""
    a, b = story.token_ids, other.token_ids
    if a == b:
        return True
    at = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    ids = (*story.prompt_ids, *a[:at])
    with torch.no_grad():
        logits = plain_model(model.header.directory)(torch.tensor([ids]))[0, -1]
    request = Request(story.prompt_ids, 1, story.request.seed, story=story.request.number)
    noise = Step(request, ids, frozenset()).noise().gumbel(np.arange(len(logits)))
    best = np.sort(logits.numpy().astype(np.float64) + noise)[-2:]
    return bool(best[1] - best[0] < TIE)


def test_pieces_concatenate_to_the_completion(model, spec):
    request = StoryRequest("Tim – ", spec("sample 1.2"), seed=5, max_new_tokens=40)
    events = list(write(model.session, model.tokenizer, [request]))
    assert isinstance(events[-1], Ended)
    story = events[-1].result
    assert "".join(event.text for event in events if isinstance(event, Text)) == story.completion
    assert story.text == "Tim – " + story.completion
    assert story.completion == model.tokenizer.detokenize(story.token_ids)
    with torch.no_grad():
        row = torch.tensor([[*story.prompt_ids, *story.token_ids]])
        logprobs = plain_model(model.header.directory)(row)[0].log_softmax(-1)
    n = len(story.prompt_ids)
    expected = [logprobs[n + i - 1, token].item() for i, token in enumerate(story.token_ids)]
    assert [token.logprob for token in story.tokens] == pytest.approx(expected, abs=1e-3)
    assert story.statistics["bits_per_token"] == pytest.approx(-np.mean(expected) / np.log(2), abs=1e-3)


@pytest.mark.parametrize("text", ["greedy", "sample 0.8", "top-k 5 | sample", "top-p 0.9 | min-p 0.05 | sample 1.1"])
def test_one_seed_is_one_story_alone_in_a_batch_and_after_a_rewind(model, spec, text):
    decoder = spec(text)
    [alone] = end_of(model, StoryRequest("Tim", decoder, seed=11, max_new_tokens=30))
    branches = [StoryRequest("Tim", decoder, seed=11, max_new_tokens=30, number=n) for n in range(8)]
    assert same_but_for_ties(model, end_of(model, *branches)[0], alone)
    others = [
        StoryRequest("A longer beginning than that" * (n % 3), decoder, seed=90 + n, max_new_tokens=17)
        for n in range(7)
    ]
    assert same_but_for_ties(
        model, end_of(model, *others, StoryRequest("Tim", decoder, seed=11, max_new_tokens=30))[-1], alone
    )
    # After a rewind: the first half is taken back and written again from the same absolute position.
    half = len(alone.token_ids) // 2
    ids = (*alone.prompt_ids, *alone.token_ids[:half])
    again = StoryRequest("", decoder, seed=11, max_new_tokens=30 - half, prompt_ids=ids, n_prompt=len(alone.prompt_ids))
    [rest] = end_of(model, again)
    if text == "greedy" or rest.token_ids != alone.token_ids[half:]:
        assert same_but_for_ties(model, rest, _tail(alone, half, again))


def _tail(story, start, request):
    from dataclasses import replace

    return replace(story, request=request, prompt_ids=request.prompt_ids, tokens=story.tokens[start:])


@pytest.mark.parametrize("which", ["tiny", "shipped"])
def test_two_decoders_with_one_seed_part_only_where_they_must(which, checkpoint, spec):
    """top-k and plain sampling agree for as long as the plain draw lies within the k likeliest."""
    model = load(str(checkpoint) if which == "tiny" else None)
    parted = 0
    for seed in range(12):
        [plain] = end_of(model, StoryRequest("Tim", spec("sample"), seed=seed, max_new_tokens=25))
        [cut] = end_of(model, StoryRequest("Tim", spec("top-k 20 | sample"), seed=seed, max_new_tokens=25))
        for at, (a, b) in enumerate(zip(plain.token_ids, cut.token_ids, strict=False)):
            ids = torch.tensor([[*plain.prompt_ids, *plain.token_ids[:at]]])
            with torch.no_grad():
                logits = plain_model(model.header.directory)(ids)[0, -1]
            forbidden = (logits > logits[a]).sum() >= 20
            assert (a != b) == bool(forbidden)
            if a != b:
                parted += 1
                break
    assert parted


def test_a_story_that_goes_on_is_the_story_in_one_piece(model, spec):
    decoder = spec("sample 0.9")
    [whole] = end_of(model, StoryRequest("Tim", decoder, seed=4, max_new_tokens=30))
    [first] = end_of(model, StoryRequest("Tim", decoder, seed=4, max_new_tokens=12))
    ids = (*first.prompt_ids, *first.token_ids)
    [second] = end_of(model, StoryRequest(first.text, decoder, seed=4, max_new_tokens=18, prompt_ids=ids, n_prompt=2))
    assert first.token_ids + second.token_ids == whole.token_ids


def test_a_continued_story_keeps_the_space_and_the_half_character_at_the_seam(word_tokenizer_json, model, tmp_path):
    """The detokenizer once began anew after the prompt: "Once upon a" + "time" became "Once upon atime"."""
    (tmp_path / "tokenizer.json").write_text(word_tokenizer_json)
    words = Tokenizer.from_file(tmp_path / "tokenizer.json", bos_id=0)
    pieces = Detokenizer(words, [1, 2, 3])
    assert pieces.add(4) + pieces.finish() == " time"
    euro = model.tokenizer.encode("€", bos=False)
    half = StoryRequest("", Decoder((), Scripted(euro[2:])), seed=0, max_new_tokens=1, prompt_ids=(0, *euro[:2]))
    [story] = end_of(model, half)
    assert story.completion == "€"


@pytest.mark.parametrize("text", ["beam 2", "sample | best-of 2"])
def test_a_search_is_timed_from_its_own_turn(model, spec, text):
    """Searches run one after the other: the later ones once seemed ever slower."""
    started = time.perf_counter()
    stories = end_of(
        model, *(StoryRequest("Tim", spec(text), seed=0, max_new_tokens=20, number=number) for number in range(4))
    )
    seconds = [story.statistics["seconds"] for story in stories]
    assert sum(seconds) <= time.perf_counter() - started
    assert all(0 < story.statistics["first_token_seconds"] <= story.statistics["seconds"] for story in stories)


def test_cancelling_stops_within_one_token(model, spec):
    seen = []
    request = StoryRequest("Tim", spec("greedy"), seed=0, max_new_tokens=50, cancel=lambda: len(seen) >= 3)
    for event in write(model.session, model.tokenizer, [request]):
        if isinstance(event, Text):
            seen += event.tokens
        if isinstance(event, Ended):
            assert event.result.finish_reason == "cancelled"
            assert len(event.result.token_ids) == 3


class Scripted(Sampler):
    """Picks the tokens of a text one after the other; for tests of the text layer."""

    name = "scripted"

    def __init__(self, ids):
        object.__setattr__(self, "ids", ids)

    def __call__(self, logits, step):
        return self.ids[step.position - step.n_prompt]


@pytest.fixture(scope="module")
def llama_tokenizer():
    """A vocabulary of 300 tokens like that of Llama 2: `<s>`, words, and the 256 bytes as tokens from id 44 on."""
    words = ["<s>", *(f"▁{a}{b}" for a in "abcdef" for b in "aeiouxy"), "▁"]
    names = [*words, *(f"<0x{byte:02X}>" for byte in range(256))]
    fast = FastTokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True))
    replace, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    fast.decoder = decoders.Sequence([replace, decoders.ByteFallback(), decoders.Fuse(), strip])
    fast.add_special_tokens(["<s>"])
    return Tokenizer(fast, 0, frozenset({0}))


def test_no_story_of_byte_tokens_is_lost(model, llama_tokenizer, spec):
    """A byte token before an unfinished character once ended all twenty stories."""
    requests = [
        StoryRequest("", spec("sample 3"), seed=1, max_new_tokens=40, prompt_ids=(0,), number=n) for n in range(20)
    ]
    events = list(write(model.session, llama_tokenizer, requests))
    stories = {event.story: event.result for event in events if isinstance(event, Ended)}
    assert len(stories) == 20
    for number, story in stories.items():
        texts = [event.text for event in events if isinstance(event, Text) and event.story == number]
        assert "".join(texts) == story.completion == llama_tokenizer.detokenize(story.token_ids)


@pytest.mark.parametrize("n_tokens", [2, 3])
def test_a_stop_text_in_byte_tokens_stops_a_story(model, llama_tokenizer, n_tokens):
    """The text of a byte token waits for the token after it, which may not come."""
    newline = llama_tokenizer.fast.token_to_id("<0x0A>")
    decoder = Decoder((), Scripted((1, newline, 2, 3)))
    request = StoryRequest("", decoder, seed=0, max_new_tokens=n_tokens, prompt_ids=(0,), stop=("\n",))
    *_, ended = write(model.session, llama_tokenizer, [request])
    assert (ended.result.completion, ended.result.finish_reason) == ("aa", "stop")


@settings(deadline=None, max_examples=60)
@given(
    text=st.text(alphabet="ab.é", min_size=1, max_size=15),
    stops=st.lists(st.text("ab.é", min_size=1, max_size=4), max_size=3),
)
def test_stop_texts_cut_at_the_first_match_that_is_complete(model, text, stops):
    ids = model.tokenizer.encode(text, bos=False)
    request = StoryRequest("", Decoder((), Scripted(ids)), seed=0, max_new_tokens=len(ids), stop=tuple(stops))
    [story] = end_of(model, request)
    expected, reason = text, "length"
    for n in range(1, len(ids) + 1):
        seen = model.tokenizer.detokenize(ids[:n])
        if cuts := [seen.index(stop) for stop in stops if stop in seen]:
            expected, reason = seen[: min(cuts)], "stop"
            break
    assert (story.completion, story.finish_reason) == (expected, reason)


def test_a_stop_text_is_found_across_pieces_and_overlaps():
    """A matcher that starts again from nothing on a mismatch misses "aab" in "aaab"."""
    stop = StopFilter(["aab"])
    assert "".join(stop.add(c) for c in "xaaab!") + stop.finish() == "xa"
    assert stop.hit
    held = StopFilter(["END"])
    assert held.add("the EN") == "the "
    assert held.add("chanted") == "ENchanted"
    assert held.finish() == ""


def plain_filter(stops, pieces):
    """Return what passes, piece by piece, from the definition: every beginning of every stop text is tried."""
    passed, held = [], ""
    for piece in pieces:
        held += piece
        begins = [at for stop in stops if (at := held.find(stop)) >= 0]
        if begins:
            return [*passed, held[: min(begins)]], True
        n = max((n for stop in stops for n in range(1, len(stop)) if held.endswith(stop[:n])), default=0)
        passed.append(held[: len(held) - n])
        held = held[len(held) - n :]
    return [*passed, held], False


@settings(deadline=None, max_examples=80)
@given(st.lists(st.text("ab", min_size=1, max_size=5), max_size=4), st.lists(st.text("abc", max_size=5), max_size=6))
def test_stop_texts_end_a_text_where_the_definition_says(stops, pieces):
    expected, hit = plain_filter(stops, pieces)
    stop = StopFilter(stops)
    passed = []
    for piece in pieces:
        passed.append(stop.add(piece))
        if stop.hit:
            break
    assert "".join(passed) + stop.finish() == "".join(expected)
    assert stop.hit == hit


@pytest.mark.parametrize("stops", [["a" * 19_999 + "b"], [f"{'a' * 15}{n:05}" for n in range(1000)]])
def test_a_token_costs_the_same_with_many_and_long_stop_texts(stops):
    """Once, half a second for each token."""
    check_stops(stops)
    stop = StopFilter(stops)
    started = time.process_time()
    for _ in range(1000):
        stop.add("aaaa ")
    for _ in range(1000):
        stop.add("aaa")
    assert time.process_time() - started < 0.3


def test_too_many_and_too_long_stop_texts_are_refused():
    for stops in (["a"] * 1001, ["a" * 20_001], [""]):
        with pytest.raises(UsageError, match="stop text"):
            check_stops(stops)


def test_the_window_keeps_bos_and_whole_sentences(model):
    text = "One two. Three four five! Six seven eight. Nine ten."
    ids = model.tokenizer.encode(text)
    kept = whole_sentences(model.tokenizer, ids, len(ids) - 1)
    assert kept[0] == 0
    assert kept[1:] == ids[len(ids) - len(kept) + 1 :]
    assert model.tokenizer.detokenize(kept) == " Six seven eight. Nine ten."


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 299), min_size=1, max_size=80), room=st.integers(1, 40))
def test_the_window_fits_ends_with_the_latest_and_does_not_depend_on_pauses(model, ids, room):
    kept = whole_sentences(model.tokenizer, ids, room)
    assert 1 <= len(kept) <= room
    n_head = int(ids[0] == 0 and room > 1)
    assert kept == ids[:n_head] + ids[len(ids) - len(kept) + n_head :]
    if len(ids) > room:
        assert len(kept) < len(ids)
    # While there is room, going on only appends: the window of the longer story begins where it began.
    if len(kept) < room:
        assert whole_sentences(model.tokenizer, [*ids, 5], room) == [*kept, 5]


@pytest.mark.parametrize("text", ["greedy", "sample"])
def test_a_story_beyond_the_context_is_the_same_in_pieces(model, spec, text):
    start = (0, *model.tokenizer.encode("Once upon a time. It was big.", bos=False))
    decoder = spec(text)
    no_end = frozenset()
    model.session.eos_ids, own = no_end, model.session.eos_ids
    try:
        [whole] = end_of(model, StoryRequest("", decoder, seed=4, max_new_tokens=150, prompt_ids=start))
        ids = start
        for n in (40, 7, 33, 70):
            [piece] = end_of(
                model, StoryRequest("", decoder, seed=4, max_new_tokens=n, prompt_ids=ids, n_prompt=len(start))
            )
            ids += piece.token_ids
    finally:
        model.session.eos_ids = own
    assert ids == start + whole.token_ids


def test_a_long_story_is_noticed_once_and_keeps_its_noise_positions(model, spec):
    request = StoryRequest("Once upon a time. " * 10, spec("sample"), seed=1, max_new_tokens=150)
    events = list(write(model.session, model.tokenizer, [request]))
    assert sum(isinstance(event, Trimmed) for event in events) == 1
    assert events[-1].result.finish_reason in ("eos", "length")


def test_an_empty_prompt_needs_a_bos(model, spec):
    [story] = end_of(model, StoryRequest("", spec("greedy"), seed=0, max_new_tokens=3))
    assert story.prompt_ids == (0,)
    with pytest.raises(UsageError, match="no BOS"):
        end_of(model, StoryRequest("", spec("greedy"), seed=0, max_new_tokens=3, prompt_ids=()))
    with pytest.raises(UsageError, match="stop text is empty"):
        end_of(model, StoryRequest("", spec("greedy"), seed=0, max_new_tokens=3, stop=("",)))
