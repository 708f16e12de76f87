"""How a token is picked: the decoder contract, the spec, the registry and the one loop.

What an author of decoders needs is here: `from tinystory.decoding import LogitsProcessor, option`. Nothing of it
imports torch when it is loaded.
"""

from tinystory.decoding.companion import Companion
from tinystory.decoding.events import Commit, Draft, Event, Finish, FinishReason, Token
from tinystory.decoding.loop import shrunk
from tinystory.decoding.options import option
from tinystory.decoding.request import (
    Ids,
    Request,
    Session,
    Step,
    Vocabulary,
    Window,
    common_prefix,
    latest_half,
)
from tinystory.decoding.searching import Rows, Telling, shared_length
from tinystory.decoding.stages import Chain, ChainState, Decoder, LogitsProcessor, Sampler, Search, Stage, draw

__all__ = [
    "Chain",
    "ChainState",
    "Commit",
    "Companion",
    "Decoder",
    "Draft",
    "Event",
    "Finish",
    "FinishReason",
    "Ids",
    "LogitsProcessor",
    "Request",
    "Rows",
    "Sampler",
    "Search",
    "Session",
    "Stage",
    "Step",
    "Telling",
    "Token",
    "Vocabulary",
    "Window",
    "common_prefix",
    "draw",
    "latest_half",
    "option",
    "shared_length",
    "shrunk",
]
