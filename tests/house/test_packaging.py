"""The wheel, installed for real; slow, and without the network: dependencies come from this environment."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_WHEEL_BYTES = 35_000_000
BUILT = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "*.so", "__pycache__")
"""What a clone does not have, but a folder in which somebody works."""


def run(*command, **options):
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A fresh environment that sees this one's packages behind its own, with pip for installing wheels."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    site = next((folder / "venv" / "lib").glob("python*")) / "site-packages"
    here = next(p for p in map(Path, sys.path) if p.name == "site-packages" and (p / "torch").is_dir())
    (site / "behind.pth").write_text(str(here))
    return folder / "venv" / "bin" / "python"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The folder with the wheels of tinystory and of the example package."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "clone", ignore=BUILT)
    for source in (folder / "clone", folder / "clone" / "examples" / "tinystory-restless"):
        build(source, folder)
    return folder


def build(source, folder, **environment):
    """Build the wheel of a project as `python -m build` does, with the setuptools of this environment."""
    command = sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source
    run(*command, env=os.environ | environment)


def install(python, wheel_file):
    with zipfile.ZipFile(wheel_file) as archive:
        archive.extractall(next(python.parent.parent.glob("lib/python*")) / "site-packages")


@pytest.mark.slow
def test_a_wheel_in_a_clean_environment_lists_and_runs_its_decoders(python, wheel, tmp_path):
    [ours] = wheel.glob("tinystory-*.whl")
    [example] = wheel.glob("tinystory_restless-*.whl")
    assert ours.stat().st_size < MAX_WHEEL_BYTES
    install(python, ours)
    listed = {one["name"] for one in json.loads(run(python, "-m", "tinystory", "decoders", "--json", cwd=tmp_path))}
    assert {"greedy", "sample", "top-k", "top-p", "min-p", "temperature"} <= listed
    assert "restless" not in listed
    install(python, example)
    listed = {one["name"] for one in json.loads(run(python, "-m", "tinystory", "decoders", "--json", cwd=tmp_path))}
    assert "restless" in listed
    where = run(
        python, "-c", "import tinystory, tinystory_decoders as d; print(tinystory.__file__, d.__file__)", cwd=tmp_path
    )
    assert where.count(str(python.parent.parent)) == 2
    story = run(
        python, "-m", "tinystory", "generate", "Once upon a time", "-d", "greedy", "-n", "20", "-q", cwd=tmp_path
    )
    assert story.startswith("Once upon a time")
    assert len(story) > 40
    has_compiler = any(map(shutil.which, ("cc", "gcc", "clang")))
    assert runs_compiled_code(python, tmp_path) == has_compiler


@pytest.mark.slow
def test_without_a_compiler_the_wheel_is_built_and_runs(wheel, python, tmp_path):
    shutil.rmtree(wheel / "clone" / "build")  # the other build has left its library there
    build(wheel / "clone", tmp_path, CC="/bin/false")
    [ours] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(ours) as archive:
        assert not any(name.endswith((".so", ".pyd")) for name in archive.namelist())
    installed = next(python.parent.parent.glob("lib/python*")) / "site-packages" / "tinystory"
    shutil.rmtree(installed, ignore_errors=True)
    install(python, ours)
    assert not runs_compiled_code(python, tmp_path)
    info = run(python, "-m", "tinystory", "info", cwd=tmp_path)
    assert info.count("no compiled code: it was not built: install a C compiler") == 1


def runs_compiled_code(python, folder):
    done = run(python, "-m", "tinystory", "generate", "Once", "-s", "1", "-n", "3", "--json", cwd=folder)
    return json.loads(done)["compiled"]


@pytest.mark.slow
def test_the_wheel_brings_the_manual_page(wheel):
    [ours] = wheel.glob("tinystory-*.whl")
    with zipfile.ZipFile(ours) as archive:
        [page] = [name for name in archive.namelist() if name.endswith("data/share/man/man1/tinystory.1")]
        assert archive.read(page) == (ROOT / "docs" / "tinystory.1").read_bytes()
