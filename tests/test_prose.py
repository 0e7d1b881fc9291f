"""Numbers in prose are printed, cited or recorded; links lead somewhere; nothing in a notebook is foreign Markdown."""

import json
import re
from decimal import Decimal

import pytest

from tests import prose
from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
GENERATED = {"data_cards.md"}  # from the registry, compared by test_library
PAGES = sorted(p for p in (ROOT / "book").glob("*.md") if p.name not in GENERATED)
KEYS = set(re.findall(r"^@\w+\{(.+?),", (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), re.M))
ROLES = {"cite", "cite:t", "cite:p", "eq"}
DIRECTIVES = {"admonition", "exercise", "solution"}
BOXES = {
    "Time and hardware": "note",
    "From the source": "source",
    "The source says … but": "warning",
    "On a GPU": "tip",
    "Going deeper": "dropdown",
}


def markdown(path):
    """All prose of a notebook or page."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def without_code(text):
    return re.sub(r"^(`{3,}).*?^\1$|`` .+? ``", "", text, flags=re.S | re.M)


@pytest.mark.parametrize("path", NOTEBOOKS + PAGES, ids=lambda p: p.stem)
def test_every_number_is_printed_cited_or_recorded(path):
    outputs = prose.printed(json.loads(path.read_text(encoding="utf-8"))) if path.suffix == ".ipynb" else set()
    assert prose.mistakes(markdown(path), outputs) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_plain_markdown_with_few_boxes(path):
    text = without_code(markdown(path))
    assert set(re.findall(r"(?<!`)\{([\w:+-]+)\}`", text)) <= ROLES
    assert set(re.findall(r"^\s*:{3,}\{([\w:-]+)\}", text, re.M)) <= DIRECTIVES
    assert not re.findall(r"^\s*`{3,}\{", markdown(path), re.M), "use a colon fence"
    assert not re.search(r"^\([\w-]+\)=|^% |\{#[\w-]+\}|^```mermaid", text, re.M), "labels and comments of MyST"
    for title, kind in re.findall(r"^:::\{admonition\} (.+)\n:class: (\S+)", text, re.M):
        assert BOXES.get(title) == kind, f"box '{title}' of class {kind}"
    assert len(re.findall(r"^:::\{admonition\}", text, re.M)) == len(
        re.findall(r"^:::\{admonition\} .+\n:class: ", text, re.M)
    )


@pytest.mark.parametrize("path", NOTEBOOKS + PAGES, ids=lambda p: p.stem)
def test_links_and_citations_resolve(path):
    """Files and headings of this repository; keys of the bibliography. The book's build checks the rest."""
    text = without_code(markdown(path))
    cited = {key.strip() for keys in re.findall(r"(?<!`)\{cite(?::[tp])?\}`([^`]+)`", text) for key in keys.split(",")}
    assert cited <= KEYS
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        if anchor and file.suffix in (".md", ".ipynb"):
            assert anchor in anchors(markdown(file)), target


def anchors(text):
    """Heading anchors as GitHub and the book make them."""
    titles = re.findall(r"^#{1,6} (.+)$", without_code(text), re.M)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", title).lower()).strip().replace(" ", "-") for title in titles}


def test_works_named_in_docstrings_are_in_the_bibliography():
    text = "\n".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "course_lib").rglob("*.py")))
    text = re.sub(r"\s+", " ", text)
    named = re.findall(r"\b(?!January)([A-Z][a-z]+)(?: et al\.| and [A-Z][a-z]+)?,? \(?((?:19|20)\d\d)\b", text)
    assert len(named) > 10
    assert {f"{name.lower()}{year}" for name, year in named} - KEYS == set()


@pytest.mark.parametrize(
    ("sentence", "numbers"),
    [
        ("It falls to 2.4 bits, by 12 % of 1,024 tokens and 30 steps.", ["2.4", "12 %", "1,024"]),
        ("As `0.25` says, $0.5$ of\n$$ x = 0.1 $$ (eq-x)\nis 0.75.", ["0.75"]),
        ("## 3.2 Why 100 steps", []),
        ("In 2017, torch 2.13 and Python 3.11.7 met section 3.2, chapter 12, equation 3.14 and GPT-3.5 with 0.6B.", []),
        ("It took 3.14e23 operations {cite}`brown2020`.\nThen 175 more.", ["175"]),
        ("*Implement · 2 points · 120 minutes · 0 GPU minutes*", []),
        (":::{admonition} Time and hardware\n:class: note\n\n2.5 minutes on a T4.\n:::\nThen 2.5.", ["2.5"]),
        ("| model | 71.5 % |", ["71.5 %"]),
        ("The year 2019.5 and 2019 %", ["2019.5", "2019 %"]),
        ("See [chapter 100](../x_100.ipynb#a-1000).", []),
        ("Lower by −0.35.", ["−0.35"]),
    ],
)
def test_which_numbers_are_checked(sentence, numbers):
    assert [claim.text for claim in prose.claims(sentence)] == numbers


def test_a_number_must_be_printed(tmp_path):
    cell = {"cell_type": "code", "metadata": {}, "outputs": [{"text": ["loss 1,024.50 and -0.3 at 12%\n"]}]}
    ignored = {**cell, "metadata": {"tags": ["nbval-ignore-output"]}, "outputs": [{"text": ["7.7"]}]}
    outputs = prose.printed({"cells": [cell, ignored]})
    assert outputs == {Decimal("1024.50"), Decimal("0.3"), Decimal(12)}
    assert prose.mistakes("It is 1024.5, or 0.30 lower, at 12 %.", outputs) == []
    assert len(prose.mistakes("It is 1024.6. It is 7.7.", outputs)) == 2


def test_a_reference_must_hold_at_the_printed_rounding(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text('{"result": {"bpb": 1.7511, "n": [4360192], "acc": 0.675}}')

    def wrong(text):
        return prose.mistakes(text, set(), tmp_path)

    assert wrong("It reaches 1.751 <!-- run:a result.bpb --> bits, or **1.8** <!-- run:a result.bpb -->.") == []
    assert wrong("After 4.36 million <!-- run:a result.n.0/1e6 --> tokens 67.5 % <!-- run:a result.acc*100 -->.") == []
    assert wrong("At 68 <!-- run:a result.acc*100 -->.") == []
    assert "is 1.7511 in the record" in wrong("It reaches 1.752 <!-- run:a result.bpb --> bits.")[0]
    assert "neither printed" in wrong("It reaches 1.751 and 1.8 <!-- run:a result.bpb --> bits.")[0]
    with pytest.raises(KeyError):
        wrong("It reaches 1.751 <!-- run:a result.nothing --> bits.")
