"""Write the generated first code cell into every notebook: on Colab and Kaggle it fetches this course.

    python tools/bootstrap_cell.py [--check] [notebooks/NN_topic.ipynb …]

The repository and its branch or tag come from `_config.yml`; nothing else in a notebook may hold an address.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
TAGS = ["bootstrap", "remove-cell"]
TEMPLATE = """\
# Only on Colab and Kaggle: fetch the course as this page shows it, and install what is missing.
import os
import subprocess
import sys
from pathlib import Path

if "COLAB_RELEASE_TAG" in os.environ or "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
    repository = os.environ.get("COURSE_REPO", "{url}")
    root = Path("{name}").resolve()
    if not root.exists():
        clone = ["git", "clone", "--quiet", "--depth", "1", "--branch", "{branch}"]
        subprocess.run([*clone, repository, str(root)], check=True)
    sys.path.insert(0, str(root))
    from course_lib.bootstrap import install_missing

    install_missing()"""


def main() -> None:
    """Update what was named, or everything; with --check only say what is not current (exit code 1)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=sorted(ROOT.glob("notebooks/*.ipynb")))
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args()
    stale = [path for path in options.paths if update(path, write=not options.check)]
    for path in stale:
        print(f"{path}: {'is not current' if options.check else 'updated'}")
    if stale and options.check:
        raise SystemExit(1)


def update(path: Path, write: bool = True) -> bool:
    """Put the current cell before the first code cell, or in place of an older one; returns whether it changed."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = notebook["cells"]
    place = next((i for i, cell in enumerate(cells) if cell["cell_type"] == "code"), len(cells))
    if place < len(cells) and "bootstrap" in cells[place]["metadata"].get("tags", []):
        if "".join(cells[place]["source"]) == source() and cells[place]["metadata"]["tags"] == TAGS:
            return False
        del cells[place]
    cells.insert(place, cell())
    if write:
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return True


def cell() -> dict[str, Any]:
    """The cell as nbformat stores it, not run yet."""
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": "bootstrap",
        "metadata": {"tags": TAGS},
        "outputs": [],
        "source": source().splitlines(keepends=True),
    }


def source() -> str:
    """The cell's code for the repository that `_config.yml` names."""
    repository = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]
    name = repository["url"].rstrip("/").rsplit("/", 1)[-1]
    return TEMPLATE.format(url=repository["url"], branch=repository["branch"], name=name)


if __name__ == "__main__":
    main()
