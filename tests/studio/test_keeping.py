"""Keeping stories in a chat: autosave, resuming, naming, exports, the clipboard."""

import errno
import html
import json
import os
import re
import stat
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
from keepers import keeper_of

from tinystory.decoding import Token
from tinystory.decoding.plugins import discover
from tinystory.decoding.spec import parse_spec
from tinystory.errors import SessionError, TinystoryError, UsageError
from tinystory.repl.commands import DeskStory as StoryBlock
from tinystory.repl.commands import execute
from tinystory.screen.blocks import Table
from tinystory.story.session_file import load_session
from tinystory.studio.keeper import Keeper, session_names
from tinystory.studio.studio import Studio
from tinystory.writing.generate import Ended, Story, Text

HASH = "ab" * 32


class LetterTokenizer:
    bos_id = 0
    token_bytes = {i: chr(i).encode() for i in [*range(1, 0x3000), 0xFFFE, 0xFFFF]}  # noqa: RUF012

    def n_before_text(self, token_ids):
        return int(len(token_ids) > 0 and token_ids[0] == 0)


class LetterBackend:
    """Writes ", and so on." to everything; a token is a character, 0 is BOS."""

    name, dtype, max_seq_len, loading, vocabulary, heals = "toy", "float32", 64, False, "letters", False
    tokenizer, loaded = LetterTokenizer(), None

    def __init__(self, name="toy", hash=HASH):
        self.name, self.hash = name, hash

    def encode(self, text, *, bos):
        return [0] * bos + [ord(character) for character in text]

    def detokenize(self, token_ids):
        return "".join(map(chr, token_ids)).replace("\0", "")

    def model_hash(self):
        return self.hash

    def wait(self, cancel):
        return True

    def write(self, requests):
        for n, request in enumerate(requests):
            text = ", and so on."
            tokens = tuple(Token(ord(letter), -float(place), place, 1.5) for place, letter in enumerate(text))
            yield Text(n, text, tokens)
            yield Ended(n, Story(request, text, request.prompt_ids, tokens, "length", {}))


@pytest.fixture(scope="module")
def registry():
    return discover(user_folder=None)


@pytest.fixture
def make(registry, tmp_path):
    """A studio whose sessions are kept in a folder of the test's."""
    keepers = []

    def build(backend=None, **fields):
        studio = Studio(
            registry,
            parse_spec("sample 0.8", registry),
            backend=backend or LetterBackend(),
            open_model=None,
            seed=7,
            **fields,
        )
        keepers.append(Keeper(studio, tmp_path / "sessions"))
        return studio

    yield build
    for keeper in keepers:
        keeper.close()


def write(studio, text=""):
    for _ in studio.write([studio.next_turn(text)], lambda: False):
        pass


def said(studio, line):
    """Return what a command prints, one line for each block."""
    texts = []
    for block in execute(studio, line, keeper_of(studio)).blocks:
        if isinstance(block, Table):
            texts += [" | ".join(row) for row in block.rows]
        else:
            texts.append("STORY" if isinstance(block, StoryBlock) else block.text)
    return "\n".join(texts)


def files(studio):
    return sorted(os.listdir(keeper_of(studio).folder)) if keeper_of(studio).folder.exists() else []


# --- autosave ---


def test_each_turn_is_saved_under_the_day_and_the_first_words(make):
    studio = make()
    write(studio, "Once upon a time, Zoë's kite flew away")
    name = keeper_of(studio).name
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-once-upon-a-time-zoes", name)
    assert load_session(keeper_of(studio).path).tree == studio.tree
    write(studio)
    assert load_session(keeper_of(studio).path).tree == studio.tree
    assert files(studio) == [f".{name}.lock", f"{name}.json"]
    assert stat.S_IMODE(keeper_of(studio).path.stat().st_mode) == 0o600


def test_a_blank_page_is_no_session(make):
    studio = make()
    studio.goto(0)
    keeper_of(studio).close()
    assert files(studio) == []


def test_two_chats_never_write_the_same_file(make):
    first, second = make(), make()
    write(first, "Once")
    write(second, "Once")
    assert keeper_of(second).name == keeper_of(first).name + "-2"
    write(first, " more")
    assert [len(load_session(keeper_of(one).path).tree.turns) for one in (first, second)] == [2, 1]


