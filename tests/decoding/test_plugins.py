"""Discovery: only packages, the user's folder and named files give stages, and a broken one costs one warning."""

import os
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from tinystory.decoding import Decoder, plugins
from tinystory.decoding.options import options_of
from tinystory.decoding.plugins import Registry, discover, load_file
from tinystory.decoding.spec import format_spec, parse_spec
from tinystory.errors import UsageError, nearest
from tinystory.folders import decoders_folder
from tinystory.testing import conformance
from tinystory_decoders.greedy import Greedy
from tinystory_decoders.top_k import TopK

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BUILT_IN = {"greedy", "min-p", "sample", "temperature", "top-k", "top-p"}


def decoder_file(name, class_name="Mine"):
    return textwrap.dedent(
        f"""
        from dataclasses import dataclass
        from tinystory.decoding import LogitsProcessor, option

        @dataclass(frozen=True)
        class {class_name}(LogitsProcessor):
            "Add nothing."
            name = {name!r}
            much: float = option(1.0, help="how much")

            def __call__(self, logits, step):
                return logits + 0 * self.much
        """
    )


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that puts a fake installed distribution on sys.path."""

    def install(name, entry_points, folder="site", **modules):
        site = tmp_path / folder
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{key} = {value}" for key, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[tinystory.decoders]", *lines]))
        for module, source in modules.items():
            (site / f"{module}.py").write_text(source)
            monkeypatch.delitem(sys.modules, module, raising=False)
        if str(site) not in sys.path:
            monkeypatch.syspath_prepend(site)
        return site

    yield install
    for module in [name for name in sys.modules if name.startswith("fake_")]:
        del sys.modules[module]


def test_the_built_in_stages_come_through_entry_points():
    registry = discover(user_folder=None)
    assert set(registry.names()) >= BUILT_IN
    assert registry.get("top-k") is TopK
    assert registry.source("top-k") == "tinystory"
    assert ("greedy", Greedy, "tinystory") in registry.classes()
    assert registry.warnings == []
    assert registry.conflicts == {}


def test_an_alias_gives_the_class_and_is_not_listed():
    registry = discover(user_folder=None)
    assert "sampling" not in registry.names()
    assert registry.aliases["sampling"] == "sample"
    assert registry.get("sampling") is registry.get("sample")
    assert registry.source("sampling") == "tinystory"
    assert [name for name, _, _ in registry.classes()] == registry.names()


def test_an_unknown_name_tells_the_nearest():
    registry = discover(user_folder=None)
    for typed in ("topk", "top_k", "TopK", "Top-K", "topk5"):
        with pytest.raises(UsageError, match="did you mean `top-k`"):
            registry.get(typed)
    with pytest.raises(UsageError, match="did you mean `sampling`"):
        registry.get("samplin")
    with pytest.raises(UsageError, match="`tinystory decoders` list them"):
        registry.get("\x1bzz" * 10_000)
    assert nearest("zebra", ["greedy"]) is None
    assert nearest("", []) is None


def test_discovery_names_and_specs_leave_torch_alone(tmp_path):
    """Completion, help and `decoders --json` do not wait for torch, and the current directory adds no decoder."""
    info = tmp_path / "evil.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[tinystory.decoders]\nevil = evil:Evil\n")
    (tmp_path / "evil.py").write_text(decoder_file("evil", "Evil"))
    code = """
        import sys
        from tinystory.decoding.plugins import discover
        from tinystory.decoding.spec import format_spec, parse_spec
        registry = discover(user_folder=None)
        assert "" in sys.path
        names = registry.names()
        assert "tinystory_decoders.top_k" not in sys.modules, "names() imports too much"
        assert "evil" not in names
        registry.classes()
        decoder = parse_spec("temperature 0.8 | top-k 40 | top-p 0.9 | min-p 0.2 | sampling 0.7", registry)
        print(format_spec(decoder), *decoder.chain.stages)
        assert "torch" not in sys.modules
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("temperature 0.8 | top-k 40 | top-p 0.9 | min-p 0.2 | sample 0.7 Temperature(")


def test_the_current_directory_counts_only_where_the_user_put_it_on_the_path(package, tmp_path, monkeypatch):
    site = package("here", {"here": "fake_here:Mine"}, fake_here=decoder_file("here"))
    monkeypatch.chdir(site)
    assert sys.path[0] == str(site)  # as `python -m` has it
    assert "here" not in discover(user_folder=None).names()
    monkeypatch.setattr(sys, "path", [*sys.path[1:], str(site)])  # as PYTHONPATH has it
    assert "here" in discover(user_folder=None).names()


