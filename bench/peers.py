"""The peers: other programs that write a story with the same weights (transformers, a plain torch loop, CTranslate2).

A peer that is not installed, or cannot run the model, is left out with a note. llama.cpp is no peer, because it reads
only GGUF files, and nothing here writes one yet.
"""

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from bench.ours import SEED
from bench.subject import Subject
from bench.work import Work, Writer
from tinystory.errors import TinystoryError

__all__ = ["PEERS", "SPECS", "Peer", "open_peer"]

SPECS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "top-k 40 | sample 0.8": {"top_k": 40, "temperature": 0.8},
}
"""Specs of tinystory, and the same as fields of `Work`."""


@dataclass(frozen=True)
class Peer:
    """One other program.

    Attributes:
        module: the Python module that it needs.
        open: makes a writer; the stack closes its files at the end.
        aim: the ratio to reach with one row.
        exact: true if its greedy story has to be the same as ours.
    """

    module: str
    open: Callable[[Subject, ExitStack], Writer]
    aim: float | None = None
    exact: bool = True


def open_peer(name: str, subject: Subject, stack: ExitStack) -> Writer | None:
    """Return the writer of a peer, or None with a note if it is left out."""
    peer = PEERS[name]
    if not importlib.util.find_spec(peer.module):
        subject.leave_out(name, f"pip install {peer.module}")
        return None
    try:
        return peer.open(subject, stack)
    except (RuntimeError, ValueError, NotImplementedError, TinystoryError) as error:
        subject.leave_out(name, error)
        return None


@cache
def _transformers_model(directory: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.eval()
    model.generation_config.eos_token_id = None
    return model


def _transformers(subject: Subject, stack: ExitStack, options: dict[str, Any]) -> Writer:
    """Return a writer that calls `generate` of transformers with some more options."""
    import torch

    model = _transformers_model(subject.directory)

    def write(work: Work) -> list[int]:
        torch.manual_seed(SEED)
        input_ids = torch.tensor([work.prompt_ids] * work.n_rows)
        how: dict[str, Any] = {"do_sample": False}
        if work.top_k > 1:
            how = {"do_sample": True, "top_k": work.top_k, "temperature": work.temperature}
        fixed = {"attention_mask": torch.ones_like(input_ids), "max_new_tokens": work.n_tokens, "pad_token_id": 0}
        new_ids = model.generate(input_ids, **fixed, **how, **options)[:, len(work.prompt_ids) :]
        return [int(token_id) for token_id in new_ids.flatten()]

    return write


def _eager(subject: Subject, stack: ExitStack) -> Writer:
    from bench.eager import EagerLoop

    return EagerLoop(subject.directory).write


def _ctranslate2(subject: Subject, stack: ExitStack, kind: str) -> Writer:
    """Return a writer of CTranslate2, with the weights that its own converter makes."""
    ctranslate2 = importlib.import_module("ctranslate2")
    converters = importlib.import_module("ctranslate2.converters")
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / kind
    converters.TransformersConverter(str(subject.directory)).convert(str(folder), quantization=kind)
    threads = {"inter_threads": 1, "intra_threads": subject.settings.threads}
    generator = ctranslate2.Generator(str(folder), device="cpu", compute_type=kind, **threads)
    tokenizer: Any = AutoTokenizer.from_pretrained(subject.directory)

    def write(work: Work) -> list[int]:
        prompt: Sequence[str] = tokenizer.convert_ids_to_tokens(work.prompt_ids)
        results = generator.generate_batch(
            [prompt] * work.n_rows,
            max_length=work.n_tokens,
            min_length=work.n_tokens,
            include_prompt_in_result=False,
            sampling_topk=work.top_k,
            sampling_temperature=work.temperature,
        )
        return [token_id for result in results for token_id in result.sequences_ids[0]]

    return write


# CTranslate2 never picks an end of story before the last token. Ours may pick it and goes on, so stories may differ.
PEERS = {
    "transformers": Peer("transformers", partial(_transformers, options={}), aim=10),
    "transformers, static cache": Peer(
        "transformers", partial(_transformers, options={"cache_implementation": "static"})
    ),
    "plain torch loop": Peer("torch", _eager, aim=2),
    "ctranslate2": Peer("ctranslate2", partial(_ctranslate2, kind="float32"), exact=False),
    "ctranslate2 int8": Peer("ctranslate2", partial(_ctranslate2, kind="int8"), exact=False),
}
"""The peers by their names in the table."""
