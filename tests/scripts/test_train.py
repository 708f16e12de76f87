"""The command line of scripts/train.py: every field is a flag with a help text, and wrong values are refused."""

import sys

import pytest

from tinystory.errors import UsageError
from tinystory.training.config import field_help, fields_of, resolve_run


@pytest.fixture
def parsed(load_script, monkeypatch):
    script = load_script("train")

    def parse(*argv):
        monkeypatch.setattr(sys, "argv", ["train.py", *argv])
        return script.parse_args()

    return parse


def test_every_field_is_explained():
    texts = field_help()
    assert list(texts) == list(fields_of())
    assert [name for name, text in texts.items() if len(text) < 12] == []
    assert texts["steps"] == "number of optimizer steps; 0 means that epochs gives it"
    assert texts["schedule"].endswith('"cosine" falls to a tenth, "constant" stays')  # a text of two lines


def test_help_has_every_flag_with_its_text(parsed, capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for name, text in field_help().items():
        assert f"--{name.replace('_', '-')} " in shown or f"--{name.replace('_', '-')}, --no-" in shown
        assert text in shown


def test_a_flag_of_each_kind_becomes_a_field(parsed):
    """--batching once took a list, which no batching is, so the flag could not be used."""
    sources, shape = ["--data", "a", "b", "--batching", "padded"], ["--n-layer", "3", "--no-tied-head"]
    args, fields = parsed("--out", "r", *sources, *shape, "--family", "gpt2", "--lr", "0.1", "--keep", "7")
    config = resolve_run(None, None, fields)
    assert (config.data.data, config.data.batching) == (("a", "b"), "padded")
    assert parsed("--out", "r", "--separator", "---", "--lr", "1")[1] == {"separator": "---", "lr": 1.0}
    assert (config.model.n_layer, config.model.tied_head, config.model.family) == (3, False, "gpt2")
    assert config.training.lr == 0.1
    assert (config.loop.keep, config.loop.every, str(args.out)) == (7, 0, "r")
    assert sorted(fields) == ["batching", "data", "family", "keep", "lr", "n_layer", "tied_head"]  # and no others


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("", "either --out RUN for a new run or --resume RUN"),
        ("--out a --resume a", "either --out RUN"),
        ("--out a --batching odd", "invalid choice: 'odd'"),
        ("--out a --family bert", "invalid choice: 'bert' (choose from 'gpt2', 'llama')"),
        ("--out a --schedule linear", "'wsd', 'cosine', 'constant'"),
    ],
)
def test_a_wrong_command_line_is_refused(parsed, capsys, argv, words):
    with pytest.raises(SystemExit) as caught:
        parsed(*argv.split())
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 2  # the usage does not bury the mistake


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--every -1", "--every must be at least 0"),
        ("--log-every 0", "--log-every and --keep at least 1"),
        ("--keep 0", "--keep at least 1"),
        ("--save-minutes -1", "save_minutes is -1.0"),
    ],
)
def test_a_mistake_in_a_field_names_the_field(parsed, argv, words):
    _, fields = parsed("--out", "r", *argv.split())
    with pytest.raises(UsageError, match=words):
        resolve_run(None, None, fields)
