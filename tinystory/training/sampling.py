"""Write sample stories with a model in training, always with the same prompt, seed and decoders. Knows no run."""

import copy

from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.model.transformer import Transformer
from tinystory.session.native import NativeSession
from tinystory.text.tokenizer import Tokenizer
from tinystory.writing.generate import Ended, StoryRequest, write

__all__ = ["sample_stories"]

PROMPT, SEED, MAX_TOKENS = "Once upon a time", 7, 200
SPECS = ("greedy", "top-k 40 | sample 0.8")


def sample_stories(model: Transformer, tokenizer: Tokenizer) -> dict[str, str]:
    """Write one story with each of `SPECS`; return them as spec -> text. The model is not changed."""
    registry = discover(user_folder=None)
    # A session joins the matrices that it gets, but the optimizer needs its own; so the session gets a copy.
    session = NativeSession(copy.deepcopy(model).eval(), tokenizer.bos_id, tokenizer.eos_ids)
    n = min(MAX_TOKENS, session.max_seq_len - 1)
    requests = [StoryRequest(PROMPT, parse_spec(spec, registry), seed=SEED, max_new_tokens=n) for spec in SPECS]
    ended = (event.result for event in write(session, tokenizer, requests) if isinstance(event, Ended))
    by_decoder = {story.request.decoder: story.text for story in ended}
    return {spec: by_decoder[request.decoder] for spec, request in zip(SPECS, requests, strict=True)}
