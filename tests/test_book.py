"""The built book in a browser that can reach nothing but the book: light, dark, and as narrow as a phone."""

import json
import os
import re

import pytest
import yaml

from course_lib.data import library
from tests import site

PAGES = site.pages()
EVERYTHING = PAGES[-1]
RAW_TEX = r"""
() => {
  const walker = document.createTreeWalker(document.querySelector("article, main"), NodeFilter.SHOW_TEXT);
  const found = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.parentElement.closest("pre, code, script, style, mjx-container")) continue;
    if (/\\\(|\\\[|\$\$|\$[^\s$][^$]*\$|\\[a-z]{2,}\b/.test(node.data)) found.push(node.data);
  }
  return found;
}
"""
# Not loaded, without alternative text, or of one colour all over.
EMPTY = """
() => [...document.querySelectorAll("main img")].filter(i => !i.naturalWidth || !i.alt || blank(i)).map(i => i.src);
function blank(image) {
  const canvas = Object.assign(document.createElement("canvas"), {width: 64, height: 64}).getContext("2d");
  canvas.drawImage(image, 0, 0, 64, 64);
  return new Set(new Uint32Array(canvas.getImageData(0, 0, 64, 64).data.buffer)).size === 1;
}
"""
# Third-party markup that we cannot mend: the handle of a saved slider has no name of its own.
KNOWN = {("aria-input-field-name", ".noUi-handle")}
# For each outermost widget, whether it shows any text.
WIDGETS_SAY = """
() => [...document.querySelectorAll(".cell_output .jupyter-widgets")]
  .filter(e => !e.parentElement.closest(".jupyter-widgets")).map(e => e.innerText.trim() !== "")
"""
TOO_WIDE = """
() => [...document.querySelectorAll("article *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1
  && ![...ancestors(e)].some(a => getComputedStyle(a).overflowX !== "visible")).map(e => e.outerHTML.slice(0, 120));
function* ancestors(e) { for (let a = e.parentElement; a && a.tagName !== "BODY"; a = a.parentElement) yield a; }
"""

