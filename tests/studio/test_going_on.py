"""Going on with a story: seams, tokens, seeds, and the text that the writer types."""

from dataclasses import replace
from functools import partial

import pytest
from scripted_chat import ScriptedBackend, run, scripted_studio, write

from tinystory.decoding.plugins import discover
from tinystory.errors import UsageError
from tinystory.repl.commands import execute
from tinystory.studio.seams import joint


@pytest.fixture(scope="module")
def registry():
    return discover(user_folder=None)


@pytest.fixture
def make(registry):
    """Return a function that makes a studio with a scripted model."""
    return partial(scripted_studio, registry)


@pytest.mark.parametrize(
    ("text", "addition", "between"),
    [
        ("The cat sat", "on the mat", " "),
        ("The cat sat.", "Then", " "),
        ("The cat sat", ", and", ""),
        ("The cat sat", ".", ""),
        ("The cat sat ", "on", ""),
        ("The cat sat", " on", ""),
        ("The cat sat\n", "Then", ""),
        ("The cat sat", "\nThen", ""),
        ("", "Then", ""),
        ("Then", "", ""),
        ('Tom said, "', "Hello", ""),
        ('Tom said, "Hello', '" and left', ""),
        ('Tom said, "Hello."', "Then", " "),
        ("Tom said,", '"Hello', " "),
        ('"Hi."\nTom said, "', "Hello", ""),
        ("Tom said, “", "Hello", ""),
        ("Tom", "'s hat", ""),
        ("Tom said,", "'hello' to", " "),
        ("He was (", "not", ""),
        ("He was (not", ")", ""),
        ("A well-", "known cat", ""),
        ("Wait", "… what", ""),
    ],
)
def test_joint(text, addition, between):
    assert joint(text, addition) == between


def test_a_story_goes_on_with_its_exact_tokens_seed_and_prompt(make):
    studio = make(([" was"], "length"), (["."], "length"), (["!"], "length"), seed=None)
    assert write(studio, "A cat") == ("A cat", " was")
    assert write(studio, "red") == ("red", ".")
    assert write(studio, "") == ("", "!")
    first, second, third = studio.backend.requests
    assert first.prompt_ids == (0, *map(ord, "A cat"))
    assert second.prompt_ids == (0, *map(ord, "A cat was red"))
    assert third.prompt_ids == (0, *map(ord, "A cat was red."))
    assert [r.n_prompt for r in studio.backend.requests] == [6, 6, 6]
    assert [r.seed for r in studio.backend.requests] == [100, 100, 100]
    assert studio.text == "A cat was red.!"


def test_after_the_end_a_text_begins_a_new_story(make):
    studio = make(([" ran."], "eos"), (["."], "eos"), (["Once"], "length"), seed=None)
    write(studio, "A dog")
    assert write(studio, "A cat") == ("A cat", ".")
    assert write(studio, "") == ("", "Once")
    assert [r.prompt for r in studio.backend.requests] == ["A dog", "A cat", ""]
    assert [r.seed for r in studio.backend.requests] == [100, 101, 102]
    assert studio.backend.requests[-1].prompt_ids == (0,)


def test_enter_goes_past_a_stop_text_and_a_text_replaces_it(make):
    studio = make(([" ran", ("", ".\n")], "stop"), ([" He"], "length"), stop=(".",))
    write(studio, "A dog")
    assert studio.text == "A dog ran"
    assert write(studio, "") == (".\n", " He")

    studio = make(([" ran", ("", ".\n")], "stop"), (["!"], "length"), stop=(".",))
    write(studio, "A dog")
    assert write(studio, "fast") == ("fast", "!")
    assert studio.backend.requests[1].prompt_ids == (0, *map(ord, "A dog ran fast"))


def test_half_a_character_becomes_whole(make):
    class Bytes(ScriptedBackend):
        def detokenize(self, token_ids):
            return super().detokenize(token_ids).replace("AB", "é").replace("A", "\ufffd")

    studio = make(backend=Bytes((["x", ("\ufffd", "A")], "length"), ([("\ufffd", "B")], "length")))
    write(studio, "")
    assert studio.text == "x\ufffd"
    write(studio, "")
    assert studio.backend.requests[1].prompt_ids == (0, *map(ord, "xA"))
    assert studio.text == "xé"


def test_a_vocabulary_that_adds_spaces_gets_none_too_many(make):
    class Spaced(ScriptedBackend):
        def encode(self, text, *, bos):
            return super().encode(" " + text, bos=bos)

        def detokenize(self, token_ids):
            return super().detokenize(token_ids).removeprefix(" ")

    studio = make(backend=Spaced(([" was"], "length"), (["."], "length")))
    write(studio, "A cat")
    write(studio, "red")
    assert studio.backend.requests[1].prompt_ids == (0, *map(ord, " A cat was red"))
    assert studio.text == "A cat was red."


def test_nothing_written_leaves_the_desk_as_it_was(make):
    studio = make(([UsageError("the prompt is empty and this model has no BOS token")], "eos"))
    with pytest.raises(UsageError):
        write(studio, "")
    assert studio.text == ""


@pytest.mark.parametrize("line", ["/more 2", "/retry", ""])
@pytest.mark.parametrize("loading", [True, False])
def test_what_is_stopped_before_its_first_token_leaves_the_story_on_the_desk(make, line, loading):
    studio = make(([" was red"], "length"), ([], "cancelled"), ([], "cancelled"))
    write(studio, "A cat")
    requests = execute(studio, line).requests if line else [studio.next_turn("")]
    if loading:
        studio.keep(requests[0])
    else:
        list(studio.write(requests, lambda: True))
    assert (studio.text, list(studio.tree.turns)) == ("A cat was red", [1])
    studio.keep(studio.next_turn(" and"))
    assert studio.text == "A cat was red and"


def test_seed(make):
    studio = make(*[(["."], "length")] * 4, seed=None)
    write(studio, "A")
    assert run(studio, "/seed 7") == "seed: 7\n"
    write(studio, "")
    assert run(studio, "/seed random") == "seed: random, a fresh seed for each story\n"
    write(studio, "")
    write(studio, "")
    assert [r.seed for r in studio.backend.requests] == [100, 7, 101, 101]
    assert run(studio, "/seed") == "seed: random, a fresh seed for each story\n"


def test_another_model_goes_on_in_its_own_tokens(make):
    class Shifted(ScriptedBackend):
        def encode(self, text, *, bos):
            return [1] * bos + [ord(c) + 1 for c in text]

    other = Shifted((["!"], "length"), name="other")
    other.vocabulary = "shifted characters"
    studio = make((["b"], "length"), models=[other])
    write(studio, "a")
    assert run(studio, "/model other") == "model  other\n"
    write(studio, "")
    assert other.requests[0].prompt_ids == (1, ord("a") + 1, ord("b") + 1)
    assert other.requests[0].n_prompt == 3  # in other tokens, the whole story so far is the prompt


def test_what_is_healed_is_shown_once(make):
    request = replace(make().begin("a little ti"), heal=" ti")
    assert request.ahead == "a little"
    assert replace(request, typed="i").ahead == ""
