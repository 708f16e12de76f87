"""A tour of the chat in tmux: every command and every key, and what is then on the screen."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from tmux_tour import ADDED_LINE, Tour, found

import tinystory
from tinystory.repl.commands import COMMANDS

pytestmark = [
    pytest.mark.tty,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX pseudo-terminal"),
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]

MINI = Path(tinystory.__file__).parent / "models" / "mini"
WRITTEN = r"\d+ tokens? · \d+ tokens/s · "
"""The line under a story."""


@pytest.fixture
def tour(tmp_path):
    begun = []

    def begin(**how):
        folder = tmp_path / f"tour{len(begun)}"
        folder.mkdir()
        begun.append(Tour(folder, **how))
        begun[-1].ready()
        return begun[-1]

    yield begin
    for one in begun:
        one.end()


def test_every_command_and_key_does_what_it_says(tour):
    chat = tour()
    assert "Ctrl-D leaves." in chat.shown()  # the longer help comes at the first start only
    guided(chat)
    writing(chat)
    keys(chat)
    the_tree(chat)
    decoding(chat)
    seeing(chat)
    comparing(chat)
    keeping(chat)
    assert set(COMMANDS) - chat.commands == {"quit"}, "a command that the tour does not visit"
    chat.check()
    assert chat.leave() == 0


def guided(chat):
    """The first two steps of /tour, by Enter; Ctrl-C leaves it."""
    chat.says("/tour", enter=False)
    chat.keys("Enter", sees=("^1/10 ", "^> Once upon a time$"), prompt=False)
    chat.keys("Enter", sees=(WRITTEN, "^2/10 ", "^> /retry$"), prompt=False)
    chat.keys("Enter", sees=(WRITTEN, "^3/10 ", r"^> /compare top-k 40 \| sample 0.8"), prompt=False)
    chat.keys("C-c", sees="you have left the tour")
    chat.says("/new", "a blank page")


def writing(chat):
    chat.says("Once upon a time", r"^Once upon a time, ", r"20 tokens · \d+ tokens/s · .* seed 7$")
    chat.keys("Enter", sees=WRITTEN)
    assert re.search(r" \d+ of 512 tokens$", chat.screen().rstrip())
    chat.says("/help", r"^see +what the model saw: /color", "^keys +Enter, Tab")
    chat.says("/help keys", r"^Alt-Up +opens the token browser")
    chat.says("/help compare", r"/compare \[SPEC ; SPEC ; …\]", "becomes a branch of the tree")
    chat.says("/len 12", "at most 12 tokens in one turn")
    chat.says("/go 5", r"^5 tokens · ")
    chat.says("/stats", r"surprise +\d+\.\d+ bits/token")
    chat.says("/undo", r"^Once upon a time, ")
    chat.says("/redo", r"^Once upon a time, ")
    chat.says("/trim", r"^Once upon a time, [^>]*[.!?”\"]$")
    chat.says("/seed random", "seed: random, a fresh seed")
    chat.says("/seed 7", "^seed: 7$")
    chat.says("/stop the", 'a turn ends before "the"')
    chat.says("/stop off", "no stop text is set")
    chat.says("/wish Once,zebra", "✓ Once  · zebra")
    chat.says("/wish off", "no words are wanted")
    chat.says("/edit fix", rf"{re.escape(ADDED_LINE)}$")
    chat.says("/edit", rf"^ {re.escape(ADDED_LINE)}(?! home)", WRITTEN)
    chat.says("/new", "a blank page")
    chat.says("/new The dog ran", r"^The dog ran.* ", WRITTEN)
    chat.says("/len 20", "at most 20 tokens in one turn")
    chat.says("/nwe", enter=False)
    chat.keys("Enter", sees=("/nwe is no command: did you mean /new", r"^> /new$"), prompt=False)
    chat.keys("C-c")


def keys(chat):
    chat.says("/deco", enter=False)
    chat.keys("Tab", sees=r"> /decoder", prompt=False)
    chat.keys("C-c")  # clears the typed text without a notice
    assert "Ctrl-C once more" not in chat.shown()
    chat.says("/decoder ", enter=False)
    chat.keys("Tab", sees=r"processor: ", prompt=False)  # the menu
    chat.keys("C-c")
    chat.keys("C-c", sees="Ctrl-C once more leaves; so does Ctrl-D")
    chat.says("/new", "a blank page")

    chat.says("Two lines", enter=False)
    chat.keys("C-j", prompt=False)
    chat.says("then three", "> Two lines\n  then three", enter=False)
    chat.keys("M-Enter", prompt=False)
    chat.says("in all", "  then three\n  in all", enter=False)
    chat.keys("Enter", sees=(r"^Two lines\nthen three\nin all", WRITTEN))

    chat.says("/new", "a blank page")
    chat.after(lambda: chat.paste("One line\nand another"), "> One line\n  and another", prompt=False)
    chat.keys("C-c")
    # Up brings back what was cleared.
    chat.keys("Up", sees="  and another", prompt=False)
    chat.keys("C-c")
    chat.keys("C-r", prompt=False)
    chat.after(lambda: chat.type("dog ran"), "> /new The dog ran", prompt=False)
    chat.keys("C-g")  # leaves the search; the line is empty as before

    chat.says("My owl", enter=False)
    chat.keys("C-x", "C-e", sees=rf"> My owl {re.escape(ADDED_LINE)}", prompt=False)
    chat.keys("Enter", sees=WRITTEN)
    assert re.search(rf"(?m)^My owl {re.escape(ADDED_LINE)} ", chat.shown())
    chat.says("//slashes begin", r"^/slashes begin", WRITTEN)
    chat.says("/new", "a blank page")
    interrupted(chat)


def interrupted(chat):
    """Ctrl-C keeps the story so far. It also ends columns, and commands that read a file."""
    chat.says("/len 100000", "at most 100000 tokens")
    chat.says("/decoder endless | sample 0.8", "decoder: endless")
    chat.after(lambda: chat.type("A long way"), "> A long way", prompt=False)
    chat.after(lambda: chat.press("Enter"), r"^A long way \w+", prompt=False)
    chat.keys("C-c", sees=rf"{WRITTEN}.* bits/token · cancelled · endless")
    assert re.search(r" \d\d+ (of 512 tokens|tokens, context 512)$", chat.screen().rstrip())
    chat.says("/undo", "(a blank page)")

    chat.says("/new", "a blank page")
    chat.after(lambda: chat.type("/versus default mini"), "> /versus default mini", prompt=False)
    chat.after(lambda: chat.press("Enter"), r"^default +│ mini", r"^\w.*│ \w", prompt=False)
    chat.keys("C-c", sees=(r"^cancelled +│ cancelled", "only shown"))
    chat.says("/reset", "decoder: sample 0.8")
    chat.says("/len 20", "at most 20 tokens in one turn")

    (chat.folder / "long.txt").write_text(
        "Once upon a time there was a dog.\n<|endoftext|>\n" * 35_000, encoding="utf-8"
    )
    chat.type("/ppl long.txt")
    chat.press("Enter")
    chat.until(lambda: not re.search(" tokens$", chat.screen().rstrip()), "a chat that reads a file")
    chat.keys("C-c", sees="^cancelled$")


def the_tree(chat):
    chat.says("/new One day", r"^One day.* ", WRITTEN)
    first = re.findall(r"(?m)^\s*● (\d+)|● (\d+) ", chat.says("/tree", r"● \d+  One day.* tok · "))[-1]
    number = next(filter(None, first))
    chat.says("/retry", r"^One day", WRITTEN)
    chat.says("/more", r"turn \d+ +│ turn \d+ +│ turn \d+", r"turns \d+ to \d+ of the tree")
    chat.says("/tree", r"[├└] ┬  One day", r"^[│ ] └ \d+  ", r"seed \d+/2 · ")
    chat.says(f"/goto {number}", r"^One day")
    chat.keys("M-Left", sees=r"there is no branch before this one|(?:^My owl|^A long way|^/slashes|^Two lines)")
    chat.says(f"/goto {number}", r"^One day")
    chat.keys("M-Right", sees=r"^One day")
    chat.keys("M-Left", sees=r"^One day")


def decoding(chat):
    chat.says("/decoder temperature 0.9 | top-k 40 | sample 0.8", r"decoder: temperature 0.9 \| top-k 40 \| sample 0.8")
    chat.says("/set top-k 20", r"decoder: temperature 0.9 \| top-k 20 \| sample 0.8")
    chat.says("/temperature 0.7", "has 2 temperatures, which")
    chat.says("/decoder top-q 3", enter=False)
    chat.keys("Enter", sees=("top-q.*did you mean", r"^> /decoder top-p 3$"), prompt=False)
    chat.keys("C-c")
    chat.says("/new The cat", r"^The cat.* ", WRITTEN)
    chat.says("/decoder", r"in the \d+ tokens of the turn", r"top-k +k = 20 +", r"top-k 20 +changed")
    chat.says("/decoders", r"^  min-p 0.1 +Keep the tokens")
    chat.says("/decoders min-p", r"kind +processor", r"from +tinystory")
    chat.says("/preset save mine", r"mine: temperature 0.9 \| top-k 20")
    chat.says("/preset list", r"^mine +temperature 0.9")
    chat.says("/reset", r"decoder: sample 0.8")
    chat.says("/preset load mine", r"decoder: temperature 0.9 \| top-k 20 \| sample 0.8")
    chat.says("/preset rm mine", "mine is removed")
    chat.says("/show", r"^decoder +temperature 0.9", r"^max-tokens +20")
    chat.says("/config", r"seed +7 +flag --seed", r"theme +auto +built-in", "not there yet")


def seeing(chat):
    chat.says("/color surprise", "surprise: ≤ 1 bit  2.5  4.5  7  above 7 bits", r"^The cat")
    assert re.search(r"\x1b\[[0-9;]*38;5;(28|64|136|166|196)m", chat.shown(styled=True))
    chat.says("/color off", "colours are off")
    chat.says("/top -1 5", r"^→? *\d +\d+\.\d% +.*█")
    chat.says("/trace -1", r"\d,?\d+ → .*20 → ", r"top-k 20 +20 left", r"took .* by this decoder")
    chat.says("/inside -1", r"layer 6 \(the model\)", r"is the likeliest from", r"looked")
    chat.says("/inside -1 parts", r"layer 6: 1 [+-]\d", r"times less likely|no part helps it")
    chat.says("/pick -1 #2", r"^…?\w.* \S", WRITTEN)
    chat.says("/ppl", r"perplexity +\d", r"bits per byte +\d")
    chat.says("/whatif greedy", r"greedy could not have picked|greedy could have written")

    chat.says("/undo", r"^The cat")
    chat.keys("M-Up", sees=r"← → token +↑ ↓ alternative +Enter branches +Esc leaves", prompt=False)
    there = chat.screen()
    assert found(r"^[→ ] [• ] “.*” +\d+\.\d%", there) == 10, there
    assert found(r"^→ ", there), there
    chat.press("Left", "Left")
    chat.until(lambda: listed(chat) != listed_in(there), "other alternatives")
    marked = chosen(chat)
    chat.press("Down")
    chat.until(lambda: chosen(chat) == marked + 1, "the arrow a line further")
    chat.keys("Escape")
    assert "Esc leaves" not in chat.screen()
    chat.keys("M-Up", sees="Esc leaves", prompt=False)
    chat.press("Left", "Escape")
    chat.until(lambda: "Esc leaves" not in chat.screen(), "the prompt, right after an arrow")
    chat.ready()
    chat.says("/walk 3", enter=False)
    chat.keys("Enter", sees=("Esc leaves", r"^token 3 of \d+, no tint"), prompt=False)
    chat.press("q")
    chat.ready()
    chat.keys("M-Up", sees="Esc leaves", prompt=False)
    chat.press("Left")
    chat.press("Down")
    chat.until(lambda: chosen(chat) == 1, "the arrow on the second")
    chat.keys("Enter", sees=(r"> /pick \d+ #2", WRITTEN))


def listed_in(screen):
    """Return the alternatives of the browser."""
    return re.findall(r"(?m)^[→ ] [• ] (“.*)", screen)


def listed(chat):
    return listed_in(chat.screen())


def chosen(chat):
    """Return the index of the alternative with the arrow."""
    marks = re.findall(r"(?m)^([→ ]) [• ] “", chat.screen())
    return marks.index("→") if "→" in marks else -1


def comparing(chat):
    chat.says("/new The owl saw", r"^The owl saw", WRITTEN)
    chat.says("/compare greedy ; sample 1.2 ; top-k 5", r"\d+ greedy +│ \d+ sample 1.2 +│ \d+ top-k 5",
              r"bits/token +│ \d", "of the tree; on the desk is")  # fmt: skip
    low, high = re.findall(r"turns (\d+) to (\d+) of the tree", chat.shown())[-1]
    chat.says(
        f"/diff {low} {int(low) + 1}", "they part after|they are the same|is the beginning of", "why: |same story"
    )
    chat.says("/compare greedy", "takes from 2 to 8 decoders")
    chat.says(f'/versus default "{MINI}"', "only shown")
    chat.says("/model", r"[\d,]+ parameters$")
    assert int(high) - int(low) == 2


def keeping(chat):
    story = chat.folder / "owl.md"
    chat.says("/save tour", "tour is saved as")
    chat.says("/sessions", r"● tour +\d{4}-", "1 session; /load NAME opens one")
    chat.says("/load tour", r"^The owl saw")
    chat.says("/sessions rm tour !", "tour is the session of this chat")
    chat.says("/export owl.md", "the story is in owl.md")
    assert "The owl saw" in story.read_text(encoding="utf-8")
    chat.says("/export owl.md", "owl.md.*!|!.*owl.md")
    chat.says("/ppl owl.md", r"\d+\.\d+ *$|only|takes|\.txt|bits per byte")
    chat.says("/copy", r"characters sent to the clipboard")
    assert chat.copied().startswith("The owl saw")


def test_the_studio_without_colours_on_a_wide_screen(tour):
    chat = tour(size=(140, 40), NO_COLOR="1")
    chat.says("Once upon a time", r"^Once upon a time, ", rf"— {WRITTEN}")
    chat.says("/color prob", "there are no colours here: NO_COLOR is set")
    chat.says("/whatif greedy", r"\[.+\]|could have written all")
    chat.says("/compare", r"2 sample 0.8 +│ 3 greedy", "— turns 2 to 3 of the tree")
    chat.says("/decoders", r"^  top-p 0.9 +Keep")
    chat.keys("M-Up", sees="Esc leaves", prompt=False)
    chat.keys("q")
    # Neither stories nor notices have a colour or a weight. Only the place in the browser is marked.
    assert not re.search(r"\x1b\[[0-9;]*(3[0-8]|4[0-8])[;m]", chat.shown(styled=True))
    assert not re.search(r"\x1b\[(1|2)m", chat.shown(styled=True))
    chat.type("/quit")
    chat.press("Enter")
    chat.check()
    assert chat.exit_code() == 0


@pytest.mark.parametrize(
    ("options", "environment", "greens"),
    [((), {}, 28), (("--theme", "light"), {}, 22), ((), {"COLORFGBG": "0;15"}, 22), ((), {"COLORFGBG": "15;0"}, 114)],
)
def test_tints_are_those_of_the_background(tour, options, environment, greens):
    chat = tour(options=options, **environment)
    chat.says("/color prob", "prob: ≥ 50 %  20  5  1  below 1 %")
    assert f"\x1b[38;5;{greens}m≥ 50 %" in chat.shown(styled=True)
    assert chat.leave() == 0


def test_a_screen_of_a_few_letters_is_enough(tour):
    chat = tour(size=(12, 10))
    chat.says("One day", r"^One day", r"seed 7")
    for line, pattern in [
        ("/tree", "● 1"),
        ("/help", "keys"),
        ("/decoder", "sample"),
        ("/top -1 5", "%"),
        ("/trace", "model"),
        ("/compare greedy ; sample 1", "== 2 greedy"),
        ("/config", "emacs"),
    ]:
        chat.says(line, pattern)
    chat.keys("M-Up", sees="←", prompt=False)
    chat.press("Left")
    chat.keys("q")
    assert chat.leave() == 0
    chat.check()
