"""Shared fixtures of all tests: one torch thread, the public test data if there is any, a tiny tokenizer."""

import importlib.util
import itertools
import json
import os
import signal
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("torch"):
    import torch

    torch.set_num_threads(1)


_LARGE = ("torch", "transformers", "datasets", "pyarrow", "matplotlib", "gguf", "regex")
_MISSING = [name for name in _LARGE if not importlib.util.find_spec(name)]
"""Large libraries that are not installed. The program needs none of them for a first story, so most tests can run."""


class _Skipping:
    """Skips a test, or a module of tests, as soon as it imports a library that is not installed."""

    def find_spec(self, name, _path=None, _target=None):
        """Skip if one of the large libraries is asked for."""
        if name in _MISSING:
            pytest.skip(f"{name} is not installed", allow_module_level=True)


if _MISSING:
    sys.meta_path.append(_Skipping())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Report a failure as skipped if a library was missing in a thread or in another process of the test."""
    report = yield
    signs = [sign for name in _MISSING for sign in (f"{name} is not installed", f"No module named '{name}'")]
    sign = next((sign for sign in signs if report.failed and sign in report.longreprtext), None)
    if sign is not None:
        report.outcome, report.longrepr = "skipped", (str(item.path), 0, f"Skipped: {sign}")
    return report


# Who starts the tests may ignore signals, as nohup does; the tests and their children would then ignore them, too.
for _name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP"):
    if (_signal := getattr(signal, _name, None)) and signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, signal.default_int_handler if _name == "SIGINT" else signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared_data():
    """The folder with the public test data (checkpoints, stories, tokenizers), read-only."""
    default = Path(__file__).resolve().parent.parent / ".." / "shared"
    folder = Path(os.environ.get("TINYSTORY_TEST_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set TINYSTORY_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def word_tokenizer_json():
    """A tokenizer.json of four words, `<s>` (id 0) first in every text."""
    template = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": 0,
                    "content": "<s>",
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
            ],
            "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": template,
                "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
            },
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "unk_token": "once",
                "vocab": {"<s>": 0, "once": 1, "upon": 2, "a": 3, "time": 4},
            },
        }
    )


ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def load_script():
    """Return a function that loads a module of scripts/, which is no package."""

    def load(name):
        spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def stories():
    """Sixty little stories of 150 to 200 bytes, with a newline and a character of several bytes."""
    whos, whats, wheres = ["Tim", "Zoë", "a small owl", "the old frog"], ["kite", "red drum", "cake"], ["hill", "pond"]
    ends = ["They all laughed.", 'She said, "Thank you!"', "It was a good day – and then they slept."]
    return [
        f"Once upon a time, {who} found a {what} near the {where}. It was very big.\nThen {who} "
        f"ran home to show the {what} to a friend. {end}"
        for who, what, where, end in itertools.product(whos, whats, wheres, ends)
    ][:60]


@pytest.fixture(scope="session")
def story_file(stories, tmp_path_factory):
    """The stories as a text file with separators."""
    path = tmp_path_factory.mktemp("stories") / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(stories, load_script):
    """A byte-level BPE of 300 tokens trained on the stories by the script that trains ours."""
    from tinystory.text.tokenizer import Tokenizer

    fast = load_script("train_tokenizer").train(stories, 300)
    return Tokenizer(fast, 0, frozenset({0}))


@pytest.fixture(scope="session")
def checkpoint(tokenizer, tmp_path_factory):
    """A saved tiny llama with random weights and a context of 64 tokens."""
    from tinystory.checkpoint.save import save_checkpoint
    from tinystory.model.config import ModelConfig
    from tinystory.model.transformer import Transformer

    torch.manual_seed(3)
    model = Transformer(ModelConfig.llama(300, 2, 2, 32, 64, 48))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(directory, model, tokenizer.to_json(), bos_id=0, eos_ids={0}, provenance={"data": "none"})
    return directory
