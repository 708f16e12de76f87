"""Files and links are replaced whole: a crash at any moment, a full disk and two processes at once lose nothing."""

import ast
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tinystory.safe.writing import replace_link, sync_folder, write_atomically

ROOT = Path(__file__).resolve().parents[2]

KILLED = '''
import json, os, sys
from pathlib import Path
from tinystory.safe import writing

def parts(file):
    file.write(b"new" * 30_000)
    file.flush()
    file.write(b"end")

JOBS = {
    "bytes": lambda path: writing.write_atomically(path, b"new" * 30_000 + b"end"),
    "parts": lambda path: writing.write_atomically(path, parts, keep_mode=True),
    "link": lambda path: writing.replace_link(path, "new"),
}

def child(job, path, moment):
    """Run the job and die at one of its lines, as SIGKILL would kill it."""
    count = 0
    def trace(frame, event, _):
        nonlocal count
        if frame.f_code.co_filename not in (writing.__file__, __file__):
            return None
        count += event == "line"
        if count == moment:
            os._exit(9)
        return trace
    sys.settrace(trace)
    JOBS[job](path)
    os._exit(0)

job, folder = sys.argv[1], Path(sys.argv[2])
for moment in range(1, 1000):
    path = folder / str(moment)
    path.symlink_to("old") if job == "link" else path.write_bytes(b"old")
    pid = os.fork() or child(job, path, moment)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        break
print(moment)
'''


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("job", ["bytes", "parts", "link"])
def test_a_process_that_dies_at_any_line_leaves_the_old_file_or_the_new_one(tmp_path, job):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    folder = tmp_path / "files"
    folder.mkdir()
    ran = subprocess.run([sys.executable, script, job, folder], capture_output=True, text=True, check=True)
    n_moments = int(ran.stdout)
    assert n_moments > 8
    paths = [folder / str(moment) for moment in range(1, n_moments + 1)]
    if job == "link":
        found = [os.readlink(path) for path in paths]
        old, new = "old", "new"
    else:
        found = [path.read_bytes() for path in paths]
        old, new = b"old", b"new" * 30_000 + b"end"
    n_old = found.count(old)
    assert 1 < n_old < n_moments
    assert found == [old] * n_old + [new] * (n_moments - n_old)


@pytest.fixture
def calls(monkeypatch):
    """The calls that make a file durable and give it its name, in order."""
    made = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def note(*arguments, name=name, original=original):
            folder = name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            made.append("fsync folder" if folder else name)
            return original(*arguments)

        monkeypatch.setattr(os, name, note)
    return made


def test_the_file_is_on_the_disk_before_it_gets_its_name_and_the_name_after(tmp_path, calls):
    write_atomically(tmp_path / "file", b"new")
    assert calls == ["fsync", "replace", "fsync folder"]
    del calls[:]
    replace_link(tmp_path / "link", "file")
    assert calls == ["replace", "fsync folder"]


def test_a_writer_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"old")]


def test_modes_and_links(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"secret", 0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    link = tmp_path / "link"
    link.symlink_to("file")
    write_atomically(link, b"more", keep_mode=True)
    assert link.is_symlink()
    assert path.read_bytes() == b"more"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_folder_that_cannot_be_synced_is_no_error_but_a_broken_disk_is(tmp_path, monkeypatch):
    original = os.fsync

    def refuse(descriptor, number):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", lambda descriptor: refuse(descriptor, 22))  # EINVAL: some network drives
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    monkeypatch.setattr(os, "fsync", lambda descriptor: refuse(descriptor, 5))  # EIO
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)


def renames(call):
    """Return True if a call renames a file: os.replace(a, b) or path.replace(b), but not text.replace(a, b)."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("replace", "rename"):
        return False
    of_os = isinstance(call.func.value, ast.Name) and call.func.value.id == "os"
    return of_os or (len(call.args) == 1 and not call.keywords)


@pytest.mark.parametrize("room", ["data", "evaluation", "study", "training", "writing"])
def test_no_module_of_these_rooms_renames_a_file_itself(room):
    modules = list((ROOT / "tinystory" / room).rglob("*.py"))
    assert modules
    for path in modules:
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        assert [ast.unparse(call) for call in calls if renames(call)] == [], path.name


def test_what_a_run_and_prepared_stories_replace_goes_through_the_one_door(tmp_path, calls, story_file, tokenizer):
    from tinystory.data.prepare import prepare
    from tinystory.training.config import RunConfig
    from tinystory.training.plotting import plot_metrics
    from tinystory.training.run import Run

    whole = ["fsync", "replace", "fsync folder"]
    run = Run(tmp_path / "run")
    run.begin(RunConfig(), tokenizer)
    assert calls == whole * 2  # run.json and tokenizer.json
    del calls[:]
    for step in (1, 2):
        run.log({"step": step, "tokens": 5, "train_loss": 2.0})
    run.forget_after(1)
    assert calls == whole
    del calls[:]
    plot_metrics([{"step": 1, "tokens": 5, "train_loss": 2.0}], run.folder / "metrics.svg")
    assert calls == whole
    assert b"</svg>" in (run.folder / "metrics.svg").read_bytes()
    del calls[:]
    prepare(story_file, tokenizer, tmp_path / "data")
    assert calls == ["fsync"] * 3 + ["fsync folder", *whole]  # tokens, offsets, text bytes, build; the manifest
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["stories"] == 60


def test_a_device_a_pipe_and_a_folder_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "folder", "link"):
        with pytest.raises(OSError, match="not a regular file"):
            write_atomically(tmp_path / name, b"x")
    assert sorted(os.listdir(tmp_path)) == ["folder", "link", "pipe"]
