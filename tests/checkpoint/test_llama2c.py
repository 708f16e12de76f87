"""Import llama2.c files: the golden story, the BPE compared with a simple port of llama2.c's, and damaged files."""

import math
import struct

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tinystory.checkpoint import load_model, read_header
from tinystory.checkpoint.formats.llama2c import import_llama2c, tokenizer_json
from tinystory.errors import CheckpointError

PIECES = [(0.0, b"<unk>"), (0.0, b"\n<s>\n"), (0.0, b"\n</s>\n")]
PIECES += [(0.0, f"<0x{byte:02X}>".encode()) for byte in range(256)]
PIECES += [(-7.0, b" a"), (-8.0, b"ab"), (0.0, b"abc"), (-3.0, b"bc"), (-1.0, b" ab")]
PIECES += [(-9.0, b" "), (-10.0, b"a"), (-11.0, b"b"), (-12.0, b"c")]
PIECES += [(-20.0, "é".encode()), (-21.0, b"ca"), (-22.0, b"aaa")]


def tokenizer_bytes(pieces=PIECES, longest=8):
    return struct.pack("<i", longest) + b"".join(struct.pack("<fi", s, len(p)) + p for s, p in pieces)


def read_pieces(raw):
    pieces, position = [], 4
    while position < len(raw):
        score, length = struct.unpack_from("<fi", raw, position)
        pieces.append((score, raw[position + 8 : position + 8 + length]))
        position += 8 + length
    return pieces


def llama2c_encode(pieces, text):
    """Encode as llama2.c does, without BOS: a port line by line, which `tokenizer_json` must equal."""
    lookup = {piece: i for i, (_, piece) in enumerate(pieces)}
    ids = [lookup[b" "]] if text else []
    for character in text:
        raw = character.encode()
        ids += [lookup[raw]] if raw in lookup else [byte + 3 for byte in raw]
    while True:
        best_score, best_id, best_index = -1e10, -1, -1
        for i in range(len(ids) - 1):
            merged = lookup.get(pieces[ids[i]][1] + pieces[ids[i + 1]][1])
            if merged is not None and pieces[merged][0] > best_score:
                best_score, best_id, best_index = pieces[merged][0], merged, i
        if best_index == -1:
            return ids
        ids[best_index : best_index + 2] = [best_id]


def model_bytes(tied=True):
    dim, hidden, layers, heads, kv_heads, vocab, length = 8, 12, 2, 2, 1, len(PIECES), 16
    d_kv = dim * kv_heads // heads
    sizes = [vocab * dim, layers * dim, layers * dim * dim, layers * d_kv * dim, layers * d_kv * dim]
    sizes += [layers * dim * dim, layers * dim, *[layers * hidden * dim] * 3, dim, length * dim // heads]
    sizes += [] if tied else [vocab * dim]
    values = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(0))
    header = struct.pack("<7i", dim, hidden, layers, heads, kv_heads, vocab if tied else -vocab, length)
    return header + values.numpy().tobytes(), values


@pytest.fixture
def files(tmp_path):
    (tmp_path / "model.bin").write_bytes(model_bytes()[0])
    (tmp_path / "tok.bin").write_bytes(tokenizer_bytes())
    return tmp_path


@pytest.fixture(scope="session")
def stories260k(shared_data, tmp_path_factory):
    source, out = shared_data / "checkpoints/stories260K", tmp_path_factory.mktemp("stories260K") / "model"
    import_llama2c(source / "stories260K.bin", source / "tok512.bin", out)
    return out


@pytest.fixture(scope="session")
def golden(shared_data):
    lines = (shared_data / "checkpoints/stories260K/README.md").read_text().splitlines()
    return "\n".join(line[2:] for line in lines if line.startswith("> "))


def test_golden_story(stories260k, golden):
    header = read_header(stories260k)
    assert (header.bos_id, header.eos_ids) == (1, {1, 2})
    model, ids = load_model(header), [1]
    with torch.no_grad():
        for _ in range(200):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    tokenizer = Tokenizer.from_file(str(stories260k / "tokenizer.json"))
    assert tokenizer.decode(ids) == golden


