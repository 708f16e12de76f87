"""Send chats that are writing a signal at random moments, and check that nothing is lost.

  python tests/support/kill_chats.py            # 100 chats
  python tests/support/kill_chats.py -n 20 --seed 7

The signals take turns: SIGHUP, SIGTERM, SIGQUIT, SIGKILL. After SIGKILL at most the running turn is lost. After the
others every token that was shown is in the session, the exit code is 128 plus the number of the signal, and the
terminal has its modes again. Needs pexpect (tinystory[test]) and a POSIX system.
"""

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import termios
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pexpect

from tinystory.decoding import common_prefix
from tinystory.story.session_file import load_session

SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL)
ENDLESS = "min-length 100000 | sample 0.8"
TYPED = "and then"
LONGEST_WAIT = 30.0
READY = re.escape("\x1b[?2004h")
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[78])")


def main() -> int:
    """Kill the chats, print what went wrong, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=100, metavar="N", help="number of chats (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default %(default)s)")
    args = parser.parse_args()
    moments = random.Random(args.seed)
    command = [sys.executable, "-m", "tinystory", "chat", "--color", "never", "-s", "1", "-d", ENDLESS, "-n", "100000"]
    failed, done = 0, Counter[str]()
    for number in range(args.n):
        kind = SIGNALS[number % len(SIGNALS)]
        seconds = moments.uniform(0, 1.5)
        with tempfile.TemporaryDirectory() as folder:
            problems = kill_one(command, kind, seconds, Path(folder))
        done[kind.name] += 1
        failed += bool(problems)
        for problem in problems:
            sys.stdout.write(f"{kind.name} after {seconds:.3f} s: {problem}\n")
    sys.stdout.write(
        f"{failed} of {args.n} chats lost something ({', '.join(f'{n} {name}' for name, n in done.items())})\n"
    )
    return int(failed > 0)


def kill_one(command: Sequence[str], kind: signal.Signals, seconds: float, folder: Path) -> list[str]:
    """Let a chat write a short turn and begin a long one; send it a signal while it writes.

    Args:
        command: starts the chat.
        kind: the signal.
        seconds: the time from the first shown token of the second turn to the signal.
        folder: an empty folder for what the chat keeps.

    Returns:
        What went wrong, in words.
    """
    environment = os.environ | {
        "TERM": "xterm", "LC_ALL": "C.UTF-8", "PROMPT_TOOLKIT_NO_CPR": "1",
        **{f"XDG_{name}_HOME": str(folder) for name in ("STATE", "CONFIG", "DATA")},
    }  # fmt: skip
    chat = pexpect.spawn(
        command[0], list(command[1:]), env=environment, encoding="utf-8", timeout=LONGEST_WAIT, preexec_fn=hear_signals
    )
    chat.delaybeforesend = None
    before = termios.tcgetattr(chat.fileno())
    for typed, answer in (
        ("/len 5", "at most 5"),
        ("Once upon", "5 tokens .*seed 1"),
        ("/len 100000", "at most 100000"),
    ):
        chat.expect(READY)
        chat.send(typed + "\r")
        chat.expect(answer)
    chat.expect(READY)
    chat.send(f"{TYPED}\r")
    chat.expect(rf"{TYPED}\s+\S+")
    shown = str(chat.after) + chat.buffer  # pexpect has read more than the pattern
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            shown += chat.read_nonblocking(65536, timeout=left)
        except pexpect.TIMEOUT:
            break
    chat.kill(kind)
    if kind != signal.SIGKILL:
        chat.kill(kind)  # a window that closes sends SIGHUP, and so does its shell
    chat.expect(pexpect.EOF)
    modes = termios.tcgetattr(chat.fileno())
    rest = str(chat.before)
    chat.close()
    return [
        *_wrong_end(chat.exitstatus, chat.signalstatus, kind),
        *_lost(folder, _words(shown + (rest if kind == signal.SIGKILL else "")), kind),
        *([] if kind == signal.SIGKILL or modes == before else ["the terminal did not get its modes back"]),
        *(["a traceback was shown"] if "Traceback" in shown + rest else []),
    ]


def hear_signals() -> None:
    """Undo what nohup and the background jobs of a shell do: they ignore some signals."""
    for kind in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(kind, signal.SIG_DFL)


def _wrong_end(code: int | None, killed_by: int | None, kind: signal.Signals) -> list[str]:
    right = killed_by == kind if kind == signal.SIGKILL else code == 128 + kind
    return [] if right else [f"the exit code was {code}, the signal {killed_by}"]


def _lost(folder: Path, shown: str, kind: signal.Signals) -> list[str]:
    """Return what is missing in the one session of a folder."""
    files = list(folder.rglob("sessions/*.json"))
    if len(files) != 1:
        return [f"there are {len(files)} sessions"]
    turns = list(load_session(files[0]).tree.turns.values())
    if not turns or turns[0].written is None or len(turns[0].written.tokens) != 5:
        return ["the first turn is lost"]
    if kind == signal.SIGKILL:
        return []
    if len(turns) != 2:
        return ["the running turn is lost"]
    kept = _words(turns[1].own)
    differing = []
    for match in re.finditer(re.escape(_words(TYPED)), shown):  # one of them is the input line
        story = shown[match.start() :]
        same = common_prefix(story, kept)
        if same == len(story):
            return []
        differing.append(
            f"shown was …{story[max(0, same - 20) : same + 20]}…, kept {kept[max(0, same - 20) : same + 20]}"
        )
    return differing or ["the running turn was not shown"]


def _words(text: str) -> str:
    """Return a text without white space and escape sequences, both of which the terminal added."""
    return "".join(_ESCAPE.sub("", text).split())


if __name__ == "__main__":
    sys.exit(main())
