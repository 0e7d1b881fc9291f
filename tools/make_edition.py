"""Write the student edition and the autograder of chapters, from the markers inside them (needs otter-grader).

    python tools/make_edition.py [notebooks/NN_topic.ipynb …] [--to _build/edition]

For each chapter: `student/NN_topic.ipynb`, without solutions, and `autograder/NN_topic.zip` for `otter run` in an
environment that has this course. The zip holds neither torch nor course_lib, so it is none for a service that builds
its own environment. The student edition needs no otter: each exercise ends in its own call of `course_lib.checks`.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Make the editions of what was named, or of every notebook that has exercises."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=sorted(ROOT.glob("notebooks/*.ipynb")))
    parser.add_argument("--to", type=Path, default=ROOT / "_build" / "edition", help="folder to write to")
    options = parser.parse_args()
    for path in options.paths:
        if calls(json.loads(path.read_text(encoding="utf-8"))):
            student, grader = make(path, options.to)
            print(f"{path.name}: {student}, {grader}")
        else:
            print(f"{path.name}: no exercises with a grader")


def make(path: Path, to: Path) -> tuple[Path, Path]:
    """Run `otter assign` on one notebook and put its two products where they belong."""
    student, grader = to / "student" / path.name, to / "autograder" / f"{path.stem}.zip"
    for target in (student, grader):
        target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        master = shutil.copy(path, name)
        command = [sys.executable, "-m", "otter", "assign", str(master), name, "--no-run-tests", "--no-pdfs"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"otter assign failed on {path.name}:\n{done.stdout}{done.stderr}")
        shutil.copy(next(Path(name, "autograder").glob("*.zip")), grader)
        notebook = json.loads(Path(name, "student", path.name).read_text(encoding="utf-8"))
    original = json.loads(path.read_text(encoding="utf-8"))
    student.write_text(
        json.dumps(without_otter(notebook, calls(original)), indent=1, ensure_ascii=False) + "\n", "utf-8"
    )
    return student, grader


def calls(notebook: dict[str, Any]) -> dict[str, str]:
    """The source of each exercise's test cell, by the exercise's name."""
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return {found[1]: source for source in sources if (found := re.search(r"checks\.(ex\d\d_\d+)\(", source))}


def without_otter(notebook: dict[str, Any], tests: dict[str, str]) -> dict[str, Any]:
    """Put each exercise's own check where otter put its call: a learner needs course_lib, and nothing else.

    Otter also marks what is graded by hand with comments, for an export that we do not use.
    """
    for cell in notebook["cells"]:
        source = re.sub(r"<!-- (?:BEGIN|END) QUESTION -->\s*", "", "".join(cell["source"]))
        cell["source"] = source.splitlines(keepends=True)
        found = re.fullmatch(r'grader\.check\("(\w+)"\)', "".join(cell["source"]))
        if found:
            cell["source"] = tests[found[1]].splitlines(keepends=True)
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["source"]]
    return notebook


if __name__ == "__main__":
    main()
