"""A model behind the studio: loading, waiting, failing, and stories in parts."""

from functools import partial

import pytest
from scripted_chat import scripted_studio, write

from tinystory.decoding.plugins import discover
from tinystory.errors import TinystoryError
from tinystory.session.steps.compiled_code import compiled_code
from tinystory.studio.backend import ModelBackend


@pytest.fixture(scope="module")
def registry():
    return discover(user_folder=None)


@pytest.fixture
def make(registry):
    """Return a function that makes a studio with a scripted model."""
    return partial(scripted_studio, registry)


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory):
    """Return the folder of a random model over bytes. It writes control characters and broken UTF-8, and never ends."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    from tinystory.checkpoint import save_checkpoint
    from tinystory.model.config import ModelConfig
    from tinystory.model.transformer import Transformer

    end = "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet, 1)} | {end: 0}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([end])
    fast.post_processor = processors.TemplateProcessing(single=f"{end} $A", special_tokens=[(end, 0)])
    torch.manual_seed(0)
    model = Transformer(ModelConfig.llama(257, 1, 1, 32, 128, 64, tied_head=False)).eval()
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_checkpoint(path, model, fast.to_str(), bos_id=0, eos_ids=(), provenance={})
    return path


def test_a_story_in_several_turns_is_the_story_in_one(make, tiny_checkpoint):
    """This holds even if a turn ends in the middle of a character."""
    backend = ModelBackend.open(str(tiny_checkpoint), "float32", "cpu")
    assert backend.wait(lambda: False)
    whole = make(backend=backend, max_tokens=91)
    write(whole, "Once é")
    pieces = make(backend=backend, max_tokens=7)
    write(pieces, "Once é")
    while len(pieces.token_ids) < len(whole.token_ids):
        write(pieces, "")
    assert len(whole.token_ids) == 8 + 91
    assert (pieces.token_ids, pieces.text) == (whole.token_ids, whole.text)
    assert whole.tree.n_prompt(whole.tree.current) == pieces.tree.n_prompt(pieces.tree.current) == 8


def test_backend_tells_of_its_model_before_and_after_loading(tiny_checkpoint):
    backend = ModelBackend.open(str(tiny_checkpoint), "float32", "cpu")
    assert backend.loading
    assert backend.max_seq_len == 128
    assert dict(backend.facts())["runs"] == "in float32 on cpu, loading"
    assert backend.wait(lambda: False)
    backend.start()
    assert not backend.loading
    assert dict(backend.facts())["runs"] == f"in float32 on cpu{', compiled' * (compiled_code() is not None)}, loaded"


def test_backend_that_cannot_load_says_so_each_time(tiny_checkpoint):
    backend = ModelBackend.open(str(tiny_checkpoint), "float32", "nosuchdevice")
    for _ in range(2):
        with pytest.raises(TinystoryError, match=r"did not load: device 'nosuchdevice' is not available"):
            backend.wait(lambda: False)
    assert dict(backend.facts())["runs"] == "in float32 on nosuchdevice, failed to load"


def test_waiting_for_a_backend_can_be_cancelled(tiny_checkpoint, monkeypatch):
    backend = ModelBackend.open(str(tiny_checkpoint), "float32", "cpu")
    monkeypatch.setattr(backend, "start", lambda: None)
    assert not backend.wait(lambda: True)
