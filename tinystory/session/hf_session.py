"""Any causal language model of transformers behind the same four verbs as our own.

Plain rather than fast: every row has a cache of its own and is computed alone, so rows of any length, rewinding
and reordering need nothing from the architecture but an ordinary cache.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinystory.decoding import Ids, Session, common_prefix
from tinystory.errors import CheckpointError, UsageError, one_line
from tinystory.session.rows import as_lists, check_prompts

__all__ = ["HFSession"]

_UNKNOWN_MAX_SEQ_LEN = 2048
"""The context taken for an architecture whose config names none."""

_BIDIRECTIONAL = frozenset({"bert", "roberta", "electra", "camembert", "xlm-roberta", "roformer", "megatron-bert"})
"""Encoders that transformers runs as causal models with a mere warning, unless their config says `is_decoder`."""


class HFSession:
    """A `decoding.Session` over a transformers causal LM.

    A model whose cache cannot be cut (a sliding-window one) has `can_rewind` False; its prefill then starts from
    nothing each time. One without an ordinary cache (a recurrent one, or one as old as GPT-1) gets the whole row
    anew for every token.
    """

    can_reorder = True

    def __init__(
        self,
        model: Any,
        bos_id: int | None = None,
        eos_ids: frozenset[int] = frozenset(),
        opener: Callable[[str], Session] | None = None,
    ) -> None:
        self.model = model.eval()
        config = model.config.get_text_config()
        self.vocab_size = int(config.vocab_size)
        lengths = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
        self.max_seq_len = next((n for n in lengths if isinstance(n, int) and n > 0), _UNKNOWN_MAX_SEQ_LEN)
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self._opener = opener
        self._rows: list[list[int]] = []
        self._caches: list[Any] = []
        self._hidden: list[Tensor | None] = []
        self._head_input: Tensor | None = None
        self._caches_tokens, self.can_rewind = self._probe_cache()

    @classmethod
    def from_directory(
        cls,
        directory: Path,
        dtype: str,
        device: str,
        bos_id: int | None,
        eos_ids: frozenset[int],
        opener: Callable[[str], Session] | None = None,
    ) -> "HFSession":
        """Load a local directory; never its code, never pickled weights.

        Raises:
            CheckpointError: transformers cannot load it.
        """
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=getattr(torch, dtype),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
            if model.config.get_text_config().model_type in _BIDIRECTIONAL and not model.config.is_decoder:
                raise ValueError(f"a {model.config.model_type} sees the words to come; it cannot write")
            model.to(device)
            return cls(model, bos_id, eos_ids, opener)
        except Exception as error:  # transformers raises many kinds
            reason = one_line(error)
            raise CheckpointError(f"{directory}: transformers cannot run this model: {reason}") from error

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """As `Session.prefill`; (B, V) float32."""
        check_prompts(prompts, self.max_seq_len, self.vocab_size)
        old = list(zip(self._rows, self._caches, strict=True))
        self._rows, self._caches, self._hidden = [], [], []
        logits = []
        for prompt in prompts:
            cache, n_kept = self._reusable(list(prompt), old)
            self._rows.append(list(prompt[:n_kept]))
            self._caches.append(cache)
            self._hidden.append(None)
            logits.append(self._feed(len(self._rows) - 1, list(prompt[n_kept:]))[-1])
        return torch.stack(logits)

    @torch.inference_mode()
    def decode(self, token_ids: Ids) -> Tensor:
        """As `Session.decode`: (B,) gives (B, V), (B, T) gives (B, T, V); float32."""
        given = as_lists(token_ids)
        one_each = not isinstance(given[0], list)
        new = [[token_id] for token_id in given] if one_each else given
        if max(map(len, self._rows)) + len(new[0]) > self.max_seq_len:
            raise UsageError(f"the context is full: this model sees {self.max_seq_len} tokens")
        logits = torch.stack([self._feed(row, ids) for row, ids in enumerate(new)])
        return logits[:, -1] if one_each else logits

    def reorder(self, rows: Ids) -> None:
        """Row i becomes a copy of row rows[i]."""
        order = as_lists(rows)
        first: set[int] = set()
        caches = []
        for row in order:  # the first taker keeps the cache itself, others get copies
            caches.append(copy.deepcopy(self._caches[row]) if row in first else self._caches[row])
            first.add(row)
        self._caches = caches
        self._rows = [list(self._rows[row]) for row in order]
        self._hidden = [self._hidden[row] for row in order]

    def rewind(self, n_tokens: Sequence[int]) -> None:
        """Forget the last n_tokens[i] tokens of row i."""
        if not self.can_rewind:
            raise UsageError("this model's cache cannot be rewound")
        for row, n in enumerate(n_tokens):
            if not 0 <= n <= len(self._rows[row]):
                raise UsageError(f"cannot rewind {n} tokens of a row of {len(self._rows[row])}")
            if n:
                _cut(self._caches[row], len(self._rows[row]) - n)
                del self._rows[row][len(self._rows[row]) - n :]
                self._hidden[row] = None

    def hidden(self) -> Tensor:
        """(B, d_model): what the output head saw last in each row."""
        states = [state for state in self._hidden if state is not None]
        if len(states) < len(self._rows) or not states:
            raise UsageError("no hidden state: nothing was decoded since the rewind")
        return torch.stack(states)

    def open(self, model: str | None = None) -> Session:
        """A second, empty session of the same model, or of another checkpoint."""
        if model is None:
            return HFSession(self.model, self.bos_id, self.eos_ids, self._opener)
        if self._opener is None:
            raise UsageError(f"this session cannot open another model ({model})")
        return self._opener(model)

    def _feed(self, row: int, ids: list[int]) -> Tensor:
        """Append ids to one row; (T, V) float32."""
        # Not for good: the model outlives its sessions.
        hook = self.model.get_output_embeddings().register_forward_pre_hook(self._keep_head_input)
        try:
            if self._caches_tokens:
                new = torch.tensor([ids], device=self.model.device)
                output = self.model(input_ids=new, past_key_values=self._caches[row], use_cache=True)
                self._caches[row] = output.past_key_values
            else:
                whole = torch.tensor([self._rows[row] + ids], device=self.model.device)
                output = self.model(input_ids=whole)
        finally:
            hook.remove()
        self._rows[row].extend(ids)
        assert self._head_input is not None
        self._hidden[row] = self._head_input[0, -1]
        logits: Tensor = output.logits[0, -len(ids) :].float()
        return logits

    def _reusable(self, prompt: list[int], old: list[tuple[list[int], Any]]) -> tuple[Any, int]:
        """A cache that holds a prefix of the prompt, and its length; (None, 0) for a fresh start."""
        shared = [common_prefix(prompt[:-1], row) for row, _ in old]
        if not self.can_rewind or not any(shared):
            return None, 0
        best = max(range(len(old)), key=shared.__getitem__)
        cache = copy.deepcopy(old[best][1])
        _cut(cache, shared[best])
        return cache, shared[best]

    def _keep_head_input(self, _module: object, arguments: tuple[Tensor, ...]) -> None:
        self._head_input = arguments[0]

    @torch.inference_mode()
    def _probe_cache(self) -> tuple[bool, bool]:
        """Feed a few tokens with and without the cache: whether it works at all, and whether it can be cut."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        ids = torch.zeros((1, 3), dtype=torch.long, device=self.model.device)
        whole = self.model(input_ids=ids)
        try:
            cache = self.model(input_ids=ids[:, :2], use_cache=True).past_key_values
            if cache is None:
                return False, True  # nothing is kept, so anything can be forgotten
            last = self.model(input_ids=ids[:, 2:], past_key_values=cache, use_cache=True).logits[0, -1]
        except Exception:  # whatever an architecture without an ordinary cache makes of it
            return False, True
        scale = whole.logits[0, -1].abs().max() + 1
        works = bool((last - whole.logits[0, -1]).abs().max() < 0.05 * scale)
        cuttable = isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)
        return works, cuttable or not works


def _cut(cache: Any, n_tokens: int) -> None:
    """Keep the first n_tokens of a cache; of none there is nothing to cut."""
    for layer in cache.layers if cache is not None else ():
        layer.keys, layer.values = layer.keys[:, :, :n_tokens], layer.values[:, :, :n_tokens]
