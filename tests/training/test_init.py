"""A run that starts from a checkpoint keeps its architecture and its vocabulary exactly, whatever they are."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from tinystory.checkpoint import load_model, read_header, save_checkpoint
from tinystory.checkpoint.formats.llama2c import import_llama2c
from tinystory.errors import UsageError
from tinystory.model.config import ModelConfig, RopeScaling
from tinystory.model.transformer import Transformer
from tinystory.text.tokenizer import Tokenizer
from tinystory.training.config import resolve_run
from tinystory.training.distributed import Ranks
from tinystory.training.loop import make_trainer
from tinystory.training.opening import begin_run, load_teacher, resume_run

ALONE = Ranks(0, 1, torch.device("cpu"))
BOS, EOS, N_ROWS = 1, 2, 320
"""The rows are more than the tokens of the vocabulary, as in padded models."""

CONFIGS = {
    "llama, other numbers": ModelConfig.llama(
        N_ROWS, 1, 2, 16, 32, 24, d_head=10, norm_eps=1e-6, rope_theta=500.0, activation="gelu_tanh",
        rope_scaling=RopeScaling("linear", 2.0),
    ),
    "llama, untied, biases, groups": ModelConfig.llama(
        N_ROWS, 1, 2, 16, 32, 24, n_kv_head=1, tied_head=False, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 16),
        attention_bias=True, attention_out_bias=True, ff_bias=True,
    ),
    "gpt2, exact gelu, untied": ModelConfig.gpt2(
        N_ROWS, 1, 2, 16, 32, 40, activation="gelu", norm_eps=1e-3, tied_head=False
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    """A tokenizer.json with `<s>` (1) and `</s>` (2), as in Llama 2 and in imports of llama2.c."""
    document = json.loads(tokenizer.to_json())
    tokens = [token for token, _ in sorted(document["model"]["vocab"].items(), key=lambda item: item[1])]
    names = ["<unk>", "<s>", "</s>"]
    kept = [token for token in tokens if token != "<|endoftext|>"]
    document["model"]["vocab"] = {token: i for i, token in enumerate([*names, *kept])}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    document["added_tokens"] = [{"id": i, "content": name, "special": True, **flags} for i, name in enumerate(names)]
    document["post_processor"] = None
    return json.dumps(document)


@pytest.fixture
def make_init(tmp_path, vocabulary):
    def make(config):
        model = Transformer(config)
        model.init_weights(4)
        save_checkpoint(tmp_path / "init", model, vocabulary, bos_id=BOS, eos_ids={EOS}, provenance={})
        return tmp_path / "init"

    return make


@pytest.fixture
def begin(story_file, tmp_path):
    """Return a function that opens a run which starts from a checkpoint."""

    def begin_from(init, **fields):
        shared = {"data": str(story_file), "init": str(init), "test_split": 0.1, "valid_stories": 2, "steps": 3}
        return begin_run(tmp_path / "run", resolve_run(None, None, shared | fields), ALONE)

    return begin_from


def step_and_save(opened):
    trainer = make_trainer(opened, ALONE)
    trainer.step(*next(trainer.plan.ahead(trainer.state.epoch, trainer.state.batch)))
    opened.run.save(trainer.state, opened.tokenizer, {}, best=False, keep=2)
    return trainer


def as_weights(model):
    return dict(model.named_parameters())


@pytest.mark.parametrize("case", CONFIGS)
def test_run_keeps_the_architecture_and_the_vocabulary(case, make_init, begin):
    config = CONFIGS[case]
    opened = begin(make_init(config))
    trainer = make_trainer(opened, ALONE)
    initial = as_weights(load_model(read_header(make_init(config))))
    assert all(torch.equal(weight, initial[name]) for name, weight in trainer.state.model.named_parameters())
    story = trainer.stories[0]
    assert (story[0], story[-1], EOS in story[:-1]) == (BOS, EOS, False)

    step_and_save(opened)
    resumed = resume_run(opened.run.folder, {}, ALONE)
    assert (resumed.shape, resumed.tokenizer.bos_id, resumed.tokenizer.eos_ids) == (config, BOS, {EOS})
    assert step_and_save(resumed).state.step == 2
    header = read_header(opened.run.folder)
    assert (header.config, header.bos_id, header.eos_ids) == (config, BOS, {EOS})


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("case", CONFIGS)
def test_transformers_computes_what_a_run_saves(case, make_init, begin):
    from transformers import AutoModelForCausalLM

    trainer = step_and_save(begin(make_init(CONFIGS[case])))
    theirs = AutoModelForCausalLM.from_pretrained(trainer.opened.run.latest, dtype=torch.float32).eval()
    token_ids = torch.arange(20)[None]
    with torch.no_grad():
        ours = trainer.state.model.eval()(token_ids)
        torch.testing.assert_close(ours, theirs(token_ids).logits, rtol=1e-4, atol=1e-5)


def test_a_vocabulary_without_eos_is_refused_in_one_line_before_anything_is_written(
    make_init, begin, tmp_path, vocabulary
):
    directory = make_init(CONFIGS["llama, other numbers"])
    for name in ("config.json", "generation_config.json"):
        content = json.loads((directory / name).read_text()) | {"eos_token_id": None}
        (directory / name).write_text(json.dumps(content))
    with pytest.raises(UsageError, match="no BOS or EOS") as caught:
        begin(directory)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_of_another_size_is_refused(make_init, begin, tmp_path, tokenizer):
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    with pytest.raises(UsageError, match=r"has a vocabulary of 320 tokens, .* one of 300; leave --tokenizer out"):
        begin(make_init(CONFIGS["llama, other numbers"]), tokenizer=str(tmp_path / "tokenizer.json"))


def test_a_teacher_may_have_such_a_vocabulary(make_init, begin):
    init = make_init(CONFIGS["llama, other numbers"])
    assert load_teacher(str(init), begin(init), ALONE).config == CONFIGS["llama, other numbers"]


def test_a_text_with_a_token_that_the_model_lacks_is_refused(make_init, begin):
    init = make_init(replace(CONFIGS["llama, other numbers"], vocab_size=302))  # as many as the vocabulary
    document = json.loads((init / "tokenizer.json").read_text())
    document["added_tokens"].append({**document["added_tokens"][0], "id": 302, "content": "kite", "special": False})
    (init / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"the text has 'kite', the token 302"):
        make_trainer(begin(init), ALONE)


@pytest.mark.slow
def test_our_import_of_a_llama2c_model_is_a_start(shared_data, begin, tmp_path):
    folder = shared_data / "checkpoints" / "stories260K"
    import_llama2c(folder / "stories260K.bin", folder / "tok512.bin", tmp_path / "init")
    config = read_header(tmp_path / "init").config
    opened = begin(tmp_path / "init")
    step_and_save(opened)
    assert read_header(opened.run.folder).config == config
    assert Tokenizer.from_file(opened.run.folder / "tokenizer.json").to_json() == opened.tokenizer.to_json()
    shutil.rmtree(tmp_path / "init")
    assert resume_run(opened.run.folder, {}, ALONE).shape == config
