"""The script that executes notebooks: two runs give the same bytes, and what nbval ignores is kept."""

import json

import nbformat
import pytest

from tools import run_notebooks


@pytest.fixture
def path(tmp_path):
    """A notebook whose ignored cell, widget ids and moments of printing differ from run to run."""
    cells = [
        nbformat.v4.new_markdown_cell("# 1 · Runs"),
        nbformat.v4.new_code_cell(
            "import sys, time\nfor i in range(3):\n    print(i)\n    sys.stdout.flush()\n    time.sleep(0.1)"
        ),
        nbformat.v4.new_code_cell("import ipywidgets\nipywidgets.IntSlider(value=3)"),
        nbformat.v4.new_code_cell(
            "print(time.time_ns())\nassert True",
            metadata={"tags": ["nbval-ignore-output"], "execution": {"iopub.status.idle": "now"}},
        ),
    ]
    path = tmp_path / "01_runs.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def outputs(path, place):
    return json.loads(path.read_text(encoding="utf-8"))["cells"][place]["outputs"]


def test_two_runs_give_the_same_bytes_and_refresh_replaces_what_is_ignored(path):
    seconds, cells, ignored = run_notebooks.run(path, refresh=False)
    assert (cells, ignored) == (3, 1)
    assert 0 < seconds < 60
    first = path.read_bytes()
    assert [(out["output_type"], out["text"]) for out in outputs(path, 1)] == [("stream", ["0\n", "1\n", "2\n"])]
    notebook = json.loads(first)
    state = notebook["metadata"]["widgets"][run_notebooks.WIDGETS]["state"]
    shown = outputs(path, 2)[0]["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert sorted(state) == [f"{number:032x}" for number in range(len(state))]
    assert shown in state
    assert [cell["id"] for cell in notebook["cells"]] == ["cell-000", "cell-001", "cell-002", "cell-003"]
    run_notebooks.run(path, refresh=False)
    assert path.read_bytes() == first
    before = outputs(path, 3)
    run_notebooks.run(path, refresh=True)
    assert outputs(path, 3) != before


def test_the_table_has_a_line_for_each_notebook(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run_notebooks.py", "a/01_x.ipynb", "b/02_y.ipynb"])
    monkeypatch.setattr(run_notebooks, "run", lambda path, refresh: (12.34, 30, 1))
    monkeypatch.setattr(run_notebooks.os, "environ", {})
    run_notebooks.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["notebook", "seconds", "cells", "ignored"]
    assert lines[1:] == [[f"0{k}_{name}.ipynb", "12.3", "30", "1"] for k, name in ((1, "x"), (2, "y"))]