def test_a_third_party_package_is_found_and_loaded_late(package):
    package(
        "other-decoders", {"mine": "fake_other:Mine", "old-mine": "fake_other:Mine"}, fake_other=decoder_file("mine")
    )
    registry = discover(user_folder=None)
    assert "fake_other" not in sys.modules
    assert "mine" in registry.names()
    assert registry.source("old-mine") == "other-decoders"
    assert format_spec(parse_spec("old-mine 2 | greedy", registry)) == "mine 2 | greedy"


def test_a_class_is_found_by_its_own_name_where_the_package_gives_only_an_alias(package):
    package("other-decoders", {"old": "fake_other:Mine"}, fake_other=decoder_file("mine"))
    assert discover(user_folder=None).get("mine").name == "mine"
    registry = discover(user_folder=None)
    assert registry.get("old") is registry.get("mine")
    assert "old" not in registry.names()
    assert format_spec(Decoder((registry.get("old")(),), Greedy())) == "mine | greedy"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("fake_missing:Mine", "ModuleNotFoundError: No module named 'fake_missing'"),
        ("fake_other:Missing", "AttributeError"),
        ("fake_other:dataclass", "is not a LogitsProcessor, Sampler or Search"),
        ("fake_exits:Mine", "SystemExit: bye"),
        ("fake_syntax:Mine", "SyntaxError"),
    ],
)
def test_a_broken_package_costs_one_warning(package, target, reason):
    package(
        "other-decoders",
        {"mine": target},
        fake_other=decoder_file("mine"),
        fake_exits="raise SystemExit('bye')",
        fake_syntax="def",
    )
    registry = discover(user_folder=None)
    assert registry.warnings == []
    assert {name for name, _, _ in registry.classes()} >= BUILT_IN
    registry.classes()
    (warning,) = registry.warnings
    assert warning.startswith(f"decoder mine of package other-decoders ({target}) is broken: ")
    assert reason in warning
    assert "\n" not in warning
    assert "mine" not in registry.names()
    with pytest.raises(UsageError) as caught:
        registry.get("mine")
    assert str(caught.value) == warning


def test_a_bad_name_in_a_package_costs_one_warning(package):
    package("other-decoders", {"Top_K": "fake_other:Mine"}, fake_other=decoder_file("mine"))
    (warning,) = discover(user_folder=None).warnings
    assert "package other-decoders calls a decoder 'Top_K'" in warning


def test_damaged_metadata_of_any_package_costs_one_warning(package):
    site = package("other-decoders", {})
    (site / "other_decoders-1.0.dist-info" / "entry_points.txt").write_bytes(b"[tinystory.decoders]\nx = \xff\xfe:Y\n")
    registry = discover(user_folder=None)
    assert len(registry.warnings) == 1
    assert set(registry.names()) >= BUILT_IN


def test_two_packages_with_one_name_are_both_named(package):
    package("one", {"mine": "fake_one:Mine"}, fake_one=decoder_file("mine"))
    package("two", {"mine": "fake_two:Mine"}, fake_two=decoder_file("mine"))
    registry = discover(user_folder=None)
    assert len(registry.warnings) == 1
    assert "mine" not in registry.names()
    with pytest.raises(UsageError) as caught:
        parse_spec("mine | greedy", registry)
    assert "two decoders are called mine" in str(caught.value)
    assert "package one (fake_one:Mine)" in str(caught.value)
    assert "package two (fake_two:Mine)" in str(caught.value)
    assert parse_spec("top-k 3", registry)


def test_a_package_that_takes_another_stages_own_name_is_refused(package):
    package("other-decoders", {"best": "fake_other:Mine"}, fake_other=decoder_file("top-k"))
    registry = discover(user_folder=None)
    with pytest.raises(UsageError, match=r"it calls itself top-k, and so does package tinystory"):
        registry.get("best")
    assert registry.get("top-k") is TopK


def test_one_package_seen_twice_is_no_conflict(package):
    """An editable install has its metadata in site-packages and an .egg-info beside its sources."""
    package("other_decoders", {"mine": "fake_older:Mine"}, folder="hidden")  # what comes later is found first
    package("Other.Decoders", {"mine": "fake_other:Mine"}, fake_other=decoder_file("mine"))
    package("other-decoders", {"mine": "fake_other:Mine"}, folder="again")
    package("renamed", {"mine": "fake_other:Mine"})
    registry = discover(user_folder=None)
    assert registry.conflicts == {}
    assert registry.warnings == []


