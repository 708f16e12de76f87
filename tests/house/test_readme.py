"""README and the program say the same."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tinystory.commands.flags import COMMAND_SUMMARIES, build_parser

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:bash|sh|console)?\n(.*?)```", README, flags=re.DOTALL)
LINES = [line.removeprefix("$ ").strip() for block in BLOCKS for line in block.splitlines()]


def test_the_two_commands_are_there_and_ci_runs_them():
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for command in (
        "pip install -c constraints.txt . && tinystory chat",
        "pip install -c constraints.txt '.[test]' && pytest",
    ):
        assert command in LINES
        assert command.replace("pip install -c", "pip install -q -c") in gate


def test_every_tinystory_command_in_the_readme_parses():
    commands = [line for line in LINES if re.match(r"(echo .*\| )?tinystory( |$)", line)]
    assert len(commands) >= 5
    for line in commands:
        words = shlex.split(line, comments=True)
        words = words[words.index("tinystory") + 1 :]
        build_parser().parse_args(words or ["chat"])
    for name in COMMAND_SUMMARIES:
        assert f"tinystory {name}" in README


def test_every_path_in_the_readme_exists():
    for path in re.findall(r"\b((?:docs|scripts|examples|tests|decoders|tinystory)/[\w./-]*\w)", README):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_the_scripts_help_is_there():
    for script in ("train.py", "train_tokenizer.py"):
        result = subprocess.run(
            [sys.executable, ROOT / "scripts" / script, "--help"], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        flags = set(re.findall(r"--[a-z][a-z-]+", result.stdout))
        for line in (line for line in LINES if f"scripts/{script}" in line):
            assert set(re.findall(r"--[a-z][a-z-]+", line)) <= flags


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md"])
def test_documents_name_no_machine(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(home|root|work|tmp|Users)/", text)


def test_the_decoder_and_the_story_in_the_readme_are_the_real_ones():
    [code] = re.findall(r"```python\n(.*?)\n```", README, flags=re.DOTALL)
    assert code == (ROOT / "examples" / "one_file_decoder.py").read_text(encoding="utf-8").rstrip()
    [(command, story)] = re.findall(r"```\n\$ (tinystory generate .*?)\n(.*?)\n```", README, flags=re.DOTALL)
    words = [sys.executable, "-m", *shlex.split(command), "-q"]
    result = subprocess.run(words, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    assert result.stdout.rstrip("\n") == story
