"""What every notebook must keep to, so that nbval can compare every printed number. nbval itself runs them."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path, kind):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [{**cell, "source": "".join(cell["source"])} for cell in notebook["cells"] if cell["cell_type"] == kind]


def tags(cell):
    return cell["metadata"].get("tags", [])


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_cell_ran_and_is_compared(path):
    code = cells(path, "code")
    ignored = [cell for cell in code if "nbval-ignore-output" in tags(cell)]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not any("nbval-skip" in tags(cell) for cell in code)
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    assert len(ignored) <= len(code) / 10
    for cell in ignored:
        assert isinstance(ast.parse(cell["source"]).body[-1], ast.Assert), "an ignored cell must end in an assert"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_code_cells_are_short_and_hold_no_address(path):
    for cell in cells(path, "code"):
        assert len(cell["source"].splitlines()) <= 40
        assert not cell["source"].rstrip().endswith(";"), "nbval sees an output there; use plt.show()"
        assert not re.search(r"https?://", cell["source"])
        assert "NBVAL_" not in cell["source"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_figures_have_alternative_text(path):
    for cell in cells(path, "code"):
        if any("image/png" in output.get("data", {}) for output in cell["outputs"]):
            assert len(cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")) > 30