def test_the_users_folder_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv(plugins.NO_PLUGINS, raising=False)
    folder = tmp_path / "tinystory" / "decoders"
    folder.mkdir(parents=True)
    assert decoders_folder() == folder
    (folder / "cliff.py").write_text((EXAMPLES / "one_file_decoder.py").read_text())
    (folder / "_helper.py").write_text("raise RuntimeError")
    (folder / "notes.txt").write_text("no decoder")
    registry = discover()
    assert registry.warnings == []
    assert registry.source("cliff") == str(folder / "cliff.py")
    decoder = parse_spec("cliff | greedy", registry)
    assert conformance(decoder) == []
    assert not list(folder.glob("__pycache__"))
    monkeypatch.setenv(plugins.NO_PLUGINS, "1")
    assert "cliff" not in discover().names()


def test_other_packages_can_be_left_out(package, monkeypatch):
    package("other-decoders", {"mine": "fake_other:Mine"}, fake_other=decoder_file("mine"))
    monkeypatch.setenv(plugins.NO_PLUGINS, "1")
    names = discover().names()
    assert "mine" not in names
    assert set(names) >= BUILT_IN


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("x = 1\ndef f(:\n", ":2: SyntaxError: invalid syntax"),
        ("import nowhere_to_be_found", ":1: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("\n\n1 / 0", ":3: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)", ":2: SystemExit: 3"),
        ("\nraise KeyboardInterrupt", ":2: KeyboardInterrupt"),
        ("\nraise BaseException('no')", ":2: BaseException: no"),
        ("\0", "SyntaxError"),
        ("raise ValueError('a\\n\\x1b[2Jb' + 'c' * 1000)", ":1: "),
        ("x = 1", "it defines no decoder"),
        ("from tinystory_decoders.top_k import TopK", "it defines no decoder"),
        (decoder_file("Bad Name"), "class Mine has the name 'Bad Name'"),
        (decoder_file("bad--name"), "class Mine has the name 'bad--name'"),
        (decoder_file("mine").replace("@dataclass(frozen=True)", ""), "not a frozen dataclass"),
        (decoder_file("mine").replace("frozen=True", ""), "not a frozen dataclass"),
        (
            decoder_file("mine").replace('option(1.0, help="how much")', "1.0"),
            "Mine.much is not declared with option()",
        ),
        (
            decoder_file("mine").replace("much: float", "much: list[float]"),
            "has the type list[float], which a spec cannot",
        ),
        (decoder_file("mine").replace("much: float", "much: Tensor"), "NameError: name 'Tensor' is not defined"),
        (decoder_file("mine").replace("__call__", "call"), "class Mine does not define __call__"),
        (decoder_file("mine").replace("LogitsProcessor", "Stage"), "is not a LogitsProcessor, Sampler or Search"),
    ],
)
def test_a_broken_file_costs_one_warning_or_is_refused_where_it_was_named(tmp_path, source, reason):
    path = tmp_path / "mine.py"
    path.write_text(source)
    before = set(sys.modules)
    registry = discover(user_folder=tmp_path)
    (warning,) = registry.warnings
    assert str(path) in warning
    assert reason in warning
    assert warning.isprintable()
    assert set(registry.names()) >= BUILT_IN
    assert "mine" not in registry.names()
    with pytest.raises(UsageError) as caught:
        discover([path], user_folder=None)
    assert str(caught.value) == warning
    assert not [name for name in set(sys.modules) - before if "decoder_file" in name]


@pytest.mark.parametrize("name", ["missing.py", "nul\0byte.py", "x" * 5000, "."])
def test_a_missing_decoder_file_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="there is no decoder file") as caught:
        discover([tmp_path / name])
    assert str(caught.value).isprintable()


def test_a_file_may_define_several_stages_on_a_base(tmp_path):
    path = tmp_path / "several.py"
    path.write_text(
        textwrap.dedent(
            """
            from __future__ import annotations
            from dataclasses import dataclass
            from tinystory.decoding import LogitsProcessor, Sampler, option
            from tinystory_decoders.top_k import TopK

            class Base(LogitsProcessor):
                def __call__(self, logits, step):
                    return logits

            @dataclass(frozen=True)
            class One(Base):
                name = "one"
                n: int = option(2, help="how many")

            @dataclass(frozen=True)
            class Two(Sampler):
                name = "two"

                def __call__(self, logits, step):
                    return 0

            Uno = One
            """
        )
    )
    one, two = load_file(path)
    assert (one.name, two.name) == ("one", "two")
    assert options_of(one)[0].type is int
    registry = discover([path], user_folder=None)
    assert format_spec(parse_spec("one 3 | two", registry)) == "one 3 | two"


