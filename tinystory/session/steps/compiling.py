"""`step.c` built for this computer by its C compiler, once: a library in the cache folder, and its functions.

What the name of the library says, a hash over the source, the options and everything that the compiler defines for this
processor, decides whether it is built anew. A library or its folder that others can write is not loaded.
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
from tinystory.folders import compiled_folder

__all__ = ["CompiledCode", "compiled_code"]

SOURCE = Path(__file__).with_name("step.c")
OPTIONS = ("-O3", "-std=gnu11", "-fopenmp-simd", "-fno-math-errno", "-fPIC", "-shared")
_FOR_THIS_PROCESSOR: tuple[list[str], ...] = (["-march=native"], ["-mcpu=native"], [])
"""The first of these that the compiler knows is taken."""
_OUT = "or take --no-compile"
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
    compiler, defined = _compiler()
    hashed = hashlib.sha256(b"\0".join((SOURCE.read_bytes(), " ".join(OPTIONS).encode(), defined)))
    try:
        path = _folder() / f"step-{hashed.hexdigest()[:24]}.so"
        if path.exists():
            _check_own(path)
            try:
                return CompiledCode(_declared(ctypes.CDLL(str(path))), 0.0)
            except (OSError, AttributeError):  # damaged; it is built once more
                path.unlink()
        started = time.perf_counter()
        _build([*compiler, *OPTIONS, "-x", "c", str(SOURCE)], path)
        return CompiledCode(_declared(ctypes.CDLL(str(path))), time.perf_counter() - started)
    except OSError as error:
        hint = f"make room or rights there, set XDG_CACHE_HOME, {_OUT}"
        raise UsageError(f"--compile: the library cannot be kept or loaded: {error}; {hint}") from error


def _compiler() -> tuple[list[str], bytes]:
    """The command, with its option for this very processor, and all that it then defines."""
    command = _command()
    if not command or not shutil.which(command[0]):
        missing = f"the C compiler {command[0]} (CC)" if command else "a C compiler (cc, gcc or clang)"
        raise UsageError(f"--compile: {missing} is not there; install one, {_OUT}")
    for processor in _FOR_THIS_PROCESSOR:
        told = _run([*command, *processor, "-dM", "-E", "-x", "c", os.devnull])
        if told.returncode == 0:
            return [*command, *processor], told.stdout
    raise UsageError(f"--compile: {command[0]} is no C compiler like gcc or clang: {_reason(told.stderr)}")


def _command() -> list[str]:
    """What CC says, else the first that is there."""
    named = os.environ.get("CC", "")
    try:
        command = shlex.split(named)
    except ValueError as error:
        raise UsageError(f"--compile: CC is {named!r}, which is no command: {error}") from error
    return command or [name for name in ("cc", "gcc", "clang") if shutil.which(name)][:1]


def _folder() -> Path:
    """Where libraries are kept, for this user alone."""
    folder = compiled_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_own(folder)
    return folder


def _check_own(path: Path) -> None:
    """Refuse what somebody else could have put there."""
    if os.name != "posix":
        return
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(f"--compile: {path} can be written by others, so no code is loaded from it; remove it, {_OUT}")


def _build(command: list[str], path: Path) -> None:
    """Compile beside the target and rename: two at once do no harm, and an interrupt leaves nothing."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        told = _run([*command, "-o", str(built), "-lm"])
        if told.returncode != 0:
            raise UsageError(f"--compile: {command[0]} failed: {_reason(told.stderr)}")
        built.chmod(0o700)
        built.replace(path)


def _run(command: list[str]) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(
            command,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"LC_ALL": "C"},
            start_new_session=True,  # a Ctrl-C is ours, and no failure of the compiler's
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"--compile: {command[0]} has not ended after {_SECONDS} seconds; {_OUT[3:]}") from error
    except OSError as error:
        why = f"cannot be run: {error.strerror}; name another in CC, {_OUT}"
        raise UsageError(f"--compile: {command[0]} {why}") from error


def _reason(text: bytes) -> str:
    """The line of a compiler's words that is most likely to say what is wrong."""
    lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line for word in ("error:", "fatal", "No space", "cannot"))]
    telling = [line for line in telling if not line.startswith("collect2")] or telling or lines[-1:]
    return telling[0] if telling else "it does not say why"


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
