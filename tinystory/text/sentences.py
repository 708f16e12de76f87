"""The ends of sentences, and the context of a story that is longer than the model's. It knows no model."""

from collections.abc import Sequence

from tinystory.text.tokenizer import Tokenizer

__all__ = ["end_of_sentences", "ends_sentence", "whole_sentences"]


def whole_sentences(tokenizer: Tokenizer, token_ids: Sequence[int], max_seq_len: int) -> list[int]:
    """Return the context for a story that is longer than the model's context.

    BOS, or what else the tokenizer puts before a text, stays. Each time the context is full, the oldest quarter of it
    is removed. If a new sentence begins in the older half of the rest, everything before that sentence is removed, too.
    This depends only on the tokens of the story, and not on how often the story was stopped and continued.

    Args:
        tokenizer: gives the text of tokens, to find the ends of sentences.
        token_ids: the whole story.
        max_seq_len: the most tokens that the model sees.

    Returns:
        At most max_seq_len ids, the latest last.
    """
    n_before_text = tokenizer.n_before_text(token_ids)
    head = list(token_ids[:n_before_text]) if max_seq_len > n_before_text else []
    room = max_seq_len - len(head)
    kept = max(1, room * 3 // 4)
    start = len(head)
    while len(token_ids) - start > room:
        start += room + 1 - kept
        places = range(start, start + kept // 2)
        sentences = (i for i in places if ends_sentence(tokenizer.token_text(token_ids[i - 1])))
        start = next(sentences, start)
    return head + list(token_ids[start:])


def end_of_sentences(text: str) -> int:
    """Return how many characters of a text its whole sentences take; 0 if it has none."""
    places = (n for n in range(len(text), 0, -1) if not text[n - 1].isspace())
    return next((n for n in places if ends_sentence(text[max(0, n - 64) : n])), 0)


def ends_sentence(text: str) -> bool:
    """Return True if a text ends like a sentence. Closing quotes and white space at its end do not count."""
    return text.rstrip("\"'”’)» \n\t").endswith((".", "!", "?", "…"))
