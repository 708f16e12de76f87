"""The commands that show what the model saw, with the shipped model."""

import copy
import io
import math
import re
import time
from dataclasses import replace

import pytest
from kept_session import KEPT

from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.errors import TinystoryError, UsageError
from tinystory.repl.commands import DeskStory, execute
from tinystory.repl.commands.tree import step_aside
from tinystory.screen.blocks import Bars, Spans
from tinystory.screen.screen import Screen
from tinystory.story.session_file import load_session
from tinystory.studio.backend import ModelBackend
from tinystory.studio.recall import desk_ids, words_before
from tinystory.studio.studio import Studio

SPEC = "temperature 0.9 | top-k 40 | min-p 0.05 | sample"


@pytest.fixture(scope="module")
def registry():
    return discover(user_folder=None)


@pytest.fixture(scope="module")
def backend():
    backend = ModelBackend.open(None, dtype="float32", device="cpu")
    backend.wait(lambda: False)
    return backend


@pytest.fixture
def studio(registry, backend):
    return Studio(
        registry, parse_spec(SPEC, registry), backend=backend, open_model=lambda name: backend, seed=7, max_tokens=40
    )


@pytest.fixture
def told(studio):
    """Return a studio with a story on the desk: 9 typed tokens and 40 that the model wrote."""
    write(studio, studio.next_turn("Once upon a time, there was a little"))
    return studio


def write(studio, *requests):
    for _ in studio.write(requests, lambda: False):
        pass


def show(blocks, *, color=False):
    stream = io.StringIO()
    Screen(stream, color=color).show(*(block for block in blocks if not isinstance(block, DeskStory)))
    return stream.getvalue()


def run(studio, line):
    return show(execute(studio, line).blocks)


def test_color_tints_from_now_on_and_shows_the_story(told):
    reply = execute(told, "/color rank")
    assert told.tint == "rank"
    assert isinstance(reply.blocks[0], Spans)
    assert reply.blocks[-1] == DeskStory()
    assert show(reply.blocks) == "rank: 1st  3rd  10th  40th  below\n"
    assert "/color takes off, prob" in run(told, "/color")
    assert run(told, "/color off") == "colours are off\n"


def test_where_there_are_no_colours_color_says_why(told):
    told.plain = "NO_COLOR is set"
    with pytest.raises(UsageError, match="there are no colours here: NO_COLOR is set"):
        execute(told, "/color rank")
    assert told.tint == "off"


def test_top_shows_what_the_model_saw_and_marks_what_was_taken(told, backend):
    index = 1 + 9  # the BOS and the typed tokens come before the first token of the model
    bars = execute(told, "/top 10 5").blocks[-1]
    assert isinstance(bars, Bars)
    expected = backend.logits(told.token_ids, index)[0].softmax(-1).topk(5).values.tolist()
    assert [share for _, share, _, _ in bars.rows][:5] == pytest.approx(expected)
    taken = [text for label, _, text, _ in bars.rows if label.startswith("→")]
    assert taken == [f'"{backend.token_text(told.token_ids[index])}"']


def test_top_counts_from_the_end_too_and_looks_ahead(told):
    last = len(told.token_ids) - 1
    assert run(told, "/top -1") == run(told, f"/top {last}")
    assert run(told, "/top") == run(told, "/top next")
    assert run(told, "/top").startswith("the next token, after")
    assert len(run(told, "/top next 3").splitlines()) < len(run(told, "/top next 9").splitlines())


def test_one_small_number_after_top_is_a_place_and_the_reply_says_so(told, studio):
    """Who types /top 5 wants five tokens; it shows token 5, as /trace 5 does."""
    told.goto(1)
    assert run(told, "/top 5").endswith("5 is the place; for the 5 likeliest next tokens: /top next 5\n")
    assert "likeliest next" not in run(told, "/top 5 3") + run(told, "/top -1") + run(told, "/top 21")
    told.goto(0)
    with pytest.raises(UsageError, match="/top next 5"):
        execute(told, "/top 5")


