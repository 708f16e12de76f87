"""Failures of the tokenizers library are one error each, and write nothing."""

import os
import threading

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import FixedLength

from tinystory.errors import CheckpointError
from tinystory.text.library_calls import library_call


@pytest.fixture
def panic():
    """Return a function for which the library panics."""
    tokenizer = FastTokenizer(BPE({"a": 0}, []))
    tokenizer.pre_tokenizer = FixedLength(0)
    return lambda: tokenizer.encode("aaa")


def test_a_panic_is_one_line_and_writes_nothing(panic, capfd):
    with pytest.raises(CheckpointError) as caught, library_call("it cannot encode"):
        panic()
    assert str(caught.value) == "it cannot encode: chunk size must be non-zero"
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"


@pytest.mark.parametrize("error", [Exception("a\nb"), OverflowError("a b"), ValueError("a b")])
def test_every_exception_is_one_line(error):
    with pytest.raises(CheckpointError, match=r"^it fails: a b$"), library_call("it fails"):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_wish_to_stop_passes(error, capfd):
    with pytest.raises(error), library_call("it fails"):
        raise error
    os.write(2, b"afterwards")
    assert capfd.readouterr().err == "afterwards"


def test_an_error_of_ours_passes_as_it_is():
    with pytest.raises(CheckpointError, match=r"^inner$"), library_call("outer"):
        raise CheckpointError("inner")


def test_what_others_write_in_the_meantime_is_shown(capfd):
    """A second thread may be in a call of its own, and may write."""
    inside, done = threading.Event(), threading.Event()

    def other():
        with library_call("it fails"):
            inside.set()
            done.wait(5)

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait(5)
    with library_call("it fails"):
        os.write(2, b"a warning")
    done.set()
    thread.join()
    assert capfd.readouterr().err == "a warning"


def test_a_closed_stderr_is_no_problem(panic):
    real = os.dup(2)
    os.close(2)
    try:
        with pytest.raises(CheckpointError, match="chunk size"), library_call("it fails"):
            panic()
    finally:
        os.dup2(real, 2)
        os.close(real)


def test_no_file_descriptor_is_lost(panic):
    def count():
        return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0

    with library_call("the first call opens one file"):
        pass
    before = count()
    for _ in range(10):
        with pytest.raises(CheckpointError), library_call("it fails"):
            panic()
    assert count() == before
