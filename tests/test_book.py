"""The built book in a browser that can reach nothing but the book: light, dark, and as narrow as a phone."""

import json
import os
import re

import pytest
import yaml

from tests import site

PAGES = site.pages()
EVERYTHING = PAGES[-1]
RAW_TEX = r"""
() => {
  const walker = document.createTreeWalker(document.querySelector("article, main"), NodeFilter.SHOW_TEXT);
  const found = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.parentElement.closest("pre, code, script, style, mjx-container")) continue;
    if (/\\\(|\\\[|\$\$|\\(frac|text|math\w+|sum|operatorname|boldsymbol)\b/.test(node.data)) found.push(node.data);
  }
  return found;
}
"""
EMPTY = "() => [...document.querySelectorAll('main img')].filter(i => !i.naturalWidth || !i.alt).map(i => i.src)"
# Third-party markup that we cannot mend: the handle of a saved slider has no name of its own.
KNOWN = {("aria-input-field-name", ".noUi-handle")}
TOO_WIDE = """
() => [...document.querySelectorAll("article *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1
  && ![...ancestors(e)].some(a => getComputedStyle(a).overflowX !== "visible")).map(e => e.outerHTML.slice(0, 120));
function* ancestors(e) { for (let a = e.parentElement; a && a.tagName !== "BODY"; a = a.parentElement) yield a; }
"""


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return site.build(tmp_path_factory.mktemp("book"))


@pytest.fixture(scope="module")
def address(html):
    with site.served(html) as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    path = site.browser_path()
    if not path and not os.environ.get("CI"):
        pytest.skip("no Chromium found: install the package chromium, or name one in CHROMIUM")
    assert path, "CI runs the browser tests, and no Chromium is installed"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address):
    """Open a page in a colour scheme at a width; what went wrong meanwhile is in `page.troubles`."""
    contexts = []

    def open_page(name, scheme="light", width=1280):
        context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        troubles = []
        context.route(
            "**/*", lambda route: route.continue_() if route.request.url.startswith(address) else route.abort()
        )
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url}"))
        page.on(
            "response", lambda answer: troubles.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else 0
        )
        page.goto(f"{address}/{name}.html", wait_until="networkidle")
        page.troubles = troubles
        return page

    yield open_page
    for context in contexts:
        context.close()


def test_nothing_is_loaded_from_elsewhere(html):
    """Scripts, styles, fonts and pictures only; links that a reader follows may lead anywhere."""
    for path in html.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=\"(.*?)\"", text)
        loaded += re.findall(r"<link\b(?![^>]*rel=\"(?:search|canonical)\")[^>]*?\bhref=\"(.*?)\"", text)
        assert [url for url in loaded if re.match(r"(https?:)?//", url)] == [], path.name


def test_notebooks_and_nothing_else_open_on_colab(html):
    branch = yaml.safe_load((site.ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["branch"]
    for name in PAGES:
        text = (html / f"{name}.html").read_text(encoding="utf-8")
        links = re.findall(r"https://colab\.research\.google\.com/[^\"]+", text)
        assert all(link.endswith(f"/blob/{branch}/{name}.ipynb") for link in links)
        assert bool(links) == name.startswith("notebooks/"), name


def test_widgets_come_with_their_state(html):
    """A page whose notebook lacks it silently shows nothing."""
    for path in (*site.ROOT.glob("notebooks/*.ipynb"), site.EXTRA):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        outputs = [out.get("data", {}) for cell in notebook["cells"] for out in cell.get("outputs", [])]
        views = {data[kind]["model_id"] for data in outputs for kind in data if kind.endswith("widget-view+json")}
        widgets = notebook["metadata"].get("widgets", {})
        assert views <= set(widgets.get("application/vnd.jupyter.widget-state+json", {}).get("state", {})), path.name


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_all_it_has(visit, name, scheme):
    page = visit(name, scheme)
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    assert page.troubles == []
    assert page.evaluate(RAW_TEX) == []
    assert page.locator("mjx-merror").count() == 0
    assert page.locator(".math:not(:has(mjx-container))").count() == 0
    assert page.evaluate(EMPTY) == []
    open_all(page)
    assert grave_findings(page) == []


def open_all(page):
    """Unfold what is folded; each part must be hidden before and shown after its click."""
    for details in page.locator("main details").all():
        assert details.get_attribute("open") is None
        details.locator("summary").click()
        assert details.locator(":scope > :not(summary)").first.is_visible()
    for box in page.locator("main .admonition.dropdown").all():
        assert not box.locator(":scope > :not(.admonition-title)").first.is_visible()
        box.locator(".admonition-title").first.click()
        assert box.locator(":scope > :not(.admonition-title)").first.is_visible()


def grave_findings(page):
    """What axe-core calls serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    return [
        (rule["id"], node["target"], node.get("failureSummary", "")[:300])
        for rule in Axe().run(page).response["violations"]
        for node in rule["nodes"]
        if rule["impact"] in ("serious", "critical") and (rule["id"], node["target"][0]) not in KNOWN
    ]


@pytest.mark.browser
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone(visit, name):
    page = visit(name, width=390)
    assert page.troubles == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate(TOO_WIDE) == []


@pytest.mark.browser
def test_the_page_with_everything(visit):
    page = visit(EVERYTHING)
    numbers = [text.rstrip("#¶ ") for text in page.locator(".eqno").all_inner_texts()]
    assert numbers == ["(99.1)", "(99.2)"]
    assert "Equation (99.2) follows (99.1)" in page.locator("main").inner_text()
    slider = page.locator(".widget-slider")
    assert slider.is_visible()
    assert slider.locator(".widget-readout").inner_text() == "37"
    code = page.locator(".cell_output .highlight-python")
    assert "def parse_duration" in code.inner_text()
    assert code.locator(".k").count() > 3, "show() is highlighted"


@pytest.mark.browser
def test_search_finds_a_word(visit):
    page = visit("search")
    page.goto(page.url + "?q=compressor")
    page.wait_for_selector("ul.search li a")
    links = page.locator("ul.search li a").all()
    assert any("00_first_run" in (link.get_attribute("href") or "") for link in links)
    assert page.troubles == []


@pytest.mark.browser
def test_the_colour_switch_stays_on_the_next_page(visit):
    page = visit(PAGES[0])
    button = page.locator("button.theme-switch-button:visible").first
    for _ in range(3):
        if page.evaluate("document.documentElement.dataset.mode") != "dark":
            button.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.goto(page.url.replace(PAGES[0], PAGES[1]))
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