def test_a_pick_shows_the_words_before_it(told):
    token_id = told.backend.encode(" cat", bos=False)[0]
    before = "Once upon a time, there was a little"
    assert words_before(told, told.pick(10, token_id)) == before
    assert words_before(told, told.pick(len(told.token_ids) - 1, token_id)).startswith("…")
    assert words_before(told, told.next_turn("And")) == words_before(told, told.retry()) == ""


def test_top_marks_a_token_of_any_rank(studio, backend):
    write(studio, studio.next_turn("Once upon a xylophone"))
    first = len(backend.encode("Once upon a", bos=True))
    rows = execute(studio, f"/top {first} 1").blocks[-1].rows
    assert len(rows) == 2
    assert rows[1][0].startswith("→ ")
    assert int(rows[1][0][2:].replace(",", "")) > 1


def test_top_marks_the_end_of_a_story_that_has_ended(told):
    turn = told.tree.turn
    ended = replace(turn, written=replace(turn.written, finish_reason="eos"))
    told.tree.turns[turn.id] = ended
    assert re.search(r"→ [\d,]+ +[\d.]+%  \(the end\)", run(told, "/top next 100"))


def test_a_blank_page_has_a_next_token_only(studio):
    assert '"Once"' in run(studio, "/top")
    for line in ("/top 1", "/trace", "/ppl", "/pick 1 #1"):
        with pytest.raises(UsageError, match="blank"):
            execute(studio, line)


@pytest.mark.parametrize("width", [1, 20, 80, 200])
def test_bars_stay_within_the_terminal(told, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    rows = execute(told, "/top").blocks[-1]
    lines = show([rows]).splitlines()
    assert len(lines) == 10
    assert width < 40 or all(len(line) < width for line in lines)
    assert width < 80 or lines[0].count("█") > lines[1].count("█")


@pytest.mark.parametrize(("token", "text"), [('" dog"', " dog"), ("dog", " dog"), ("#1", None), ('"."', ".")])
def test_pick_takes_a_token_and_goes_on_as_a_branch(told, backend, token, text):
    before = told.tree.current
    (request,) = execute(told, f"/pick 5 {token}").requests
    assert request.kept == 5
    assert request.parent == before
    likeliest = backend.token_text(int(backend.logits(told.token_ids, 5)[0].argmax()))
    assert request.typed == (likeliest if text is None else text)
    write(told, request)
    assert told.tree.turn.parent == before
    assert told.text.startswith(f"Once upon a time{request.typed}")


def test_pick_of_an_exact_text_goes_before_one_after_a_space(told, backend):
    (request,) = execute(told, "/pick 5 s").requests
    assert backend.token_text(request.typed_ids[0]) == "s"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/top 0", "/top: POS is from 1 to 49, from the end -1 to -49, or next; not '0'"),
        ("/top 50", "not '50'"),
        ("/top " + "9" * 1000, "not '99999999999999999999'"),
        ("/top cat", "not 'cat'"),
        ("/top 1 0", "K takes a whole number from 1 to 100"),
        ("/trace next", "from the end -1 to -49; not 'next'"),
        ("/pick", "/pick takes a position and a token"),
        ("/pick 5", "/pick takes a position and a token"),
        ("/pick 5 xylophone", 'no token of this vocabulary is "xylophone": it takes'),
        ("/pick 5 #0", "/pick: #RANK takes a whole number from 1 to 2,048"),
        ('/pick 5 "', "double quotes"),
        ('/pick 5 "a" "b"', "one token"),
        ("/color pro", "did you mean prob?"),
        ("/color \x1b[2J", "it has off, prob"),
        ("/trace 3", '" a" was typed or taken by you, no decoder has picked it'),
        ("/ppl /nowhere", "cannot read /nowhere"),
    ],
)
def test_wrong_input_is_named_and_changes_nothing(told, line, message):
    before = copy.copy(told)
    with pytest.raises(TinystoryError, match=re.escape(message)) as error:
        execute(told, line)
    assert told == before
    assert len(str(error.value)) < 300
    assert str(error.value).isprintable()