@pytest.mark.parity
@pytest.mark.slow
def test_golden_story_in_transformers(stories260k, golden):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(stories260k, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    bos = torch.tensor([[tokenizer.bos_token_id]])
    mask = torch.ones_like(bos)
    ids = model.generate(bos, attention_mask=mask, max_new_tokens=200, do_sample=False, pad_token_id=0)[0]
    assert tokenizer.decode(ids, skip_special_tokens=True) == golden
    prompt = "Once upon a time"
    assert tokenizer(prompt).input_ids == ids[: len(tokenizer(prompt).input_ids)].tolist()


def test_stories_encode_as_in_llama2c(shared_data):
    path = shared_data / "checkpoints/stories260K/tok512.bin"
    pieces = read_pieces(path.read_bytes())
    tokenizer = Tokenizer.from_str(tokenizer_json(path, 512))
    text = (shared_data / "data/tinystories/valid.txt").read_text(encoding="utf-8")[:12_000]
    stories = [story.strip() for story in text.split("<|endoftext|>")]
    assert len(stories) > 5
    odd = ["", " ", "  a", "naïve 🦊\n\ttabs “quotes” â€™ \u2581 <0x41>", "..........", "\n\n\n", "aaaaaaaaaaa"]
    for story in [*stories, *odd]:
        ids = tokenizer.encode(story).ids
        assert ids == [1, *llama2c_encode(pieces, story)], story
        assert tokenizer.decode(ids) == story


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="abc é\n🦊", max_size=30))
@example(" abc")
@pytest.mark.slow
def test_made_up_text_encodes_as_in_llama2c(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "tok.bin"
    path.write_bytes(tokenizer_bytes())
    tokenizer = Tokenizer.from_str(tokenizer_json(path, len(PIECES)))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == llama2c_encode(PIECES, text)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("tied", [True, False])
def test_every_array_lands_in_its_place(files, tied):
    raw, values = model_bytes(tied)
    (files / "model.bin").write_bytes(raw)
    import_llama2c(files / "model.bin", files / "tok.bin", files / "out")
    model = load_model(read_header(files / "out"))
    state = model.state_dict()
    n = len(PIECES)
    assert torch.equal(state["embed.weight"], values[: n * 8].view(n, 8))
    assert torch.equal(state["head.weight"], values[-n * 8 :].view(n, 8)) != tied
    # before the head are the tables (16 x 4) and the last norm; before those w3, w2 and w1, each for two layers
    end = len(values) - (0 if tied else n * 8) - 16 * 4
    assert torch.equal(state["norm.weight"], values[end - 8 : end])
    w1, w2, w3 = values[end - 8 - 3 * 192 : end - 8].view(3, 2, 96)
    assert torch.equal(state["blocks.1.ff.gate.weight"].flatten(), w1[1])
    assert torch.equal(state["blocks.0.ff.down.weight"].flatten(), w2[0])
    assert torch.equal(state["blocks.1.ff.up.weight"].flatten(), w3[1])


def test_rotating_halves_of_permuted_rows_equals_rotating_pairs(files):
    """Attention scores after llama2.c's rotation of pairs (0, 1), (2, 3) equal ours with the imported weights."""
    from tinystory.model.transformer import rope_tables, rotate

    _, values = model_bytes()
    import_llama2c(files / "model.bin", files / "tok.bin", files / "out")
    model = load_model(read_header(files / "out"))
    start = len(PIECES) * 8 + 2 * 8
    wq = values[start : start + 64].view(8, 8)
    wk = values[start + 128 : start + 128 + 32].view(4, 8)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))

    def pairs_rotated(rows):  # (5, D), one row for each position
        out = torch.empty_like(rows)
        for position in range(5):
            for i in range(0, 4, 2):
                angle = position * 10_000 ** (-i / 4)
                c, s = math.cos(angle), math.sin(angle)
                a, b = rows[position, i], rows[position, i + 1]
                out[position, i], out[position, i + 1] = a * c - b * s, a * s + b * c
        return out

    expected = pairs_rotated(x @ wq[:4].T) @ pairs_rotated(x @ wk.T).T  # the first head
    tables = rope_tables(model.config, torch.arange(5), torch.float32)
    attention = model.blocks[0].attn
    q, k = rotate(attention.q(x)[:, :4], *tables), rotate(attention.k(x), *tables)
    torch.testing.assert_close(q @ k.T, expected, rtol=1e-4, atol=1e-4)


