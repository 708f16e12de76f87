"""A model for scripts and notebooks: it writes stories, streams them and compares decoders.

Weights are loaded when the first story is written, and without torch if that is enough.
"""

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from tinystory.api.story import Story, StoryToken, tokens_with_text
from tinystory.checkpoint import CheckpointHeader
from tinystory.checkpoint.shipped import find_model
from tinystory.decoding import Decoder
from tinystory.decoding.plugins import Registry, discover
from tinystory.decoding.spec import parse_spec
from tinystory.decoding.stages import Stage
from tinystory.dtypes import COMPUTED_DTYPES
from tinystory.errors import UsageError, nearest
from tinystory.safe.reading import shown
from tinystory.safe.showing import visible
from tinystory.session.loading import LoadedModel, load_header, load_without_torch
from tinystory.settings import random_seed
from tinystory.text.sentences import whole_sentences
from tinystory.writing.generate import Ended, StoryRequest, Text, write

if TYPE_CHECKING:
    from torch import Tensor

    from tinystory.api.comparison import Comparison
    from tinystory.inside.inspector import Inspector

__all__ = ["DEFAULT_DECODER", "Model", "Piece", "load"]

DEFAULT_DECODER = "sample 0.8"


@dataclass(frozen=True)
class Piece:
    """A part of a story that is being written.

    Attributes:
        text: the text that is now certain; empty while a character is incomplete.
        tokens: the tokens that came with it.
    """

    text: str
    tokens: tuple[StoryToken, ...]

    def __str__(self) -> str:
        """Return the text, so that a piece can be printed."""
        return self.text


