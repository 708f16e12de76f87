"""Columns wrap by cells and write a row when it is complete, in any order of arrival. Narrow ones are stacked."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_toolkit.utils import get_cwidth

from tinystory.safe.showing import visible
from tinystory.screen.columns import NARROWEST, Columns
from tinystory.screen.wrapping import wrap

# Letters of one, two and no cells; white space; an escape sequence; a word longer than any column.
TEXT = st.lists(
    st.sampled_from(
        ["a", "Zoë", "漢字", "e\u0301", "\u0301", "🦉", " ", "  ", "\t", "\n", "\x1b[31m", "x" * 30, "end."]
    )
).map("".join)


def arrivals(draw, texts):
    """Yield (index, piece) of the texts in a random order of texts, and (index, None) at the end of each text."""
    pieces = [[*re.findall(r"(?s).{1,7}", text), None] for text in texts]
    while any(pieces):
        index = draw(st.sampled_from([i for i, rest in enumerate(pieces) if rest]))
        yield index, pieces[index].pop(0)


def cells_of(line, width):
    """Return the texts of a row of columns, cut by cells, since a text may contain the gutter's character."""
    found = [""]
    for character in line:
        if character == "│" and get_cwidth(found[-1]) == width + (1 if len(found) == 1 else 2):
            found.append("")
        else:
            found[-1] += character
    return [cell.removeprefix(" ").rstrip() if i else cell.rstrip() for i, cell in enumerate(found)]


@given(data=st.data(), texts=st.lists(TEXT, min_size=1, max_size=4), width=st.integers(2, 110))
def test_what_is_written_depends_on_the_texts_alone_and_fits_the_width(data, texts, width):
    titles = [f"top-k {k} | sample 0.8" for k in range(len(texts))]
    footers = [[f"{k} tokens", "distinct-2 0.93"][: k % 3] for k in range(len(texts))]
    at_once = Columns(titles, width)
    expected = "".join(at_once.add(i, text) for i, text in enumerate(texts))
    expected += "".join(at_once.end(i, footer) for i, footer in enumerate(footers)) + at_once.finish()
    columns = Columns(titles, width)
    written = ""
    for index, piece in arrivals(data.draw, texts):
        written += columns.end(index, footers[index]) if piece is None else columns.add(index, piece)
    assert written + columns.finish() == expected
    assert all(get_cwidth(line) <= width for line in expected.split("\n"))
    assert expected.endswith("\n")
    assert "\x1b" not in expected


@given(data=st.data(), texts=st.lists(TEXT, min_size=2, max_size=4), width=st.integers(NARROWEST, 30))
def test_a_row_is_written_as_soon_as_every_line_of_it_is_complete_and_never_before(data, texts, width):
    columns = Columns(["t"] * len(texts), len(texts) * (width + 3) - 3)
    assert not columns.stacked
    so_far, ended, written = [""] * len(texts), [False] * len(texts), ""
    for index, piece in arrivals(data.draw, texts):
        written += columns.end(index) if piece is None else columns.add(index, piece)
        so_far[index] += piece or ""
        ended[index] |= piece is None
        rows = written.splitlines()[2:]  # below the title and its rule
        lines = [wrap(text, width, break_words=True) for text in so_far]
        complete = [len(wrap(f"{text}\n", width, break_words=True)) - 1 for text in so_far]  # the last line may go on
        open_columns = [n for n, done in zip(complete, ended, strict=True) if not done]
        assert len(rows) == (min(open_columns) if open_columns else max(map(len, lines)))
        for row, line in enumerate(rows):
            assert cells_of(line, width) == [column[row] if row < len(column) else "" for column in lines]


def wrapped_word_by_word(paragraph, width):
    """Wrap by the same rule, word by word."""
    line, gap, lines = "", "", []
    for piece in re.findall(r" +|[^ ]+", visible(paragraph).replace("\t", " ")):
        if piece.isspace():
            gap = piece
        elif get_cwidth(line + gap + piece) <= width:
            line, gap = line + gap + piece, ""
        else:
            lines += [line] if line else []
            line = gap = ""
            for character in piece:
                if get_cwidth(line + character) > width:
                    lines.append(line)
                    line = ""
                line += character
    return [*lines, line]


