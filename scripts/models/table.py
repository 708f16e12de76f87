"""Write docs/models.md: which architectures of transformers run, and what was compared with transformers.

`python scripts/models/table.py [--journal FILE] [--only TYPE …]`

Each architecture is built tiny and with random weights, saved, and loaded as a user's checkpoint is. Its session
is then compared with transformers: the ids of `generate`, and the logits of passes over whole rows. Each has a process
of its own with a time limit, so that a crash is a row of the table. A journal lets a run that was stopped go on.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
import textwrap
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from tiny import N_POSITIONS, VOCAB_SIZE, save_tiny_model  # type: ignore[import-not-found]

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "models.md"
COMMAND = "nice -n 5 python scripts/models/table.py"

SECONDS = 90
N_GREEDY = 40
PROMPT = (3, 41, 7, 58, 12)
TOLERANCE = 1e-3
"""The largest difference of two logits that counts as rounding, as a share of their standard deviation."""

TOKENIZER = {
    "version": "1.0",
    "model": {"type": "WordLevel", "vocab": {f"w{index}": index for index in range(VOCAB_SIZE)}, "unk_token": "w0"},
    "added_tokens": [],
    "pre_tokenizer": {"type": "Whitespace"},
}
Row = dict[str, str]


def main() -> int:
    """Parse the command line, compare each architecture, and write the page; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--journal", type=Path, metavar="FILE", help="keep each row here, and skip those that it has")
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="print the rows of these model types; write no page")
    parser.add_argument("--out", type=Path, default=PAGE, metavar="FILE", help="the page (default: docs/models.md)")
    args = parser.parse_args()
    rows = {} if args.journal is None or not args.journal.exists() else _read(args.journal)
    _import_for_all()
    for model_type in args.only or _all_types():
        if model_type not in rows or args.only:
            rows[model_type] = compared_alone(model_type)
            sys.stderr.write(f"{json.dumps(rows[model_type])}\n")
            if args.journal is not None:
                with args.journal.open("a", encoding="utf-8") as journal:
                    journal.write(f"{json.dumps(rows[model_type])}\n")
    if not args.only:
        args.out.write_text(page([rows[model_type] for model_type in _all_types()]), encoding="utf-8")
    return int(any(row["outcome"] == "differs" for row in rows.values()))


def _all_types() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _import_for_all() -> None:
    """Import what each process needs, so that it does not take that time again."""
    from transformers import AutoModelForCausalLM, PreTrainedModel  # noqa: F401

    import tinystory.session.hf_session
    import tinystory.session.loading
    import tinystory.session.native  # noqa: F401


def _read(journal: Path) -> dict[str, Row]:
    rows = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    return {row["type"]: row for row in rows}


