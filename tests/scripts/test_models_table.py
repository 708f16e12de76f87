"""docs/models.md has a row for each architecture, and says what differs."""

from pathlib import Path

import pytest

ROWS = [
    {
        "type": "a", "outcome": "equal", "runs": "with its cache", "greedy": "equal", "rewind": "no", "reorder": "yes",
        "at once": "yes",
    },
    {"type": "b", "outcome": "refused", "reason": "it sees | more"},
    {"type": "c", "outcome": "not compared", "reason": "no result within 90 seconds"},
]  # fmt: skip


@pytest.fixture(scope="module")
def table(load_script):
    pytest.importorskip("transformers")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).resolve().parents[2] / "scripts" / "models")
        yield load_script("models/table")


@pytest.mark.parity
def test_the_page_counts_and_explains(table):
    page = table.page(ROWS)
    assert "knows 3 types of models.\n1 of them give here" in page
    assert "No type differs" in page
    assert "| a | with its cache | equal | no | yes | yes |" in page
    assert "## Refused" in page
    assert "| b | it sees / more |" in page
    assert "## Differs" not in page
    page = table.page([*ROWS, {"type": "d", "outcome": "differs", "reason": "the greedy ids are different"}])
    assert "**1 types differ**" in page
    assert "| d | the greedy ids are different |" in page


@pytest.mark.parity
@pytest.mark.slow
def test_a_type_is_compared_in_a_process_of_its_own(table, monkeypatch):
    row = table.compared_alone("olmo")
    assert (row["type"], row["outcome"], row["greedy"], row["rewind"]) == ("olmo", "equal", "equal", "yes")
    assert "no tiny model" in table.compared_alone("unknown")["reason"]
    monkeypatch.setattr(table, "compared", lambda _: table.os._exit(7))
    assert table.compared_alone("olmo")["reason"] == "the process ended with code 7"
    monkeypatch.setattr(table, "compared", lambda _: table.os.read(table.os.pipe()[0], 1))
    monkeypatch.setattr(table, "SECONDS", 0.1)
    assert table.compared_alone("olmo")["outcome"] == "not compared"