def test_a_session_open_elsewhere_is_read_and_kept_apart(make):
    first, second = make(), make()
    write(first, "Once")
    name = keeper_of(first).name
    assert "open in another chat" in said(second, f"/load {name}")
    write(second)
    assert keeper_of(second).name == name + "-2"
    assert len(load_session(keeper_of(first).path).tree.turns) == 1


def test_a_full_disk_is_told_once_and_the_chat_goes_on(make, monkeypatch):
    studio = make()
    write(studio, "Once")
    before = keeper_of(studio).path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        write(studio)
        assert "No space left on device" in keeper_of(studio).problem()
        write(studio)
        assert keeper_of(studio).problem() == ""
    assert keeper_of(studio).path.read_bytes() == before
    assert len(studio.tree.turns) == 3
    assert not [name for name in files(studio) if name.endswith(".partial")]
    write(studio)
    assert load_session(keeper_of(studio).path).tree == studio.tree


def test_a_folder_that_cannot_be_written_is_told_once(make, tmp_path):
    (tmp_path / "sessions").write_text("a file in its place")
    studio = make()
    write(studio, "Once")
    assert "cannot keep a session in" in keeper_of(studio).problem()
    assert studio.text == "Once, and so on."


def test_settings_changed_after_the_last_turn_are_saved_on_leaving(make):
    studio = make()
    write(studio, "Once")
    execute(studio, "/decoder greedy", keeper_of(studio))
    execute(studio, "/wish owl, kite", keeper_of(studio))
    keeper_of(studio).close()
    session = load_session(keeper_of(studio).path)
    assert (session.spec, session.words) == ("greedy", ("owl", "kite"))
    assert not [name for name in files(studio) if name.endswith(".lock")]


def test_locks_of_killed_chats_go_at_the_next_start_and_those_in_use_stay(make):
    studio = make()
    write(studio, "Once")
    folder, name = keeper_of(studio).folder, keeper_of(studio).name
    (folder / ".killed.lock").touch()
    (folder / ".new.lock").touch()
    (folder / ". a note of mine .lock").touch()
    for other in (".killed.lock", f".{name}.lock", ". a note of mine .lock"):
        os.utime(folder / other, (1, 1))
    make()
    assert files(studio) == sorted([". a note of mine .lock", ".new.lock", f".{name}.lock", f"{name}.json"])


# --- opening again ---


def test_the_latest_session_is_resumed_with_its_settings(make):
    studio = make(max_tokens=12, stop=("The end",), words=("owl",), tint="rank")
    write(studio, "Once")
    execute(studio, "/decoder top-k 5 | sample 0.7", keeper_of(studio))
    execute(studio, "/undo", keeper_of(studio))
    keeper_of(studio).close()
    again = make()
    assert keeper_of(again).resume("") == []
    assert again.tree == studio.tree
    assert again.tree.redo() == 1
    assert (again.spec, again.seed, again.max_tokens) == ("top-k 5 | sample 0.7", 7, 12)
    assert (again.stop, again.words, again.tint) == (("The end",), ("owl",), "rank")
    assert keeper_of(again).name == keeper_of(studio).name


def test_what_the_command_line_says_holds_in_a_resumed_session(make):
    studio = make(max_tokens=12)
    write(studio, "Once")
    keeper_of(studio).close()
    again = make()
    keeper_of(again).resume("", {"max_tokens"})
    assert again.max_tokens == 256


def test_an_unknown_session_names_the_nearest(make):
    studio = make()
    write(studio, "Once")
    execute(studio, "/save dragons", keeper_of(studio))
    with pytest.raises(UsageError, match="there is no session dragon: did you mean dragons"):
        keeper_of(make()).resume("dragon")
    with pytest.raises(UsageError, match="letters, digits"):
        keeper_of(make()).resume("../dragons")


def test_without_any_session_resume_says_so(make):
    with pytest.raises(UsageError, match="no session has been kept yet"):
        keeper_of(make()).resume("")


def test_a_damaged_session_is_set_aside_and_replaces_nothing(make):
    for n in range(3):
        studio = make()
        path = keeper_of(studio).folder / "tale.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"damaged {n}")
        [notice] = keeper_of(studio).resume("tale")
        assert "set aside" in notice
        assert studio.text == ""
    assert files(studio) == ["tale.json.damaged", "tale.json.damaged.2", "tale.json.damaged.3"]
    assert (path.parent / "tale.json.damaged").read_text() == "damaged 0"