def test_a_file_that_takes_a_taken_name(tmp_path):
    """A taken name from the folder makes only this name unusable. From a file on the command line, it is an error."""
    path = tmp_path / "mine.py"
    path.write_text(decoder_file("top-k"))
    registry = discover(user_folder=tmp_path)
    assert len(registry.warnings) == 1
    with pytest.raises(UsageError) as caught:
        registry.get("top-k")
    message = str(caught.value)
    assert message == registry.warnings[0] == registry.conflicts["top-k"]
    assert "package tinystory (tinystory_decoders.top_k:TopK)" in message
    assert f"{path}:Mine" in message
    assert registry.get("top-p")
    with pytest.raises(UsageError, match="two decoders are called top-k"):
        discover([path], user_folder=None)


def test_two_files_and_two_classes_of_one_name(tmp_path):
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text(decoder_file("mine"))
    two.write_text(decoder_file("mine"))
    with pytest.raises(UsageError) as caught:
        discover([one, two], user_folder=None)
    assert str(one) in str(caught.value)
    assert str(two) in str(caught.value)
    two.write_text(decoder_file("mine") + decoder_file("mine", "Other"))
    with pytest.raises(UsageError, match=r"two\.py:Mine, one in .*two\.py:Other"):
        discover([two], user_folder=None)


def test_a_file_named_twice_or_lying_in_the_folder_too_is_loaded_once(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(decoder_file("mine"))
    link = tmp_path / "folder" / "linked.py"
    link.parent.mkdir()
    link.symlink_to(path)
    registry = discover([path, path, link], user_folder=link.parent)
    assert registry.conflicts == {}
    assert "mine" in registry.names()


def test_links_that_lead_nowhere_do_not_stop_the_start(tmp_path):
    (tmp_path / "loop.py").symlink_to(tmp_path / "loop.py")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder.py").mkdir()
    registry = discover(user_folder=tmp_path)
    assert len(registry.warnings) == 3
    assert discover(user_folder=tmp_path / "missing").warnings == []


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), NotADirectoryError(20, "Not a directory")])
def test_a_folder_that_cannot_be_read_costs_at_most_a_warning(tmp_path, monkeypatch, error):
    def refuse(_folder):
        raise error

    monkeypatch.setattr(os, "listdir", refuse)
    registry = discover(user_folder=tmp_path)
    told = [f"the decoders in {tmp_path} cannot be read: Permission denied"]
    assert registry.warnings == (told if isinstance(error, PermissionError) else [])
    assert set(registry.names()) >= BUILT_IN


def test_what_decoder_files_print_is_not_output(tmp_path, capfd):
    path = tmp_path / "mine.py"
    path.write_text("print('noise')\n" + decoder_file("mine"))
    assert discover([path], user_folder=None).get("mine").name == "mine"
    assert capfd.readouterr() == ("", "noise\n")


def test_a_pipe_in_the_place_of_a_decoder_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "mine.py")
    (tmp_path / "other.py").symlink_to("/dev/zero")
    assert len(discover(user_folder=tmp_path).warnings) == 2


def test_add_refuses_what_is_no_stage():
    registry = Registry()
    registry.add(TopK, "here")
    registry.add(TopK, "here")
    with pytest.raises(UsageError, match="one in here:TopK, one in there:TopK"):
        registry.add(TopK, "there")
    with pytest.raises(UsageError, match="is not a LogitsProcessor"):
        registry.add(int, "here")


@pytest.mark.slow
def test_the_example_packages_own_tests_pass():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    folder = EXAMPLES / "tinystory-restless"
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_the_example_package_says_what_it_has(package):
    folder = EXAMPLES / "tinystory-restless"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    (module,) = folder.glob("tinystory_*.py")
    package(project["name"], project["entry-points"]["tinystory.decoders"], **{module.stem: module.read_text()})
    try:
        registry = discover(user_folder=None)
        cls = registry.get("restless")
        assert registry.source("restless") == project["name"]
        assert conformance(cls(growth=0.5)) == []
    finally:
        sys.modules.pop(module.stem, None)
