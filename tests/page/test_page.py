"""The page of a story: what it says is what the model computes, it needs nothing else, and no text can do anything."""

import base64
import hashlib
import html.parser
import json
import math
import re
from functools import partial

import pytest
from page_stories import HOSTILE, tree_with_branches

from tinystory.decoding.plugins import discover
from tinystory.errors import UsageError
from tinystory.inside.heads import gaze
from tinystory.inside.inspector import Inspector
from tinystory.page.content import columns_of, mark_partings, page_story
from tinystory.page.page import _DIGITS, _packed_head, page_html
from tinystory.session.loading import load
from tinystory.story.tree import StoryTree

SPEC = "top-k 20 | sample 0.8"


@pytest.fixture(scope="module")
def registry():
    return discover(user_folder=None)


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def tree_of(model, registry):
    """Return a function that makes a tree in which each spec has written a branch of one prompt."""
    return partial(tree_with_branches, model, registry)


@pytest.fixture(scope="module")
def story(tree_of, model, registry):
    tree = tree_of("Once upon a time", SPEC)
    return page_story(tree, tree.turn, model.tokenizer, model, registry, whatif="top-k 1 | sample")


def test_the_tokens_are_the_story_and_say_what_the_model_says(story, model):
    text = "".join(token.text for token in story.tokens)
    assert text == story.turn.own
    n_typed = len(story.turn.typed_ids) - 1  # without BOS
    assert [token.typed for token in story.tokens] == [True] * n_typed + [False] * 12
    picked = story.turn.written.tokens
    for token, recorded in zip(story.tokens[n_typed:], picked, strict=True):
        assert token.bits == pytest.approx(-recorded.logprob / math.log(2), abs=1e-3)
        assert token.rank == recorded.rank + 1
        assert len(token.alternatives) == 8
        shares = dict(token.alternatives)
        if recorded.rank < 8:
            assert shares[model.tokenizer.token_text(recorded.id)] == pytest.approx(
                math.exp(recorded.logprob), abs=1e-3
            )
        assert [(stage, left) for stage, left, _ in token.funnel] == [
            ("model", 2048),
            ("top-k 20", 20),
            ("sample 0.8", 1),
        ]
        assert 0 < token.chance <= 1
        assert token.luck is not None
        inside = token.inside
        assert len(inside.layers) == 7
        assert inside.layers[-1][2] == pytest.approx(math.exp(recorded.logprob), abs=1e-3)
        assert all(0 <= index < len(story.tokens) for index, _ in inside.looked_at)
        n_layer, n_head = story.shape
        assert len(inside.heads) == n_layer * n_head == 18
        assert len(inside.parts) == n_layer * (n_head + 2)
        assert token.forbidden == ("top-k 1" if recorded.rank else "")
    first_typed = story.tokens[1]
    assert first_typed.alternatives
    assert not first_typed.funnel
    assert story.notes == []


def test_heads_and_parts_are_those_of_the_model(story, model):
    ids = (*story.turn.typed_ids, *(token.id for token in story.turn.written.tokens))
    n_bos = len(ids) - len(story.tokens)
    inspector = Inspector(model.header, model.session)
    index = len(ids) - 3
    token = story.tokens[index - n_bos]
    seen = gaze(inspector.run(ids), index, model.tokenizer.bos_id)
    n_head = story.shape[1]
    for number, (bos_share, looks) in enumerate(token.inside.heads):
        place = divmod(number, n_head)
        assert bos_share == pytest.approx(float(seen.bos_share[place]), abs=1e-6)
        words = seen.words(*place)
        assert all(share == pytest.approx(float(words[at + n_bos]), abs=1e-6) for at, share in looks)
    effects = [effect.bits for effect in inspector.effects(ids[:index], ids[index])]
    assert token.inside.parts == pytest.approx(effects, abs=1e-3)


def test_heads_are_packed_in_digits_that_keep_them():
    looks = [(3, 1.0), (130, 0.5)]
    packed = _packed_head(0.25, looks)
    values = [_DIGITS.index(digit) for digit in packed]
    assert values == [16, 0, 3, 63, 2, 2, 32]


