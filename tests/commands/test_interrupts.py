"""Signals that end a program or its work: what each exit code is, and who gets which signal."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tinystory import interrupts as module
from tinystory.interrupts import ENDING, Interrupts, Terminated, ending_signals, exit_code, whole_imports

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs the signals of POSIX")


@pytest.fixture(autouse=True)
def handlers():
    """Put back the handlers that a test changes."""
    numbers = (*ENDING, signal.SIGINT, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_ends_the_program_once(number):
    with pytest.raises(Terminated) as ended, ending_signals():  # noqa: PT012
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGHUP)  # the shell repeats what the kernel has sent
    assert ended.value.code == 128 + number
    signal.raise_signal(number)


def test_a_signal_where_python_loses_exceptions_ends_the_program(capfd):
    class Finalized:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Terminated) as ended, ending_signals():  # noqa: PT012
        Finalized()
        time.sleep(1)
    assert ended.value.code == 143
    assert capfd.readouterr().err == ""


def test_a_ctrl_c_where_python_loses_exceptions_is_heard(capfd):
    class Finalized:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), ending_signals():  # noqa: PT012
        Finalized()
        time.sleep(1)
    assert capfd.readouterr().err == ""


def test_without_a_signal_every_handler_is_as_before():
    before = [signal.getsignal(number) for number in ENDING]
    with ending_signals():
        assert [signal.getsignal(number) for number in ENDING] != before
    assert [signal.getsignal(number) for number in ENDING] == before


def test_the_command_line_leaves_no_handler(capsys):
    from tinystory.cli import main

    before = [signal.getsignal(number) for number in ENDING]
    assert main(["config"]) == 0
    assert [signal.getsignal(number) for number in ENDING] == before


def test_nohup_keeps_its_promise():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with ending_signals(), Interrupts() as interrupts:
        signal.raise_signal(signal.SIGHUP)
    assert not interrupts.received


@pytest.mark.parametrize("numbers", [[signal.SIGHUP, signal.SIGHUP], [signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]])
def test_work_that_looks_ends_by_itself(numbers):
    with ending_signals(), Interrupts() as interrupts:
        for number in numbers:
            signal.raise_signal(number)
    assert interrupts.received == numbers
    assert exit_code(interrupts.received) == 128 + numbers[0]
    assert exit_code([]) == 0


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_work_that_does_not_look_is_ended_by_a_second_signal(monkeypatch, number, error):
    monkeypatch.setattr(module, "STUCK_SECONDS", -1.0)
    with pytest.raises(error), Interrupts():  # noqa: PT012
        signal.raise_signal(number)
        signal.raise_signal(number)


def test_work_that_does_not_look_is_ended_by_a_timer(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.02)
    with pytest.raises(Terminated) as ended, Interrupts():  # noqa: PT012
        signal.raise_signal(signal.SIGHUP)
        time.sleep(5)
    assert ended.value.code == 129


def test_an_error_of_output_after_a_signal_is_that_signal():
    with pytest.raises(Terminated) as ended, Interrupts():  # noqa: PT012
        signal.raise_signal(signal.SIGHUP)
        raise OSError("Input/output error")
    assert ended.value.code == 129


def test_ctrl_c_waits_for_the_end_of_an_import(tmp_path, monkeypatch):
    (tmp_path / "tinystory_slow_module.py").write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "try:\n    time.sleep(0.05)\nexcept BaseException:\n    swallowed = True\n"
        "whole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), whole_imports():  # noqa: PT012
        import tinystory_slow_module as slow

        assert slow.whole
        time.sleep(5)
    import tinystory_slow_module as again

    assert not hasattr(again, "swallowed")
    os.unlink(tmp_path / "tinystory_slow_module.py")


def test_ctrl_c_at_the_end_of_the_program_shows_nothing():
    code = """
import atexit, signal, sys
from tinystory.cli import main
atexit.register(signal.raise_signal, signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(["config"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_generate_ends_with_the_story_up_to_the_signal(tmp_path, number):
    output = tmp_path / "story"
    command = ["generate", "Once", "-n", "1000000", "-d", "min-length 1000000 | sample", "--jsonl"]
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tinystory", *command],
            stdout=file,
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
        )
        end = time.monotonic() + 30
        while output.stat().st_size < 2000 and time.monotonic() < end:
            time.sleep(0.05)
        process.send_signal(number)
        process.send_signal(number)
        assert process.wait(timeout=20) == 128 + number
    *texts, last = map(json.loads, output.read_text().splitlines())
    assert last["finish_reason"] == "cancelled"
    assert last["completion"] == "".join(event["text"] for event in texts if event["event"] == "text")
