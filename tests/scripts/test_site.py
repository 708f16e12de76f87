"""The documentation site: each page is in its order, each link leads somewhere, and a built page asks for nothing."""

import contextlib
import functools
import http.server
import re
import shutil
import sys
import threading
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def site(load_script):
    return load_script("site/build")


def pages_of(nav):
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else pages_of(value)


def test_each_page_has_its_place_and_each_link_leads_somewhere(site, tmp_path):
    site.write_pages(tmp_path / "pages")
    nav = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    pages = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "pages").glob("*.md")}
    assert sorted(pages_of(nav)) == sorted(pages)
    for name, text in pages.items():
        for target in re.findall(r"\]\((?!#|[a-z]+:)([^)\s#]+)", text):
            assert (tmp_path / "pages" / target).is_file(), (name, target)
    assert "::: tinystory.Story\n" in pages["api.md"]
    assert "<div" in pages["first-story.md"]  # the outputs of the notebook


def test_a_link_to_a_file_that_is_no_page_is_told(site):
    with pytest.raises(SystemExit, match=r"docs/a.md: the site has no page for ../setup.cfg"):
        site.with_links("see [this](../setup.cfg)", "docs/a.md", {})
    assert site.with_links("[r](../README.md#x) [w](https://a.b)", "docs/a.md", {"README.md": "index.md"}) == (
        "[r](index.md#x) [w](https://a.b)"
    )


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder):
    """Serve a folder on this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_built_page_asks_nobody_else_for_anything(site, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright")
    if CHROMIUM is None or not Path(sys.executable).with_name("zensical").exists():
        pytest.skip("chromium or zensical is not installed")
    site.build(tmp_path)
    with served(tmp_path / "site") as home, playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        requests, problems = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        for name in ("index", "first-story", "decoders", "api"):
            page.goto(f"{home}{name}.html", wait_until="networkidle")
            assert page.locator("h1").first.is_visible()
        assert "Write one story" in page.locator("main, article").first.inner_text()
        page.keyboard.press("Control+k")
        page.keyboard.type("watermark")
        page.get_by_text("watermark").first.wait_for()
        browser.close()
    assert [url for url in requests if not url.startswith((home, "data:", "blob:"))] == []
    assert problems == []
