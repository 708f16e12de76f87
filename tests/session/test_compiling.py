"""Check that code is built once for each compiler, processor and source, and that failures take one line."""

import dataclasses
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import platformdirs
import pytest

from tinystory.checkpoint.shipped import find_model
from tinystory.cli import main
from tinystory.commands import chat
from tinystory.commands.flags import parse_args
from tinystory.errors import UsageError
from tinystory.repl import app
from tinystory.session.loading import load, load_header
from tinystory.session.steps import compiling
from tinystory.session.steps.compiling import compiled_code
from tinystory.settings import parse
from tinystory.studio.backend import ModelBackend

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="there is no C compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    return platformdirs.user_cache_path("tinystory") / "compiled"


@needs_compiler
@pytest.mark.slow
def test_it_is_built_once_for_a_source_and_its_options(cache, monkeypatch):
    first, second = compiled_code(), compiled_code()
    assert first.seconds > 0
    assert second.seconds == 0
    assert second.library.step_panel_rows() in (16, 32, 64)
    assert [path.suffix for path in cache.iterdir()] == [".so"]
    monkeypatch.setattr(compiling, "OPTIONS", (*compiling.OPTIONS, "-DOTHER"))
    assert compiled_code().seconds > 0
    assert len(list(cache.iterdir())) == 2


@needs_compiler
@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("of", ["folder", "library"])
def test_what_others_can_write_is_not_loaded(cache, of):
    compiled_code()
    path = cache if of == "folder" else next(cache.iterdir())
    path.chmod(0o777)
    with pytest.raises(UsageError, match="can be written by others"):
        compiled_code()


@needs_compiler
@pytest.mark.skipif(os.name != "posix", reason="owners are those of POSIX")
def test_what_another_user_owns_is_not_loaded(monkeypatch):
    compiled_code()
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(UsageError, match="can be written by others"):
        compiled_code()


@needs_compiler
@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_nobody_else_may_write_it_whatever_the_umask(cache):
    before = os.umask(0)
    try:
        compiled_code()
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (cache, *cache.iterdir())} == {0o700}


@needs_compiler
@pytest.mark.slow
def test_another_processor_has_a_library_of_its_own(cache, monkeypatch):
    compiled_code()
    command, defined = compiling._compiler()
    monkeypatch.setattr(compiling, "_compiler", lambda: (command, defined + b"#define __OTHER__ 1"))
    assert compiled_code().seconds > 0
    assert len(list(cache.iterdir())) == 2


@needs_compiler
@pytest.mark.slow
def test_a_damaged_library_is_built_once_more(cache):
    compiled_code()
    (library,) = cache.iterdir()
    code = "from tinystory.session.steps.compiling import compiled_code; print(compiled_code().seconds > 0)"
    for content in (b"", b"no library"):  # in another process, since this one uses the library
        library.unlink()
        library.write_bytes(content)
        library.chmod(0o700)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.stdout == "True\n", done.stderr


@needs_compiler
def test_a_library_that_cannot_be_loaded_is_one_line(monkeypatch):
    monkeypatch.setattr(compiling, "_build", lambda command, path: path.write_bytes(b"no library"))
    with pytest.raises(UsageError, match=r"cannot be kept or loaded: .*--no-compile"):
        compiled_code()


@needs_compiler
def test_an_interrupt_does_not_reach_the_compiler():
    """It runs in a process session of its own, so that Ctrl-C at a terminal is not reported as its failure."""
    done = compiling._run([sys.executable, "-c", "import os; print(os.getsid(0))"])
    assert int(done.stdout) != os.getsid(0)


@pytest.mark.parametrize(
    ("command", "part_of_message"),
    [
        ("no-such-compiler", "the C compiler no-such-compiler (CC) cannot be found; install one"),
        ("false", "false is no C compiler like gcc or clang"),
        ('gcc "', "CC is 'gcc \"', which is no command"),
        (f"{sys.executable} -c 'import sys; sys.exit(\"fatal error: nothing\")'", "error: nothing"),
    ],
)
def test_a_compiler_that_does_not_work_is_one_line(command, part_of_message, monkeypatch):
    monkeypatch.setenv("CC", command)
    with pytest.raises(UsageError) as caught:
        compiled_code()
    assert part_of_message in str(caught.value)


