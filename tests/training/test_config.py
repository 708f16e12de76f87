"""The fields of a run come from flags, a file, a preset or a default; its log becomes plots."""

import struct

import pytest

from tinystory.checkpoint import read_header
from tinystory.checkpoint.tokenizers import find_tokenizer
from tinystory.errors import CheckpointError, UsageError
from tinystory.training.config import PRESETS, RunConfig, resolve_run
from tinystory.training.plotting import plot_metrics, plot_runs, read_metrics


def test_flag_over_file_over_preset_over_default(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('preset = "small"\nlr = 0.5\n[training]\nrows = 3\n[data]\ndata = "a.txt"\n')
    config = resolve_run(None, file, {"rows": 5, "data": ["b.txt", "c.txt"]})
    assert (config.model.d_model, config.training.lr, config.training.rows) == (320, 0.5, 5)
    assert config.data.data == ("b.txt", "c.txt")
    assert resolve_run("tiny", file, {}).model.d_model == 128
    assert resolve_run("tiny", file, {}).data.data == ("a.txt",)
    assert resolve_run(None, None, {}) == RunConfig()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_resolves_and_survives_storage(name):
    config = resolve_run(name, None, {})
    assert RunConfig.from_json(config.to_json()) == config


def test_the_presets_have_the_sizes_they_are_known_by():
    millions = {
        name: resolve_run(name, None, {}).model.model_config(50257 if name == "gpt2-tiny" else 2048).n_parameters / 1e6
        for name in PRESETS
    }
    assert {name: round(size, 1) for name, size in millions.items()} == {
        "gpt2-tiny": 85.9, "tiny": 1.1, "small": 8.1, "base": 29.5,
    }  # fmt: skip


def test_the_student_projects_recipe():
    config = resolve_run("gpt2-tiny", None, {})
    assert (config.data.fraction, config.data.test_split, config.data.batching) == (0.1, 0.1, "padded")
    t = config.training
    assert (t.epochs, t.micro_rows, t.rows // t.micro_rows, t.lr, t.muon_lr) == (5, 8, 2, 3e-4, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("d_modell = 3", "did you mean d_model?"),
        ("lr = 'fast'", "lr must be a number, not 'fast'"),
        ("rows = 2.5", "rows must be a whole number"),
        ("bf16 = 1", "bf16 must be true or false"),
        ("batching = 'loose'", "packed or padded"),
        ("fraction = 0", "above 0"),
        ("test_split = 1", "below 1"),
        ("preset = 'huge'", "the presets are gpt2-tiny"),
        ("lr = ", "cannot be read"),
    ],
)
def test_a_wrong_field_is_one_line_that_names_it(tmp_path, content, message):
    file = tmp_path / "run.toml"
    file.write_text(content)
    with pytest.raises(UsageError, match=message.replace("?", r"\?")) as caught:
        resolve_run(None, file, {})
    assert "\n" not in str(caught.value)


def test_an_impossible_shape_is_refused():
    with pytest.raises(CheckpointError, match="not divisible"):
        resolve_run(None, None, {"d_model": 100, "n_head": 3}).model.model_config(300)
    with pytest.raises(UsageError, match="gpt2 or llama"):
        resolve_run(None, None, {"family": "bert"}).model.model_config(300)


def test_a_vocabulary_comes_from_a_file_a_folder_or_the_hub(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        assert find_tokenizer(str(name)).vocab_size == 300
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"vocab\.json"):
        find_tokenizer(str(tmp_path / "empty"))
    transformers = pytest.importorskip("transformers")
    asked = []

    def from_pretrained(name, **options):
        asked.append((name, options))
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.fast, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
        )

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    hub = find_tokenizer("gpt2")
    assert asked == [("gpt2", {"trust_remote_code": False})]
    assert (hub.vocab_size, hub.bos_id, hub.eos_ids) == (300, 0, frozenset({0}))

    def fail(name, **options):
        raise OSError("no network\nat all")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(UsageError, match=r"no network at all$"):
        find_tokenizer("gpt2")


@pytest.mark.slow
def test_metrics_become_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    log = tmp_path / "metrics.jsonl"
    log.write_text(
        '{"step": 1, "tokens": 100, "train_loss": 3.0, "lr": 0.1, "tokens_per_second": 5}\n'
        '{"step": 1, "tokens": 100, "valid_loss": 3.1, "valid_perplexity": 22.2, "valid_accuracy": 0.2}\n'
        '{"step": 2, "tok'
    )
    records = read_metrics(log)
    assert len(records) == 2
    plot_metrics(records, tmp_path / "metrics.png")
    plot_metrics(records, tmp_path / "metrics.svg")
    header = (tmp_path / "metrics.png").read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    assert struct.unpack(">II", header[16:]) == (1320, 715)
    assert b"<svg" in (tmp_path / "metrics.svg").read_bytes()
    plot_metrics([], tmp_path / "metrics.png")
    plot_runs({"one": records, "empty": []}, tmp_path / "runs.svg")
    assert b"million tokens" in (tmp_path / "runs.svg").read_bytes()


def test_a_run_that_starts_from_a_checkpoint_has_its_shape_and_vocabulary(checkpoint):
    config = resolve_run("small", None, {"init": str(checkpoint), "n_layer": 2})
    header = read_header(checkpoint)
    assert config.model.model_config(300) == header.config
    assert config.data.tokenizer == str(header.directory)
    assert (config.model.init, config.training.lr) == (str(checkpoint), 2e-3)
    assert RunConfig.from_json(config.to_json()) == config
    assert resolve_run(None, None, {"init": "default"}).data.tokenizer == "default"


def test_what_contradicts_the_checkpoint_to_start_from_is_an_error(checkpoint, tmp_path):
    with pytest.raises(UsageError, match=r"d_model is 64, but .* has 32; leave it out"):
        resolve_run(None, None, {"init": str(checkpoint), "d_model": 64})
    with pytest.raises(CheckpointError):
        resolve_run(None, None, {"init": str(tmp_path)})
