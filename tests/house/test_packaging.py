"""The wheel, installed for real; slow, and without the network: dependencies come from this environment."""

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_WHEEL_BYTES = 35_000_000


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
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder]
    run(*pip, ROOT, cwd=folder)
    run(*pip, ROOT / "examples" / "tinystory-restless", cwd=folder)
    return folder


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


@pytest.mark.slow
def test_the_wheel_brings_the_manual_page(wheel):
    [ours] = wheel.glob("tinystory-*.whl")
    with zipfile.ZipFile(ours) as archive:
        [page] = [name for name in archive.namelist() if name.endswith("data/share/man/man1/tinystory.1")]
        assert archive.read(page) == (ROOT / "docs" / "tinystory.1").read_bytes()
