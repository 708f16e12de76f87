"""Code of other people: its errors and its printing stay its own."""

import os
import signal
import sys
import threading

import pytest

from tinystory.safe.running import CodeFailed, foreign_code


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
def test_whatever_the_code_raises_is_a_failure(kind):
    error = kind("bye")
    with pytest.raises(CodeFailed) as caught, foreign_code():
        raise error
    assert caught.value.error is error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_of_the_user_is_no_failure(number):
    """A Ctrl-C while a decoder file loads ends the program, as everywhere."""

    class Ended(BaseException):
        pass

    def end(*_):
        raise Ended

    old = signal.signal(number, end)
    try:
        with pytest.raises(Ended), foreign_code():
            signal.raise_signal(number)
        assert signal.getsignal(number) is end
        with foreign_code():
            signal.signal(number, signal.SIG_IGN)  # the code takes the signal for itself
        assert signal.getsignal(number) is end
    finally:
        signal.signal(number, old)


def test_what_the_code_prints_goes_to_standard_error(capfd):
    with foreign_code():
        sys.stdout.write("printed\n")
        os.write(1, b"written\n")
        os.system("echo shell")
    sys.stdout.write("ours\n")
    out, err = capfd.readouterr()
    assert out == "ours\n"
    assert sorted(err.split()) == ["printed", "shell", "written"]


def test_no_descriptor_is_left_open():
    def n_open():
        return sum(os.path.exists(f"/dev/fd/{n}") for n in range(64))

    before = n_open()
    for _ in range(3):
        with foreign_code():
            pass
    assert n_open() == before


def test_it_works_in_another_thread_and_with_closed_streams(monkeypatch):
    failures = []

    def run():
        try:
            with foreign_code():
                raise KeyboardInterrupt
        except CodeFailed as failure:
            failures.append(failure)

    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(failures) == 1