# Leaves one of each kind of coloured word in code and formulas: axe-core needs a minute for all those of a chapter.
ONE_OF_EACH = """
() => {
  const kind = e => e ? [e.tagName, e.className, e.getAttribute("style"), kind(e.parentElement)].join() : "";
  const seen = new Set();
  for (const e of document.querySelectorAll(".highlight span, mjx-container *"))
    if (!e.children.length) seen.has(kind(e)) ? e.remove() : seen.add(kind(e));
}
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
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
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
        page.evaluate("async () => { await window.MathJax?.startup?.promise; }")  # formulas are set after the last file
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
        assert re.findall(r"cdn\.jsdelivr|cdnjs|unpkg|googleapis", text) == [], path.name


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


def test_tables_list_every_record_dataset_and_notebook(html):
    def rows(name):
        page = (html / f"book/{name}.html").read_text(encoding="utf-8")
        return re.findall(r"<tr.*?</tr>", page.replace("<wbr>", ""), re.S)

    for folder, name in (("runs/*/run.json", "runs"), ("notebooks/*.ipynb", "status")):
        for path in site.ROOT.glob(folder):
            stem = path.parent.name if name == "runs" else path.stem
            assert any(f">{stem}<" in row or f">{stem}/" in row for row in rows(name)), stem
    assert not any(">–<" in row and "lab-" not in row for row in rows("runs")), "a record says neither what nor how"
    cards = (html / "book/data_cards.html").read_text(encoding="utf-8")
    assert [name for name in library.DATASETS if f">{name}<" not in cards] == []


def flaws(page):
    """What a reader would see or miss on a page, and what its console says."""
    return [
        *page.troubles,
        *page.evaluate(RAW_TEX),
        *["a formula that MathJax could not read"] * page.locator("mjx-merror").count(),
        *["a formula that was not set"] * page.locator(".math:not(:has(mjx-container))").count(),
        *[f"an empty figure: {source[:80]}" for source in page.evaluate(EMPTY)],
    ]


def questions_and_widgets(name):
    """How many of each the notebook behind a page has; a page of prose has none."""
    path = site.ROOT / f"{name}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.exists() else []
    outputs = [out.get("data", {}) for cell in cells for out in cell.get("outputs", [])]
    questions = sum("".join(cell["source"]).startswith("# BEGIN QUESTION") for cell in cells)
    return questions, sum("application/vnd.jupyter.widget-view+json" in data for data in outputs)


# One visit for all: setting the formulas of a chapter takes longer than looking at it.
@pytest.mark.browser
@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_all_it_has_light_dark_and_narrow(visit, name):
    page = visit(name)
    assert colours(page) == "light"
    assert flaws(page) == []
    if name != EVERYTHING:
        questions, widgets = questions_and_widgets(name)
        folded = page.locator("summary:has-text('Show a solution')").count()
        assert folded + page.locator(".admonition.solution.dropdown").count() == questions
        assert bool(questions) == name.startswith("notebooks/")
        assert page.evaluate(WIDGETS_SAY) == [True] * widgets
    open_all(page)
    page.set_viewport_size({"width": 390, "height": 900})
    assert too_wide(page) == []
    page.set_viewport_size({"width": 1280, "height": 900})
    turn(page, "dark")
    assert flaws(page) == []
    # From here on the page is pared down, and axe-core asks for style sheets where there are none.
    assert grave_findings(page, rules={"color-contrast": {"enabled": False}}) == []
    page.evaluate(ONE_OF_EACH)
    assert grave_findings(page, runOnly=["color-contrast"]) == []
    turn(page, "light")
    assert grave_findings(page, runOnly=["color-contrast"]) == []


@pytest.mark.browser
def test_a_page_may_begin_dark(visit):
    page = visit(EVERYTHING, "dark")
    assert colours(page) == "dark"
    assert flaws(page) == []


def colours(page):
    return page.evaluate("document.documentElement.dataset.theme")


def turn(page, scheme):
    """What the operating system does in the evening."""
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")


PUT = "document.querySelector('article').insertAdjacentHTML('beforeend', String.raw`{}`)"
DOT = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"


@pytest.mark.browser
@pytest.mark.parametrize(
    "damage",
    [
        "console.error('broken')",
        "setTimeout(() => { throw new Error('broken') })",
        "fetch('/missing.js')",
        "fetch('https://example.org/script.js').catch(() => 0)",
        PUT.format(r"<p>\(x^2\)</p>"),
        PUT.format(r"<p>as $x_1$ shows</p>"),
        PUT.format(r"<p>\frac 1 2</p>"),
        PUT.format("<mjx-merror>x</mjx-merror>"),
        PUT.format('<span class="math">x</span>'),
        PUT.format('<img alt="lost" src="data:image/png;base64,xx">'),
        PUT.format(f'<img alt="blank" src="{DOT}">'),
        "document.querySelector('main img').alt = ''",
    ],
)
def test_a_damaged_page_is_noticed(visit, damage):
    page = visit(EVERYTHING)
    assert flaws(page) == []
    page.evaluate(damage)
    page.wait_for_timeout(200)
    assert flaws(page) != []


@pytest.mark.browser
@pytest.mark.parametrize(
    "damage",
    [
        PUT.format('<p style="color: #ccc; background: #fff">too faint to read</p>'),
        "document.querySelectorAll('.highlight .k')[1].style.color = '#ddd'",
        "document.querySelectorAll('.highlight pre').forEach(e => e.style.background = '#777')",
    ],
)
def test_what_is_too_faint_is_noticed(visit, damage):
    page = visit(EVERYTHING)
    page.evaluate(damage)
    page.evaluate(ONE_OF_EACH)
    assert {rule for rule, *_ in grave_findings(page)} == {"color-contrast"}


@pytest.mark.browser
def test_dead_folds_are_noticed(visit):
    page = visit(EVERYTHING)
    page.evaluate(PUT.format("<details><summary>nothing inside</summary></details>"))
    with pytest.raises(AssertionError):
        open_all(page)


def open_all(page):
    """Unfold what is folded; each part must be hidden before and shown after its click."""
    page.add_style_tag(content="* { transition: none !important; animation: none !important; }")  # no half-faded text
    for details in page.locator("main details").all():
        assert details.get_attribute("open") is None
        details.locator("summary").click()
        assert details.locator(":scope > :not(summary)").first.is_visible()
    for box in page.locator("main .admonition.dropdown").all():
        assert not box.locator(":scope > :not(.admonition-title)").first.is_visible()
        box.locator(".admonition-title").first.click()
        assert box.locator(":scope > :not(.admonition-title)").first.is_visible()


def grave_findings(page, **options):
    """What axe-core calls serious or critical; `options` are those of axe.run."""
    from axe_playwright_python.sync_playwright import Axe

    return [
        (rule["id"], node["target"], node.get("failureSummary", "")[:300])
        for rule in Axe().run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
        for node in rule["nodes"]
        if rule["impact"] in ("serious", "critical") and (rule["id"], node["target"][0]) not in KNOWN
    ]


def too_wide(page):
    """Elements that a phone would have to be scrolled sideways for."""
    whole = page.evaluate("document.documentElement.scrollWidth") > page.viewport_size["width"]
    return ["the page"] * whole + page.evaluate(TOO_WIDE)


@pytest.mark.browser
def test_what_does_not_fit_a_phone_is_noticed(visit):
    page = visit(EVERYTHING, width=390)
    page.evaluate(PUT.format('<div style="width: 600px">wide</div>'))
    assert too_wide(page) != []


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
    assert page.locator("main details").count() == 1
    assert page.locator("main .admonition.dropdown").count() == 1
    entry = page.locator("main a[href*='bibliography.html#']").first.get_attribute("href")
    page.goto(page.url.rsplit("/", 1)[0] + "/" + entry)
    assert "Attention is all you need" in page.locator(f"[id='{entry.partition('#')[2]}']").inner_text()


@pytest.mark.browser
def test_a_button_copies_the_code(visit):
    page = visit(EVERYTHING)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    cells = page.locator(".cell_input pre").all()
    assert page.locator(".cell_input button.copybtn").count() == len(cells) > 3
    cells[1].hover()
    page.locator(".cell_input button.copybtn").nth(1).click()
    assert page.evaluate("navigator.clipboard.readText()").strip() == cells[1].inner_text().strip()


@pytest.mark.browser
def test_the_slider_of_number_formats_works_without_a_kernel(visit):
    page = visit("notebooks/04_mixed_precision")
    box = page.locator(".cell_output .jupyter-widgets.widget-vbox").first
    assert "1001100110" in box.inner_text()  # 0.1 in float16
    box.locator(".noUi-handle").press("ArrowRight")
    assert box.locator(".widget-readout").inner_text() == "1"
    assert "1001100110" not in box.inner_text()


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
