"""Every notebook, as it is now, has printed the same with other threads and other kernels (`make stability`)."""

import copy
import json

import pytest

from tests.conftest import ROOT
from tools import stability

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_present_code_and_outputs_have_passed(path):
    assert stability.passed(path), f"run `make stability`: {path.name} has changed since it was last compared"


def test_no_record_is_left_without_its_notebook():
    assert {p.stem for p in stability.FOLDER.glob("*.json")} <= {p.stem for p in NOTEBOOKS}


def test_the_hash_sees_code_and_printed_numbers_and_nothing_else(tmp_path):
    notebook = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))

    def digest(change):
        changed = copy.deepcopy(notebook)
        change([cell for cell in changed["cells"] if cell["cell_type"] == "code"], changed["cells"])
        path = tmp_path / "changed.ipynb"
        path.write_text(json.dumps(changed), encoding="utf-8")
        return stability.digest(path)

    printed = next(i for i, c in enumerate(code_cells(notebook)) if c["outputs"] and "text" in c["outputs"][0])
    ignored = next(i for i, c in enumerate(code_cells(notebook)) if "nbval-ignore-output" in stability.tags(c))
    same = digest(lambda code, cells: None)
    assert digest(lambda code, cells: cells[0].update(source=["# Another title"])) == same
    assert digest(lambda code, cells: code[0].update(source=["another = 'first cell'"])) == same
    assert digest(lambda code, cells: code[ignored].update(outputs=[])) == same
    assert digest(lambda code, cells: code[1].update(source=["TOKENS = 1"])) != same
    assert digest(lambda code, cells: code[printed]["outputs"][0].update(text=["3 layers"])) != same


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
