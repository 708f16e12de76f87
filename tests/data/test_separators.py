"""What stands between the stories of a text file: a mark, blank lines, the ends of lines, and the notes about it."""

import pytest

from tinystory.data.sources import SourceReport, read_stories
from tinystory.errors import UsageError

STORIES = [f"Tim saw cat {n}. It was big.\nThe cat ran." for n in range(6)]


@pytest.fixture
def read(tmp_path):
    """Write a text file; return its stories and the notes about it."""

    def write_and_read(text, **options):
        path = tmp_path / "stories.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        report = SourceReport()
        return list(read_stories(path, report=report, **options)), " ".join(report.notes)

    return write_and_read


@pytest.mark.parametrize(
    "mark", ["</s>", "<|EndOfText|>", "<|ENDOFTEXT|>", "<eos>", "[EOS]", "<|end_of_text|>", "<|im_end|>"]
)
def test_another_mark_is_found_and_told(read, mark):
    found, told = read(f"\n{mark}\n".join(STORIES))
    assert found == STORIES
    assert f"has no <|endoftext|>, so its stories were taken from between {mark}" in told


def test_a_mark_counts_in_any_case_but_the_usual_one_as_it_is(read):
    assert read("One.<|EndOfText|>Two.<|ENDOFTEXT|>Three.")[0] == ["One.", "Two.", "Three."]
    assert read("One </s> more.<|endoftext|>Two.") == (["One </s> more.", "Two."], "")


@pytest.mark.parametrize("gap", ["\n\n", "\n \t\n", "\r\n\r\n", "\n\n\n"])
def test_blank_lines_between_whole_sentences_are_between_stories(read, gap):
    found, told = read(gap.join(STORIES) + "\n")
    assert found == STORIES
    assert "were taken from between blank lines; --separator '<|endoftext|>' keeps them together" in told
    assert len(read(gap.join(STORIES), separator="<|endoftext|>")[0]) == 1


def test_two_blank_lines_are_between_stories_that_have_one_inside(read):
    stories = [story.replace("\n", "\n\n") for story in STORIES]
    found, told = read("\n\n\n".join(stories))
    assert found == stories
    assert "between 2 or more blank lines" in told


@pytest.mark.parametrize(
    "text",
    [
        "\n\n".join(STORIES[:4]),
        "\n\n".join(f"a line of verse\nand one more, {n}" for n in range(9)),
        "\n".join(STORIES),
    ],
    ids=["few parts", "no sentences", "no blank line"],
)
def test_what_is_not_plain_stays_one_story_and_is_told(read, text):
    found, told = read(text)
    assert found == [text]
    assert "was taken as one story of" in told
    assert r"--separator '\n' takes each line as a story" in told


def test_a_line_of_marks_is_named(read):
    text = "\n* * *\n".join(STORIES)
    assert "'* * *' at lines of these marks" in read(text)[1]
    assert read(text, separator="* * *") == (STORIES, "")


def test_one_line_is_one_story_without_a_word(read):
    assert read("Once upon a time.\n") == (["Once upon a time."], "")


@pytest.mark.parametrize(
    ("separator", "n"), [(r"\n", 12), ("\n", 12), (r"\n\n", 6), (r"\n---\n", 1), ("Tim", 6), (r"\n\n\n", 1)]
)
def test_the_separator_that_was_asked_for(read, separator, n):
    text = "\n\n".join(STORIES) + ("\n---\n" if "---" in separator else "")
    assert len(read(text, separator=separator)[0]) == n


@pytest.mark.parametrize(
    ("separator", "words"), [("", "is empty"), (" ", "white space without a newline"), ("---", "has no '---' between")]
)
def test_a_separator_that_cannot_be_is_refused(read, separator, words):
    with pytest.raises(UsageError, match=words):
        read("\n\n".join(STORIES), separator=separator)


def test_a_separator_is_for_text_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "One."}')
    with pytest.raises(UsageError, match="--separator is for text files"):
        read_stories(tmp_path / "a.jsonl", separator="---")


def test_the_usual_mark_counts_wherever_it_first_stands(read, monkeypatch):
    monkeypatch.setattr("tinystory.data.separators._BLOCK_BYTES", 64)
    text = "\n\n".join(STORIES)
    assert read(f"{text}<|endoftext|>{text}")[0] == [text, text]
