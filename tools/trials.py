"""A record that remembers which of its runs are done: stopped, the same command goes on with the others.

The same command may run several times at once, one a core: each takes the runs that no other has taken.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from course_lib.device import pick
from course_lib.record import invocation, now, provenance

ROOT = Path(__file__).resolve().parent.parent
SINGLE = "--single"  # of the tools: end after one run; the same command without it does the rest
LEAST_CPU_SHARE = 0.9  # a run that got less of its threads' time does not count
# What all runs of a record share: another value would make them another record's.
SHARED = ("side", "budget", "model", "task", "data", "step_tokens", "asked_device")
Read = Callable[[str], dict[str, Any]]


def last_line(printed: str) -> dict[str, Any]:
    """A process that prints one line of JSON at the end."""
    return json.loads(printed.splitlines()[-1])


def record_parser(about: str | None) -> argparse.ArgumentParser:
    """The options that all records have: where, and whether to end after one run."""
    found = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--out", type=Path, required=True)
    found.add_argument(SINGLE, action="store_true", help="end after one run: to fill a pause")
    return found


class Trials:
    """`run.json` in a folder; every run is a process of its own. `single`: the first one that ran ends the program.

    `device`: where the runs take place, see `course_lib.device.pick`.
    """

    def __init__(self, out: Path, kind: str, single: bool = False, device: str = "cpu", **about: Any):
        self.path, self.single = out / "run.json", single
        self.about = {
            "id": out.name, "kind": kind, "command": [word for word in invocation() if word != SINGLE],
            "started": now(), **provenance(),
            "device": pick(device).describe(), "threads": torch.get_num_threads(), **about, "runs": [],
        }  # fmt: skip
        begun = self.record
        for name in SHARED:
            if name in about and begun.get(name, about[name]) != about[name]:
                raise SystemExit(
                    f"{self.path} was begun with {name} {begun[name]!r}, not {about[name]!r}. Choose another --out."
                )

    @property
    def record(self) -> dict[str, Any]:
        """What is stored now, by whichever process."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else self.about

    def done(self, what: dict[str, Any]) -> bool:
        """Whether the record has a run with everything in `what`."""
        return any(what.items() <= run.items() for run in self.record["runs"])

    def run(
        self, what: dict[str, Any], arguments: Iterable[str], read: Read = last_line, folder: Path | None = None
    ) -> bool:
        """Run `python arguments`, unless it is done or another process is at it; `read` reads what it printed.

        Returns whether it ran here. Repeated once if something else took the processor's time, and refused after that;
        `folder`, where the run is stored, goes before it is run again.
        """
        name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        with self._lock(name, wait=False) as taken:
            if not taken or self.done(what):
                return False
            found = self._undisturbed(what, list(arguments), read, folder)
            print(f"{what}: {found}", flush=True)
            self.store(runs=[what | found])
        if self.single:
            raise SystemExit(0)
        return True

    def store(self, runs: Iterable[dict[str, Any]] = (), **results: Any) -> None:
        """Add runs and set results; a half-written record never replaces a whole one."""
        with self._lock("record", wait=True):
            record = self.record
            record |= {"runs": [*record["runs"], *runs], **results, "finished": now()}
            scratch = self.path.with_suffix(".part")
            scratch.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            scratch.replace(self.path)

    def _undisturbed(
        self, what: dict[str, Any], arguments: list[str], read: Read, folder: Path | None
    ) -> dict[str, Any]:
        threads = str(self.record["threads"])
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": threads}
        command = [sys.executable, *arguments]
        for _ in range(2):
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
            done.check_returncode()
            found = read(done.stdout)
            if (found.get("cpu_share") or 1) >= LEAST_CPU_SHARE:  # not measured on a GPU
                return found
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
        raise SystemExit(f"{what}: only {found['cpu_share']:.0%} of the processor. Stop what else runs; try again.")

    @contextlib.contextmanager
    def _lock(self, name: str, wait: bool) -> Iterator[bool]:
        """A lock that its holder's end frees, however it ends. Yields whether it was got."""
        folder = self.path.parent / ".taken"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True


def spread(scores: list[float]) -> dict[str, Any]:
    """Mean, least and most."""
    return {
        "seeds": len(scores), "mean": round(statistics.mean(scores), 6), "least": min(scores), "most": max(scores)
    }  # fmt: skip
