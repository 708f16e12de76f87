"""Run any causal language model of transformers as a session.

This is simple and slow: every row has its own cache and is computed alone. What the cache of an architecture cannot do,
the session does not do with it (`hf_cache.py`).
"""

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tinystory.checkpoint import CheckpointHeader
from tinystory.decoding import Ids, Session, common_prefix
from tinystory.errors import CheckpointError, TinystoryError, UsageError, one_line
from tinystory.session.hf_cache import CacheAbilities, cut, examine_cache, rope_stage, whole_row
from tinystory.session.hf_weights import load_hf_model
from tinystory.session.rows import as_lists, check_prompts

__all__ = ["HFSession"]

_SILENT = logging.CRITICAL + 1
"""The level at which transformers says nothing: what matters to users becomes an error or a warning of ours."""

_DEFAULT_MAX_SEQ_LEN = 2048
"""The length of the context if the config does not say it."""

_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions", "context_length")
"""The names that configs give to the length of the context."""


class HFSession:
    """A `decoding.Session` over a causal language model of transformers.

    If the cache of a model cannot be cut, as with a sliding window or a recurrent state, `can_rewind` is False and each
    prefill computes the whole prompt. If a model has no cache, or one with which the logits differ, the whole row is
    computed for every token. A row is also computed again when it reaches a length at which all its positions change.

    Attributes:
        can_rewind: tokens can be removed.
        can_reorder: rows can be copied.
        abilities: what the cache of the model can do.
        warnings: one line for each thing that a user should know about the files of the model.
    """

    def __init__(
        self,
        model: Any,
        bos_id: int | None = None,
        eos_ids: frozenset[int] = frozenset(),
        opener: Callable[[str], Session] | None = None,
        abilities: CacheAbilities | None = None,
    ) -> None:
        """Begin without rows.

        Args:
            model: a causal language model of transformers.
            bos_id: the token that a story begins with, or None.
            eos_ids: the tokens that end a story.
            opener: opens a session of another model by its name.
            abilities: what the cache can do; None to find out, which costs a few passes.

        Raises:
            ValueError: the model sees the tokens that follow.
            Exception: of any kind, if transformers cannot run the model.
        """
        self.model = model.eval()
        self.warnings: tuple[str, ...] = ()
        self._config = config = model.config.get_text_config()
        self.vocab_size = int(config.vocab_size)
        self.max_seq_len = _longest_row(model, config)
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self._opener = opener
        self._rows: list[list[int]] = []
        self._caches: list[Any] = []
        self._hidden: list[Tensor | None] = []
        self._head_input: Tensor | None = None
        self.abilities = abilities or examine_cache(model, self.max_seq_len, self.vocab_size)
        self.can_rewind, self.can_reorder = self.abilities.can_cut, self.abilities.can_copy

    @classmethod
    def from_header(
        cls,
        header: CheckpointHeader,
        dtype: str,
        device: str,
        bos_id: int | None,
        eos_ids: frozenset[int],
        opener: Callable[[str], Session] | None = None,
    ) -> "HFSession":
        """Load a checkpoint, without running code from it and without pickled weights.

        Args:
            header: the header of the checkpoint, as from `read_header`.
            dtype: the dtype of the computation, as torch calls it.
            device: the device that the model runs on, as torch writes it.
            bos_id: the token that a story begins with, or None.
            eos_ids: the tokens that end a story.
            opener: opens a session of another model by its name.

        Raises:
            CheckpointError: the weights do not fit the config, or transformers cannot run the model.
            TinystoryError: there is not enough memory.
        """
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        transformers_logging.set_verbosity(_SILENT)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of a layer without elements, for example
                model, notices = load_hf_model(header, dtype)
            model.to(device)
            session = cls(model, bos_id, eos_ids, opener)
            session.warnings = notices
            return session
        except TinystoryError:
            raise
        except Exception as error:  # transformers raises errors of many kinds
            reason = one_line(error)
            raise CheckpointError(f"{header.directory}: transformers cannot run this model: {reason}") from error

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Make the rows hold these prompts, and return the next-token logits, (B, V) float32.

        Raises:
            UsageError: a prompt is empty, longer than max_seq_len, or has an id outside the vocabulary.
        """
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
        """Append tokens to every row: (B,) ids give (B, V) float32 logits, (B, T) ids give (B, T, V).

        Raises:
            UsageError: a row would pass max_seq_len.
        """
        ids_by_row = as_lists(token_ids)
        one_each = not isinstance(ids_by_row[0], list)
        new = [[token_id] for token_id in ids_by_row] if one_each else ids_by_row
        if max(map(len, self._rows)) + len(new[0]) > self.max_seq_len:
            raise UsageError(f"the context is full: this model sees {self.max_seq_len} tokens")
        logits = torch.stack([self._feed(row, ids) for row, ids in enumerate(new)])
        return logits[:, -1] if one_each else logits

    def reorder(self, rows: Ids) -> None:
        """Make row i a copy of row rows[i]; `rows` is (B',) with any B' ≥ 1.

        Raises:
            UsageError: the cache of this model cannot be copied.
        """
        if not self.can_reorder:
            raise UsageError("this model's cache cannot be copied")
        order = as_lists(rows)
        moved: set[int] = set()
        caches = []
        for row in order:  # the first copy of a row takes the cache itself; only further ones need a copy of it
            caches.append(copy.deepcopy(self._caches[row]) if row in moved else self._caches[row])
            moved.add(row)
        self._caches = caches
        self._rows = [list(self._rows[row]) for row in order]
        self._hidden = [self._hidden[row] for row in order]

    def rewind(self, n_tokens: Sequence[int]) -> None:
        """Forget the last n_tokens[i] tokens of row i.

        Raises:
            UsageError: a row has fewer tokens than that, or the cache of this model cannot be cut.
        """
        if not self.can_rewind:
            raise UsageError("this model's cache cannot be rewound")
        for row, n in enumerate(n_tokens):
            if not 0 <= n <= len(self._rows[row]):
                raise UsageError(f"cannot rewind {n} tokens of a row of {len(self._rows[row])}")
            if n:
                ids = self._rows[row]
                if self._stage(len(ids) - n) == self._stage(len(ids)):
                    cut(self._caches[row], n)
                else:
                    self._caches[row] = None
                del ids[len(ids) - n :]
                self._hidden[row] = None

    def hidden(self) -> Tensor:
        """Return the last input of the output head for each row, (B, C).

        Raises:
            UsageError: nothing was decoded since a rewind.
        """
        states = [state for state in self._hidden if state is not None]
        if len(states) < len(self._rows) or not states:
            raise UsageError("no hidden state: nothing was decoded since the rewind")
        return torch.stack(states)

    def open(self, model: str | None = None) -> Session:
        """Return a second, empty session: of this model for None, else of a checkpoint by its name.

        Raises:
            UsageError: this session has no opener for other models.
        """
        if model is None:
            return HFSession(self.model, self.bos_id, self.eos_ids, self._opener, self.abilities)
        if self._opener is None:
            raise UsageError(f"this session cannot open another model ({model})")
        return self._opener(model)

    def _feed(self, row: int, ids: list[int]) -> Tensor:
        """Append ids to one row; return logits (T, V) in float32."""
        # The hook is removed again, since the model lives longer than its sessions.
        hook = self.model.get_output_embeddings().register_forward_pre_hook(self._keep_head_input)
        try:
            logits = torch.cat([self._append(row, part) for part in self._parts(len(self._rows[row]), ids)])
        finally:
            hook.remove()
        assert self._head_input is not None
        self._hidden[row] = self._head_input[0, -1]
        return logits

    def _parts(self, length: int, ids: list[int]) -> list[list[int]]:
        """Divide ids for a row of this length into parts that the model can compute at once."""
        if not length:
            return [ids]
        parts = [ids[:1]]
        for index in range(1, len(ids)):
            joined = self.abilities.appends_many and self._stage(length + index) == self._stage(length + index + 1)
            if joined:
                parts[-1].append(ids[index])
            else:
                parts.append([ids[index]])
        return parts

    def _append(self, row: int, ids: list[int]) -> Tensor:
        """Append ids to one row in one pass; return logits (T, V) in float32."""
        old, cache = self._rows[row], self._caches[row]
        if cache is not None and self._stage(len(old)) != self._stage(len(old) + len(ids)):
            cache = None
        if self.abilities.works:
            new = torch.tensor([ids if cache is not None else old + ids], device=self.model.device)
            output = self.model(input_ids=new, past_key_values=cache, use_cache=True)
            self._caches[row], logits = output.past_key_values, output.logits[0]
        else:
            logits = whole_row(self.model, old + ids)
        old.extend(ids)
        new_logits: Tensor = logits[-len(ids) :].float()
        return new_logits

    def _stage(self, length: int) -> tuple[int, ...]:
        return rope_stage(self._config, length)

    def _reusable(self, prompt: list[int], old: list[tuple[list[int], Any]]) -> tuple[Any, int]:
        """Return a cache with the longest available prefix of the prompt, and its length; (None, 0) without one."""
        if not (self.can_rewind and self.can_reorder):
            return None, 0
        stage = self._stage(len(prompt))
        shared = [
            common_prefix(prompt[:-1], row) if cache is not None and self._stage(len(row)) == stage else 0
            for row, cache in old
        ]
        if not any(shared):
            return None, 0
        best = max(range(len(old)), key=shared.__getitem__)
        row, cache = old[best][0], copy.deepcopy(old[best][1])
        cut(cache, len(row) - shared[best])
        return cache, shared[best]

    def _keep_head_input(self, _module: object, arguments: tuple[Tensor, ...]) -> None:
        self._head_input = arguments[0]


def _longest_row(model: Any, config: Any) -> int:
    """Return the most tokens that a row can hold.

    A table of positions may have a row for padding, as RoBERTa's: the first token then has the position behind it.
    """
    lengths = (getattr(config, name, None) for name in _LENGTH_NAMES)
    stated = next((n for n in lengths if isinstance(n, int) and n > 0), _DEFAULT_MAX_SEQ_LEN)
    tables = (module for name, module in model.named_modules() if "position" in name)
    usable = (
        table.num_embeddings - table.padding_idx - 1
        for table in tables
        if isinstance(table, nn.Embedding) and table.padding_idx is not None
    )
    return min([stated, *usable])
