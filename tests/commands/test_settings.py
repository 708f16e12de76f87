"""Settings know where they come from."""

import json
import os
from pathlib import Path

import pytest

from tinystory.cli import main
from tinystory.commands.flags import parse_args
from tinystory.errors import UsageError
from tinystory.folders import cache_folder, config_file, decoders_folder, history_file, sessions_folder
from tinystory.settings import BUILT_IN, CHOICES, Setting, allowed, parse, resolve_settings, variable


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in BUILT_IN:
        monkeypatch.delenv(variable(name), raising=False)


@pytest.fixture
def write_file():
    def write(text):
        config_file().parent.mkdir(parents=True)
        config_file().write_text(text, encoding="utf-8")
        return str(config_file())

    return write


def by_name(settings):
    return {setting.name: setting for setting in settings}


def test_every_setting_is_built_in_until_something_else_says_so():
    assert resolve_settings(environment={}) == tuple(
        Setting(name, value, "built-in") for name, value in BUILT_IN.items()
    )


def test_the_origin_is_the_file_the_variable_or_the_flag(monkeypatch, write_file):
    path = write_file('theme = "dark"\nkeys = "vi"\nseed = 3\n')
    monkeypatch.setenv("TINYSTORY_KEYS", "emacs")
    monkeypatch.setenv("TINYSTORY_MAX_TOKENS", "9")
    args = parse_args(["chat", "-s", "5", "-n", "10"])
    found = by_name(args.settings)
    assert found["theme"] == Setting("theme", "dark", path)
    assert found["keys"] == Setting("keys", "emacs", "TINYSTORY_KEYS")
    assert found["seed"] == Setting("seed", 5, "flag --seed")
    assert found["max_tokens"] == Setting("max_tokens", 10, "flag --max-tokens")
    assert found["model"] == Setting("model", "default", "built-in")
    assert list(found) == list(BUILT_IN)
    assert all(getattr(args, name) == setting.value for name, setting in found.items())


def test_a_random_seed_by_flag_hides_the_one_of_the_file(write_file):
    write_file("seed = 3")
    args = parse_args(["generate", "-s", "random"])
    assert args.seed is None
    assert by_name(args.settings)["seed"].shown == "random"
    assert by_name(args.settings)["seed"].origin == "flag --seed"


def test_eval_has_a_length_of_its_own_and_says_so(write_file):
    write_file("max_tokens = 3")
    args = parse_args(["eval", "stories.txt"])
    assert args.max_tokens == by_name(args.settings)["max_tokens"].value == 1024
    args = parse_args(["eval", "stories.txt", "-n", "5"])
    assert args.max_tokens == by_name(args.settings)["max_tokens"].value == 5


def test_info_knows_its_model_by_argument_and_by_flag():
    for argv, origin in ((["info", "there"], "argument MODEL"), (["info", "-m", "there"], "flag --model")):
        args = parse_args(argv)
        assert args.model == "there"
        assert by_name(args.settings)["model"].origin == origin
    assert parse_args(["info"]).model == "default"


def test_theme_and_keys_are_flags_of_chat_alone(capsys):
    args = parse_args(["--theme", "light", "--keys", "vi"])
    assert (args.theme, args.keys) == ("light", "vi")
    with pytest.raises(SystemExit):
        parse_args(["generate", "--theme", "light"])
    assert not hasattr(parse_args(["generate"]), "theme")


def test_a_chat_is_told_theme_keys_and_settings(monkeypatch):
    told = []
    argv = ["--theme", "light", "--keys", "vi"]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("tinystory.repl.app.chat", lambda settings: told.append(settings) or 0)
    assert main(argv) == 0
    assert (told[0].theme, told[0].keys, told[0].settings) == ("light", "vi", parse_args(argv).settings)


@pytest.mark.parametrize("name", CHOICES)
def test_a_setting_of_few_values_takes_those_and_names_them(name):
    for choice in CHOICES[name]:
        assert parse(name, choice) == choice
        assert choice in allowed(name)
    with pytest.raises(UsageError, match=f"FROM: {name} must be .* or {CHOICES[name][-1]}, not 'pink'"):
        parse(name, "pink", "FROM")


