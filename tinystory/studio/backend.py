"""The model of a studio: it can be asked about its vocabulary at once, and loads its weights in the background."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Protocol

from tinystory.checkpoint import CheckpointHeader, model_hash
from tinystory.checkpoint.shipped import find_model
from tinystory.checkpoint.tokenizers import load_tokenizer
from tinystory.decoding import Session
from tinystory.errors import OUT_OF_MEMORY, CheckpointError, TinystoryError, is_out_of_memory, one_line
from tinystory.session.loading import LoadedModel, load_header
from tinystory.text.sentences import whole_sentences
from tinystory.writing.generate import StoryRequest, TextEvent, write

if TYPE_CHECKING:
    from torch import Tensor

    from tinystory.evaluation.perplexity import Evaluation
    from tinystory.inside.inspector import Inspector
    from tinystory.text.tokenizer import Tokenizer

__all__ = ["Backend", "ModelBackend"]

_POLL_SECONDS = 0.05
"""Seconds between two questions whether a wait is cancelled."""


class Backend(Protocol):
    """A model that writes stories. Its vocabulary works at once; a method that needs `wait` before it says so."""

    @property
    def name(self) -> str:
        """The model's name, as the user gave it."""
        ...

    @property
    def dtype(self) -> str:
        """The dtype in which the model computes."""
        ...

    @property
    def max_seq_len(self) -> int | None:
        """The longest context in tokens; None if it is not known yet."""
        ...

    @property
    def loading(self) -> bool:
        """True until the weights are loaded, or have failed to load."""
        ...

    @property
    def vocabulary(self) -> str:
        """A hash of the vocabulary, in hex; another vocabulary has another one."""
        ...

    @property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer of the model."""
        ...

    def facts(self) -> Sequence[tuple[str, str]]:
        """Return facts about the model for people, as (name, value)."""
        ...

    def start(self) -> None:
        """Begin to load; a second call does nothing."""
        ...

    def take_warnings(self) -> Sequence[str]:
        """Return the warnings about the loaded model, and about models that a decoder opened, each only once."""
        ...

    def wait(self, cancel: Callable[[], bool]) -> bool:
        """Wait until the model is loaded; return False if `cancel` said True first.

        Raises:
            TinystoryError: the model did not load.
        """
        ...

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """Return the token ids of a text; `bos` puts BOS before them."""
        ...

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        ...

    def token_text(self, token_id: int) -> str:
        """Return the text of one token, in a form that can be shown."""
        ...

    @property
    def heals(self) -> bool:
        """True if a word that was cut can be healed: the tokens are known as bytes."""
        ...

    def model_hash(self) -> str:
        """Return the SHA-256 of weights, config and tokenizer, in hex."""
        ...

    def write(self, requests: Sequence[StoryRequest]) -> Iterator[TextEvent]:
        """Write stories, in one batch if their decoders are chains; needs `wait` before it."""
        ...

    def logits(self, token_ids: Sequence[int], start: int) -> "Tensor":
        """Return (T − start, V) logits for the tokens of a story from `start` on; needs `wait` before it."""
        ...

    def session(self, model: str | None = None) -> Session:
        """Return an empty session of this model or of another checkpoint, for a stage; needs `wait` before it."""
        ...

    def evaluate(self, stories: Iterable[str]) -> "Evaluation":
        """Return how well the model predicts stories; needs `wait` before it."""
        ...

    @property
    def inspector(self) -> "Inspector":
        """The inside of the model; needs `wait` before it."""
        ...

    @property
    def loaded(self) -> LoadedModel | None:
        """The model, for an export; None until it is loaded."""
        ...


class ModelBackend:
    """A checkpoint whose header is checked at once. A thread imports torch and loads the weights."""

    def __init__(
        self, name: str, header: CheckpointHeader, dtype: str, device: str, *, engine: str = "compiled"
    ) -> None:
        self.name = name
        self.dtype = dtype
        self._header = header
        self._device = device
        self._engine = engine
        self._model: LoadedModel | None = None
        self._warnings: Sequence[str] = ()
        self._error: BaseException | None = None
        self._done = threading.Event()
        # A daemon thread, so that the program can end while torch is being imported.
        self._thread = threading.Thread(target=self._load, name="tinystory-load", daemon=True)

    @classmethod
    def open(cls, name: str | None, dtype: str, device: str, *, engine: str = "compiled") -> "ModelBackend":
        """Find a checkpoint and check its header, without torch.

        Args:
            name: a directory, a hub id or a shipped model; None for the default model.
            dtype: the dtype in which the model computes.
            device: the device that the model runs on, as torch writes it.
            engine: what computes Llama and GPT-2 models on the CPU, `compiled` or `numpy`.

        Raises:
            CheckpointError: the checkpoint is missing or invalid.
        """
        return cls(*find_model(name), dtype, device, engine=engine)

    @property
    def max_seq_len(self) -> int | None:
        """The longest context in tokens; None until it is loaded, for a model that only transformers knows."""
        if self._header.config is not None:
            return self._header.config.max_seq_len
        return self._model.session.max_seq_len if self._model else None

    @property
    def loading(self) -> bool:
        """True until the weights are loaded, or have failed to load."""
        return not self._done.is_set()

    def facts(self) -> Sequence[tuple[str, str]]:
        """Return the facts of the header, and how the model runs."""
        config = self._header.config
        facts = [("model", self.name), ("folder", str(self._header.directory))]
        if config is not None:
            size = f"{config.n_layer} layers of width {config.d_model}, {config.n_parameters:,} parameters"
            facts += [
                ("kind", f"{config.family}, {size}"),
                ("vocabulary", f"{config.vocab_size:,} tokens"),
            ]
        else:
            facts.append(("kind", str(self._header.hf_config.get("model_type", "unknown"))))
        facts.append(("context", f"{self.max_seq_len} tokens" if self.max_seq_len else "known once loaded"))
        state = "loading" if self.loading else "failed to load" if self._error else "loaded"
        how = f"in {self.dtype} on {self._device}" + ", compiled" * bool(self._model and self._model.compiled)
        facts.append(("runs", f"{how}, {state}"))
        return facts

    def start(self) -> None:
        """Begin to load in the background."""
        if self._thread.ident is None:
            self._thread.start()

    def take_warnings(self) -> Sequence[str]:
        """Return the warnings about the models that are loaded by now; nothing a second time."""
        warnings, self._warnings = self._warnings, ()
        return warnings

    def wait(self, cancel: Callable[[], bool]) -> bool:
        """Wait for the load.

        Raises:
            TinystoryError: the model did not load; each later call raises it again.
        """
        self.start()
        while not self._done.wait(_POLL_SECONDS):
            if cancel():
                return False
        if self._error is not None:
            for_users = isinstance(self._error, TinystoryError)
            reason = str(self._error) if for_users else one_line(self._error, kind=True)
            if is_out_of_memory(self._error):
                reason = OUT_OF_MEMORY
            raise TinystoryError(
                f"the model {self.name} did not load: {reason}\n/model DIR opens another model"
            ) from self._error
        return True

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer; its file is read at the first use.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        return load_tokenizer(self._header)

    @cached_property
    def vocabulary(self) -> str:
        """The SHA-256 of the tokenizer, in hex."""
        return hashlib.sha256(self.tokenizer.to_json().encode()).hexdigest()

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """Return the token ids of a text; `bos` puts BOS before them."""
        return self.tokenizer.encode(text, bos=bos)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return self.tokenizer.detokenize(token_ids)

    def token_text(self, token_id: int) -> str:
        """Return the text of one token, in a form that can be shown."""
        return self.tokenizer.token_text(token_id)

    @property
    def heals(self) -> bool:
        """True if the tokens are known as bytes."""
        return self.tokenizer.token_bytes is not None

    def model_hash(self) -> str:
        """Return the hash of the checkpoint; empty if its files were replaced before they were hashed."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        try:
            return model_hash(self._header.directory, self._header.stamp)
        except CheckpointError:  # a story must not be lost because of this
            return ""

    def write(self, requests: Sequence[StoryRequest]) -> Iterator[TextEvent]:
        """Write stories, in one batch if their decoders are chains."""
        return write(self._loaded.session, self._loaded.tokenizer, requests)

    def logits(self, token_ids: Sequence[int], start: int) -> "Tensor":
        """Compute the logits for each token of a story from `start` on, in a second session."""
        from tinystory.story.tracing import story_logits

        window = partial(whole_sentences, self.tokenizer)
        return story_logits(self._loaded.session, token_ids, window, start)

    def session(self, model: str | None = None) -> Session:
        """Open a second session, of this model or of another checkpoint."""
        return self._loaded.session.open(model)

    def evaluate(self, stories: Iterable[str]) -> "Evaluation":
        """Evaluate the model on stories, in a second session."""
        from tinystory.evaluation.perplexity import evaluate

        return evaluate(self._loaded.session.open(), self._loaded.tokenizer, stories)

    @property
    def loaded(self) -> LoadedModel | None:
        """The model, for an export; None until it is loaded."""
        return self._model

    @cached_property
    def inspector(self) -> "Inspector":
        """The inside of the model. Its weights are read once more, in float32, when it is first looked into."""
        from tinystory.inside.inspector import Inspector

        return Inspector(self._loaded.header, self._loaded.session)

    @property
    def _loaded(self) -> LoadedModel:
        if self._model is None:
            raise RuntimeError("the model is used before it is loaded")
        import torch

        torch.set_num_threads(self._model.threads)  # another model or another thread may have changed it
        return self._model

    def _keep_warning(self, warning: str) -> None:
        self._warnings = [*self._warnings, warning]

    def _load(self) -> None:
        try:
            model = load_header(
                self.name, self._header, self.dtype, self._device, engine=self._engine, tell=self._keep_warning
            )
            model.tokenizer.detokenize([])  # builds the table of bytes now, so that the first word comes sooner
            self._model, self._warnings = model, [*model.warnings, *self._warnings]
        except BaseException as error:  # `wait` raises it in the thread that needs the model
            self._error = error
        finally:
            self._done.set()
        self.model_hash()  # now, because a training run may replace the files later
