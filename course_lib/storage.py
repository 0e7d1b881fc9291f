"""Folders that are either complete or absent, whatever kills the process in between."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from course_lib.errors import CourseError


def model_folder(folder: Path) -> Path:
    """The folder with a model in it: a run's `model`, or `folder` itself."""
    inner = folder / "model" if (folder / "model").is_dir() else folder
    if not (inner / "config.json").exists():
        raise CourseError(f"There is no model in {folder}. Give a finished run, for example runs/ID.")
    if (inner / "adapter.json").exists():  # `peft.files` wrote it
        raise CourseError(
            f"{folder} holds an adapter, not a whole model. Load both with course_lib.peft.files.restore, and store "
            "what adapters.finish makes of them."
        )
    if (inner / "compress.json").exists():  # `compress.files` wrote it
        raise CourseError(
            f"{folder} holds a compressed model, whose layers differ from its config. Load it with "
            "course_lib.compress.files.load, or give the run it was made of."
        )
    return inner


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A scratch folder that becomes `target` when the block ends well, and vanishes when it does not.

    If another process made `target` meanwhile, that one stays. A full disk raises CourseError and leaves nothing.
    """
    scratch = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
        scratch.chmod(0o755)  # mkdtemp makes it private, but a cache or a run may be shared
        yield scratch
        sync(scratch)
        if not target.exists():
            os.rename(scratch, target)
            sync_entry(target.parent)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise CourseError(f"Could not write {target}: {why}. Nothing was changed.") from error
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def sync(folder: Path) -> None:
    """Force every file below `folder` to the disk, so that the rename that follows cannot overtake them."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:  # Windows syncs only what may be written
                os.fsync(file.fileno())


def sync_entry(folder: Path) -> None:
    """Force a folder's own entries (a rename in it) to the disk, where the platform can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
