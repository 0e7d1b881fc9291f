"""Run notebooks under other threads and other CPU kernels, and store which ones print the same everywhere.

    python tools/stability.py [--all] [notebooks/NN_topic.ipynb …]

Compares as `pytest --nbval` does, by calling it. What passed is stored in notebooks/stability/NN_topic.json under a
hash of code and printed outputs; only what has changed runs again. Not part of CI: it would triple its time.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks" / "stability"
SETTINGS: dict[str, dict[str, str]] = {
    "1 thread": {"COURSE_THREADS": "1"},
    "2 threads": {"COURSE_THREADS": "2"},
    "no vector kernels": {"COURSE_THREADS": "1", "ATEN_CPU_CAPABILITY": "default"},
}


def main() -> None:
    """Run what was named, or what has changed; exit code 1 if something printed another number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=sorted(ROOT.glob("notebooks/*.ipynb")))
    parser.add_argument("--all", action="store_true", help="also what has passed with its present content")
    options = parser.parse_args()
    failed = [path for path in options.paths if (options.all or not passed(path)) and not check(path)]
    if failed:
        raise SystemExit(f"not stable: {', '.join(path.stem for path in failed)}")


def check(path: Path) -> bool:
    """Run one notebook in every setting; store the record if all agree, print nbval's report where they do not."""
    seconds = {}
    before = digest(path)
    for name, variables in SETTINGS.items():
        started = time.monotonic()
        command = [sys.executable, "-m", "pytest", "--nbval", "-n0", "-q", "--no-header", str(path)]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, check=False
        )
        seconds[name] = round(time.monotonic() - started, 1)
        print(f"{path.stem:<28}{name:<20}{seconds[name]:>7.1f} s  {'same' if done.returncode == 0 else 'DIFFERENT'}")
        if done.returncode:
            print(done.stdout)
            return False
    if digest(path) != before:
        raise SystemExit(f"{path.name} was changed while it ran; run `make stability` again.")
    today = datetime.now(UTC).date().isoformat()
    record = {"hash": before, "passed": today, "machine": platform.machine(), "seconds": seconds}
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{path.stem}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return True


def passed(path: Path) -> bool:
    """Whether the notebook's present code and outputs have passed in every setting."""
    record = FOLDER / f"{path.stem}.json"
    if not record.exists():
        return False
    stored = json.loads(record.read_text(encoding="utf-8"))
    return stored["hash"] == digest(path) and set(stored["seconds"]) == set(SETTINGS)


def digest(path: Path) -> str:
    """A hash of what nbval compares: code and text outputs; not prose, figures, ignored outputs or the first cell."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and "bootstrap" not in tags(cell)]
    content = [
        ("".join(cell["source"]), [] if "nbval-ignore-output" in tags(cell) else [text(out) for out in cell["outputs"]])
        for cell in code
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def tags(cell: dict[str, Any]) -> list[str]:
    """A cell's tags."""
    return cell["metadata"].get("tags", [])


def text(output: dict[str, Any]) -> Any:
    """An output without its pictures and its place in the notebook."""
    data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    return [output["output_type"], output.get("text", ""), data]


if __name__ == "__main__":
    main()
