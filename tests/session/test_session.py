"""Check that the cached forms of a model equal the whole-sequence form, for any history of the rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tinystory.checkpoint import load_model, read_header
from tinystory.decoding import Commit, Request
from tinystory.decoding.loop import run
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.errors import CheckpointError, UsageError
from tinystory.model.config import ModelConfig
from tinystory.model.transformer import Transformer
from tinystory.session.hf_session import HFSession
from tinystory.session.native import NativeSession
from tinystory.session.numpy_session import NumpySession

CONFIGS = {
    "llama": ModelConfig.llama(61, 2, 4, 32, 24, 40, n_kv_head=2),
    "llama-untied-bias": ModelConfig.llama(61, 2, 2, 16, 24, 40, tied_head=False, attention_bias=True),
    "gpt2": ModelConfig.gpt2(61, 2, 4, 32, 24),
}


def random_model(config, dtype=torch.float64):
    torch.manual_seed(1)
    model = Transformer(config).to(dtype)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


MODELS = {name: random_model(config) for name, config in CONFIGS.items()}


def full_logits(model, row):
    with torch.no_grad():
        return model(torch.tensor([row]))[0, -1].float()


def assert_equal_logits(logits, model, rows):
    for got, row in zip(logits, rows, strict=True):
        torch.testing.assert_close(got, full_logits(model, row), atol=1e-4, rtol=1e-4)


ids = st.integers(0, 60)
rows_strategy = st.lists(st.lists(ids, min_size=1, max_size=14), min_size=1, max_size=4)


@pytest.mark.parametrize("name", CONFIGS)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_history_equals_the_full_forward(name, data):
    """Prefill, decode, rewind and reorder in any order give the logits of a computation without cache."""
    model = MODELS[name]
    session = NativeSession(model)
    rows = data.draw(rows_strategy)
    assert_equal_logits(session.prefill(rows), model, rows)
    for verb in data.draw(
        st.lists(st.sampled_from(["decode", "decode many", "rewind", "reorder", "prefill"]), max_size=5)
    ):
        longest = max(map(len, rows))
        if verb == "decode" and longest < 24:
            new = data.draw(st.lists(ids, min_size=len(rows), max_size=len(rows)))
            rows = [[*row, token] for row, token in zip(rows, new, strict=True)]
            assert_equal_logits(session.decode(torch.tensor(new)), model, rows)
        elif verb == "decode many" and longest < 21:
            n = data.draw(st.integers(1, 3))
            new = data.draw(st.lists(st.lists(ids, min_size=n, max_size=n), min_size=len(rows), max_size=len(rows)))
            logits = session.decode(torch.tensor(new))
            for t in range(n):
                assert_equal_logits(
                    logits[:, t], model, [row + more[: t + 1] for row, more in zip(rows, new, strict=True)]
                )
            rows = [row + more for row, more in zip(rows, new, strict=True)]
        elif verb == "rewind":
            cuts = [data.draw(st.integers(0, len(row) - 1)) for row in rows]
            session.rewind(cuts)
            rows = [row[: len(row) - n] for row, n in zip(rows, cuts, strict=True)]
        elif verb == "reorder":
            order = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4))
            session.reorder(torch.tensor(order))
            rows = [rows[i] for i in order]
        elif verb == "prefill":
            stems = data.draw(st.lists(st.sampled_from(rows), min_size=1, max_size=3))
            rows = [(stem + data.draw(st.lists(ids, max_size=4)))[:24] for stem in stems]
            assert_equal_logits(session.prefill(rows), model, rows)


def test_float32_decode_stays_within_tolerance():
    model = random_model(CONFIGS["llama"], torch.float32)
    session = NativeSession(model)
    row = [3, 5, 7]
    logits = session.prefill([row])
    for _ in range(20):
        torch.testing.assert_close(logits[0], full_logits(model, row), atol=1e-4, rtol=1e-4)
        row.append(int(logits[0].argmax()))
        logits = session.decode(torch.tensor(row[-1:]))


def test_prefill_computes_a_shared_prefix_once(monkeypatch):
    session = NativeSession(MODELS["llama"])
    fed = []
    forward = session._forward
    monkeypatch.setattr(
        session, "_forward", lambda token_ids: (fed.append((len(token_ids), len(token_ids[0]))), forward(token_ids))[1]
    )
    session.prefill([[1, 2, 3, 4, 5, 6]] * 3)
    session.prefill([[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 9]])
    assert fed == [(1, 6), (2, 2)]


def test_fusing_keeps_the_model_whole_and_holds_weights_once():
    model = random_model(CONFIGS["llama"])
    before = full_logits(model, [1, 2, 3])
    first = NativeSession(model)
    second = first.open()
    assert first.prefill([[1, 2]]).equal(second.prefill([[1, 2]]))
    attn = model.blocks[0].attn
    assert attn.q.weight.untyped_storage().data_ptr() == attn.v.weight.untyped_storage().data_ptr()
    assert first._layers[0].qkv.weight.data_ptr() == second._layers[0].qkv.weight.data_ptr()
    torch.testing.assert_close(full_logits(model, [1, 2, 3]), before)


def test_a_large_cache_grows_when_needed():
    config = ModelConfig.llama(61, 2, 2, 128, 40_000, 16)
    model = random_model(config, torch.float32)
    session = NativeSession(model)
    row = [int(i) for i in torch.randint(0, 61, (300,))]
    session.prefill([row[:250]])
    capacity = session._cache.layers()[0][0].shape[2]
    logits = session.decode(torch.tensor([row[250:]]))[:, -1]
    assert capacity < 300 <= session._cache.layers()[0][0].shape[2] < 40_000
    torch.testing.assert_close(logits[0], full_logits(model, row), atol=1e-3, rtol=1e-3)


def test_hidden_is_what_the_head_saw():
    model = MODELS["gpt2"]
    session = NativeSession(model)
    logits = session.prefill([[1, 2, 3], [4, 5]])
    with torch.inference_mode():
        torch.testing.assert_close(model.head(session.hidden()).float(), logits)
    session.rewind([1, 0])
    with pytest.raises(UsageError, match="no hidden state"):
        session.hidden()


def test_misuse_is_refused_in_one_line():
    session = NativeSession(MODELS["llama"])
    for prompts, message in [([[]], "0 tokens"), ([[1] * 25], "1 to 24"), ([[61]], "0 to 60"), ([], "no prompt")]:
        with pytest.raises(UsageError, match=message):
            session.prefill(prompts)
    session.prefill([[1] * 24])
    with pytest.raises(UsageError, match="context is full"):
        session.decode(torch.tensor([1]))
    with pytest.raises(UsageError, match="cannot rewind 25"):
        session.rewind([25])
    with pytest.raises(UsageError, match="cannot open"):
        session.open("elsewhere")


@pytest.fixture(scope="module")
def hf_model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        max_position_embeddings=24,
    )  # fmt: skip
    return transformers.GPTNeoXForCausalLM(config).eval()


@pytest.mark.parity
def test_any_transformers_model_runs_behind_the_same_verbs(hf_model):
    session = HFSession(hf_model)
    assert session.can_rewind

    def expect(logits, rows):
        with torch.no_grad():
            for got, row in zip(logits, rows, strict=True):
                torch.testing.assert_close(got, hf_model(torch.tensor([row])).logits[0, -1], atol=1e-4, rtol=1e-4)

    expect(session.prefill([[1, 2, 3], [4, 5]]), [[1, 2, 3], [4, 5]])
    expect(session.decode(torch.tensor([6, 7])), [[1, 2, 3, 6], [4, 5, 7]])
    session.rewind([2, 0])
    session.reorder(torch.tensor([0, 0, 1]))
    expect(session.decode(torch.tensor([[8, 9]] * 3))[:, -1], [[1, 2, 8, 9], [1, 2, 8, 9], [4, 5, 7, 8, 9]])
    expect(session.prefill([[1, 2, 8, 10]]), [[1, 2, 8, 10]])
    assert session.hidden().shape == (1, 32)


@pytest.mark.parity
def test_a_session_leaves_nothing_in_the_model(hf_model):
    """Each session, and each second session, once left a hook in the model."""
    session = HFSession(hf_model)
    session.prefill([[1, 2]])
    session.open().prefill([[3, 4]])
    assert not hf_model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["Mamba", "OpenAIGPT"])
def test_a_model_without_an_ordinary_cache_runs_whole_rows(kind):
    """These models once raised AttributeError, because their output has no past_key_values."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "Mamba":
        config = transformers.MambaConfig(vocab_size=31, hidden_size=16, num_hidden_layers=1, state_size=4)
        model = transformers.MambaForCausalLM(config).eval()
    else:
        config = transformers.OpenAIGPTConfig(vocab_size=31, n_positions=16, n_embd=16, n_layer=1, n_head=2)
        model = transformers.OpenAIGPTLMHeadModel(config).eval()
    session = HFSession(model)
    assert session.max_seq_len == (2048 if kind == "Mamba" else 16)

    def expect(logits, row):
        with torch.no_grad():
            torch.testing.assert_close(logits[0], model(torch.tensor([row])).logits[0, -1], atol=1e-4, rtol=1e-4)

    expect(session.prefill([[1, 2, 3]]), [1, 2, 3])
    expect(session.decode(torch.tensor([4])), [1, 2, 3, 4])
    session.rewind([2])
    expect(session.decode(torch.tensor([5])), [1, 2, 5])
    expect(session.prefill([[1, 2, 5, 6]]), [1, 2, 5, 6])


