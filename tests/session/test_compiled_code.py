"""Check which code computes a model: the compiled one where it was built and fits the model, else NumPy or torch."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tinystory.checkpoint.shipped import find_model
from tinystory.cli import main
from tinystory.commands import chat
from tinystory.commands.flags import parse_args
from tinystory.errors import UsageError
from tinystory.folders import config_file
from tinystory.repl import app
from tinystory.session.loading import code_for, load
from tinystory.session.steps import compiled_code as module
from tinystory.session.steps.compiled_code import LEVELS, compiled_code, why_missing
from tinystory.studio.backend import ModelBackend

needs_code = pytest.mark.skipif(compiled_code() is None, reason=f"there is no compiled code: {why_missing()}")


@pytest.fixture
def library_at(monkeypatch, tmp_path):
    """Return a function that puts a file in the place of the library; None for no file."""

    def put(content):
        monkeypatch.setattr(module, "__file__", str(tmp_path / "compiled_code.py"))
        if content is not None:
            (tmp_path / "_step.abi3.so").write_bytes(content)

    caches = module._library, compiled_code
    for function in caches:
        function.cache_clear()
    yield put
    for function in caches:
        function.cache_clear()


@needs_code
def test_every_level_up_to_the_one_of_this_processor_is_there():
    best = LEVELS.index(compiled_code().level)
    assert [compiled_code(level).level for level in LEVELS[: best + 1]] == list(LEVELS[: best + 1])
    assert why_missing() == ""


def test_a_level_that_was_not_built_is_none():
    assert compiled_code("avx1024") is None


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "it was not built: install a C compiler"), (b"no library", "it cannot be loaded: ")]
)
def test_without_the_library_models_run_without_it(library_at, content, reason, capsys):
    library_at(content)
    assert compiled_code() is None
    assert why_missing().startswith(reason)
    assert "\n" not in why_missing()
    assert main(["generate", "Once", "-n", "3", "-s", "1", "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["compiled"]
    assert main(["info", "default"]) == 0
    assert f"no compiled code: {reason}" in capsys.readouterr().out


@needs_code
def test_info_names_the_level(capsys):
    assert main(["info", "default"]) == 0
    assert f"compiled code ({compiled_code().level})" in capsys.readouterr().out
    assert main(["info", "default", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"] == f"compiled code ({compiled_code().level})"


@needs_code
@pytest.mark.parametrize(
    ("dtype", "device", "engine", "compiled"),
    [
        ("float32", "cpu", "compiled", True),
        ("int8", "cpu", "compiled", True),
        ("float32", "cpu", "numpy", False),
        ("bfloat16", "cpu", "compiled", False),
        ("float32", "cuda", "compiled", False),
    ],
)
def test_compiled_code_is_used_where_it_fits(dtype, device, engine, compiled):
    _, header = find_model("default")
    assert (code_for(header, dtype, device, engine) is not None) == compiled
    assert code_for(dataclasses.replace(header, config=None), dtype, device, engine) is None


@needs_code
@pytest.mark.parametrize("spec", ["greedy", "typical 0.9 | sample"])  # without torch, and with torch
@pytest.mark.parametrize("engine", ["compiled", "numpy"])
def test_the_json_says_whether_code_was_compiled(spec, engine, capsys):
    assert main(["generate", "Once", "-n", "3", "-s", "1", "-d", spec, "--engine", engine, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compiled"] == (engine == "compiled")


def test_the_engine_reaches_the_models_of_a_chat(monkeypatch):
    seen = []
    monkeypatch.setattr(chat.sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(chat.sys, "stdout", SimpleNamespace(isatty=lambda: True, flush=lambda: None))
    monkeypatch.setattr(app, "chat", lambda settings: seen.append(settings) or 0)
    for flags in ([], ["--engine", "numpy"]):
        assert main(["chat", *flags]) == 0
    assert [settings.engine for settings in seen] == ["compiled", "numpy"]
    opened = []
    monkeypatch.setattr(ModelBackend, "open", lambda name, **how: opened.append(how["engine"]) or 1 / 0)
    for settings in seen:
        with pytest.raises(ZeroDivisionError):
            _CHAT(settings)
    assert opened == ["compiled", "numpy"]


_CHAT = app.chat


@needs_code
def test_the_studio_tells_that_it_is_compiled():
    backend = ModelBackend.open("default", "float32", "cpu")
    assert backend.wait(lambda: False)
    assert "compiled" in dict(backend.facts())["runs"]
    assert backend._loaded.session._packed is not None
    assert backend.session("mini")._packed is not None


@pytest.mark.parametrize("flag", ["--compile", "--no-compile"])
def test_flags_of_earlier_versions_do_nothing_and_say_so(flag, capsys):
    assert parse_args(["generate", flag]).engine == "compiled"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tinystory: --compile does nothing any more")


def test_the_setting_of_earlier_versions_does_nothing_and_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    config_file().parent.mkdir(parents=True)
    config_file().write_text("compile = true\nmax_tokens = 9\n")
    monkeypatch.setenv("TINYSTORY_COMPILE", "maybe")
    args = parse_args(["generate"])
    assert (args.max_tokens, args.engine) == (9, "compiled")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" does nothing")[0] for line in lines] == [
        f"tinystory: {config_file()}: compile",
        "tinystory: TINYSTORY_COMPILE",
    ]


def test_an_engine_is_one_of_two(monkeypatch):
    monkeypatch.setenv("TINYSTORY_ENGINE", "fast")
    with pytest.raises(UsageError, match="engine must be compiled or numpy, not 'fast'"):
        parse_args(["generate"])


@pytest.mark.slow
def test_loading_the_library_imports_neither_torch_nor_a_compiler():
    code = "import sys, subprocess; from tinystory.session.steps.compiled_code import compiled_code; compiled_code();"
    code += "print('torch' in sys.modules, 'distutils' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_a_model_can_be_loaded_for_either_engine():
    assert not load("mini", engine="numpy").compiled
    assert load("mini").compiled == (compiled_code() is not None)
