"""What every notebook must keep to, so that nbval can compare every printed number. nbval itself runs them."""

import ast
import json
import re
from pathlib import Path

import pytest

from tests import template

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def cells(path, kind):
    """Cells of one type; the generated first code cell is not the author's."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    chosen = [{**cell, "source": "".join(cell["source"])} for cell in notebook["cells"] if cell["cell_type"] == kind]
    return [cell for cell in chosen if "bootstrap" not in tags(cell)]


def tags(cell):
    return cell["metadata"].get("tags", [])


def test_there_are_notebooks():
    assert NOTEBOOKS


@EACH
def test_every_cell_ran_and_is_compared(path):
    code = cells(path, "code")
    ignored = [cell for cell in code if "nbval-ignore-output" in tags(cell)]
    assert [cell["execution_count"] for cell in code] == list(range(2, len(code) + 2))
    assert not any("nbval-skip" in tags(cell) for cell in code)
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    assert len(ignored) <= len(code) / 10
    for cell in ignored:
        assert isinstance(ast.parse(cell["source"]).body[-1], ast.Assert), "an ignored cell must end in an assert"


@EACH
def test_code_cells_are_short_and_hold_no_address(path):
    for cell in cells(path, "code"):
        assert len(cell["source"].splitlines()) <= 40
        assert not cell["source"].rstrip().endswith(";"), "nbval sees an output there; use plt.show()"
        assert not re.search(r"https?://", cell["source"])
        assert "NBVAL_" not in cell["source"]


@EACH
def test_figures_have_alternative_text_and_the_books_style(path):
    code = cells(path, "code")
    figures = [cell for cell in code if any("image/png" in output.get("data", {}) for output in cell["outputs"])]
    for cell in figures:
        assert len(cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")) > 30
    assert not figures or any('plt.style.use("course_lib.book")' in cell["source"] for cell in code)


@EACH
def test_parts_are_there_and_in_order(path):
    assert template.mistakes(json.loads(path.read_text(encoding="utf-8")), path) == []


CHAPTER = """\
# 3 · Cross-entropy

What is minimised?

**After this chapter you can**

- say it.

:::{admonition} Time and hardware
:class: note

A minute.
:::

:::{admonition} From the source
:class: source

Section 3.1.
:::
=====
## Why?
=====
## Summary

- a ([why](#why)).
- b ([why](#why)).
- c ([why](#why)).
- d ([why](#why)).
- e ([why](#why)).
=====
## Exercises
=====
:::{exercise} 3.1
=====
:::{exercise} 3.2
=====
:::{exercise} 3.3
=====
:::{exercise} 3.4
=====
## Further reading

- x
- y
- z"""


def chapter(text, more=0):
    sources = text.split("\n=====\n") + ["more"] * more
    return {"cells": [{"cell_type": "markdown", "source": [source]} for source in sources]}


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ("# 3 · ", "# 4 · ", "lacks '# 3 ·'"),
        ("**After this chapter you can**", "Learn:", "lacks '**After this chapter"),
        ("Time and hardware", "Time", "Time and hardware"),
        ("From the source\n:class: source", "From the source\n:class: note", "From the source"),
        ("## Why?", "## Because", "asks nothing"),
        ("## Why?", "# Why?", "more than one heading"),
        ("## Summary", "## In short?", "the last sections"),
        ("\n- e ([why](#why)).", "", "Summary: 4 items"),
        ("- e ([why](#why)).", "- e.", "ends with a link"),
        (":::{exercise} 3.4", "", "Exercises: 3 items"),
        ("## Exercises", "## Exercises\n\nFive.", "alone in its cell"),
        ("\n- z", "", "Further reading: 2 items"),
    ],
)
def test_a_chapter_without_a_part_is_found_out(old, new, mistake):
    path = Path("03_cross_entropy.ipynb")
    assert template.mistakes(chapter(CHAPTER), path) == []
    assert old in CHAPTER
    assert mistake in " ".join(template.mistakes(chapter(CHAPTER.replace(old, new)), path))


def test_a_chapter_is_not_longer_than_an_evening():
    path = Path("03_cross_entropy.ipynb")
    assert template.mistakes(chapter(CHAPTER, more=61), path) == []
    assert template.mistakes(chapter(CHAPTER, more=62), path)[0].startswith("71 cells")
