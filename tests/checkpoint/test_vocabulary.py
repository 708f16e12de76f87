"""A tokenizer may have more tokens than the model, or fewer; one of another model is refused."""

import json
import shutil

import pytest
import torch

from tinystory.checkpoint import read_header, save_checkpoint
from tinystory.checkpoint.formats.gguf_export import export_gguf
from tinystory.checkpoint.tokenizers import load_tokenizer
from tinystory.cli import main
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.errors import CheckpointError, UsageError
from tinystory.model.config import ModelConfig
from tinystory.model.transformer import Transformer
from tinystory.session.loading import load
from tinystory.text.tokenizer import Detokenizer
from tinystory.writing.generate import Ended, StoryRequest, write

PADDED_ROWS = 320
DECODERS = [
    "greedy", "ban Tim,fim | sample 0.8", 'bias "<fim>"=2 | sample 0.8', "dry | sample 1", "words Tim",
    "top-k 40 | sample 0.8", "beam 2", "watermark | sample 1", "repetition-penalty 1.2 | sample 1",
]  # fmt: skip


def added(content, token_id, special):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": special, **flags}


@pytest.fixture(scope="module")
def with_tokens_above(checkpoint, tmp_path_factory):
    """A model of 300 tokens with the added tokens `<pad>`, which is special, and `<fim>` above them."""
    directory = shutil.copytree(checkpoint, tmp_path_factory.mktemp("above") / "model")
    document = json.loads((directory / "tokenizer.json").read_text())
    document["added_tokens"] += [added("<pad>", 300, special=True), added("<fim>", 301, special=False)]
    (directory / "tokenizer.json").write_text(json.dumps(document))
    return directory


@pytest.fixture(scope="module")
def with_padded_rows(tokenizer, tmp_path_factory):
    """A model of 320 rows whose tokenizer has 300 tokens; it mostly writes the others."""
    model = Transformer(ModelConfig.llama(PADDED_ROWS, 1, 2, 32, 64, 48, tied_head=False))
    model.init_weights(1)
    with torch.no_grad():
        torch.nn.init.normal_(model.head.weight, std=0.3)
        model.head.weight[300:] *= 5
    directory = tmp_path_factory.mktemp("padded") / "model"
    save_checkpoint(directory, model, tokenizer.to_json(), bos_id=0, eos_ids={0}, provenance={})
    return directory


def test_added_tokens_above_the_model_are_a_warning_with_their_number(with_tokens_above):
    header = read_header(with_tokens_above)
    assert header.warnings == (
        f"{with_tokens_above}: the tokenizer has 2 added tokens above the 300 of the model, like '<pad>'; "
        "they are never written",
    )
    assert read_header(with_tokens_above).vocab_size == 300


@pytest.mark.parametrize("listed_twice", [True, False])
def test_only_added_tokens_may_lie_above(with_tokens_above, tmp_path, listed_twice):
    """Converters write an added token also into the vocabulary; a token that stands there alone is of another model."""
    directory = shutil.copytree(with_tokens_above, tmp_path / "model")
    document = json.loads((directory / "tokenizer.json").read_text())
    document["model"]["vocab"]["<fim>" if listed_twice else "owl"] = 301
    (directory / "tokenizer.json").write_text(json.dumps(document))
    if listed_twice:
        assert len(read_header(directory).warnings) == 1
    else:
        with pytest.raises(CheckpointError, match=r"has the token id 301, but .* 300; this tokenizer belongs"):
            read_header(directory)


def stories(directory, spec, prompt="Once upon a time, Tim"):
    model = load(str(directory))
    n, heal = (60, "") if spec.startswith("words") else (10, "T")
    request = StoryRequest(prompt, parse_spec(spec, discover(user_folder=None)), seed=3, max_new_tokens=n, heal=heal)
    events = write(model.session, model.tokenizer, [request])
    return model, [event.result for event in events if isinstance(event, Ended)]


@pytest.mark.parametrize("spec", DECODERS)
def test_no_stage_meets_an_id_that_the_model_lacks(with_tokens_above, with_padded_rows, spec):
    for directory in (with_tokens_above, with_padded_rows):
        if "<fim>" in spec and directory == with_tokens_above:
            with pytest.raises(UsageError, match="the text has '<fim>', the token 301"):
                stories(directory, spec)
            continue
        _, [story] = stories(directory, spec)
        assert story.tokens or story.finish_reason == "eos"


def test_ids_without_a_token_have_no_text(with_padded_rows):
    model, [story] = stories(with_padded_rows, "sample 1")
    ids = [token.id for token in story.tokens]
    assert max(ids) >= 300, "the test needs an id that the tokenizer does not know"
    tokenizer = model.tokenizer
    assert story.text == tokenizer.detokenize([*story.prompt_ids, *ids])
    assert tokenizer.vocab_size == len(tokenizer.pieces) == PADDED_ROWS
    assert set(tokenizer.pieces[300:]) == {""}
    assert Detokenizer(tokenizer).add(310) == tokenizer.detokenize([310]) == ""


def test_a_text_with_a_token_above_is_refused_in_one_line(with_tokens_above, capsys):
    tokenizer = load_tokenizer(read_header(with_tokens_above))
    assert tokenizer.detokenize(tokenizer.encode("a <pad> b")) == "a <pad> b", "a special token is text"
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_batch(["a", text])):
        with pytest.raises(UsageError, match=r"the text has '<fim>', the token 301 .* only tokens 0 to 299"):
            encode("a <fim> b")
    assert main(["generate", "a <fim> b", "-m", str(with_tokens_above), "-n", "3"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "<fim>" in line]) == 1


def test_bos_and_eos_above_the_model_are_none(with_tokens_above, tmp_path):
    directory = shutil.copytree(with_tokens_above, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text()) | {"bos_token_id": 300, "eos_token_id": [0, 301]}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "generation_config.json").unlink()
    tokenizer = load_tokenizer(read_header(directory))
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (None, {0})


def test_a_checkpoint_with_tokens_above_is_saved_and_exported(with_tokens_above, tmp_path):
    header = read_header(with_tokens_above)
    model = Transformer(header.config)
    save_checkpoint(tmp_path / "copy", model, load_tokenizer(header).to_json(), bos_id=0, eos_ids={0}, provenance={})
    assert len(read_header(tmp_path / "copy").warnings) == 1
    with pytest.raises(CheckpointError, match="EOS id 300 is not in the tokenizer"):
        save_checkpoint(
            tmp_path / "other", model, load_tokenizer(header).to_json(), bos_id=0, eos_ids={300}, provenance={}
        )
    export_gguf(with_tokens_above, tmp_path / "model.gguf")
