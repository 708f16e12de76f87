"""The house: small rooms that say what they are for, modules of readable length, tests laid out like the code."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ("tinystory", "bench", "scripts", "decoders")
MOST_MODULES = 12
MOST_LINES = 400

MODULES = sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES})
ROOMS = [folder for folder in FOLDERS if folder.name not in ("scripts", "decoders")]
DECODERS = [path for path in MODULES if path.parent.name == "decoders" and path.parent.parent == ROOT]

FOR_DECODERS = ("tinystory.decoding", "tinystory.words", "tinystory.errors")
"""The modules of tinystory that a decoder file may import; other decoder files are allowed, too."""


def relative(path):
    return str(path.relative_to(ROOT))


def docstring(path):
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder.name != "decoders"], ids=relative)
def test_a_room_has_twelve_modules_at_most(folder):
    """The folder `decoders` of the repository is a shelf with one file for each method, so it may hold more."""
    modules = [path.name for path in folder.glob("*.py") if not path.name.startswith("__")]
    assert len(modules) <= MOST_MODULES, modules


def test_every_room_says_what_it_is_for():
    assert [relative(room) for room in ROOMS if not docstring(room / "__init__.py").strip()] == []


def test_a_long_module_gives_its_reason():
    """A module of more than 400 lines says in its docstring why it has "more than 400 lines"."""
    too_long = {
        relative(path): n_lines
        for path in MODULES
        if (n_lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
        and "more than 400 lines" not in " ".join(docstring(path).split())
    }
    assert too_long == {}


def test_tests_are_laid_out_like_the_code():
    rooms = {path.name for path in (ROOT / "tinystory").iterdir() if (path / "__init__.py").exists()}
    others = {"bench", "scripts", "decoders", "fuzz", "house", "support"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("*.py"))}
    assert folders - rooms - others == set()
    strays = [path.name for path in (ROOT / "tests").glob("*.py") if path.name != "conftest.py"]
    assert strays == []


@pytest.mark.parametrize("path", DECODERS, ids=lambda path: path.stem)
def test_a_decoder_imports_the_doors_for_authors_only(path):
    """Code for type checkers and imports inside functions may also use torch; `hf` wraps transformers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_import = set(imports(tree.body))
    anywhere = set(imports(ast.walk(tree)))
    libraries = {"numpy", "torch"} | ({"transformers"} if path.stem == "hf" else set())
    for module in anywhere:
        package = module.split(".")[0]
        if package == "tinystory":
            assert module in FOR_DECODERS
        else:
            assert package in sys.stdlib_module_names | libraries | {"tinystory_decoders"}
    assert {module.split(".")[0] for module in at_import}.isdisjoint({"torch", "transformers"})


def imports(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
