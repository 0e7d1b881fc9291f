"""What a run leaves behind: `run.json` (everything needed to judge or repeat it) and `metrics.jsonl`."""

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from course_lib.errors import CourseError

RECORDED_PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "numpy", "safetensors")


class Run:
    """A folder below `runs/`. `info` is the content of run.json; `update` rewrites it atomically."""

    def __init__(self, folder: Path, info: dict[str, Any]):
        self.folder, self.info = folder, info
        self.writes = True  # False in all but the first of several processes
        self.metrics_path = folder / "metrics.jsonl"
        self._lock = FileLock(folder / ".lock")

    @classmethod
    def create(cls, folder: Path, config: dict[str, Any], kind: str = "") -> "Run":
        """A new, empty run with its provenance."""
        if (folder / "run.json").exists():
            raise CourseError(f"The run {folder} exists already. Choose another --run-id.")
        folder.mkdir(parents=True, exist_ok=True)
        run = cls(folder, {"id": folder.name, "status": "running", "config": config} | ({"kind": kind} if kind else {}))
        run.update(command=command(), started=now(), **provenance())
        return run

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """An existing run."""
        try:
            return cls(folder, json.loads((folder / "run.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise CourseError(
                f"There is no run at {folder}: no run.json. List them with `ls {folder.parent}`."
            ) from None
        except json.JSONDecodeError:
            raise CourseError(f"{folder}/run.json is damaged. Delete the folder, or restore the file.") from None

    @classmethod
    def begin(
        cls, config: Any, runs: Path, stem: str, run_id: str | None = None, fresh: bool = False, kind: str = ""
    ) -> "Run":
        """The unfinished run that this config began, unless `fresh`; or a new one, `run_id` or `stem` and a number.

        `config` is a dataclass. An option that is younger than the run counts as its default. `kind`: the command,
        where two have the same options.
        """
        wanted, defaults = asdict(config), asdict(type(config)())
        for path in [] if fresh else sorted(runs.glob("*/run.json")):
            run = cls.open(path.parent)
            begun = run.info.get("config")  # a tool's record has none
            ours = begun and defaults | begun == wanted and run_id in (None, run.folder.name)
            ours = ours and run.info.get("kind", "") == kind
            if ours and run.info["status"] != "finished" and run.acquire():
                return run
        name, number = run_id or stem, 1
        while run_id is None and (runs / name).exists():
            number += 1
            name = f"{stem}-{number}"
        run = cls.create(runs / name, wanted, kind)
        if not run.acquire():
            raise CourseError(f"Another process has just begun {run.folder}. Choose another --run-id.")
        return run

    def acquire(self) -> bool:
        """Make this process the one that writes to the run; False if another one is at it."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Let another process continue the run. (A killed process lets go by itself.)"""
        self._lock.release()

    def update(self, **fields: Any) -> None:
        """Set fields of run.json; the file is never half written."""
        self.info.update(fields)
        if not self.writes:
            return
        scratch = self.folder / ".run.json"
        scratch.write_text(json.dumps(self.info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(scratch, self.folder / "run.json")

    def end(self, **fields: Any) -> None:
        """A last update; lets go of the run even where a full disk refuses it."""
        try:
            self.update(**fields)
        finally:
            self.release()

    def log(self, rows: list[dict[str, Any]]) -> None:
        """Append rows to metrics.jsonl. Floats keep every digit: a replay needs them."""
        if not self.writes:
            return
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The rows logged so far."""
        if self.metrics_path.exists():
            with self.metrics_path.open(encoding="utf-8") as file:
                yield from map(json.loads, file)

    def cpu_share(self) -> float:
        """Processor time of a thread over the time of the steps; below 0.9 others used the processor, too."""
        rows = list(self.metrics())
        return round(sum(row["worked"] for row in rows) / sum(row["seconds"] for row in rows), 3)

    def rewind(self, steps: int) -> None:
        """Forget what was logged after `steps` steps: the resumed run will log it again."""
        if not self.writes:
            return
        lines = self.metrics_path.read_text(encoding="utf-8").splitlines(keepends=True)[:steps] if steps else []
        scratch = self.folder / ".metrics.jsonl"
        scratch.write_text("".join(lines), encoding="utf-8")
        os.replace(scratch, self.metrics_path)


class Timer:
    """Seconds spent per named part of a command, summed over its sessions."""

    def __init__(self, before: dict[str, float] | None = None):
        self.seconds = dict(before or {})

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Charge the block to `name`, also when it fails."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 3)

    @property
    def total(self) -> float:
        """Seconds of all parts together."""
        return round(sum(self.seconds.values()), 3)


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command() -> list[str]:
    """The line that started this run, as a user would type it."""
    return ["python", "-m", "course_lib", *sys.argv[1:]]


def invocation() -> list[str]:
    """How this process was called, with `python` for the interpreter's place, which is nobody else's business."""
    return ["python", *sys.orig_argv[1:]]


def provenance() -> dict[str, Any]:
    """Versions, platform and commit."""
    versions = {name: metadata.version(name) for name in RECORDED_PACKAGES}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the code that runs, `+changes` behind it if it was edited; None outside a checkout."""
    root = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
