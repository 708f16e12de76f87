"""The page in a real browser: pointer, keyboard, no request, no error, and hostile text that stays text."""

import contextlib
import shutil

import pytest
from page_stories import HOSTILE, tree_with_branches

from tinystory.decoding.plugins import discover
from tinystory.page.content import columns_of, mark_partings, page_story
from tinystory.page.page import page_html
from tinystory.session.loading import load

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


def test_hostile_text_runs_nothing(browser, write_page):
    with opened(browser, write_page(HOSTILE, "sample 0.8", "sample 1.5")) as page:
        title = page.title()
        for index in range(page.locator(".token").count()):
            page.locator(".token").nth(index).focus()
        assert page.title() == title != "x"
        assert page.locator("img").count() == 0
