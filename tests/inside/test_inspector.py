"""A loaded model is looked into whatever engine writes with it."""

import pytest
import torch

from tinystory.errors import UsageError
from tinystory.inside.inspector import Inspector
from tinystory.session.loading import load


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_any_engine(checkpoint, dtype):
    loaded = load(str(checkpoint), dtype)
    run = Inspector(loaded.header, loaded.session).run([0, 5, 9])
    logits = load(str(checkpoint)).session.prefill([[0, 5, 9]])[0]
    assert torch.allclose(run.logits[-1], logits, atol=1e-4)


@pytest.mark.parity
def test_a_model_of_another_family(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(
        '{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}'
    )
    loaded = load(str(tmp_path))
    inspector = Inspector(loaded.header, loaded.session)
    run = inspector.run([1, 5, 9])
    assert torch.allclose(run.logits[-1], loaded.session.prefill([[1, 5, 9]])[0], atol=1e-4)
    assert run.attention.shape == (2, 4, 3, 3)
    with pytest.raises(UsageError, match="Llama and GPT-2 models only; this is a gpt_neox"):
        inspector.effects([1, 5], 9)
