"""The page in a real browser: pointer, keyboard, no request, no error, and hostile text that stays text."""

import contextlib
import os
import re
import shutil
from pathlib import Path

import pytest
from page_stories import HOSTILE_STORIES, tree_with_branches

from tinystory.decoding.plugins import discover
from tinystory.page.content import columns_of, mark_partings, page_story
from tinystory.page.page import page_html
from tinystory.session.loading import load

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def write_page(tmp_path_factory):
    """Return a function that writes a page of a prompt and specs to a file."""
    model, registry = load(), discover(user_folder=None)

    def write(prompt, *specs, whatif=None):
        tree = tree_with_branches(model, registry, prompt, *specs, n=20)
        stories = [page_story(tree, turn, model.tokenizer, model, registry, whatif) for turn in columns_of(tree)]
        mark_partings(stories)
        path = tmp_path_factory.mktemp("page") / "story.html"
        path.write_text(page_html(stories, whatif), encoding="utf-8")
        return path

    return write


@contextlib.contextmanager
def opened(browser, path, width=1400, scheme="light"):
    """Open a page, and check at the end that it asked for nothing and that nothing went wrong in it."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    yield page
    assert problems == []
    assert requests == [path.as_uri()]
    page.close()


def test_pointer_and_keyboard_choose_a_token(browser, write_page):
    path = write_page("Once upon a time", "top-k 20 | sample 0.8", whatif="top-k 1 | sample")
    with opened(browser, path) as page:
        tokens = page.locator(".token")
        tokens.nth(8).hover()
        panel = page.locator("#panel")
        assert "What each stage left" in panel.inner_text()
        assert "top-k 20: 20" in panel.inner_text()
        name = panel.locator("h2").inner_text()
        tokens.nth(8).click()  # now the panel stays
        tokens.nth(3).hover()
        assert panel.locator("h2").inner_text() == name
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.dataset.token") == "9"
        assert panel.locator("h2").inner_text() != name
        assert page.locator(".token[tabindex='0']").count() == 1


def test_the_tint_follows_the_choice(browser, write_page):
    path = write_page("Once upon a time", "sample 1.5")
    with opened(browser, path) as page:
        tinted = page.locator(".t1, .t2, .t3, .t4")
        assert tinted.count() > 0
        page.get_by_label("nothing").check()
        assert tinted.count() == 0
        page.get_by_label("place").check()
        assert tinted.count() > 0


@pytest.mark.parametrize("width", [400, 800, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_at_any_width(browser, write_page, width, scheme):
    path = write_page("Once upon a time", "greedy", "sample 0.8", "sample 1.5")
    with opened(browser, path, width, scheme) as page:
        page.locator(".token").nth(9).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("section.story").count() == 3


def test_the_panel_leaves_half_of_a_narrow_window_to_the_story(browser, write_page):
    with opened(browser, write_page("Once upon a time", "greedy"), 400) as page:
        page.get_by_label("inside the model").check()
        page.locator(".token").nth(1).click()
        assert page.locator("#panel").bounding_box()["height"] < 900 / 2


def test_the_inside_of_a_token_follows_pointer_and_keyboard(browser, write_page):
    path = write_page("Once upon a time", "top-k 20 | sample 0.8")
    with opened(browser, path) as page:
        page.get_by_label("inside the model").check()
        page.locator(".token").nth(9).click()
        panel = page.locator("#panel")
        for text in ("after each layer", "Where its heads looked", "Without a part"):
            assert text in panel.inner_text()
        parts = panel.locator("table.grid").nth(1).locator("td").all_inner_texts()
        assert len(parts) == 1 + 6 * 5
        assert all(re.fullmatch(r"[<>]? ?−?[0-9.]+", bits) for bits in parts[1:])
        tinted = [page.locator(".token.t1, .token.t2, .token.t3, .token.t4").all_inner_texts()]
        panel.get_by_label("all heads together").focus()
        for _ in range(18):  # the arrows go from head to head; the story is tinted by each
            page.keyboard.press("ArrowDown")
            tinted.append(page.locator(".token.t1, .token.t2, .token.t3, .token.t4").all_inner_texts())
        assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("layer 6, head 3, ")
        assert len(set(map(tuple, tinted))) > 5
        page.get_by_label("the choice").check()
        assert "What each stage left" in panel.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(browser, write_page, scheme):
    """The page forbids foreign scripts, so a browser that ignores its policy reads it, only here."""
    axe = Path(os.environ.get("TINYSTORY_AXE") or ROOT / "node_modules" / "axe-core" / "axe.min.js")
    if not axe.is_file():
        pytest.skip("axe-core is not here: npm install axe-core, or set TINYSTORY_AXE to its axe.min.js")
    path = write_page("Once upon a time,\n\nthe \N{SNOWMAN}", "sample 0.8", "sample 1.5", whatif="top-k 1 | sample")
    context = browser.new_context(viewport={"width": 800, "height": 600}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(path.as_uri())
    page.add_script_tag(path=axe)
    for view in ("the choice", "inside the model"):
        page.get_by_label(view).check()
        page.locator(".token").nth(12).click()
        found = page.evaluate("async () => (await axe.run()).violations.map((one) => [one.impact, one.id, one.help])")
        assert [fault for fault in found if fault[0] in ("serious", "critical")] == []
    context.close()


@pytest.mark.parametrize("hostile", HOSTILE_STORIES)
def test_hostile_text_runs_nothing(browser, write_page, hostile):
    with opened(browser, write_page(hostile, "sample 0.8")) as page:
        title = page.title()
        for view in ("the choice", "inside the model"):
            page.get_by_label(view).check()
            for index in (0, 3, page.locator(".token").count() - 1):
                page.locator(".token").nth(index).focus()
        assert page.title() == title != "x"
        assert page.locator("img, svg, iframe, object, a, form, base, link, body style").count() == 0
        assert page.locator("script").count() == 2
