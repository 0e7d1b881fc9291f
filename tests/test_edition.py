"""The student edition has no solution in it, and the autograder gives full points to one and none to the stub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tools import make_edition

SOURCE = ROOT / "notebooks" / "00_first_run.ipynb"


@pytest.fixture(scope="module")
def edition(tmp_path_factory):
    """The first notebook's exercises without its training, as a chapter of their own."""
    notebook = json.loads(SOURCE.read_text(encoding="utf-8"))
    first = next(i for i, cell in enumerate(notebook["cells"]) if "".join(cell["source"]) == "## Exercises")
    imports = {
        "cell_type": "code",
        "execution_count": 1,
        "id": "imports",
        "metadata": {},
        "outputs": [],
        "source": ["import math\n", "\n", "from course_lib import checks"],
    }
    notebook["cells"] = [*notebook["cells"][:2], imports, *notebook["cells"][first:]]
    folder = tmp_path_factory.mktemp("edition")
    path = folder / "00_first_run.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    student, grader = make_edition.make(path, folder / "out")
    return path, student, grader


def test_the_student_edition_has_the_stub_the_check_and_no_solution(edition):
    path, student, _ = edition
    original, text = path.read_text(encoding="utf-8"), student.read_text(encoding="utf-8")
    for secret in ("nats_per_token / math.log(2)", "BEGIN SOLUTION", "falls steeply at first"):
        assert secret in original
        assert secret not in text
    assert "otter." not in text
    assert "QUESTION" not in text
    code = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert "checks.ex00_1(bits_per_byte)" in code
    stub = next(source for source in code if source.startswith("def bits_per_byte"))
    assert stub.endswith("    ...")
    space: dict = {}
    exec(stub, space)
    assert space["bits_per_byte"](1.0, 1, 1) is None


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_no_student_edition_begins_with_otter(path):
    """Otter writes `import otter` and its own checks unless the second cell forbids both."""
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][1]
    settings = ["init_cell: false", "check_all_cell: false", "export_cell: false"]
    assert first["cell_type"] == "raw"
    assert "".join(first["source"]).splitlines() == ["# ASSIGNMENT CONFIG", *settings]


def points(notebook: Path, grader: Path, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "otter", "run", str(notebook), "-a", str(grader), "-o", str(folder), "--no-logo"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    tests = json.loads((folder / "results.json").read_text(encoding="utf-8"))["tests"]
    return {test["name"]: test["score"] for test in tests if "score" in test and test["name"].startswith("ex")}


def test_the_autograder_gives_the_points(edition, tmp_path):
    path, student, grader = edition
    assert points(path, grader, tmp_path)["ex00_1"] == 2
    assert points(student, grader, tmp_path)["ex00_1"] == 0
