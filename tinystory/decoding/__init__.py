"""The decoder contract: what authors of decoders subclass, receive and return.

    from tinystory.decoding import LogitsProcessor, option

This room also has the spec grammar, the registry of stages and the loop that writes stories. It knows no model, no
checkpoint and no text. Importing it does not import torch.
"""

from tinystory.decoding.companion import Companion
from tinystory.decoding.events import Commit, Draft, Event, Finish, FinishReason, Token
from tinystory.decoding.loop import run, shrunk
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
from tinystory.safe.reading import shown

__all__ = [  # noqa: RUF022 (the groups are worth more than the alphabet)
    # To write a stage: its base class, its options, and the draw of a token.
    "LogitsProcessor",
    "Sampler",
    "Search",
    "Stage",
    "draw",
    "option",
    "shown",
    # What a stage receives.
    "Request",
    "Step",
    "Vocabulary",
    "Window",
    "latest_half",
    # What a search yields.
    "Commit",
    "Draft",
    "Event",
    "Finish",
    "FinishReason",
    "Token",
    # What a search works with: the model, the stages before it, and the help that searches share.
    "Chain",
    "ChainState",
    "Companion",
    "Decoder",
    "Ids",
    "Rows",
    "Session",
    "Telling",
    "common_prefix",
    "run",
    "shared_length",
    "shrunk",
]
