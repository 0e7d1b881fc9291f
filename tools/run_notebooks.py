"""Execute notebooks and store them in one canonical form: two runs give the same bytes.

    python tools/run_notebooks.py [notebooks/NN_topic.ipynb …]

Outputs of cells tagged `nbval-ignore-output` (times, rates, sampled text) are kept unless --refresh is given.
"""

import argparse
import json
import os
import re
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# Without timestamps, and without the places where the kernel happened to flush what was printed.
SETTINGS = {"timeout": 600, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
WIDGETS = "application/vnd.jupyter.widget-state+json"
IGNORED = "nbval-ignore-output"


def main() -> None:
    """Run what was named, or everything, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=sorted(ROOT.glob("notebooks/*.ipynb")))
    parser.add_argument("--refresh", action="store_true", help="also replace the outputs that nbval ignores")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COURSE_PROGRESS": "off", "PYTHONPATH": str(ROOT)}
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    print(f"{'notebook':<32}{'seconds':>8}{'cells':>7}{'ignored':>9}")
    for path in options.paths:
        print("{:<32}{:>8.1f}{:>7}{:>9}".format(path.name, *run(path, options.refresh)))


def run(path: Path, refresh: bool) -> tuple[float, int, int]:
    """Execute one notebook in place; returns seconds, code cells, and code cells that nbval ignores."""
    import nbformat
    from nbclient import NotebookClient

    before = nbformat.read(path, 4)
    notebook = nbformat.read(path, 4)
    started = time.monotonic()
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, resources=resources, **SETTINGS).execute()
    seconds = time.monotonic() - started
    for old, new in zip(before.cells, notebook.cells, strict=True):
        if IGNORED in new.metadata.get("tags", []) and old.get("outputs") and not refresh:
            new.outputs = old.outputs
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    nbformat.write(nbformat.reads(canonical(notebook), as_version=4), path)
    return seconds, len(code), sum(IGNORED in cell.metadata.get("tags", []) for cell in code)


def canonical(notebook: Any) -> str:
    """The notebook as JSON without what changes from run to run: metadata, cell ids, widget ids."""
    widgets = notebook.metadata.get("widgets")
    notebook.metadata = METADATA | ({"widgets": widgets} if widgets else {})
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:03d}"
        cell.metadata.pop("execution", None)
    text = json.dumps(notebook, ensure_ascii=False)
    if widgets:
        renamed = {old: f"{number:032x}" for number, old in enumerate(widgets[WIDGETS]["state"])}
        text = re.sub("|".join(map(re.escape, renamed)), lambda found: renamed[found.group()], text)
    return text


if __name__ == "__main__":
    main()
