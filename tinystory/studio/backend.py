"""A model as the studio sees it: present from the first moment, loading in the background until it is needed."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Protocol

from tinystory.checkpoint import CheckpointHeader, model_hash
from tinystory.checkpoint.shipped import find_model
from tinystory.checkpoint.tokenizers import load_tokenizer
from tinystory.decoding import Session
from tinystory.errors import CheckpointError, TinystoryError, one_line
from tinystory.session.loading import LoadedModel, load_header
from tinystory.text.sentences import whole_sentences
from tinystory.writing.generate import StoryRequest, TextEvent, write

if TYPE_CHECKING:
    from torch import Tensor

    from tinystory.evaluation.perplexity import Evaluation
    from tinystory.text.tokenizer import Tokenizer

__all__ = ["Backend", "ModelBackend"]

_POLL_SECONDS = 0.05


class Backend(Protocol):
    """What writes stories. What needs a `wait` before says so; the vocabulary does not."""

    @property
    def name(self) -> str:
        """As the user gave it."""
        ...

    @property
    def dtype(self) -> str:
        """Of the computation."""
        ...

    @property
    def max_seq_len(self) -> int | None:
        """Tokens of context, where known."""
        ...

    @property
    def loading(self) -> bool:
        """Whether `wait` would have to wait."""
        ...

    @property
    def vocabulary(self) -> str:
        """What tells its vocabulary from others: a hash, in hex."""
        ...

    @property
    def tokenizer(self) -> "Tokenizer":
        """Its vocabulary."""
        ...

    def facts(self) -> Sequence[tuple[str, str]]:
        """What is known of the model, as (name, value)."""
        ...

    def start(self) -> None:
        """Begin to load; the second call does nothing."""
        ...

    def wait(self, cancel: Callable[[], bool]) -> bool:
        """Wait until the model is there; False where `cancel` came first. Raises TinystoryError when it failed."""
        ...

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """Token ids of a text."""
        ...

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of token ids."""
        ...

    def token_text(self, token_id: int) -> str:
        """One token for the eye."""
        ...

    @property
    def heals(self) -> bool:
        """Whether a word that was cut can be healed: the vocabulary is one of bytes."""
        ...

    def model_hash(self) -> str:
        """sha256 over weights, config and tokenizer, in hex."""
        ...

    def write(self, requests: Sequence[StoryRequest]) -> Iterator[TextEvent]:
        """Write stories, in one batch where their decoders allow it; after `wait`."""
        ...

    def logits(self, token_ids: Sequence[int], start: int) -> "Tensor":
        """What the model thought before each token of a story from `start` on; (T - start, V); after `wait`."""
        ...

    def session(self, model: str | None = None) -> Session:
        """A second, empty session, of this model or of another checkpoint, for a stage; after `wait`."""
        ...

    def evaluate(self, stories: Iterable[str]) -> "Evaluation":
        """How surprised the model is by stories; after `wait`."""
        ...


class ModelBackend:
    """A checkpoint whose header has been checked and whose weights come in a thread, with torch itself."""

    def __init__(self, name: str, header: CheckpointHeader, dtype: str, device: str, *, compiled: bool = False) -> None:
        self.name = name
        self.dtype = dtype
        self._header = header
        self._device = device
        self._compiled = compiled
        self._model: LoadedModel | None = None
        self._error: BaseException | None = None
        self._done = threading.Event()
        # A daemon: whoever leaves while torch is being imported does not wait for it.
        self._thread = threading.Thread(target=self._load, name="tinystory-load", daemon=True)

    @classmethod
    def open(cls, name: str | None, dtype: str, device: str, *, compiled: bool = False) -> "ModelBackend":
        """Find and check a checkpoint; torch is not imported.

        Raises:
            CheckpointError: it is missing or invalid.
        """
        return cls(*find_model(name), dtype, device, compiled=compiled)

    @property
    def max_seq_len(self) -> int | None:
        """Tokens of context; of a model that only transformers knows, once it is loaded."""
        if self._header.config is not None:
            return self._header.config.max_seq_len
        return self._model.session.max_seq_len if self._model else None

    @property
    def loading(self) -> bool:
        """Whether the weights are still on their way."""
        return not self._done.is_set()

    def facts(self) -> Sequence[tuple[str, str]]:
        """What the header says."""
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
        how = f"in {self.dtype} on {self._device}" + ", compiled" * self._compiled
        if self._model and self._model.compile_seconds:
            how += f" in {self._model.compile_seconds:.1f} s"
        facts.append(("runs", f"{how}, {state}"))
        return facts

    def start(self) -> None:
        """Begin to load in the background."""
        if self._thread.ident is None:
            self._thread.start()

    def wait(self, cancel: Callable[[], bool]) -> bool:
        """Wait for the load.

        Raises:
            TinystoryError: it failed; every time it is asked for.
        """
        self.start()
        while not self._done.wait(_POLL_SECONDS):
            if cancel():
                return False
        if self._error is not None:
            known = isinstance(self._error, TinystoryError)
            reason = str(self._error) if known else one_line(self._error, kind=True)
            raise TinystoryError(
                f"the model {self.name} did not load: {reason}\n/model DIR takes another"
            ) from self._error
        return True

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """Read at first use.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        return load_tokenizer(self._header)

    @cached_property
    def vocabulary(self) -> str:
        """A hash of the tokenizer."""
        return hashlib.sha256(self.tokenizer.to_json().encode()).hexdigest()

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """Token ids of a text."""
        return self.tokenizer.encode(text, bos=bos)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of token ids."""
        return self.tokenizer.detokenize(token_ids)

    def token_text(self, token_id: int) -> str:
        """One token for the eye."""
        return self.tokenizer.token_text(token_id)

    @property
    def heals(self) -> bool:
        """Whether the vocabulary is one of bytes."""
        return self.tokenizer.token_bytes is not None

    def model_hash(self) -> str:
        """The checkpoint's, loaded or not; empty where its files were replaced before it was known."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        try:
            return model_hash(self._header.directory, self._header.stamp)
        except CheckpointError:  # a story is not to be lost over it
            return ""

    def write(self, requests: Sequence[StoryRequest]) -> Iterator[TextEvent]:
        """Write stories."""
        return write(self._loaded.session, self._loaded.tokenizer, requests)

    def logits(self, token_ids: Sequence[int], start: int) -> "Tensor":
        """Computed anew, in a session of its own."""
        from tinystory.story.tracing import story_logits

        window = partial(whole_sentences, self.tokenizer)
        return story_logits(self._loaded.session, token_ids, window, start)

    def session(self, model: str | None = None) -> Session:
        """Through the model's own opener."""
        return self._loaded.session.open(model)

    def evaluate(self, stories: Iterable[str]) -> "Evaluation":
        """Scored in a session of its own."""
        from tinystory.evaluation.perplexity import evaluate

        return evaluate(self._loaded.session.open(), self._loaded.tokenizer, stories)

    @property
    def _loaded(self) -> LoadedModel:
        if self._model is None:
            raise RuntimeError("the model is used before it is loaded")
        import torch

        torch.set_num_threads(self._model.threads)  # another model, or another thread, may have had its own
        return self._model

    def _load(self) -> None:
        try:
            model = load_header(self.name, self._header, self.dtype, self._device, compiled=self._compiled)
            model.tokenizer.detokenize([])  # builds its table of bytes here rather than before the first word
            self._model = model
        except BaseException as error:  # told by `wait`, in the thread that needs the model
            self._error = error
        finally:
            self._done.set()
        self.model_hash()  # now: a training run may replace the files
