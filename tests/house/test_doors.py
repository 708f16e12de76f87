"""The modules that code outside this repository imports: every name stays, and no door waits for torch."""

import importlib
import subprocess
import sys

import pytest

NAMES = {
    "tinystory": "Comparison Inside Model Piece Replay Story StoryToken Trace WhatIf compare load replay",
    "tinystory.decoding": (
        "Chain ChainState Commit Companion Decoder Draft Event Finish FinishReason Ids LogitsProcessor Request Rows "
        "Sampler Search Session Stage Step Telling Token Vocabulary Window common_prefix draw latest_half option run "
        "shared_length shown shrunk"
    ),
    "tinystory.testing": "Call Check Problem ToySession ToyVocabulary conformance examine",
    "tinystory.checkpoint": (
        "CheckpointHeader TensorEntry check_doubled_head load_model locate model_hash name_in_file read_header "
        "save_checkpoint"
    ),
    "tinystory.errors": "CheckpointError SessionError TinystoryError UsageError",
    "tinystory.searching": "Rows Telling shared_length",
    "tinystory.companion": "Companion",
    "tinystory.words": "HALF Watch Watched begins_inside_word check_words has_word whole",
    "tinystory.hf_processor": "as_logits_processor",
}
"""Every name that a door offers now or has ever offered."""

DOORS_BEFORE_TORCH = (
    "tinystory.api.model",
    "tinystory.api.story",
    "tinystory.cli",
    "tinystory.decoding",
    "tinystory.decoding.spec",
    "tinystory.decoding.plugins",
    "tinystory.checkpoint",
    "tinystory.checkpoint.header",
    "tinystory.testing",
    "tinystory.commands.generate.one",
    "tinystory.repl.app",
    "tinystory.study.grid",
    "tinystory.training.ranks",
    "tinystory.searching",
    "tinystory.companion",
    "tinystory.words",
    "tinystory.hf_processor",
)

OPEN_ONE_AFTER_THE_OTHER = """
import importlib, sys
for door in sys.argv[1:]:
    importlib.import_module(door)
    if "torch" in sys.modules:
        sys.exit(f"{door} imports torch")
"""


@pytest.mark.parametrize("door", NAMES)
def test_a_door_offers_every_name_that_it_ever_had(door):
    module = importlib.import_module(door)
    names = NAMES[door].split()
    assert [name for name in names if not hasattr(module, name)] == []
    assert set(names) <= set(module.__all__)


def test_the_doors_open_without_torch():
    """One process opens all of them, because a process for each would take ten times as long."""
    result = subprocess.run(
        [sys.executable, "-c", OPEN_ONE_AFTER_THE_OTHER, *DOORS_BEFORE_TORCH],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