def damaged_header(index, value):
    raw = bytearray(model_bytes()[0])
    struct.pack_into("<i", raw, 4 * index, value)
    return bytes(raw)


BAD_MODELS = {
    "empty": (b"", "0 bytes"),
    "cut in the header": (model_bytes()[0][:20], "begins with 28"),
    "cut in the weights": (model_bytes()[0][:-4], "its header describes"),
    "bytes left over": (model_bytes()[0] + b"\0", "its header describes"),
    "huge width": (damaged_header(0, 2**31 - 1), "llama2.c model file"),
    "huge vocabulary": (damaged_header(5, 2**31 - 1), "vocab_size"),
    "most negative vocabulary": (damaged_header(5, -(2**31)), "vocab_size"),
    "negative layers": (damaged_header(2, -1), "n_layer"),
    "no heads": (damaged_header(3, 0), "n_head"),
    "no key heads": (damaged_header(4, 0), "n_kv_head"),
    "width not divisible": (damaged_header(3, 3), "divisible"),
    "zero vocabulary": (damaged_header(5, 0), "vocab_size"),
    "claims an untied head": (damaged_header(5, -len(PIECES)), "its header describes"),
    "version 1": (damaged_header(0, 0x616B3432), "version 0"),
    "text": (b"Once upon a time there was a file that was no model.", "llama2.c model file"),
    "not a number": (model_bytes()[0][:28] + b"\xff" * 4 + model_bytes()[0][32:], "not finite"),
}
BAD_TOKENIZERS = {
    "empty": (b"", "0 bytes"),
    "cut": (tokenizer_bytes()[:-1], "damaged"),
    "cut in a score": (tokenizer_bytes() + b"\0\0", "cut short"),
    "one token short": (tokenizer_bytes(PIECES[:-1]), "belong together"),
    "negative length": (tokenizer_bytes()[:8] + b"\xff" * 4 + tokenizer_bytes()[12:], "damaged"),
    "longer than its longest": (tokenizer_bytes(longest=2), "damaged"),
    "no byte tokens": (tokenizer_bytes([(0.0, b"x%d" % i) for i in range(len(PIECES))]), "256 bytes"),
    "not UTF-8": (tokenizer_bytes([*PIECES[:-1], (0.0, b"\xff")]), "UTF-8"),
    "twice": (tokenizer_bytes([*PIECES[:-1], PIECES[-2]]), "twice"),
    "not a score": (tokenizer_bytes([*PIECES[:-1], (math.nan, b"x")]), "damaged"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_damaged_model_is_refused_in_one_line(files, case):
    content, fragment = BAD_MODELS[case]
    (files / "model.bin").write_bytes(content)
    assert_refused(files, fragment)


@pytest.mark.parametrize("case", BAD_TOKENIZERS)
def test_damaged_tokenizer_is_refused_in_one_line(files, case):
    content, fragment = BAD_TOKENIZERS[case]
    (files / "tok.bin").write_bytes(content)
    assert_refused(files, fragment)


def test_missing_file_and_folder_are_refused(files):
    (files / "tok.bin").unlink()
    assert_refused(files, "No such file")
    (files / "tok.bin").mkdir()
    assert_refused(files, "not a regular file")


def assert_refused(files, fragment):
    with pytest.raises(CheckpointError) as caught:
        import_llama2c(files / "model.bin", files / "tok.bin", files / "out")
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (files / "out").exists()