class Model:
    """A model that writes stories. Make one with `load`.

    Attributes:
        name: as it was given; "default" if none was given.
        header: the checkpoint without the values of its weights.
        dtype: the dtype of the computation.
        device: where the model runs, as torch writes it.
        registry: the decoder stages that specs may use.
    """

    def __init__(self, name: str, header: CheckpointHeader, dtype: str, device: str, registry: Registry) -> None:
        self.name = name
        self.header = header
        self.dtype = dtype
        self.device = device
        self.registry = registry
        self._light: LoadedModel | None = None
        self._told: set[str] = set()
        self._tell((*header.warnings, *registry.warnings))

    def __repr__(self) -> str:
        """Name the model and its size."""
        config = self.header.config
        size = f", {config.n_parameters:,} parameters" if config else ""
        return f"<Model {self.name}{size}, {self.dtype} on {self.device}>"

    @property
    def loaded(self) -> LoadedModel:
        """The model with its session, loaded by torch if it is not loaded yet."""
        return self._full if self._light is None or "_full" in self.__dict__ else self._light

    def write(
        self,
        prompt: str = "",
        decoder: str | Decoder = DEFAULT_DECODER,
        *,
        seed: int | None = None,
        max_new_tokens: int = 256,
        stop: Sequence[str] = (),
    ) -> Story:
        """Write one story.

        Examples:
            >>> import tinystory as ts
            >>> story = ts.load().write("Once upon a time", "top-k 40 | sample 0.8", seed=7, max_new_tokens=8)
            >>> len(story.tokens), story.seed
            (8, 7)

        Args:
            prompt: the text to begin with; empty to begin at BOS.
            decoder: the spec, as on the command line; or a decoder from `tinystory.decoding`.
            seed: of the noise, from 0; None for a random one. The same seed gives the same story.
            max_new_tokens: the largest number of new tokens, from 1.
            stop: texts at which the story ends.

        Raises:
            UsageError: the spec is wrong, the prompt has no token, a number is out of range, or a stop text is empty.
            TinystoryError: a decoder failed, or the model cannot be loaded.
        """
        request = self._request(prompt, decoder, seed, max_new_tokens, stop)
        return self.stories([request])[0]

    def stream(
        self,
        prompt: str = "",
        decoder: str | Decoder = DEFAULT_DECODER,
        *,
        seed: int | None = None,
        max_new_tokens: int = 256,
        stop: Sequence[str] = (),
    ) -> Iterator[Piece]:
        """Write one story, and yield its text as it comes; joined, the pieces are the text after the prompt.

        Examples:
            >>> import tinystory as ts
            >>> model = ts.load()
            >>> pieces = [str(piece) for piece in model.stream("The owl", "greedy", max_new_tokens=4)]
            >>> "".join(pieces) == model.write("The owl", "greedy", max_new_tokens=4).completion
            True

        Args and errors are those of `write`. What is wrong is raised before the first piece is asked for.
        """
        request = self._request(prompt, decoder, seed, max_new_tokens, stop)
        return self._stream(request)

    def compare(
        self,
        prompt: str,
        decoders: Sequence[str | Decoder],
        *,
        seed: int | None = None,
        max_new_tokens: int = 256,
        stop: Sequence[str] = (),
    ) -> "Comparison":
        """Write one story with each decoder, all with the same noise; see `tinystory.compare`."""
        from tinystory.api.comparison import Comparison
        from tinystory.evaluation.comparison import check_count

        if isinstance(decoders, str) or not isinstance(decoders, Sequence):
            raise UsageError("compare takes a list of decoders, like ['greedy', 'sample 0.8']")
        check_count(len(decoders))
        seed = _seed(seed)
        requests = [self._request(prompt, decoder, seed, max_new_tokens, stop) for decoder in decoders]
        return Comparison(tuple(self.stories(requests)))

    def stories(self, requests: Sequence[StoryRequest]) -> list[Story]:
        """Write the stories of requests, in one batch if their decoders are chains."""
        loaded = self._loaded_for(requests)
        ended = {
            event.story: event.result
            for event in write(loaded.session, loaded.tokenizer, requests)
            if isinstance(event, Ended)
        }
        return [Story(self, ended[index]) for index in range(len(requests))]

    def decoder(self, spec: str | Decoder) -> Decoder:
        """Return the decoder of a spec.

        Raises:
            UsageError: the spec is wrong; the message says where.
        """
        if isinstance(spec, Decoder):
            return spec
        if not isinstance(spec, str):
            raise UsageError(f"the decoder is {shown(spec)}; it must be a spec, like 'top-k 40 | sample 0.8'")
        return parse_spec(spec, self.registry)

    def add_decoder(self, stage: type[Stage]) -> type[Stage]:
        """Enter a stage of your own, so that specs can name it. It can stand above the class as a decorator.

        A second class of the same name and module replaces the first, as a notebook cell that is run again needs.

        Raises:
            UsageError: the class is not a valid stage, or its name belongs to another one.
        """
        self.registry.replace(stage, f"{stage.__module__}")
        return stage

    def token_text(self, token_id: int) -> str:
        """Return a token as readers see it; its text, with the space before a word."""
        return self.loaded.tokenizer.token_text(token_id)

    def logits(self, token_ids: Sequence[int], start: int = 1) -> "Tensor":
        """Compute the model's logits for the tokens of a story.

        Args:
            token_ids: the T tokens of the story, BOS included; the last one is only predicted.
            start: the index of the first token whose logits are returned, from 1.

        Returns:
            (T − start, V) float32; row i belongs to token_ids[start + i].

        Raises:
            UsageError: an id is outside the vocabulary.
        """
        from tinystory.story.walk import story_logits

        return story_logits(self._full.session, token_ids, partial(whole_sentences, self._full.tokenizer), start)

    @cached_property
    def inspector(self) -> "Inspector":
        """The inside of the model: layers, attention and parts."""
        from tinystory.inside.inspector import Inspector

        return Inspector(self.header, self._full.session)

    def _stream(self, request: StoryRequest) -> Iterator[Piece]:
        loaded = self._loaded_for([request])
        before = list(loaded.tokenizer.encode(request.prompt))
        for event in write(loaded.session, loaded.tokenizer, [request]):
            if isinstance(event, Text) and (event.text or event.tokens):
                yield Piece(event.text, tokens_with_text(loaded.tokenizer, before, event.tokens))
                before += [token.id for token in event.tokens]

    def _request(
        self, prompt: str, decoder: str | Decoder, seed: int | None, max_new_tokens: int, stop: Sequence[str]
    ) -> StoryRequest:
        texts: object = stop  # a caller may give anything
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(t, str) for t in texts):
            raise UsageError("stop takes a list of texts, like ['The end']")
        if type(max_new_tokens) is not int or max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens!r}; it must be a whole number from 1")
        if not isinstance(prompt, str):
            raise UsageError(f"the prompt is a {type(prompt).__name__}; it must be a text")
        return StoryRequest(
            prompt, self.decoder(decoder), seed=_seed(seed), max_new_tokens=max_new_tokens, stop=tuple(stop)
        )

    def _loaded_for(self, requests: Sequence[StoryRequest]) -> LoadedModel:
        """Return the loaded model; without torch, if torch is not loaded yet and is not needed."""
        from tinystory.session.numpy_session import suffices

        if "_full" not in self.__dict__ and all(
            suffices(self.header, request.decoder, self.dtype, self.device) for request in requests
        ):
            if self._light is None:
                self._light = load_without_torch(self.name, self.header)
                self._tell(self._light.warnings)
            return self._light
        return self._full

    @cached_property
    def _full(self) -> LoadedModel:
        full = load_header(self.name, self.header, self.dtype, self.device)
        self._tell(full.warnings)
        return full

    def _tell(self, lines: Iterable[str]) -> None:
        """Warn of each line once, as of the line of the script or the cell that made it known."""
        new = [line for line in dict.fromkeys(lines) if line not in self._told]
        self._told.update(new)
        frame, depth = sys._getframe(1), 2
        while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("tinystory."):
            frame, depth = frame.f_back, depth + 1
        for line in new:
            warnings.warn(visible(line), stacklevel=depth)


def load(model: str | Path | None = None, *, dtype: str = "float32", device: str = "cpu") -> Model:
    """Find a model and check its files; its weights are loaded when they are needed.

    What a user should know about the files of the model, or about decoders that cannot be used, is a `UserWarning`.

    Examples:
        >>> import tinystory as ts
        >>> ts.load("mini").name
        'mini'

    Args:
        model: a shipped model, a folder or a hub id; None for the default model.
        dtype: float32, bfloat16, float16 or int8.
        device: where the model runs, like "cpu" or "cuda".

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        UsageError: the dtype is unknown.
    """
    if model is not None and not isinstance(model, str | Path):
        raise UsageError(f"the model is {shown(model)}; it must be a name, a folder or a hub id")
    if dtype not in COMPUTED_DTYPES:
        near = nearest(str(dtype), COMPUTED_DTYPES)
        raise UsageError(
            f"dtype {dtype!r} is not one of {', '.join(COMPUTED_DTYPES)}" + f"; did you mean {near}?" * bool(near)
        )
    name, header = find_model(None if model is None else str(model))
    return Model(name, header, dtype, device, discover())


def _seed(seed: int | None) -> int:
    if seed is None:
        return random_seed()
    if type(seed) is not int or not 0 <= seed < 2**64:
        raise UsageError(f"seed is {shown(seed)}; it must be a whole number from 0, below 2^64")
    return seed
