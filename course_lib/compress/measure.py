"""What a model costs to run: time, measured in turn with others, and memory, of a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from course_lib.compress import export

PEAK = """
import json, sys
import numpy, onnxruntime
path, feeds, threads, level = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = int(threads), 3
options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
feed = dict(numpy.load(feeds))
for _ in range(3):
    session.run(None, feed)
try:  # what this program alone had; the resource module would count its parent's memory
    peak = 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
except (OSError, StopIteration):
    try:
        import resource
    except ImportError:  # Windows
        peak = None
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps(peak))
"""


def latency(sessions: Mapping[str, Any], feed: dict[str, np.ndarray], repeats: int) -> dict[str, dict[str, float]]:
    """{name: p50_ms, p95_ms, tokens_per_second} of the same batch. One call each in turn, so that what else the machine
    does slows all alike.
    """
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for repeat in range(repeats + 3):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, feed)
            if repeat >= 3:  # warm
                taken[name].append(1000 * (time.perf_counter() - started))
    found = {}
    for name, ms in taken.items():
        half, late = np.percentile(ms, (50, 95))
        speed = feed["input_ids"].size / half * 1000
        found[name] = {"p50_ms": round(half, 3), "p95_ms": round(late, 3), "tokens_per_second": round(speed)}
    return found


def peak_memory(path: Path, feed: dict[str, np.ndarray], threads: int, scratch: Path, level: str = "all") -> int | None:
    """Bytes that a process with nothing but the runtime and this model had at most; None where nobody counts them.

    `level` of graph optimisation: as for `export.session`.
    """
    feeds = scratch / "feeds.npz"
    np.savez(feeds, **feed)  # type: ignore[arg-type]
    command = [sys.executable, "-c", PEAK, str(path), str(feeds), str(threads), export.optimisation(level)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: int | None = json.loads(done.stdout)
    return found
