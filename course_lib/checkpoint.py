"""Checkpoints that survive a kill at any moment, and the request to stop that leads to one.

Each is a folder `step-NNNNNNNN` (a `+` behind it: written again) that appears complete or not at all; the two newest
are kept. Tensors go into safetensors, the rest into JSON: nothing is unpickled when a run is resumed.
"""

import contextlib
import hashlib
import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from course_lib.storage import new_folder

KEEP = 2


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `state`, a tree of dicts, lists, numbers, strings and tensors, as the checkpoint after `step` steps.

    One that is there stays until this one is whole: it may be damaged, or older than the average that ends a run.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _strip(state, tensors)
    target = folder / f"step-{step:08d}"
    while target.exists():
        target = target.with_name(f"{target.name}+")
    with new_folder(target) as scratch:
        save_file(tensors, scratch / "tensors.safetensors")
        with (scratch / "tensors.safetensors").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        (scratch / "state.json").write_text(json.dumps({"sha256": digest, "state": tree}), encoding="utf-8")
    for old in _all(folder)[:-KEEP]:
        shutil.rmtree(old)


def load(folder: Path, log: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest readable checkpoint's state, or None. On the CPU: resuming needs no more memory than starting."""
    for path in reversed(_all(folder)):
        try:
            record = json.loads((path / "state.json").read_text(encoding="utf-8"))
            with (path / "tensors.safetensors").open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != record["sha256"]:
                    raise ValueError("checksum")
            return _fill(record["state"], load_file(path / "tensors.safetensors"))
        except (OSError, ValueError, KeyError, SafetensorError):
            log(f"The checkpoint {path} is damaged; trying the one before it.")
    return None


def remove(folder: Path) -> None:
    """Delete all checkpoints: the run is finished."""
    shutil.rmtree(folder, ignore_errors=True)


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _strip(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Replace tensors by references, and mark dicts whose keys are not strings (optimizer states have integers)."""
    if isinstance(tree, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = tree.detach().cpu().contiguous().clone()
        return {"$tensor": name}
    if isinstance(tree, dict):
        return {"$dict": [[key, _strip(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return [_strip(value, tensors) for value in tree]
    return tree


def _fill(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, dict):
        if "$tensor" in tree:
            return tensors[tree["$tensor"]]
        return {key: _fill(value, tensors) for key, value in tree["$dict"]}
    if isinstance(tree, list):
        return [_fill(value, tensors) for value in tree]
    return tree


class Stop:
    """Set when the user (Ctrl-C) or the system (SIGTERM) asks the run to end after the current step."""

    requested = False


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into `stop.requested`; a second one interrupts at once, as usual."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield stop
        return

    def request(number: int, frame: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