def test_the_end_cannot_be_picked(told, backend):
    logits = backend.logits(told.token_ids, 9)[0]
    rank = int((logits > logits[0]).sum()) + 1
    with pytest.raises(UsageError, match="that token ends the story"):
        execute(told, f"/pick 9 #{rank}")


def test_trace_shows_the_funnel(told, backend):
    shown = run(told, "/trace 10")
    assert re.search(r"^2,048 → 40 → \d+ → \"", shown, re.MULTILINE)
    assert re.search(r"^top-k 40 +40 left +\d", shown, re.MULTILINE)
    picked = backend.token_text(told.token_ids[10])
    assert re.search(
        rf'^sample 1 +took +"{re.escape(picked)}" +[\d.]+% by the model, [\d.]+% by this', shown, re.MULTILINE
    )


def test_trace_finds_every_token_of_the_decoder_that_wrote_it(told):
    for position in range(10, 50):
        assert "computed once more" not in run(told, f"/trace {position}")


def test_trace_knows_which_turn_brought_a_token(told, registry):
    told.decoder = parse_spec("greedy", registry)
    write(told, told.next_turn("But"))
    assert "greedy" in run(told, "/trace")
    assert "top-k 40" in run(told, "/trace 12")
    with pytest.raises(UsageError, match='" But" was typed'):
        execute(told, "/trace 50")


def test_trace_shows_the_healing_of_a_cut_word(studio):
    write(studio, studio.edit("Once upon a ti"))
    assert studio.tree.turn.written.heal
    first = len(desk_ids(studio)) - len(studio.tree.turn.written.tokens)
    shown = run(studio, f"/trace {first}")
    assert re.search(r"^healing +\d+ left", shown, re.MULTILINE)
    assert "computed once more" not in shown


def test_trace_says_so_where_another_model_has_written(told):
    turn = told.tree.turn
    told.tree.turns[turn.id] = replace(turn, written=replace(turn.written, model_hash="0" * 64, model="other"))
    with pytest.raises(UsageError, match="written by another model; /model other brings it back"):
        execute(told, "/trace")


def test_ppl_agrees_with_what_was_recorded(told):
    shown = run(told, "/ppl")
    recorded = -sum(token.logprob for token in told.tree.turn.written.tokens) / math.log(2) / 40
    assert f"{recorded:.3f} bits per token, of 40" in shown
    assert re.search(r"^tokens +49$", shown, re.MULTILINE)


def test_ppl_of_a_file_is_that_of_eval(told, tmp_path, backend, stories):
    from tinystory.evaluation.perplexity import evaluate

    path = tmp_path / "some stories.txt"
    path.write_text("\n<|endoftext|>\n".join(stories[:5]))
    shown = run(told, f"/ppl {path}")
    expected = evaluate(backend._loaded.session.open(), backend.tokenizer, stories[:5])
    assert re.search(rf"^bits per byte +{expected.bits_per_byte:.3f}$", shown, re.MULTILINE)
    assert re.search(r"^stories +5$", shown, re.MULTILINE)


def test_ppl_refuses_a_large_file(told, tmp_path):
    path = tmp_path / "large.txt"
    path.write_bytes(b"x" * 2_000_001)
    with pytest.raises(UsageError, match="at most 2 MB"):
        execute(told, f"/ppl {path}")


def test_whatif_marks_what_the_decoder_forbids(told):
    shown = run(told, "/whatif top-k 2")
    assert re.search(r"top-k 2 \| sample 1 could not have picked \d+ of 40 tokens:", shown)
    n = int(re.search(r"top-k 2 +removed (\d+)", shown)[1])
    assert 0 < shown.count("[") <= n
    colored = show(execute(told, "/whatif top-k 2").blocks, color=True)
    assert "\x1b[38;5;203m" in colored
    assert shown.partition("\n\n")[0].replace("[", "").replace("]", "").split() == told.text.split()


