"""The first cell of every notebook, tried for real: a clone from COURSE_REPO, and pip's plan on a hosted machine."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from course_lib import bootstrap
from course_lib.errors import CourseError
from tests.conftest import ROOT
from tools import bootstrap_cell

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_cell_is_current_and_first(path):
    assert not bootstrap_cell.update(path, write=False), "run `python tools/bootstrap_cell.py`"


def test_the_cell_is_put_before_the_first_code_and_replaces_an_old_one(tmp_path):
    path = tmp_path / "01_x.ipynb"
    code = {"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "outputs": [], "source": ["1"]}
    title = {"cell_type": "markdown", "id": "b", "metadata": {}, "source": ["# 1"]}
    old = {**code, "metadata": {"tags": ["bootstrap"]}, "source": ["old"]}
    for cells in ([title, code], [title, old, code]):
        path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}), "utf-8")
        assert bootstrap_cell.update(path)
        assert not bootstrap_cell.update(path)
        kinds = ["".join(cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"]]
        assert kinds == ["# 1", bootstrap_cell.source(), "1"]


def run_cell(folder: Path, repository: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The generated cell and a line on where course_lib came from, in an empty folder."""
    script = bootstrap_cell.source() + "\nimport course_lib\nprint(course_lib.__file__)\n"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"COURSE_REPO": str(repository), "PYTHONDONTWRITEBYTECODE": "1"} | variables
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def repository(tmp_path):
    """A git repository with this tree's library and records' folder, on the branch that the cell asks for."""
    folder = tmp_path / "origin"
    shutil.copytree(ROOT / "course_lib", folder / "course_lib", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "runs").mkdir()
    for name in ("pyproject.toml", "runs/README.md"):
        shutil.copy(ROOT / name, folder / name)
    branch = re.search(r'"--branch", "(.+?)"', bootstrap_cell.source())[1]
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q", "-b", branch], ["add", "."], [*identity, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("host", ["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"])
def test_on_a_hosted_machine_library_and_records_come_from_one_clone(tmp_path, repository, host):
    work = tmp_path / "content"
    work.mkdir()
    for _ in range(2):  # a second run finds the clone
        done = run_cell(work, repository.as_uri(), **{host: "test"})
        assert done.returncode == 0, done.stderr
        clone = next(work.iterdir())
        assert done.stdout.strip() == str(clone / "course_lib" / "__init__.py")
    assert (clone / "runs" / "README.md").exists()
    depth = subprocess.run(
        ["git", "rev-list", "--count", "HEAD"], cwd=clone, capture_output=True, text=True, check=True
    )
    assert depth.stdout.strip() == "1"


def test_elsewhere_the_cell_does_nothing(tmp_path):
    done = run_cell(tmp_path, Path("/nowhere"), PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_old_torch_is_reported_and_not_replaced(monkeypatch):
    monkeypatch.setattr(bootstrap, "installed", lambda name: "1.0")
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(CourseError, match=r"This machine's torch>=.*, numpy>=.* is not met; choose a newer runtime"):
        bootstrap.install_missing()


def test_what_is_met_is_not_asked_for():
    assert bootstrap.missing(["torch>=1", "numpy>=1", "pip"]) == []
    assert bootstrap.missing(["torch>=99", "no-such-package-here>=1"]) == ["torch>=99", "no-such-package-here>=1"]


def test_notebooks_import_nothing_that_is_not_installed_by_it():
    provided = {re.match(r"[\w-]+", line)[0].lower() for line in bootstrap.requirements()}
    packages = importlib.metadata.packages_distributions()
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        trees = [ast.parse("".join(cell["source"])) for cell in code]
        nodes = [node for tree in trees for node in ast.walk(tree)]
        names = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
        foreign = names - set(sys.stdlib_module_names) - {"course_lib"}
        assert {d.lower() for name in foreign for d in packages[name]} <= provided | {"ipython"}, path.name


@pytest.mark.index
def test_pip_would_install_neither_torch_nor_numpy_where_they_are(tmp_path, monkeypatch):
    """Pip's own plan, in an environment that has these two and nothing else, as their metadata says."""
    venv.create(tmp_path / "hosted", with_pip=False)
    python = tmp_path / "hosted" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = next((tmp_path / "hosted").rglob("site-packages"))
    for name in bootstrap.KEEP:
        metadata = Path(str(importlib.metadata.distribution(name)._path))
        shutil.copytree(metadata, site / metadata.name)
    needed = [line for line in bootstrap.requirements() if bootstrap.name_of(line) not in bootstrap.KEEP]
    report = tmp_path / "report.json"
    plan = ["install", "--dry-run", "--quiet", "--report", str(report), *bootstrap.held(), *needed]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *plan], check=True)
    names = {item["metadata"]["name"].lower() for item in json.loads(report.read_text("utf-8"))["install"]}
    assert {"transformers", "datasets", "matplotlib"} <= names
    assert not names & set(bootstrap.KEEP)