def test_a_session_of_a_newer_tinystory_stays_where_it_is(make):
    studio = make()
    write(studio, "Once")
    keeper_of(studio).close()
    path = keeper_of(studio).path
    path.write_text(path.read_text().replace('"schema":1', '"schema":2'))
    with pytest.raises(SessionError, match="newer"):
        keeper_of(make()).resume("")
    assert path.exists()


def test_another_model_is_named_with_the_way_to_take_it(make):
    studio = make(LetterBackend("owl-model"))
    write(studio, "Once")
    keeper_of(studio).close()
    [notice] = keeper_of(make(LetterBackend(hash="cd" * 32))).resume("")
    assert "owl-model (abababababab)" in notice
    assert "/model owl-model" in notice


def test_a_decoder_that_is_not_here_leaves_the_present_one(make):
    studio = make()
    write(studio, "Once")
    keeper_of(studio).close()
    path = keeper_of(studio).path
    path.write_text(path.read_text().replace('"spec":"sample"', '"spec":"x"').replace('"sample 0.8"', '"nowhere 3"', 1))
    again = make()
    [notice] = keeper_of(again).resume("")
    assert "no decoder stage is called 'nowhere'" in notice
    assert again.spec == "sample 0.8"


def test_a_decoder_that_opens_another_model_is_not_taken_from_a_file(make):
    studio = make()
    write(studio, "Once")
    keeper_of(studio).close()
    path = keeper_of(studio).path
    path.write_text(path.read_text().replace('"sample 0.8"', '"sample | speculative some-body/model"', 1))
    again = make()
    [notice] = keeper_of(again).resume("")
    assert "it opens 'some-body/model'; type such a decoder yourself" in notice
    assert again.spec == "sample 0.8"


# --- commands ---


def test_saving_under_a_name_renames_the_automatic_file(make):
    studio = make()
    write(studio, "Once")
    assert "dragons is saved" in said(studio, "/save dragons")
    write(studio)
    assert session_names(keeper_of(studio).folder) == ["dragons"]
    execute(studio, "/save owls", keeper_of(studio))  # a name that was given stays
    assert sorted(session_names(keeper_of(studio).folder)) == ["dragons", "owls"]
    other = make()
    write(other, "Else")
    with pytest.raises(UsageError, match="a session dragons already"):
        execute(other, "/save dragons", keeper_of(other))
    for wrong in ("a/b", ".hidden", "a b", "x" * 81):
        with pytest.raises(UsageError, match="cannot name a session"):
            execute(other, f"/save {wrong}", keeper_of(other))


def test_a_name_that_cannot_be_written_leaves_the_session_where_it_was(make, monkeypatch):
    studio = make()
    write(studio, "Once")
    name = keeper_of(studio).name

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SessionError, match="No space"):
            execute(studio, "/save dragons", keeper_of(studio))
    assert keeper_of(studio).name == name
    write(studio)
    assert load_session(keeper_of(studio).path).tree == studio.tree
    assert session_names(keeper_of(studio).folder) == [name]


def test_load_saves_the_present_session_first_and_shows_the_other(make):
    studio = make()
    write(studio, "Once")
    execute(studio, "/save one", keeper_of(studio))
    keeper_of(studio).close()
    other = make()
    write(other, "Twice")
    execute(other, "/decoder greedy", keeper_of(other))
    before = keeper_of(other).path
    assert said(other, "/load one") == "STORY"
    assert other.text == "Once, and so on."
    assert load_session(before).spec == "greedy"
    with pytest.raises(UsageError, match="/sessions lists them"):
        execute(other, "/load", keeper_of(other))
    with pytest.raises(UsageError, match="did you mean one"):
        execute(other, "/load ones", keeper_of(other))


def test_the_list_of_sessions_has_the_latest_first_and_bears_a_damaged_one(make):
    studio = make()
    assert said(studio, "/sessions") == "no session has been kept yet"
    for number, text in enumerate(("Once", "Twice")):
        write(studio := make(), text)
        execute(studio, f"/save s{number}", keeper_of(studio))
        os.utime(keeper_of(studio).path, (10**9 + number, 10**9 + number))
    bad = keeper_of(studio).folder / "bad.json"
    bad.write_text("{")
    os.utime(bad, (1, 1))
    lines = said(studio, "/sessions").splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["name", "● s1", "s0", "bad", "3 sessions; /load NAME opens one"]
    assert lines[1].endswith("1 | 1 | Twice, and so on.")
    assert lines[3].endswith("(cannot be read)")