def test_luck_is_the_noise_that_made_the_choice(tree_of, model, registry):
    tree = tree_of("Once upon a time", "sample 1.3")
    story = page_story(tree, tree.turn, model.tokenizer, model, registry)
    for token in story.tokens:
        if token.luck is not None and token.rank is not None and token.rank > 1:
            assert token.luck[0] > token.luck[1]  # an unlikely token needs more noise than the likeliest
    greedy = tree_of("Once upon a time", "greedy")
    assert all(token.luck is None for token in page_story(greedy, greedy.turn, model.tokenizer, model, registry).tokens)


def test_branches_of_one_noise_stand_side_by_side(tree_of, model, registry):
    tree = tree_of("Once upon a time", "greedy", "sample 1.5")
    turns = columns_of(tree)
    assert [turn.written.spec for turn in turns] == ["sample 1.5", "greedy"]
    stories = [page_story(tree, turn, model.tokenizer, model, registry) for turn in turns]
    mark_partings(stories)
    a, b = ([token.text for token in story.tokens] for story in stories)
    assert stories[0].parts_at == stories[1].parts_at
    assert a[: stories[1].parts_at] == b[: stories[1].parts_at]
    assert a[stories[1].parts_at] != b[stories[1].parts_at]
    page = page_html(stories)
    assert page.count('<section class="story"') == 2
    assert len(re.findall(r'class="[a-z ]*parts', page)) == 2
    with pytest.raises(UsageError, match="no story on the desk"):
        columns_of(StoryTree())


@pytest.mark.parametrize("with_model", [True, False])
def test_without_the_model_that_wrote_it_there_is_still_a_page(tree_of, model, registry, with_model):
    tree = tree_of("Once upon a time", SPEC, model_hash="0" * 64)
    story = page_story(tree, tree.turn, model.tokenizer if with_model else None, None, registry)
    assert "".join(token.text for token in story.tokens) == tree.turn.own
    assert not any(token.alternatives or token.funnel for token in story.tokens)
    assert len(story.tokens) == (len(tree.token_ids(1)) - 1 if with_model else 1)
    assert "no alternatives" in story.notes[0]
    assert "no alternatives" in page_html([story])


def test_a_search_has_no_funnel(tree_of, model, registry):
    tree = tree_of("Once upon a time", "beam 2", n=4)
    story = page_story(tree, tree.turn, model.tokenizer, model, registry)
    assert any("search" in note for note in story.notes)
    assert all(token.alternatives for token in story.tokens[1:])
    assert not any(token.funnel for token in story.tokens)


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], {}

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if "content" in dict(attrs):
            self.texts[dict(attrs).get("http-equiv", dict(attrs).get("name"))] = dict(attrs)["content"]

    def handle_data(self, data):
        tag = self.tags[-1] if self.tags else ""
        self.texts[tag] = self.texts.get(tag, "") + data


def parsed(content):
    page = Page()
    page.feed(content)
    return page


def test_the_page_needs_nothing_from_anywhere(story):
    content = page_html([story], "top-k 1 | sample")
    page = parsed(content)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", content)
    assert not [
        name for name, _ in page.attributes if name in ("src", "href", "style", "action") or name.startswith("on")
    ]
    policy = page.texts["Content-Security-Policy"]
    style, script = (
        re.search(r"<style>(.*?)</style>", content, re.S)[1],
        re.search(r"<script>(.*?)</script>", content, re.S)[1],
    )
    for part, name in ((style, "style-src"), (script, "script-src")):
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    data = json.loads(re.search(r'id="data">(.*?)</script>', content, re.S)[1])
    assert len(data["stories"][0]["tokens"]) == len(story.tokens)
    assert data["stories"][0]["specs"] == {"1": SPEC}


def test_a_page_of_300_tokens_stays_below_300_kilobytes(tree_of, model, registry):
    tree = tree_of("Once upon a time", "temperature 1.2 | top-k 40 | top-p 0.95 | sample", n=300)
    story = page_story(tree, tree.turn, model.tokenizer, model, registry)
    size = len(page_html([story]).encode())
    assert size / len(story.tokens) <= 1000


def test_hostile_text_is_inert(tree_of, model, registry):
    tree = tree_of(HOSTILE, SPEC, n=3)
    content = page_html([page_story(tree, tree.turn, model.tokenizer, model, registry)])
    page = parsed(content)
    assert page.tags.count("script") == 2
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "\x1b" not in content
    assert "<!-- " not in content
    assert "document.title" in "".join(page.texts.values())