def test_config_prints_a_table_of_settings_and_the_path_of_the_file(monkeypatch, capsys, write_file):
    assert main(["config"]) == 0
    assert f"{config_file()} (not there yet)" in capsys.readouterr().out
    path = write_file('decoder = "top-k 40 | sample 0.8"')
    monkeypatch.setenv("TINYSTORY_SEED", "random")
    assert main(["config"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["setting", "value", "from"]
    assert ["decoder", "top-k 40 | sample 0.8", path] in [row.split("  ") for row in squeezed(rows)]
    assert ["seed", "random", "TINYSTORY_SEED"] in [row.split("  ") for row in squeezed(rows)]
    assert rows[-1] == f"configuration file: {path}"


def squeezed(rows):
    """The rows with two spaces between columns, however wide these are."""
    return ["  ".join(part.strip() for part in row.split("  ") if part.strip()) for row in rows]


def test_config_gives_json(capsys, write_file):
    path = write_file("max_tokens = 7")
    assert main(["config", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["file"], found["exists"]) == (path, True)
    assert {"name": "max_tokens", "value": 7, "origin": path} in found["settings"]
    assert [one["name"] for one in found["settings"]] == list(BUILT_IN)


def test_an_escape_in_a_setting_cannot_steer_the_terminal(monkeypatch, capsys):
    monkeypatch.setenv("TINYSTORY_MODEL", "\x1b[2J")
    main(["config"])
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "seed = " + "1" * 5000, "seed = 0x" + "f" * 20_000, "seed = " + "[" * 3000, f"theme = '{'x' * 10**5}'",
        f"theme = {['word'] * 10**4}", f"{'x' * 10**5} = 1", "max_tokens = 1979-05-27", "device = ['cpu']", "[model]",
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_in_a_short_line_with_the_file(write_file, text):
    path = write_file(text)
    with pytest.raises(UsageError) as caught:
        resolve_settings()
    assert path in str(caught.value)
    assert len(str(caught.value)) < len(path) + 400
    assert "\n" not in str(caught.value)


def test_a_variable_of_many_digits_is_told_in_a_short_line():
    with pytest.raises(UsageError, match="TINYSTORY_SEED: seed must be"):
        resolve_settings(environment={"TINYSTORY_SEED": "9" * 10**4})


def test_a_byte_order_mark_is_ignored(write_file):
    write_file("\ufeffmax_tokens = 7")
    assert by_name(resolve_settings())["max_tokens"].value == 7


def test_a_pipe_in_the_place_of_the_file_is_refused(tmp_path):
    config_file().parent.mkdir(parents=True)
    os.mkfifo(config_file())
    with pytest.raises(UsageError, match="is not a regular file"):
        resolve_settings()


def test_a_file_that_may_not_be_read_is_told_and_the_defaults_hold(write_file, monkeypatch, capsys):
    path = write_file("max_tokens = 7")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    for name in ("open", "stat"):  # the file, or its folder
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            args = parse_args(["generate"])
        assert args.max_tokens == 256
        assert f"cannot read {path}: Permission denied; the settings have their defaults" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["/dev/null/tinystory", "~/.config/tinystory", "."])
def test_without_a_home_there_are_no_files_of_the_user(monkeypatch, folder):
    """A relative folder would be in the current directory, where a stranger's decoders could be."""
    for kind in ("config", "data", "state", "cache"):
        monkeypatch.setattr(f"platformdirs.user_{kind}_path", lambda _name: Path(folder))
    assert by_name(resolve_settings(environment={}))["max_tokens"].origin == "built-in"
    for place in (config_file, decoders_folder, sessions_folder, history_file, cache_folder):
        assert place().is_absolute()
        assert not place().exists()


def test_with_neither_a_home_nor_an_entry_for_the_user_the_defaults_hold(monkeypatch):
    def refuse(_name):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr("platformdirs.user_config_path", refuse)
    assert by_name(resolve_settings(environment={}))["max_tokens"].origin == "built-in"