def test_no_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    message = r"a C compiler \(cc, gcc or clang\) cannot be found; install one, or use --no-compile$"
    with pytest.raises(UsageError, match=message):
        compiled_code()


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("step.c:1: warning: odd\n step.c:2: error: wrong \nstep.c:3: error: later", "step.c:2: error: wrong"),
        ("collect2: error: ld returned 1\nld: cannot open output file", "ld: cannot open output file"),
        ("collect2: error: ld returned 1", "collect2: error: ld returned 1"),
        ("one line\nanother line\n\n", "another line"),
        (" \n", "it does not say why"),
    ],
)
def test_the_reason_is_the_first_error_or_the_last_line(output, reason):
    assert compiling._reason(output.encode()) == reason


@needs_compiler
def test_a_source_that_does_not_compile_leaves_nothing(cache, monkeypatch, tmp_path):
    source = tmp_path / "broken.c"
    source.write_text("int main( {")
    monkeypatch.setattr(compiling, "SOURCE", source)
    with pytest.raises(UsageError, match=r"failed: .*error"):
        compiled_code()
    assert list(cache.iterdir()) == []


@needs_compiler
def test_a_compiler_that_hangs_is_given_up(monkeypatch):
    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(UsageError, match=r"has not ended after 120 seconds; use --no-compile$"):
        compiled_code()


@needs_compiler
def test_a_folder_that_cannot_be_made_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="cannot be kept or loaded"):
        compiled_code()


@pytest.mark.parametrize(("dtype", "device"), [("bfloat16", "cpu"), ("float32", "cuda")])
def test_other_computations_are_refused(dtype, device):
    with pytest.raises(UsageError, match="float32 or int8 on the CPU"):
        load("default", dtype, device, compiled=True)


def test_other_kinds_of_models_are_refused():
    name, header = find_model("default")
    with pytest.raises(UsageError, match="Llama and GPT-2 models, which default is not"):
        load_header(name, dataclasses.replace(header, config=None), "float32", "cpu", compiled=True)


@needs_compiler
@pytest.mark.slow
def test_the_command_line_shows_what_compiling_takes(capsys):
    for expected in (True, False):
        assert main(["generate", "Once", "-n", "3", "-s", "1", "--compile"]) == 0
        assert ("compiled for this processor in" in capsys.readouterr().err) == expected
    assert main(["generate", "Once", "-n", "3", "-s", "1", "--compile", "--json"]) == 0
    assert '"compiled": true' in capsys.readouterr().out


@needs_compiler
def test_stages_that_need_torch_are_compiled_too(capsys):
    assert main(["generate", "Once", "-n", "3", "-s", "1", "-d", "typical 0.9 | sample", "--compile", "--json"]) == 0
    assert '"compiled": true' in capsys.readouterr().out


@needs_compiler
def test_a_chat_is_started_as_the_flag_says(monkeypatch):
    """The flag of the command line reaches the models that the studio opens."""
    seen = []
    monkeypatch.setattr(chat.sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(chat.sys, "stdout", SimpleNamespace(isatty=lambda: True, flush=lambda: None))
    monkeypatch.setattr(app, "chat", lambda settings: seen.append(settings) or 0)
    for flags in ([], ["--compile"]):
        assert main(["chat", *flags]) == 0
    assert [settings.compiled for settings in seen] == [False, True]
    opened = []
    monkeypatch.setattr(ModelBackend, "open", lambda name, **how: opened.append(how["compiled"]) or 1 / 0)
    for settings in seen:
        with pytest.raises(ZeroDivisionError):
            _CHAT(settings)
    assert opened == [False, True]


_CHAT = app.chat


@needs_compiler
def test_the_studio_tells_that_it_is_compiled():
    backend = ModelBackend.open("default", "float32", "cpu", compiled=True)
    assert backend.wait(lambda: False)
    assert "compiled" in dict(backend.facts())["runs"]
    assert backend._loaded.session._packed is not None
    assert backend.session("mini")._packed is not None


def test_the_setting_is_a_switch(monkeypatch):
    assert not parse_args(["generate"]).compile
    monkeypatch.setenv("TINYSTORY_COMPILE", "true")
    assert parse_args(["generate"]).compile
    args = parse_args(["generate", "--no-compile"])
    assert not args.compile
    assert next(s for s in args.settings if s.name == "compile").origin == "flag --no-compile"
    monkeypatch.setenv("TINYSTORY_COMPILE", "maybe")
    with pytest.raises(UsageError, match="compile must be true or false"):
        parse_args(["generate"])


@pytest.mark.parametrize("value", [1, 0, 1.0, "1", "yes", "True", None])
def test_a_switch_is_true_or_false_and_nothing_like_it(value):
    with pytest.raises(UsageError, match="compile must be true or false"):
        parse("compile", value)