@pytest.mark.parity
def test_a_sliding_window_says_it_cannot_rewind():
    transformers = pytest.importorskip("transformers")
    config = transformers.MistralConfig(
        vocab_size=31, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=4,
    )  # fmt: skip
    session = HFSession(transformers.MistralForCausalLM(config).eval())
    assert not session.can_rewind
    with pytest.raises(UsageError, match="cannot be rewound"):
        session.rewind([0])


@pytest.mark.parity
def test_an_encoder_is_refused(tmp_path):
    """BERT once wrote nonsense, because transformers runs it as a causal model with only a warning."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=31, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordLevel", "vocab": {"a": 0}}}')
    with pytest.raises(CheckpointError, match="cannot write"):
        HFSession.from_header(read_header(tmp_path), "float32", "cpu", None, frozenset())


@pytest.mark.parity
@pytest.mark.parametrize("case", ["gpt2", "llama grouped tied", "llama untied"])
def test_greedy_ids_equal_transformers_over_200_tokens(case, tmp_path):
    """The ids come through checkpoint, session, loop and greedy decoder, in float32, as users run it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(4)
    shared = {"vocab_size": 61, "bos_token_id": 0, "eos_token_id": None, "initializer_range": 0.4}
    if case == "gpt2":
        config = transformers.GPT2Config(**shared, n_positions=256, n_embd=32, n_layer=2, n_head=2)
        theirs = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            **shared, max_position_embeddings=256, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2 if "grouped" in case else 4, intermediate_size=48,
            tie_word_embeddings="untied" not in case,
        )  # fmt: skip
        theirs = transformers.LlamaForCausalLM(config)
    theirs.eval().save_pretrained(tmp_path)
    prompt = [0, 5, 9, 17]
    expected = theirs.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 4), max_new_tokens=200, do_sample=False, pad_token_id=1
    )[0, 4:].tolist()
    decoder = parse_spec("greedy", discover(user_folder=None))
    for session in (NativeSession(load_model(read_header(tmp_path))), HFSession(theirs)):
        jobs = [(decoder, Request(tuple(prompt), 200, 0)), (decoder, Request((3, 1), 200, 0))]
        commits = [event for job, event in run(session, jobs) if job == 0 and isinstance(event, Commit)]
        ids = [token.id for commit in commits for token in commit.tokens]
        assert len(set(expected)) > 3
        assert ids == expected


@pytest.mark.parametrize("wrong", [[-1], [300], [[5, 10**9]]])
def test_a_token_that_the_vocabulary_has_not_is_refused(checkpoint, wrong):
    """The torch session and the one without torch both refuse it; a compiled step would read beyond its table."""
    header = read_header(checkpoint)
    for session in (NativeSession(load_model(header)), NumpySession(header, 0, frozenset())):
        session.prefill([[1, 2, 3]])
        with pytest.raises(UsageError, match="is not of this vocabulary, which has 0 to 299"):
            session.decode(wrong)
