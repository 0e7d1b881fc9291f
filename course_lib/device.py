"""Where a run takes place. Every device decision of the library is made in this file and in `precision`."""

import json
import os
import platform
import re
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from course_lib.errors import CourseError, unknown

# Dense half-precision peak, FLOP/s, from NVIDIA's data sheets; used for MFU and for plans only.
PEAK_FLOPS = {
    "T4": 65e12, "V100": 125e12, "RTX 3090": 71e12, "RTX 4090": 165e12, "L4": 121e12,
    "A10": 125e12, "A100": 312e12, "H100": 989e12, "H200": 989e12,
}  # fmt: skip


@dataclass(frozen=True)
class Device:
    """What `pick` found. `memory` in bytes, `peak_flops` in FLOP/s at `dtype` (None: not known)."""

    kind: str  # "cuda", "mps" or "cpu"
    name: str
    dtype: str  # what matrices are multiplied in: "bfloat16", "float16" or "float32"
    memory: int
    threads: int
    peak_flops: float | None = None

    @property
    def torch(self) -> torch.device:
        """The torch device that tensors are made on."""
        return torch.device(self.kind)

    def describe(self) -> dict[str, Any]:
        """A JSON-able summary for run records."""
        return asdict(self)

    @property
    def matmul_side(self) -> int:
        """Side of a square product that keeps the device busy and ends within a tenth of a second."""
        return 8192 if self.kind == "cuda" else 512

    def peak_memory(self) -> int:
        """The most memory this process has used so far, bytes (device memory on a GPU, RSS else)."""
        if self.kind == "cuda":
            return torch.cuda.max_memory_allocated()
        try:
            import resource
        except ImportError:  # Windows has no `resource`; nothing measured is shown as nothing
            return 0
        scale = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def pick(name: str = "auto") -> Device:
    """The best device there is, or the named one (`cuda`, `mps`, `cpu`).

    Ampere and later compute in bfloat16; older CUDA cards (T4, V100) in float16 with loss scaling; MPS and
    CPU in float32, since half-precision matmul on a CPU without AMX is about 75 times slower.
    """
    if name not in ("auto", "cuda", "mps", "cpu"):
        raise unknown("device", name, ["auto", "cuda", "mps", "cpu"])
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        return _cuda()
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise CourseError("No Apple GPU is available to torch. Use --device cpu.")
        return Device("mps", "Apple GPU", "float32", _host_memory(), torch.get_num_threads())
    return Device("cpu", _cpu_name(), "float32", _host_memory(), torch.get_num_threads())


def _cuda() -> Device:
    if not torch.cuda.is_available():
        raise CourseError("No CUDA GPU is visible to torch. Use --device cpu, or pick a GPU runtime on Colab.")
    props = torch.cuda.get_device_properties(0)
    dtype = "bfloat16" if props.major >= 8 else "float16"
    known = (flops for key, flops in PEAK_FLOPS.items() if re.search(rf"\b{key}\b", props.name))
    return Device("cuda", props.name, dtype, props.total_memory, torch.get_num_threads(), next(known, None))


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _host_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 0


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes of CPU tensors that `function` held at once, beyond those that were there before."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's messages would land in a notebook
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    with tempfile.TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    memory = [event["args"] for event in events if event["name"] == "[memory]"]
    before = memory[0]["Total Allocated"] - memory[0]["Bytes"] if memory else 0
    return max([m["Total Allocated"] for m in memory], default=0) - before
