"""Build `step.c` with the C compiler of this computer, keep the library in the cache folder, and load it.

The name of the library has a hash over the source, the options, and everything that the compiler defines for this
processor. So a library is built again when one of them changes. A library is not loaded if other users can write it or
its folder.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tinystory.errors import UsageError
from tinystory.folders import compiled_folder
from tinystory.safe.leftovers import temporary_folder

__all__ = ["CompiledCode", "compiled_code"]

SOURCE = Path(__file__).with_name("step.c")
OPTIONS = ("-O3", "-std=gnu11", "-fopenmp-simd", "-fno-math-errno", "-fPIC", "-shared")
_FOR_THIS_PROCESSOR: tuple[list[str], ...] = (["-march=native"], ["-mcpu=native"], [])
"""Options that make a compiler use all instructions of this processor; the first that the compiler knows is used."""
_NO_COMPILE = "use --no-compile"
_MOST_SECONDS = 120
"""Time limit of one call of the compiler."""


@dataclass(frozen=True)
class CompiledCode:
    """The compiled functions of `step.c`.

    Attributes:
        library: the loaded library; the types of its functions are declared.
        seconds: the time that building it took now; 0.0 if an earlier build was loaded.
    """

    library: ctypes.CDLL
    seconds: float


def compiled_code() -> CompiledCode:
    """Load the library; build it first if there is none for this source, these options and this processor.

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
            except (OSError, AttributeError):  # the library is damaged, so it is built again
                path.unlink()
        started = time.perf_counter()
        _build([*compiler, *OPTIONS, "-x", "c", str(SOURCE)], path)
        return CompiledCode(_declared(ctypes.CDLL(str(path))), time.perf_counter() - started)
    except OSError as error:
        hint = f"free some space, allow writing there, set XDG_CACHE_HOME, or {_NO_COMPILE}"
        raise UsageError(f"--compile: the library cannot be kept or loaded: {error}; {hint}") from error


def _compiler() -> tuple[list[str], bytes]:
    """Return the command with its option for this processor, and the macros that the compiler then defines."""
    command = _command()
    if not command or not shutil.which(command[0]):
        missing = f"the C compiler {command[0]} (CC)" if command else "a C compiler (cc, gcc or clang)"
        raise UsageError(f"--compile: {missing} cannot be found; install one, or {_NO_COMPILE}")
    for processor in _FOR_THIS_PROCESSOR:
        result = _run([*command, *processor, "-dM", "-E", "-x", "c", os.devnull])
        if result.returncode == 0:
            return [*command, *processor], result.stdout
    raise UsageError(f"--compile: {command[0]} is no C compiler like gcc or clang: {_reason(result.stderr)}")


def _command() -> list[str]:
    """Return the command of the variable CC, else the first known compiler of this computer; empty without one."""
    setting = os.environ.get("CC", "")
    try:
        command = shlex.split(setting)
    except ValueError as error:
        raise UsageError(f"--compile: CC is {setting!r}, which is no command: {error}") from error
    if command:
        return command
    installed = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    return [] if installed is None else [installed]


def _folder() -> Path:
    """Return the folder of the libraries, which only this user can write; make it if it does not exist."""
    folder = compiled_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_own(folder)
    return folder


def _check_own(path: Path) -> None:
    """Refuse a file or folder that another user owns or can write."""
    if os.name != "posix":
        return
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(
            f"--compile: {path} can be written by others, so no code is loaded from it; remove it, or {_NO_COMPILE}"
        )


def _build(command: list[str], path: Path) -> None:
    """Compile beside the target and rename, so that two builds at once do no harm and an interrupt leaves no file."""
    with temporary_folder("tmp", path.parent) as folder:
        built = folder / path.name
        result = _run([*command, "-o", str(built), "-lm"])
        if result.returncode != 0:
            raise UsageError(f"--compile: {command[0]} failed: {_reason(result.stderr)}")
        built.chmod(0o700)
        built.replace(path)


def _run(command: list[str]) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(
            command,
            capture_output=True,
            timeout=_MOST_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"LC_ALL": "C"},
            start_new_session=True,  # a Ctrl-C must not reach the compiler and look like its failure
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            f"--compile: {command[0]} has not ended after {_MOST_SECONDS} seconds; {_NO_COMPILE}"
        ) from error
    except OSError as error:
        reason = f"cannot be run: {error.strerror}; name another compiler in CC, or {_NO_COMPILE}"
        raise UsageError(f"--compile: {command[0]} {reason}") from error


def _reason(text: bytes) -> str:
    """Return the line of a compiler's output that most likely says what is wrong.

    That is the first line with an error, except the summary of collect2 if there is another; else the last line.
    """
    lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    if not lines:
        return "it does not say why"
    errors = [line for line in lines if any(word in line for word in ("error:", "fatal", "No space", "cannot"))]
    if not errors:
        return lines[-1]
    return next((line for line in errors if not line.startswith("collect2")), errors[0])


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """Declare the types of the functions of `step.c`, and return the library."""
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