def compared_alone(model_type: str) -> Row:
    """Compare one architecture in a process of its own; return its row of the table."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_send, args=(model_type, theirs))
    process.start()
    theirs.close()
    reason = f"no result within {SECONDS} seconds"
    try:
        if ours.poll(SECONDS):
            row: Row = ours.recv()
            return row
    except EOFError:
        process.join()
        reason = f"the process ended with code {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return {"type": model_type, "outcome": "not compared", "reason": reason}


def _send(model_type: str, pipe: Connection) -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        pipe.send({"type": model_type} | compared(model_type))


def compared(model_type: str) -> Row:
    """Compare one architecture with transformers.

    Returns:
        The outcome: "equal", "differs", "refused" or "not compared", with a reason for all but the first. If it is
        equal or differs, also what the session can do.
    """
    from tinystory.errors import TinystoryError
    from tinystory.session.loading import load

    with tempfile.TemporaryDirectory() as folder:
        try:
            save_tiny_model(model_type, folder)
        except Exception as error:  # every architecture fails in its own way
            return {"outcome": "not compared", "reason": f"no tiny model: {_short(error)}"}
        (Path(folder) / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        try:
            session = load(folder).session
        except TinystoryError as error:
            return {"outcome": "refused", "reason": _short(error).removeprefix(f"{os.path.realpath(folder)}: ")}
        try:
            return _compared_with(_loaded(folder), session)
        except Exception as error:
            return {"outcome": "differs", "reason": f"{type(error).__name__}: {_short(error)}"}


def _loaded(folder: str) -> Any:
    """Return the model as transformers loads it; some do not load what they saved."""
    from transformers import AutoModelForCausalLM

    factory: Any = AutoModelForCausalLM
    return factory.from_pretrained(folder, dtype=torch.float32).eval()


def _compared_with(model: Any, session: Any) -> Row:
    row = {"class": type(model).__name__, "runs": "native"}
    if hasattr(session, "abilities"):
        row["runs"] = "with its cache" if session.abilities.works else "whole rows"
        row["at once"] = "yes" if session.abilities.appends_many else "one at a time"
    row["rewind"] = "yes" if session.can_rewind else "no"
    row["reorder"] = "yes" if session.can_reorder else "no"
    got = _greedy(session)
    try:
        expected = _generated(model)
        if got == expected:
            row["greedy"] = "equal"
        elif got == _generated(model, use_cache=False):
            n_equal = next(n for n, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b)
            row["greedy"] = f"equal to `generate` without its cache; with it, {n_equal} are"
        else:
            row["greedy"] = "different"
    except Exception as error:
        row["greedy"] = f"`generate` of transformers fails ({_short(error)})"
    wrong = ["the greedy ids are different"] if row["greedy"] == "different" else []
    wrong += _wrong_verbs(model, session)
    if wrong:
        return row | {"outcome": "differs", "reason": "; ".join(wrong)}
    if not row["greedy"].startswith("equal"):
        return row | {"outcome": "not compared", "reason": f"{row['greedy']}; the logits of each verb are equal"}
    return row | {"outcome": "equal"}


@torch.no_grad()
def _generated(model: Any, *, use_cache: bool = True) -> list[int]:
    """Return the ids that transformers writes after the prompt."""
    prompt = torch.tensor([PROMPT])
    model.generation_config.eos_token_id = model.generation_config.forced_eos_token_id = None
    options = {"max_new_tokens": N_GREEDY, "do_sample": False, "pad_token_id": 0, "use_cache": use_cache}
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    return [int(token_id) for token_id in ids[0, len(PROMPT) :]]


def _greedy(session: Any) -> list[int]:
    logits = session.prefill([list(PROMPT)])
    ids = [int(logits[0].argmax())]
    while len(ids) < N_GREEDY:
        logits = session.decode(torch.tensor(ids[-1:]))
        ids.append(int(logits[0].argmax()))
    return ids


def _wrong_verbs(model: Any, session: Any) -> list[str]:
    """Compare each verb of a session with passes over whole rows; return what differs."""
    from tinystory.session.hf_cache import whole_row

    ids = [3 + index * 37 % (VOCAB_SIZE - 3) for index in range(min(N_POSITIONS, session.max_seq_len))]
    first, second = ids[:30], ids[20:33]
    wrong = []

    def check(verb: str, logits: torch.Tensor, row: list[int]) -> None:
        with torch.no_grad():
            expected = whole_row(model, row)[-len(logits) :]
        difference = (logits - expected).nan_to_num(0, 0, 0).abs().max() / expected.nan_to_num(0, 0, 0).std()
        if not difference < TOLERANCE:
            wrong.append(f"{verb}: logits differ by {difference:.2g} of their spread")

    both = session.prefill([first, second])
    check("prefill", both[:1], first)
    check("prefill", both[1:], second)
    at_once = session.decode(torch.tensor([ids[40:46]] * 2))
    first, second = first + ids[40:46], second + ids[40:46]
    check("several tokens", at_once[0], first)
    check("several tokens", at_once[1], second)
    if session.can_reorder:
        session.reorder([1, 0, 1])
        logits = session.decode(torch.tensor(ids[50:53]))
        for index, row in enumerate([second, first, second]):
            check("reorder", logits[index : index + 1], [*row, ids[50 + index]])
        session.reorder([1])
        first = [*first, ids[51]]
    else:
        session.prefill([first])
    if session.can_rewind:
        session.rewind([21])
        first = first[:-21] + ids[60:62]
        check("rewind", session.decode(torch.tensor([ids[60:62]]))[0], first)
    first = first[:9] + ids[70:90]
    check("prefix", session.prefill([first]), first)
    return list(dict.fromkeys(wrong))


def _short(error: Exception) -> str:
    return textwrap.shorten(" ".join(str(error).split()), 160, placeholder=" …")


def page(rows: list[Row]) -> str:
    """Return docs/models.md for these rows."""
    import transformers

    counts = Counter(row["outcome"] for row in rows)
    ways = Counter(row["runs"] for row in rows if row["outcome"] == "equal")
    verdict = "No type differs" if not counts["differs"] else f"**{counts['differs']} types differ**"
    summary = f"""`AutoModelForCausalLM` of transformers {transformers.__version__} knows {len(rows)} types of models.
{counts["equal"]} of them give here what they give in transformers, {counts["refused"]} are refused in one line, and
{counts["not compared"]} could not be compared. {verdict}; every other type that is not equal has its reason below.

Of the equal ones, {ways["native"]} run in the code of this project, {ways["with its cache"]} in transformers with their
cache, and {ways["whole rows"]} compute the whole row for each token, which is slow.

This page is made by `{COMMAND}` (a quarter of an hour on two cores).
Each type is built tiny and random, saved, and loaded as `tinystory generate -m DIR` loads it. *Equal* means: {N_GREEDY}
greedy ids are those of `generate` of transformers, and after each verb below, the logits are those of a pass of
transformers over the whole row (the largest difference is below {TOLERANCE:g} of their standard deviation). *no* is a
verb that the session does not offer, because the cache of the model cannot do it; decoders that need it are refused."""
    lines = ["# Models", "", *summary.split("\n"), "", "## Equal", ""]
    lines += ["| type | runs | greedy ids | rewind | reorder | several tokens |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row["outcome"] == "equal":
            cells = (row["type"], row["runs"], row["greedy"], row["rewind"], row["reorder"], row.get("at once", "yes"))
            lines.append(f"| {' | '.join(cells)} |")
    for outcome, title in [
        ("differs", "Different"),
        ("refused", "Refused"),
        ("not compared", "Not compared"),
    ]:
        if counts[outcome]:
            lines += ["", f"## {title}", "", "| type | reason |", "|---|---|"]
            lines += [
                f"| {row['type']} | {row['reason'].replace('|', '/')} |" for row in rows if row["outcome"] == outcome
            ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
