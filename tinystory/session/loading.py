"""Load a model by its name: checkpoint, tokenizer and session together."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING

from tinystory.checkpoint import CheckpointHeader, load_model, model_hash
from tinystory.checkpoint.hash import file_stamp
from tinystory.checkpoint.shipped import find_model
from tinystory.checkpoint.tokenizers import load_tokenizer, tokenizer_warnings
from tinystory.decoding import Session
from tinystory.dtypes import COMPUTED_DTYPES
from tinystory.errors import CheckpointError, UsageError
from tinystory.model.device import usable_device
from tinystory.safe.reading import shown
from tinystory.session.threads import choose_threads

if TYPE_CHECKING:
    from tinystory.session.native import NativeSession
    from tinystory.session.rows import CachedRows
    from tinystory.session.steps.compiled_code import CompiledCode
    from tinystory.text.tokenizer import Tokenizer

__all__ = ["LoadedModel", "code_for", "load", "load_header", "load_without_torch"]


Tell = Callable[[str], object]
"""Gets one line that a user should read."""


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to write.

    Attributes:
        name: as the user gave it; "default" if the user gave none.
        header: the checkpoint without the values of its weights.
        tokenizer: the tokenizer of the checkpoint.
        session: a session without rows.
        dtype: the dtype of the computation.
        device: the device that the model runs on, as torch writes it.
        threads: the number of threads that compute on the CPU.
        compiled: True if compiled code computes the model.
        warnings: one line for each thing that a user should know about the files of the model.
    """

    name: str
    header: CheckpointHeader
    tokenizer: "Tokenizer"
    session: Session
    dtype: str
    device: str
    threads: int
    compiled: bool = False
    warnings: tuple[str, ...] = ()

    @cached_property
    def hash(self) -> str:
        """The SHA-256 of weights, config and tokenizer, in hex; raises CheckpointError if the files were replaced."""
        return model_hash(self.header.directory, self.header.stamp)

    @property
    def hash_if_known(self) -> str:
        """The hash; empty if the files were replaced, so that a finished story or measurement is still kept."""
        try:
            return self.hash
        except CheckpointError:
            return ""


def load(
    name: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    *,
    engine: str = "compiled",
    tell: Tell | None = None,
) -> LoadedModel:
    """Load a shipped model, a local directory or a hub id.

    Args:
        name: the name of the model; None is the default model.
        dtype: the dtype of the computation, one of `COMPUTED_DTYPES`.
        device: the device that the model runs on, as torch writes it.
        engine: `compiled` to compute in compiled code where that is possible, else `numpy`.
        tell: gets each warning about a second model, once a decoder opens it.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or needs code of its own.
        UsageError: the device or dtype is not available.
    """
    name, header = find_model(name)
    return load_header(name, header, dtype, device, engine=engine, tell=tell)


def load_without_torch(name: str, header: CheckpointHeader, *, engine: str = "compiled") -> LoadedModel:
    """Load a checkpoint for which `numpy_session.suffices` is true, in float32 on the CPU.

    Raises:
        CheckpointError, UsageError: as `load`.
    """
    from tinystory.session.numpy_session import NumpySession

    tokenizer = load_tokenizer(header)
    session = NumpySession(header, tokenizer.bos_id, tokenizer.eos_ids)
    _check_fit(header, tokenizer, session)
    warnings = header.warnings + tokenizer_warnings(header, tokenizer)
    compiled = _compile(session, header, "float32", "cpu", engine)
    return LoadedModel(name, header, tokenizer, session, "float32", "cpu", 1, compiled, warnings)


def load_header(
    name: str,
    header: CheckpointHeader,
    dtype: str,
    device: str,
    *,
    engine: str = "compiled",
    tell: Tell | None = None,
) -> LoadedModel:
    """Load a checkpoint that `find_model` has checked; the other arguments as for `load`.

    Raises:
        CheckpointError, UsageError: as `load`; CheckpointError also if the files have changed since the check.
    """
    if dtype not in COMPUTED_DTYPES:
        raise UsageError(f"dtype {shown(dtype)} is not one of {', '.join(COMPUTED_DTYPES)}")
    device = str(usable_device(device))
    tokenizer = load_tokenizer(header)
    second = cache(partial(_second, tokenizer=tokenizer, dtype=dtype, device=device, engine=engine, tell=tell))

    def opener(other: str) -> Session:
        return second(other).open()  # the weights are read once, even if many stories use them

    session: Session
    compiled, warnings = False, header.warnings + tokenizer_warnings(header, tokenizer)
    if header.config is not None:
        native = _native_session(header, tokenizer, dtype, device, opener)
        compiled = _compile(native, header, dtype, device, engine)
        session = native
    elif dtype == "int8":
        raise UsageError(f"int8 is for Llama and GPT-2 models; {name} runs in float32, bfloat16 or float16")
    else:
        from tinystory.session.hf_session import HFSession

        ids = tokenizer.bos_id, tokenizer.eos_ids
        session = HFSession.from_header(header, dtype, device, *ids, opener)
        warnings += session.warnings
    _check_fit(header, tokenizer, session)
    threads = _set_threads(header, session, dtype, device, compiled=compiled)
    return LoadedModel(name, header, tokenizer, session, dtype, device, threads, compiled, warnings)