def test_a_session_is_removed_or_renamed_but_never_an_open_one(make, tmp_path):
    studio, other = make(), make()
    for one, name in ((studio, "owl"), (other, "fox"), (studio, "kite")):
        write(one, f"The {name}")
        execute(one, f"/save {name}", keeper_of(one))
    folder = tmp_path / "sessions"
    what = "1 story, 2 turns, begins with “The owl, and so on.”"
    assert said(studio, "/sessions rm owl") == f"owl: {what}\n/sessions rm owl ! removes it for good"
    before = (folder / "owl.json").stat().st_mtime_ns
    assert said(studio, "/sessions rename owl bird") == "owl is now bird"
    assert (folder / "bird.json").stat().st_mtime_ns == before
    assert not load_session(folder / "bird.json").automatic
    for line, message in (
        ("/sessions rm kite !", "kite is the session of this chat: /load another one first"),
        ("/sessions rm kite", "kite is the session of this chat"),
        ("/sessions rm fox !", "fox is open in another chat"),
        ("/sessions rename kite hawk", "/save hawk names it"),
        ("/sessions rename bird fox", "fox is open in another chat"),
        ("/sessions rename bird kite", "kite is the session of this chat"),
        ("/sessions rm brid", "did you mean bird?"),
        ("/sessions rm ../owl", "cannot name a session"),
        ("/sessions remove", "rm NAME, or rename NAME NEW"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            execute(studio, line, keeper_of(studio))
    assert sorted(path.name for path in folder.glob("*.json")) == ["bird.json", "fox.json", "kite.json"]
    assert said(studio, "/sessions rm bird !") == f"bird is removed: {what}"
    assert not (folder / "bird.json").exists()


def test_fifty_sessions_are_listed_at_most_with_the_count(make):
    studio = make()
    write(studio, "Once")
    execute(studio, "/save s", keeper_of(studio))
    for number in range(60):
        (keeper_of(studio).folder / f"s{number}.json").write_bytes(keeper_of(studio).path.read_bytes())
    lines = said(studio, "/sessions").splitlines()
    assert len(lines) == 52
    assert lines[-1].startswith("61 sessions, the latest 50 of them")


def test_copy_gives_the_story_to_the_clipboard(make):
    studio = make()
    with pytest.raises(UsageError, match="no story"):
        execute(studio, "/copy", keeper_of(studio))
    write(studio, "Once")
    assert execute(studio, "/copy", keeper_of(studio)).clipboard == "Once, and so on."


# --- exports ---

HOSTILE = "[bold]*Once*[/bold] <script>|\x1b[2J & so\nthe {end} :smile:"


def exported(studio, tmp_path, name):
    path = tmp_path / name
    assert str(path) in said(studio, f"/export {path}")
    return path.read_text(encoding="utf-8")


def test_export_as_text_is_the_story(make, tmp_path):
    studio = make()
    write(studio, "Once")
    assert exported(studio, tmp_path, "a.txt") == "Once, and so on.\n"
    assert os.listdir(tmp_path) == ["a.txt", "sessions"] or set(os.listdir(tmp_path)) == {"a.txt", "sessions"}


def test_export_as_markdown_has_what_was_typed_in_bold_and_a_table_of_turns(make, tmp_path):
    studio = make()
    write(studio, "Once")
    studio.decoder = parse_spec("top-k 5 | sample", studio.registry)
    write(studio, " a *b*")
    text = exported(studio, tmp_path, "a.md")
    story, table = text.split("\n\n", 1)
    assert story == r"**Once**, and so on. **a \*b\***, and so on."
    assert table.splitlines()[-1] == rf"| 2 | top\-k 5 \| sample 1 | 7 | toy {HASH[:12]} | 12 |"


def test_export_as_json_is_a_session_of_this_story_alone(make, tmp_path):
    studio = make()
    write(studio, "Once")
    write(studio, " a")
    studio.tree.undo()
    write(studio, " b")
    fields = json.loads(exported(studio, tmp_path, "a.json"))
    assert [turn["id"] for turn in fields["nodes"]] == [1, 3]
    assert fields["text"] == fields["nodes"][-1]["text"] == studio.text
    session = load_session(tmp_path / "a.json")
    assert session.tree.text(3) == studio.text
    assert session.tree.turns[3] == studio.tree.turns[3]


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.urls = [], "", []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.urls += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_export_as_html_stands_alone_and_shows_every_letter(make, tmp_path):
    studio = make()
    write(studio, HOSTILE)
    content = exported(studio, tmp_path, "a.html")
    page = _Page()
    page.feed(content)
    assert not re.search(r"https?:|//[a-z]", content)
    assert "url(" not in content
    assert not page.urls
    assert page.tags.count("script") == 2  # the data and our own
    assert "\x1b" not in content
    assert "[bold]*Once*[/bold] <script>|" in page.text
    assert "the {end} :smile:, and so on." in page.text
    assert "sample 0.8 · seed 7 · toy" in page.text


def test_export_as_svg_stands_alone_and_is_well_formed(make, tmp_path):
    studio = make(tint="rank")
    write(studio, HOSTILE)
    content = exported(studio, tmp_path, "a.svg")
    root = ElementTree.fromstring(content)
    assert not [url for url in re.findall(r"(?:https?:)?//[^\s\"']+", content) if "www.w3.org" not in url]
    text = "".join(root.itertext()).replace("\xa0", " ")
    assert "[bold]*Once*[/bold] <script>|" in text
    assert "1st" in text
    assert len(set(re.findall(r"fill: (#[0-9a-f]{6})", content))) >= 5


@pytest.mark.parametrize("name", ["a.svg", "a.html"])
def test_what_is_no_character_is_shown_in_a_picture(make, tmp_path, name):
    """XML may have neither controls nor noncharacters, escaped or not; U+FFFE once made an SVG that nothing opened."""
    studio = make()
    write(studio, "a\ufffeb\uffffc\x01d\x9be")
    content = exported(studio, tmp_path, name)
    assert not set(content) & set("\ufffe\uffff\x01\x9b")
    assert "<U+FFFE>" in html.unescape(content)
    if name.endswith(".svg"):
        assert "a<U+FFFE>b<U+FFFF>c␁d<U+009B>e" in "".join(ElementTree.fromstring(content).itertext())


@pytest.mark.skipif(os.name != "posix", reason="modes are a POSIX thing")
def test_a_replaced_file_keeps_its_mode(make, tmp_path):
    studio = make()
    write(studio, "Once")
    for mode in (0o600, 0o664):
        path = tmp_path / "a.txt"
        path.write_text("mine")
        path.chmod(mode)
        execute(studio, f"/export {path} !", keeper_of(studio))
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert path.read_text() == "Once, and so on.\n"


def test_an_unknown_ending_names_the_five(make, tmp_path):
    studio = make()
    write(studio, "Once")
    for name in ("a.doc", "a", ".txt"):
        with pytest.raises(UsageError, match=re.escape(".txt, .md, .json, .html, .svg")):
            execute(studio, f"/export {tmp_path / name}", keeper_of(studio))
    with pytest.raises(UsageError, match="takes a file"):
        execute(studio, "/export", keeper_of(studio))


def test_a_file_that_is_there_is_replaced_only_when_told(make, tmp_path):
    studio = make()
    write(studio, "Once")
    path = tmp_path / "a.txt"
    path.write_text("mine")
    with pytest.raises(UsageError, match=re.escape(f"/export {path} ! replaces it")):
        execute(studio, f"/export {path}", keeper_of(studio))
    assert path.read_text() == "mine"
    execute(studio, f"/export {path} !", keeper_of(studio))
    assert path.read_text() == "Once, and so on.\n"


def test_export_knows_the_home_folder_and_says_what_cannot_be_written(make, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    studio = make()
    with pytest.raises(UsageError, match="no story"):
        execute(studio, "/export ~/a.txt", keeper_of(studio))
    write(studio, "Once")
    execute(studio, "/export ~/a.txt", keeper_of(studio))
    assert (tmp_path / "a.txt").exists()
    with pytest.raises(TinystoryError, match="No such file or directory"):
        execute(studio, "/export ~/nowhere/a.txt", keeper_of(studio))
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(UsageError, match="not a file"):
        execute(studio, "/export ~/b.txt !", keeper_of(studio))
