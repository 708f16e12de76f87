"""Run any causal language model of transformers as a session.

This is simple and slow: every row has its own cache and is computed alone. So rows of any length, rewinding and
reordering work with every architecture that has an ordinary cache.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tinystory.checkpoint import CheckpointHeader
from tinystory.decoding import Ids, Session, common_prefix
from tinystory.errors import CheckpointError, TinystoryError, UsageError, one_line
from tinystory.session.hf_weights import load_hf_model
from tinystory.session.rows import as_lists, check_prompts

__all__ = ["HFSession"]

_SILENT = logging.CRITICAL + 1
"""The level at which transformers says nothing: what matters to users becomes an error or a warning of ours."""

_DEFAULT_MAX_SEQ_LEN = 2048
"""The length of the context if the config does not say it."""

_BIDIRECTIONAL = frozenset({"bert", "roberta", "electra", "camembert", "xlm-roberta", "roformer", "megatron-bert"})
"""Encoders. They see later tokens, but transformers runs them as causal models with only a warning.

A config with `is_decoder` makes such a model causal.
"""


class HFSession:
    """A `decoding.Session` over a causal language model of transformers.

    If the cache of a model cannot be cut, as with a sliding window, `can_rewind` is False and each prefill computes the
    whole prompt. If a model has no ordinary cache, like a recurrent one or GPT-1, the whole row is computed for every
    token.

    Attributes:
        warnings: one line for each thing that a user should know about the files of the model.
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
        self.warnings: tuple[str, ...] = ()
        config = model.config.get_text_config()
        for each in (model.config, config):
            each.return_dict = True  # config.json may ask for plain tuples, in which we would not find the logits
        self.vocab_size = int(config.vocab_size)
        lengths = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
        self.max_seq_len = next((n for n in lengths if isinstance(n, int) and n > 0), _DEFAULT_MAX_SEQ_LEN)
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self._opener = opener
        self._rows: list[list[int]] = []
        self._caches: list[Any] = []
        self._hidden: list[Tensor | None] = []
        self._head_input: Tensor | None = None
        self._caches_tokens, self.can_rewind = self._probe_cache()

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
            if model.config.get_text_config().model_type in _BIDIRECTIONAL and not model.config.is_decoder:
                raise ValueError(f"a {model.config.model_type} sees the tokens that follow, so it cannot write")
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
        """Make row i a copy of row rows[i]; `rows` is (B',) with any B' ≥ 1."""
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
                _cut(self._caches[row], len(self._rows[row]) - n)
                del self._rows[row][len(self._rows[row]) - n :]
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
            return HFSession(self.model, self.bos_id, self.eos_ids, self._opener)
        if self._opener is None:
            raise UsageError(f"this session cannot open another model ({model})")
        return self._opener(model)

    def _feed(self, row: int, ids: list[int]) -> Tensor:
        """Append ids to one row; return logits (T, V) in float32."""
        # The hook is removed again, since the model lives longer than its sessions.
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
        """Return a cache with the longest available prefix of the prompt, and its length; (None, 0) without one."""
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
        """Try the cache with a few tokens; return whether it works, and whether rows can be rewound."""
        from transformers.cache_utils import DynamicCache, DynamicLayer

        ids = torch.zeros((1, 3), dtype=torch.long, device=self.model.device)
        whole = self.model(input_ids=ids)
        try:
            cache = self.model(input_ids=ids[:, :2], use_cache=True).past_key_values
            if cache is None:
                return False, True  # nothing is cached, so tokens can be removed freely
            last = self.model(input_ids=ids[:, 2:], past_key_values=cache, use_cache=True).logits[0, -1]
        except Exception:  # an architecture without an ordinary cache may fail in any way
            return False, True
        scale = whole.logits[0, -1].abs().max() + 1
        works = bool((last - whole.logits[0, -1]).abs().max() < 0.05 * scale)
        cuttable = isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)
        return works, cuttable or not works


def _cut(cache: Any, n_tokens: int) -> None:
    """Cut a cache to its first n_tokens; None stays None."""
    for layer in cache.layers if cache is not None else ():
        layer.keys, layer.values = layer.keys[:, :, :n_tokens], layer.values[:, :, :n_tokens]
