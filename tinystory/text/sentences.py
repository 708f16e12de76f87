"""XXX-DOC."""

from collections.abc import Sequence

from tinystory.text.tokenizer import Tokenizer

__all__ = ["ends_sentence", "whole_sentences"]


def whole_sentences(tokenizer: Tokenizer, token_ids: Sequence[int], max_seq_len: int) -> list[int]:
    """The context that goes on when a story outgrows the model.

    BOS stays. Each time the context is full, the oldest quarter goes, and then what is left of a sentence, where a
    new one begins in the older half of the rest. Where that happens depends on the story's tokens alone, not on how
    often it was stopped and continued.

    Args:
        tokenizer: tells where sentences end.
        token_ids: the whole story.
        max_seq_len: tokens the model sees.

    Returns:
        At most max_seq_len ids, the latest last.
    """
    head = list(token_ids[:1]) if token_ids[0] == tokenizer.bos_id and max_seq_len > 1 else []
    room = max_seq_len - len(head)
    kept = max(1, room * 3 // 4)
    start = len(head)
    while len(token_ids) - start > room:
        start += room + 1 - kept
        fresh = (i for i in range(start, start + kept // 2) if ends_sentence(tokenizer.token_text(token_ids[i - 1])))
        start = next(fresh, start)
    return head + list(token_ids[start:])


def ends_sentence(text: str) -> bool:
    """Whether a text ends like a sentence, closing quotes and white space aside."""
    return text.rstrip("\"'”’)» \n\t").endswith((".", "!", "?", "…"))
