"""Code that the tests of fast steps share: a session with fast steps beside one with torch alone."""

import torch

__all__ = ["expect_the_same_story", "torch_alone"]


def torch_alone(session):
    """Return the session without any fast step."""
    session._most_tokens = session._most_alone = 0
    return session


def expect_the_same_story(fast, plain, prompt, **close):
    """Compare logits, hidden states and the cache over more than 270 positions, also after a rewind and a reorder."""
    torch.testing.assert_close(fast.prefill([prompt]), plain.prefill([prompt]), **close)
    for n in range(len(prompt), 273):
        token = torch.tensor([n % 61])
        torch.testing.assert_close(fast.decode(token), plain.decode(token), **close)
        torch.testing.assert_close(fast.hidden(), plain.hidden(), **close)
    for session in (fast, plain):
        session.rewind([200])
        session.reorder(torch.tensor([0, 0]))
        session.decode(torch.tensor([5, 6]))
        session.reorder(torch.tensor([1]))
    got, expected = (session.decode(torch.tensor([[7]])) for session in (fast, plain))
    assert got.shape == (1, 1, fast.vocab_size)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected.float(), **close)
    for (keys, values), (keys_2, values_2) in zip(fast._cache.layers(), plain._cache.layers(), strict=True):
        torch.testing.assert_close((keys, values), (keys_2, values_2), **close)