@given(TEXT, st.integers(2, 40))
def test_wrapping_is_that_of_whole_words_and_loses_nothing_but_space(text, width):
    lines = wrap(text, width, break_words=True)
    expected = [line for paragraph in text.split("\n") for line in wrapped_word_by_word(paragraph, width)]
    assert lines == (expected if expected[-1] else expected[:-1])
    assert "".join(lines).replace(" ", "") == re.sub(r"\s", "", visible(text))


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("Once upon a time", 9, ["Once upon", "a time"]),
        ("Once upon", 8, ["Once", "upon"]),
        ("漢字漢字", 5, ["漢字", "漢字"]),
        ("a 漢字", 4, ["a", "漢字"]),
        ("e\u0301" * 5, 4, ["e\u0301" * 4, "e\u0301"]),
        ("a extraordinary b", 6, ["a", "extrao", "rdinar", "y b"]),
        ("one\n\n  two\n", 9, ["one", "", "  two"]),
        ("a\tb", 9, ["a b"]),
        ("\x1b[31mred", 20, ["␛[31mred"]),
        ("ab", 1, ["a", "b"]),
        ("漢", 1, ["漢"]),
        (" \n ", 9, [""]),
        ("", 9, []),
    ],
)
def test_lines_break_by_cells(text, width, lines):
    assert wrap(text, width, break_words=True) == lines


def test_columns_look_like_this():
    columns = Columns(["greedy", "top-k 40 | sample 0.8"], 51)
    out = columns.add(0, "Once upon a time there was a small owl who ")
    assert out == f"{'greedy':24} │ top-k 40 | sample 0.8\n{'─' * 24}─┼─{'─' * 24}\n"
    assert columns.add(1, "漢字 ") == ""
    assert columns.end(1, ["2 tokens, eos", "10 tokens/s"]) == f"{'Once upon a time there':24} │ 漢字\n"
    assert columns.add(0, "\x1b[31mran.") == f"{'was a small owl who':24} │\n"
    assert columns.end(0, ["12 tokens, length"]) == f"{'␛[31mran.':24} │\n"
    assert columns.finish().splitlines() == [
        f"{'─' * 24}─┼─{'─' * 24}",
        f"{'12 tokens, length':24} │ 2 tokens, eos",
        f"{'':24} │ 10 tokens/s",
    ]


def test_titles_and_footers_wrap_and_stay_aligned():
    columns = Columns(["top-k 40 | top-p 0.9 | sample 0.8", "greedy"], 51)
    columns.add(0, "")
    out = columns.end(0, ["a footer that is too long for one line", "next"]) + columns.end(1, ["short", "next"])
    assert out == ""
    lines = columns.finish().splitlines()[1:]
    assert [cells_of(line, 24) for line in lines] == [
        ["a footer that is too", "short"],
        ["long for one line", ""],
        ["next", "next"],
    ]


def test_escape_sequences_style_titles_and_footers_only_where_asked_and_count_for_no_cell():
    def write(color):
        columns = Columns(["greedy", "漢字"], 51, color=color)
        out = columns.add(0, "Tim ran.") + columns.end(0, ["2 tokens"]) + columns.end(1, ["0 tokens"])
        return out + columns.finish()

    assert "\x1b" not in write(False)
    assert "\x1b[1mgreedy\x1b[0m" in write(True)
    assert "\x1b[2m2 tokens\x1b[0m" in write(True)
    assert re.sub(r"\x1b\[[0-9]*m", "", write(True)) == write(False)


def test_a_narrow_terminal_stacks_the_texts_and_the_first_streams():
    assert not Columns(["a", "b"], 51).stacked
    columns = Columns(["greedy", "sample"], 50)
    assert columns.stacked
    assert columns.add(1, "Tim sat.\n") == "== greedy\n"
    assert columns.add(0, "Tim ran.\nHe") == "Tim ran.\n"
    assert columns.end(1, ["2 tokens", "eos"]) == ""
    assert columns.end(0, ["3 tokens", "length"]) == "He\n3 tokens · length\n\n== sample\nTim sat.\n2 tokens · eos\n"
    assert columns.finish() == ""


def test_a_terminal_of_one_cell_still_shows_everything():
    columns = Columns(["g"], 1)
    out = columns.add(0, "Tim ran") + columns.end(0) + columns.finish()
    assert out == "=\n=\ng\nT\ni\nm\nr\na\nn\n"


def test_finish_ends_what_was_interrupted():
    columns = Columns(["greedy", "sample"], 51)
    columns.add(0, "Tim ran")
    assert columns.finish() == f"{'Tim ran':24} │\n"
