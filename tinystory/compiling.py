"""`step.c` built for this computer by its C compiler, once: a library in the cache folder, and its functions.

What the name of the library says, a hash over the source, the options and everything that the compiler defines for this
processor, decides whether it is built anew. Nothing is loaded that others could have written.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tinystory.errors import UsageError

__all__ = ["CompiledCode", "compiled_code"]

SOURCE = Path(__file__).with_name("step.c")
OPTIONS = ("-O3", "-std=gnu11", "-fopenmp-simd", "-fno-math-errno", "-fPIC", "-shared")
_FOR_THIS_PROCESSOR = ("-march=native", "-mcpu=native")
"""The first of these that the compiler knows is taken."""
_SECONDS = 120
"""A compiler that takes longer does not work."""


@dataclass(frozen=True)
class CompiledCode:
    """The functions of `step.c`.

    Attributes:
        library: with the types of its functions declared.
        seconds: that building it took now; 0.0 where it was there.
    """

    library: ctypes.CDLL
    seconds: float


def compiled_code() -> CompiledCode:
    """Load the library, and build it before where it is not there yet.

    Raises:
        UsageError: there is no C compiler, it fails, or the cache folder cannot be used.
    """
    compiler, processor, defined = _compiler()
    hashed = hashlib.sha256(b"\0".join((SOURCE.read_bytes(), " ".join(OPTIONS).encode(), defined)))
    seconds = 0.0
    try:
        folder = _folder()
        path = folder / f"step-{hashed.hexdigest()[:24]}.so"
        if not path.exists():
            started = time.perf_counter()
            _build([*compiler, *OPTIONS, processor, str(SOURCE)], path)
            seconds = time.perf_counter() - started
        _check_own(path)
        return CompiledCode(_declared(ctypes.CDLL(str(path))), seconds)
    except OSError as error:  # ctypes raises it, too, for a library that is none
        raise UsageError(f"--compile: the library cannot be kept or loaded: {error}") from error


def _compiler() -> tuple[list[str], str, bytes]:
    """The command, its option for this very processor, and all that it then defines."""
    named = os.environ.get("CC")
    command = shlex.split(named) if named else [name for name in ("cc", "gcc", "clang") if shutil.which(name)][:1]
    if not command or not shutil.which(command[0]):
        missing = f"the C compiler {command[0]} (CC)" if command else "a C compiler (cc, gcc or clang)"
        raise UsageError(f"--compile: {missing} is not there; install one, or write without --compile")
    for processor in _FOR_THIS_PROCESSOR:
        told = _run([*command, processor, "-dM", "-E", "-x", "c", os.devnull])
        if told.returncode == 0:
            return command, processor, told.stdout
    raise UsageError(f"--compile: {command[0]} is no C compiler like gcc or clang: {_last_line(told.stderr)}")


def _folder() -> Path:
    """Where libraries are kept, for this user alone."""
    from platformdirs import user_cache_path

    folder = user_cache_path("tinystory") / "compiled"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_own(folder)
    return folder


def _check_own(path: Path) -> None:
    """Refuse what somebody else could have put there."""
    if os.name != "posix":
        return
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(f"--compile: {path} can be written by others; code is not loaded from there: remove it")


def _build(command: list[str], path: Path) -> None:
    """Compile beside the target and rename: two at once do no harm, and an interrupt leaves nothing."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        told = _run([*command, "-o", str(built), "-lm"])
        if told.returncode != 0:
            raise UsageError(f"--compile: {command[0]} failed: {_last_line(told.stderr)}")
        built.chmod(0o700)
        built.replace(path)


def _run(command: list[str]) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"--compile: {command[0]} has not ended after {_SECONDS} seconds") from error


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").split("\n")
    return next((line.strip() for line in lines if "error" in line), "it does not say why")


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    for name, result, *arguments in (
        ("step_panel_rows", integer),
        ("step_pack", None, pointer, integer, integer, integer, pointer),
        ("step_scratch", integer, pointer, integer, integer),
        ("step_hidden", None, pointer, pointer, integer, pointer, pointer, pointer, pointer, pointer),
        ("step_logits", None, pointer, integer, pointer, pointer, pointer),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
