"""A record that remembers which of its runs are done: stopped, the same command goes on with the others."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from course_lib.device import pick
from course_lib.record import now, provenance

ROOT = Path(__file__).resolve().parent.parent
LEAST_CPU_SHARE = 0.9  # a run that got less of its threads' time does not count
Read = Callable[[str], dict[str, Any]]


def last_line(printed: str) -> dict[str, Any]:
    """A process that prints one line of JSON at the end."""
    return json.loads(printed.splitlines()[-1])


class Trials:
    """`run.json` in a folder; every run is a process of its own."""

    def __init__(self, out: Path, kind: str, **about: Any):
        self.path = out / "run.json"
        if self.path.exists():
            self.record = json.loads(self.path.read_text(encoding="utf-8"))
            return
        self.record = {
            "id": out.name, "kind": kind, "command": ["python", *sys.argv], "started": now(), **provenance(),
            "device": pick("cpu").describe(), "threads": torch.get_num_threads(), **about, "runs": [],
        }  # fmt: skip

    def run(self, what: dict[str, Any], arguments: Iterable[str], read: Read = last_line) -> None:
        """Run `python arguments`, unless the record has a run with everything in `what`; `read` reads what it printed.

        Repeated once if something else took the processor's time, and refused after that.
        """
        if any(what.items() <= done.items() for done in self.record["runs"]):
            return
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(self.record["threads"])}
        for _ in range(2):
            done = subprocess.run([sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, text=True)
            done.check_returncode()
            found = read(done.stdout)
            if (found.get("cpu_share") or 1) >= LEAST_CPU_SHARE:  # not measured on a GPU
                break
        else:
            raise SystemExit(f"{what}: only {found['cpu_share']:.0%} of the processor. Stop what else runs; try again.")
        print(f"{what}: {found}", flush=True)
        self.record["runs"].append(what | found)
        self.write()

    def write(self) -> None:
        """Store the record; a half-written one never replaces it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".part")
        scratch.write_text(json.dumps(self.record | {"finished": now()}, indent=1) + "\n", encoding="utf-8")
        scratch.replace(self.path)


def spread(scores: list[float]) -> dict[str, Any]:
    """Mean, least and most."""
    return {
        "seeds": len(scores), "mean": round(statistics.mean(scores), 4), "least": min(scores), "most": max(scores)
    }  # fmt: skip