def test_whatif_of_plain_sampling_is_the_models_own_surprise(told):
    recorded = -sum(token.logprob for token in told.tree.turn.written.tokens) / math.log(2)
    shown = run(told, "/whatif sample")
    assert "could have written all of the 40 tokens" in shown
    assert f"{recorded / 40:.3f} bits per token with this decoder, together 2^-{recorded:.1f}" in shown


def test_whatif_answers_at_once(studio, stories):
    studio.keep(studio.begin("Once"))
    studio.keep(studio.next_turn(" upon a time. " + "\n".join(stories[:9])))
    assert len(studio.token_ids) > 300
    execute(studio, "/whatif top-k 40")
    best = min(_seconds(lambda: execute(studio, f"/whatif {SPEC}")) for _ in range(5))
    assert best < 0.2 * len(studio.token_ids) / 300


def _seconds(action):
    """Return the processor seconds of an action. They do not depend on other programs on this machine."""
    start = time.process_time()
    action()
    return time.process_time() - start


def test_a_large_tree_shows_what_is_around_the_desk(make):
    studio = make()
    for number in range(600):
        studio.keep(studio.begin(f"story {number + 1}"))
    studio.goto(300)
    output = run(studio, "/tree")
    assert output.startswith("— … 199 turns before these; /tree all shows them\n├ 200 ")
    assert "├ ● 300  story 300" in output
    assert output.endswith("— … 201 turns after these; /tree all shows them\n")
    assert output.count("\n") == 202
    assert run(studio, "/tree all").count("\n") == 600


def test_the_tree_shows_the_prompt_once_and_the_words_that_differ(make, monkeypatch):
    """Each branch of an opening was a story of its own, and all of them began with the same words."""
    monkeypatch.setenv("COLUMNS", "120")
    studio = make(tree=load_session(KEPT).tree)
    rows = [re.split(r" {2,}(?=\S)", line, maxsplit=2) for line in run(studio, "/tree").splitlines()]
    assert rows[0] == ["┬", "The little owl was"]
    assert [row[:2] for row in rows[1:6]] == [
        ["├ ● 1", "walking in the park. He saw a big tree"],
        ["│ 7", ". He was curious about what was in the tree"],
        ["│ ├ 8", "… He wanted to see what was inside the tree"],
        ["│ ├ 9", "… decided to try it and see what was"],
        ["│ └ 10", "… \"Let's climb and see what's"],
    ]
    assert [row[0] for row in rows[6:12]] == ["├ 11", "├ 2", "├ 12", "├ 13", "│ 14", "│ 15"]
    # Decoder and seed stand only where they change.
    assert [row[2].split(" · ")[:-2] for row in rows[1:5]] == [
        ["min-p 0.1 | sample 1.2", "seed 100"], [], ["greedy"], ["sample 0.8"],
    ]  # fmt: skip
    assert rows[7][2].startswith("seed 101 · ")
    assert rows[9][1:] == ["… forest.", "cut"]
    for turn in studio.tree.turns.values():
        studio.tree.turns[turn.id] = replace(turn, own=turn.own.replace("owl was", "owl was, then"))
    assert run(studio, "/tree").splitlines()[0] == "┬  The little owl was, then"
    studio.goto(11)
    step_aside(studio, -1)
    assert studio.tree.current == 1


def test_a_deep_tree_leaves_room_for_its_text(make):
    studio = make()
    for number in range(100):
        parent = studio.tree.current
        studio.keep(studio.next_turn(f" one {number}"))
        studio.tree.goto(parent)
        studio.keep(studio.next_turn(f" two {number}"))
    assert all("one" in line or "two" in line for line in run(studio, "/tree all").splitlines())
