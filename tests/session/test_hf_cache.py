"""Caches of transformers models: what a session does with one equals a pass over the whole row, or is switched off."""

import copy
from types import SimpleNamespace

import pytest
import torch

from tinystory.errors import UsageError
from tinystory.session.hf_cache import CacheAbilities, cut, examine_cache, rope_stage
from tinystory.session.hf_session import HFSession

V = 41
SIZES = {
    "vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
    "max_position_embeddings": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IDS = [3 + index * 7 % 37 for index in range(45)]


class DynamicCache:
    """The kind of cache that keeps every token in a place of its own; here, the ids alone."""

    layers = ()

    def __init__(self, can_copy=True, can_cut=True):
        self.ids = []
        self.can_copy, self.can_cut = can_copy, can_cut

    def crop(self, n):
        if self.can_cut:
            del self.ids[n:]

    def __deepcopy__(self, _memo):
        twin = copy.copy(self)
        twin.ids = list(self.ids) if self.can_copy else self.ids
        return twin


class Summing:
    """A small model whose logits follow from the last token and, a little, from all that it sees. It may lie."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, lie=None, size=1e-4):
        self.lie, self.size, self.n_passes = lie, size, 0
        self.config = SimpleNamespace(model_type="summing", pad_token_id=0, get_text_config=lambda: self.config)
        self.table = torch.randn(V, V, generator=torch.Generator().manual_seed(1))

    def parameters(self):
        return [self.table]

    def __call__(self, input_ids, past_key_values=None, use_cache=None):
        self.n_passes += 1
        ids = input_ids[0].tolist()
        cache, seen = None, []
        if use_cache and self.lie != "no cache":
            cache = past_key_values or DynamicCache(self.lie != "copy", self.lie != "cut")
            seen = [] if self.lie == "no past" else list(cache.ids)
            cache.ids += ids
        logits = []
        for n, token_id in enumerate(ids):
            row = seen + ids[: n + 1]
            if self.lie == "encoder":
                row = seen + ids
            if self.lie == "at once" and seen:
                row = [*seen, token_id]
            logits.append(self.size * (self.table[token_id] + 0.02 * self.table[row].mean(0)))
        if self.lie == "random":
            logits = [torch.randn(V) for _ in ids]
        if self.lie == "nan":
            logits = [torch.full((V,), torch.nan) for _ in ids]
        return SimpleNamespace(logits=torch.stack(logits)[None], past_key_values=cache)


@pytest.mark.parametrize(
    ("lie", "abilities"),
    [
        (None, CacheAbilities(True)),
        ("no cache", CacheAbilities(False)),
        ("no past", CacheAbilities(False)),
        ("at once", CacheAbilities(True, appends_many=False)),
        ("cut", CacheAbilities(True, can_cut=False)),
        ("copy", CacheAbilities(True, can_copy=False)),
    ],
)
@pytest.mark.parametrize("size", [1e-4, 1, 1e4])
def test_what_a_cache_cannot_do_is_found(lie, abilities, size):
    """Logits near zero once passed every test, because the tolerance was a number."""
    model = Summing(lie, size)
    assert examine_cache(model, 48, V) == abilities
    assert model.n_passes <= (28 if lie == "at once" else 11)


@pytest.mark.parametrize(
    ("lie", "message"), [("encoder", "sees the tokens that follow"), ("random", "pass to pass"), ("nan", "are NaN")]
)
def test_a_model_that_cannot_write_is_refused(lie, message):
    with pytest.raises(ValueError, match=message):
        examine_cache(Summing(lie), 48, V)
    with pytest.raises(ValueError, match=message):
        examine_cache(Summing(lie), 2, V)


@pytest.mark.parametrize("max_seq_len", [1, 2, 5, 6, 7, 48])
@pytest.mark.parametrize("vocab_size", [1, 2, V])
def test_the_examination_fits_every_model(max_seq_len, vocab_size):
    assert examine_cache(Summing(), max_seq_len, vocab_size).works == (max_seq_len >= 6)


def built(name, size=0.3, **changes):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES | changes)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, size)
    return model


@torch.no_grad()
def expect(model, logits, row):
    """Compare (T, V) logits with those of a pass over the whole row."""
    expected = model(torch.tensor([row])).logits[0, -len(logits) :]
    torch.testing.assert_close(logits, expected, atol=1e-4 * float(expected.std()), rtol=1e-4)


def expect_verbs(model):
    """Compare each verb that a session offers; the rows grow to 45 tokens, and shrink to 10."""
    session = HFSession(model)
    expect(model, session.prefill([IDS[:20]]), IDS[:20])
    expect(model, session.decode([IDS[20:24]])[0], IDS[:24])
    if session.can_reorder:
        session.reorder([0, 0])
        both = session.decode([5, 6])
        expect(model, both[:1], [*IDS[:24], 5])
        expect(model, both[1:], [*IDS[:24], 6])
        session.reorder([0])
    else:
        session.decode([5])
    for index in range(25, 45):
        logits = session.decode([IDS[index]])
    row = [*IDS[:24], 5, *IDS[25:45]]
    expect(model, logits, row)
    if session.can_rewind:
        session.rewind([35])
        expect(model, session.decode([IDS[30:33]])[0, -1:], row[:10] + IDS[30:33])
        row = row[:10] + IDS[30:33]
    expect(model, session.prefill([[*row[:8], 4, 5]]), [*row[:8], 4, 5])
    return session


LONG_ROPE = {"rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
FACTORS = {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 32}
DYNAMIC_ROPE = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
MORE = {"num_key_value_heads": 2}
EXPERTS = MORE | {"num_local_experts": 2}
MAMBA = MORE | {"mamba_n_heads": 4, "mamba_d_state": 8, "mamba_chunk_size": 8, "attn_layer_indices": [1]}
LOCAL = {"attention_types": [[["global", "local"], 1]], "window_size": 4, "num_layers": 2, "num_heads": 4}
CASES = {
    "long positions": ("Phi3", FACTORS, True),
    "dynamic positions": ("Qwen2", MORE | {"rope_parameters": DYNAMIC_ROPE}, True),
    "a linear state beside the layers": ("MiniMax", EXPERTS | {"head_dim": 8, "block_size": 8}, False),
    "a window": ("Mistral", MORE | {"sliding_window": 6}, False),
    "a window longer than the examination": ("Mistral", MORE | {"sliding_window": 40}, False),
    "experts": ("Mixtral", EXPERTS, True),
}  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [0.02, pytest.param(0.3, marks=pytest.mark.slow)])
def test_verbs_equal_whole_rows(case, size):
    name, changes, can_rewind = CASES[case]
    session = expect_verbs(built(name, size, **changes))
    assert session.can_rewind == can_rewind
    assert session.abilities.works
    if not can_rewind:
        with pytest.raises(UsageError, match="cannot be rewound"):
            session.rewind([1])


SLOW_CASES = {
    "bamba": ("Bamba", MAMBA, None),
    "qwen3 next": ("Qwen3Next", MORE | {
        "head_dim": 8, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
        "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    }, False),
    "lfm2": ("Lfm2", MORE | {"layer_types": ["conv", "full_attention"]}, False),
    "recurrent gemma": ("RecurrentGemma", {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8}, None),
    "positions in the attention": ("Bloom", {"n_head": 4, "n_layer": 2}, True),
    "mamba": ("Mamba", {"state_size": 4}, True),
    "gpt neo": ("GPTNeo", LOCAL, True),
    "bart's decoder": ("Bart", {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4}, None),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("case", SLOW_CASES)
def test_verbs_of_further_architectures_equal_whole_rows(case):
    name, changes, can_rewind = SLOW_CASES[case]
    session = expect_verbs(built(name, **changes))
    assert can_rewind in (None, session.can_rewind)


@pytest.mark.parity
@pytest.mark.parametrize("n_prompt", [31, *(pytest.param(n, marks=pytest.mark.slow) for n in (29, 32, 33))])
def test_long_positions_change_where_transformers_changes_them(n_prompt):
    """The cache once kept the short positions past the length of the first training."""
    model = built("Phi3", **FACTORS)
    prompt = torch.tensor([IDS[:n_prompt]])
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
    session = HFSession(model)
    logits, ids = session.prefill([IDS[:n_prompt]]), []
    for _ in range(12):
        ids.append(int(logits[0].argmax()))
        logits = session.decode(ids[-1:])
    assert ids == expected[0, n_prompt:].tolist()
    session.prefill([IDS[:30]])
    alone = torch.cat([session.decode([token_id]) for token_id in IDS[30:36]])
    session.rewind([6])
    torch.testing.assert_close(session.decode([IDS[30:36]])[0], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (None, [(), (), ()]),
        ({"rope_type": "default", "rope_theta": 1e4}, [(), (), ()]),
        ({"rope_type": "longrope", "original_max_position_embeddings": 32}, [(0,), (0,), (1,)]),
        ({"rope_type": "dynamic"}, [(33,), (33,), (33,)]),
        ({"full": {"rope_type": "longrope", "original_max_position_embeddings": 31}, "window": {}}, [(0,), (1,), (1,)]),
    ],
)
def test_rope_stages(rope, expected):
    config = SimpleNamespace(rope_parameters=rope, max_position_embeddings=33)
    assert [rope_stage(config, length) for length in (31, 32, 33)] == expected


def test_cutting_nothing_is_nothing():
    cut(None, 3)
    cut(DynamicCache(), 0)


@pytest.mark.parity
def test_a_second_session_is_not_examined_again():
    model = built("Mistral", **MORE)
    session = HFSession(model)
    model.forward = None
    assert session.open().abilities is session.abilities


ENCODERS = ["Roberta", "XLM", "RemBert", "Ernie", "Electra"]
HEADS = {"XLM": "XLMWithLMHeadModel"}
SMALL = {"emb_dim": 32, "n_heads": 4, "n_layers": 1}


@pytest.mark.parity
@pytest.mark.parametrize("name", [ENCODERS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in ENCODERS[1:])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoders_cannot_write(name, dtype):
    """Some of them once wrote nonsense, since they were not in a list of names."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {key: value for key, value in SMALL.items() if name in HEADS} | SIZES | {"num_hidden_layers": 1}
    config = getattr(transformers, f"{name}Config")(**small)
    model = getattr(transformers, HEADS.get(name, f"{name}ForCausalLM"))(config).to(dtype)
    with pytest.raises(ValueError, match="sees the tokens that follow"):
        HFSession(model)


@pytest.mark.slow
@pytest.mark.parity
def test_an_encoder_that_was_made_a_decoder_writes():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.BertLMHeadModel(transformers.BertConfig(**SIZES, is_decoder=True)).eval()
    expect_verbs(model)


@pytest.mark.parity
def test_a_row_of_a_padded_table_of_positions_is_full_before_its_last_position():
    """The context was as long as the table, of which the padding takes some: the last tokens ended the program."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**SIZES | {"num_hidden_layers": 1, "pad_token_id": 5}, is_decoder=True)
    session = HFSession(transformers.RobertaForCausalLM(config))
    assert session.max_seq_len == SIZES["max_position_embeddings"] - 6
    row = [7 + n % 30 for n in range(session.max_seq_len)]
    expect(session.model, session.prefill([row]), row)
    with pytest.raises(UsageError, match="context is full"):
        session.decode([8])
