"""The cloze test: how stories are cut, which endings are compared, and what a model with an opinion scores."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinystory.cli import main
from tinystory.errors import UsageError
from tinystory.evaluation.cloze import cloze, cut_before_ending
from tinystory.evaluation.perplexity import ScoredWindow, nats_of_windows
from tinystory.model.config import ModelConfig
from tinystory.model.transformer import Transformer
from tinystory.session.native import NativeSession

WORDS = ["owl", "kite", "frog", "drum", "moon", "ship"]


@pytest.mark.parametrize(
    ("text", "opening"),
    [
        ("One day. Tim ran. He fell. He cried.", "One day. Tim ran. He fell."),
        ('He said "No!" Then he left. It was late now.', 'He said "No!" Then he left.'),
        ("No end of a sentence in here", None),
        ("Only one sentence.", None),
        ("", None),
    ],
)
def test_a_story_is_cut_at_the_sentence_nearest_to_two_thirds(text, opening):
    parts = cut_before_ending(text)
    assert (parts and parts[0]) == opening
    assert parts is None or "".join(parts) == text


@given(st.text(alphabet='ab. !?"\n', max_size=60))
def test_the_parts_are_the_text_and_neither_is_blank(text):
    parts = cut_before_ending(text)
    if parts:
        assert "".join(parts) == text
        assert all(part.strip() for part in parts)


class Echo:
    """A session that holds the likeliest token for one that was in the text before."""

    max_seq_len, can_reorder, can_rewind = 64, True, True

    def __init__(self, vocab_size, likes):
        self.vocab_size, self.likes = vocab_size, likes

    def prefill(self, prompts):
        self.seen = [list(prompt) for prompt in prompts]
        return self._logits()

    def _logits(self):
        logits = torch.zeros(len(self.seen), self.vocab_size)
        for row, ids in enumerate(self.seen):
            logits[row, ids] = self.likes
        return logits

    def decode(self, token_ids):
        columns = []
        for column in token_ids.T:
            for ids, token_id in zip(self.seen, column.tolist(), strict=True):
                ids.append(token_id)
            columns.append(self._logits())
        return torch.stack(columns, dim=1)


def stories_of(words):
    return [f"The {word} saw a {word}. The {word} met the {word}. And the {word} was a {word}." for word in words]


def test_a_model_that_keeps_to_its_words_is_right_and_one_that_shuns_them_is_wrong(tokenizer):
    stories = stories_of(WORDS)
    right = cloze(Echo(tokenizer.vocab_size, 5.0), tokenizer, stories)
    assert (right.accuracy, right.stories, right.chance, right.standard_error) == (1.0, 6, 0.25, 0.0)
    assert cloze(Echo(tokenizer.vocab_size, -5.0), tokenizer, stories).accuracy == 0.0


def test_a_model_without_an_opinion_is_never_right(tokenizer):
    """Equal scores are no knowledge: the true ending must be likelier than every other one."""
    assert cloze(Echo(tokenizer.vocab_size, 0.0), tokenizer, stories_of(WORDS)).accuracy == 0.0


def test_batches_change_nothing_and_too_few_stories_are_refused(tokenizer):
    stories = stories_of(WORDS)
    seen = []
    results = {
        cloze(Echo(tokenizer.vocab_size, 1.0), tokenizer, stories, batch_tokens=n, progress=seen.append)
        for n in (1, 64, 10_000)
    }
    assert len(results) == 1
    assert seen[-1] == 4 * len(stories)
    with pytest.raises(UsageError, match="needs 4 stories that can be cut; there are 3"):
        cloze(Echo(tokenizer.vocab_size, 1.0), tokenizer, [*stories[:3], "No", ""])


def test_the_nats_of_windows_are_those_of_the_model(tokenizer):
    model = Transformer(ModelConfig.llama(tokenizer.vocab_size, 1, 2, 16, 32, 24))
    model.init_weights(3)
    session = NativeSession(model.eval().requires_grad_(False), tokenizer.bos_id, tokenizer.eos_ids)
    windows = [ScoredWindow([0, 5, 9, 4, 7], 2), ScoredWindow([0, 3, 8], 2)]
    logprobs = [model(torch.tensor([window.token_ids])).log_softmax(dim=-1)[0] for window in windows]
    expected = [
        -sum(float(rows[n - 1, window.token_ids[n]]) for n in range(len(rows) - window.n_scored, len(rows)))
        for rows, window in zip(logprobs, windows, strict=True)
    ]
    assert nats_of_windows(session, windows) == pytest.approx(expected, abs=1e-4)


def test_an_opening_longer_than_the_context_keeps_bos_and_its_latest_tokens(tokenizer):
    stories = [f"{'The owl saw a kite. ' * 40}And the {word} was a {word}." for word in WORDS]
    session = Echo(tokenizer.vocab_size, 5.0)
    assert cloze(session, tokenizer, stories).stories == 6
    assert all(len(ids) <= session.max_seq_len and ids[0] == tokenizer.bos_id for ids in session.seen)


def test_eval_reports_it(tmp_path, capsys):
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(stories_of(WORDS)))
    assert main(["eval", str(path), "-m", "mini", "--cloze", "6", "--json", "-q"]) == 0
    found = json.loads(capsys.readouterr().out)["cloze"]
    assert found.keys() == {"accuracy", "standard_error", "stories", "chance"}
    assert found["stories"] == 6
    assert main(["eval", str(path), "-m", "mini", "--cloze", "3"]) == 2
    assert "--cloze is 3; it must be at least 4" in capsys.readouterr().err
