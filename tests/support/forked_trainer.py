"""Run scripts/train.py several times in forks of one process, which has already imported everything.

Each line of the input is a JSON object: `argv`, `ranks`, and `kill` (seconds after which each fork gets a signal,
`signal` or SIGKILL) or `signal` (sent when the output has `when`). With `links` false no symbolic link can be made, and
with `bare` true there are no plots, and samples of three tokens, which take most of the time of a small run. The answer
has the exit codes, negative for a signal, standard error, and the seconds.
"""

import errno
import importlib.util
import json
import os
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed

torch.set_num_threads(1)
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train.py"


def load_script():
    spec = importlib.util.spec_from_file_location("train_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fork(script, order, rank, ranks, port, errors):
    pid = os.fork()
    if pid:
        return pid
    os.dup2(errors, 2)
    os.dup2(errors, 1)
    sys.argv = [str(SCRIPT), *order["argv"]]
    if not order.get("links", True):
        os.symlink = no_link
    if order.get("bare", False):
        from tinystory.training import trainer

        trainer.has_matplotlib, trainer.MAX_TOKENS = lambda: False, 3
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 1
    try:
        code = script.main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(code)


def no_link(*_arguments, **_options):
    raise OSError(errno.EPERM, "this disk has no links")


def answer(script, order):
    ranks, started = order.get("ranks", 1), time.monotonic()
    with tempfile.TemporaryFile() as errors:
        port = free_port()
        pids = [fork(script, order, rank, ranks, port, errors.fileno()) for rank in range(ranks)]
        if "kill" in order:
            time.sleep(order["kill"])
            for pid in pids:
                os.kill(pid, order.get("signal", signal.SIGKILL))
        elif "signal" in order:
            while order["when"].encode() not in os.pread(errors.fileno(), 10**6, 0):
                time.sleep(0.01)
            for pid in pids:
                os.kill(pid, order["signal"])
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        text = os.pread(errors.fileno(), 10**6, 0).decode(errors="replace")
    return {"codes": codes, "errors": text, "seconds": time.monotonic() - started}


def main():
    script = load_script()
    import matplotlib.figure  # noqa: F401

    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # its first call imports for a second or more
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(script, json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