def _native_session(
    header: CheckpointHeader, tokenizer: "Tokenizer", dtype: str, device: str, opener: Callable[[str], Session]
) -> "NativeSession":
    """Load the weights of a Llama or GPT-2 model into a session."""
    from tinystory.session.native import NativeSession

    int8 = dtype == "int8"
    if int8 and device != "cpu":
        raise UsageError(f"int8 runs on the CPU only; on {device} use bfloat16")
    model = load_model(header, "float32" if int8 else dtype, device)
    return NativeSession(model, tokenizer.bos_id, tokenizer.eos_ids, opener, int8=int8)


def _set_threads(header: CheckpointHeader, session: Session, dtype: str, device: str, *, compiled: bool) -> int:
    """Set the number of torch's threads for a model, and return it."""
    import torch

    if compiled:
        torch.set_num_threads(1)  # torch then computes only the short operations of the decoder
        return 1
    if device != "cpu":
        return torch.get_num_threads()
    n_parameters = sum(entry.n_elements for entry in header.tensors.values())
    return choose_threads(session, n_parameters, dtype)


def code_for(header: CheckpointHeader, dtype: str, device: str, engine: str) -> "CompiledCode | None":
    """Return the compiled code for a model; None if it has none, or if the engine is another."""
    from tinystory.session.steps.compiled_code import compiled_code

    fits = header.config is not None and device == "cpu" and dtype in ("float32", "int8")
    return compiled_code() if fits and engine == "compiled" else None


def _compile(session: "CachedRows", header: CheckpointHeader, dtype: str, device: str, engine: str) -> bool:
    """Make a session use compiled code if there is any for it; return True if so."""
    code = code_for(header, dtype, device, engine)
    if code is not None:
        session.compile(code)
    return code is not None


def _check_fit(header: CheckpointHeader, tokenizer: "Tokenizer", session: Session) -> None:
    """Check that the files have not changed, and that the tokenizer fits the model."""
    if file_stamp(header.directory) != header.stamp:  # we may have read a mixture of two models
        raise CheckpointError(f"the files in {header.directory} changed while they were read; load the model again")
    if tokenizer.vocab_size > session.vocab_size:  # the header did not know the size of the model
        raise CheckpointError(
            f"{header.directory}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {session.vocab_size}"
        )
    largest = max((*tokenizer.prefix, *tokenizer.suffix), default=0)
    if largest >= session.vocab_size:
        raise CheckpointError(
            f"{header.directory}: the tokenizer puts the token {largest} into each prompt, but the model has only "
            f"{session.vocab_size} tokens"
        )


def _known_tokens(tokenizer: "Tokenizer") -> dict[str, int]:
    """Return the tokens that the model of a tokenizer knows."""
    return {token: i for token, i in tokenizer.fast.get_vocab().items() if i < tokenizer.vocab_size}


def _second(name: str, tokenizer: "Tokenizer", dtype: str, device: str, *, engine: str, tell: Tell | None) -> Session:
    """Load a second model, for a decoder that uses two models with the same vocabulary.

    Raises:
        UsageError: the vocabularies differ, so the two models cannot be compared token by token.
        CheckpointError: as `load`.
    """
    import torch

    n_threads = torch.get_num_threads()
    other = load(name, dtype, device, engine=engine)
    torch.set_num_threads(n_threads)  # the number belongs to the first model
    if _known_tokens(other.tokenizer) != _known_tokens(tokenizer):
        raise UsageError(f"the model {name} has another vocabulary; only models with the same vocabulary work together")
    if tell is not None:
        for warning in other.warnings:
            tell(warning)
    return other.session
