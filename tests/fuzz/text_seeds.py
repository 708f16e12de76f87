"""Sound files that are text: specs, settings, sessions, stories, prompts, journals, runs, and the history."""

SPECS = (
    "sample 0.8", "top-k 40 | temperature 0.7 | sample", "min-p 0.05 | xtc | sample", "beam 4 length_penalty=0.6",
    "repetition-penalty 1.3 | top-p 0.9 | sample 1.1", 'ban "the", "a cat" | greedy',
    "sample 0.9 | best-of 3", "dry 0.8 base=1.75 | sample", "contrastive 4", "mirostat", "typical 0.9 | sample",
    'bias cat=2.5 " dog"=-1 | sample',
)  # fmt: skip
SPEC_WORDS = (
    "|", ",", "=", '"', "\\", "1e999", "-1", "0", "nan", "1e-320", "9" * 5_000, "sample", "greedy", "top-k", "beam",
    "best-of", "ban", "bias", "words", "draft=default", "true", '"\\u0000"', '"a\\"b"', "\n", "\0", "\x1b[2J", "é",
    "🙂", "top_k", "temperature=", "| | |", " ", "x" * 10_000, "k=40", "p=0.9", "k=40 k=41",
)  # fmt: skip

CONFIG = {
    "model": "default", "decoder": "top-k 40 | sample 0.8", "seed": 7, "max_tokens": 128, "device": "cpu",
    "dtype": "float32", "compile": False, "color": "never", "theme": "dark", "keys": "vi",
}  # fmt: skip
PRESETS = {"calm": "sample 0.5", "suggested": "min-p 0.05 | xtc | sample", "wild-2": "top-k 40 | sample 1.4"}
RUN_TOML = {
    "preset": "tiny", "seed": 3, "epochs": 2, "data": {"data": ["stories.txt"], "fraction": 0.5},
    "model": {"n_layer": 2, "n_head": 2, "d_model": 16, "d_ff": 24, "max_seq_len": 32, "family": "llama"},
    "training": {"rows": 4, "lr": 0.001, "schedule": "cosine"}, "loop": {"every": 10, "keep": 2, "device": "cpu"},
}  # fmt: skip
TOML_WORDS = ("[", "]", "=", '"', "'''", "\n", "a.b.c = 1\n", "[[x]]\n", "x = 1979-05-27\n", "inf", "nan", "9" * 5_000)

STORIES = ("Once there was a cat.\nIt sat.", "A dog ran home.", "Tom had a red ball. “Hi!” he said.", "The end came.")
PROMPTS_YAML = b"- Once upon a time\n- 'A dog: it ran'\n- |\n  Two\n  lines\n- >-\n  folded\n  text\n- \"caf\\u00e9\"\n"
YAML_WORDS = (
    "- ", "&a ", "*a", "<<: ", "!!python/object/apply:os.system ", "!!binary ", "? ", ": ", "{", "}", "[", "]", "|",
    ">", "'", '"', "\t", "---\n", "...\n", "%YAML 9.9\n", "\\uD800", '"\\ud800"', "\x85", "\u2028", "yes", "1e3", "\0",
    "#", "\n", "2020-01-01", "0x" + "f" * 90, "1:2:3:4", "- [" * 5_000, "- " * 3_000, "{a: " * 2_000, "9" * 90,
)  # fmt: skip
TEXT_WORDS = (
    "<|endoftext|>", "<|endoftext|>" * 50, "\n", "\n\n\n", "\r\n", "\r", "\0", "\ufeff", "\x1b[2J", "é", "🙂",
    " " * 500, "a" * 100_000, "---\n", "***\n", "<|end", "oftext|>", "\u2028", "\x85",
)  # fmt: skip
HISTORY = "\n# 2026-01-01 10:00:00.000000\n+Once upon a time\n\n# 2026-01-02 10:00:00.000000\n+/decoder sample\n+more\n"
HISTORY_WORDS = ("\n# ", "\n+", "+", "#", "\n", "\0", "\x1b[31m", "é", "+" * 10_000, "\n#\n+" * 10_000, "\r")

SUBJECT = {"model": "default", "model_hash": "ab12", "decoder": "sample 0.8", "prompts": "0123456789abcdef"}
STORY_RECORDS = [
    {"index": index, "story": number, "seed": 7 + index, **SUBJECT, "prompt": "Once", "text": "Once upon."}
    for index in range(3)
    for number in range(2)
]
"""Lines of `generate --prompts -o`: two stories from each of three prompts, with the seed 7."""
STUDY = {"model_hash": "ab12", "prompts": 2, "groups": 1}
STUDY_RECORDS = [
    {"tinystory_study": 1, **STUDY}, {"kind": "real", "group": 0, "bits": [[1.5, 2.5], [0.5]]},
    {"kind": "stories", "spec": "sample 0.8", "seed": 1, "first": 0, "cpu_seconds": 0.5, "stories": [
        {"completion": " upon.", "bits": [1.0, 2.0], "finish_reason": "eos"},
        {"completion": " dog", "bits": [1.0], "finish_reason": "length"},
    ]},
    {"kind": "coverage", "story": 0, "impossible": {"sample 0.8": [0, 9], "typical 0.9": None}},
]  # fmt: skip
DATA_RECORDS = [{"text": text, "id": number} for number, text in enumerate(STORIES)]
OTHER_DATA_RECORDS = [{"story": text, "tags": ["a"]} for text in STORIES]


def session():
    """Return the JSON object of a session with branches, a cut and a search."""
    import json

    from tinystory.story.saved_chat import SavedChat
    from tinystory.story.session_file import encode
    from tinystory.story.tree import ROOT, StoryTree, Token, Turn, Written

    tree, token = StoryTree(), Token(5, -1.25, 2, 3.5)
    written = Written(
        spec="sample", seed=1, number=0, model="default", model_hash="ab", dtype="float32", max_new_tokens=9,
        stop=("!",), heal="", tokens=(token, Token(6, -0.5)), finish_reason="length",
    )  # fmt: skip
    shared = {"vocabulary": "v", "id": 0}
    tree.add(
        Turn(parent=ROOT, kept=0, typed="Once", typed_ids=(1, 2), written=written, shared=0, own="Once a", **shared)
    )
    tree.add(Turn(parent=1, kept=3, typed="b", typed_ids=(7,), written=None, shared=4, own=" b", **shared))
    tree.undo()
    tree.add(Turn(parent=1, kept=4, typed="", typed_ids=(), written=written, shared=6, own=" c", **shared))
    chat = SavedChat(
        tree=tree, spec="sample", seed=7, stop=("!",), words=("cat",), model="default", created="then", changed="now"
    )
    return json.loads(encode(chat))
