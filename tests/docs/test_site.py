"""The built site: links and anchors that exist, and every page in a browser. `make docs` builds it."""

import shutil
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "docs"
FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
GENERATED = {"genindex.html", "py-modindex.html", "search.html"}

pytestmark = pytest.mark.skipif(not (SITE / "index.html").exists(), reason="there is no site: make docs builds it")


def html_pages():
    return sorted(path for path in SITE.glob("*.html"))


class Links(HTMLParser):
    """Where a page leads to, and the places in it that others may lead to."""

    def __init__(self):
        super().__init__()
        self.targets, self.places = [], set()

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.places.add(named.get("id"))
        self.targets += [named[key] for key in ("href", "src") if named.get(key)]


def test_every_link_of_the_site_leads_to_a_file_and_a_place_in_it():
    read = {}
    for path in html_pages():
        read[path] = Links()
        read[path].feed(path.read_text(encoding="utf-8"))
    broken, checked = defaultdict(list), 0
    for path, links in read.items():
        for target in links.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            there = (path.parent / unquote(url.path)).resolve() if url.path else path
            checked += 1
            lost = there in read and url.fragment and unquote(url.fragment) not in read[there].places
            if not there.exists() or lost:
                broken[path.name].append(target)
    assert checked > 500
    assert not broken


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install .[docs]")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=chromium, args=FLAGS.split())
        yield started
        started.close()


@pytest.fixture
def page(browser):
    """A page of the browser that keeps what went wrong in `page.faults`."""
    opened = browser.new_page(viewport={"width": 1300, "height": 900})
    opened.set_default_timeout(120_000)  # ms, of a busy machine
    opened.faults = []
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.on("requestfailed", lambda request: opened.faults.append(request.url))
    opened.on("console", lambda said: opened.faults.append(said.text) if said.type in ("error", "warning") else None)
    yield opened
    opened.close()


def test_every_page_opens_without_a_fault_with_title_and_pictures(page):
    pictures = 0
    for path in html_pages():
        page.goto(path.as_uri())
        assert not page.faults, path.name
        assert page.title(), path.name
        assert page.locator("h1").count() == 1 or path.name in GENERATED, path.name
        sizes = page.evaluate("Array.from(document.images, image => image.naturalWidth)")
        assert all(sizes), path.name
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, f"{path.name} is {wide} pixels wider than the window"
        pictures += len(sizes)
    assert pictures > 0


def test_one_can_walk_through_all_pages_by_next(page):
    page.goto((SITE / "index.html").as_uri())
    seen = {page.url}
    while (following := page.locator("a.next-page")).count():
        page.goto(following.evaluate("link => link.href"))
        seen.add(page.url)
    assert len(seen) == len(list((ROOT / "docs").glob("*.md")))
    page.locator(".sidebar-tree a", has_text="The method").click()
    page.wait_for_url("**/method.html")
    assert page.title().startswith("The method")
    assert page.locator("math").count() > 20
    assert not page.faults


def test_the_search_finds_a_class(page):
    page.goto((SITE / "search.html").as_uri() + "?q=FlowMonteCarlo")
    page.locator("ul.search li a").first.wait_for()
    assert "api.html" in {link.get_attribute("href").partition("#")[0] for link in page.locator("ul.search li a").all()}
    assert not page.faults
