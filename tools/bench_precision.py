"""Measure how fast this machine multiplies matrices and runs a model forward in 32 and 16 bits.

    python tools/bench_precision.py --out runs/bench-precision

Chapter 4 shows the record beside what it measures live; a device that nobody ran this on stays "not measured".
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from course_lib import device, models, progress
from course_lib.precision import Precision
from course_lib.record import invocation, now, provenance

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REPEATS = 5


def main() -> None:
    """Measure, write the record, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    progress.hush_transformers()
    where = device.pick()
    side, rows = where.matmul_side, 256 if where.kind == "cuda" else 4
    result = {
        "matmul_side": side,
        "matmul_gflops": {name(d): round(2 * side**3 / matmul(where, d, side) / 1e9, 1) for d in DTYPES},
        "forward_tokens": rows * models.SIZES["nano"].context,
        "forward_ms": {name(d): round(1e3 * forward(where, d, rows), 1) for d in DTYPES},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    about = {"id": options.out.name, "command": invocation(), "finished": now(), **provenance()}
    about |= {"device": where.describe()}
    (options.out / "run.json").write_text(json.dumps(about | result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def name(dtype: torch.dtype) -> str:
    """`torch.bfloat16` → `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def seconds(run: Callable[[], Any], where: device.Device) -> float:
    """Median of REPEATS calls, after one that does not count."""
    found = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        run()
        if where.kind == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def matmul(where: device.Device, dtype: torch.dtype, side: int) -> float:
    """Seconds of one square product."""
    a, b = (torch.randn(side, side, device=where.torch, dtype=dtype) for _ in range(2))
    return seconds(lambda: a @ b, where)


@torch.no_grad()
def forward(where: device.Device, dtype: torch.dtype, rows: int) -> float:
    """Seconds of a forward of a nano decoder under autocast, all logits included."""
    shape = models.SIZES["nano"]
    model = models.build("qwen3", shape, models.Tokens(shape.vocab)).to(where.torch)
    ids = torch.randint(shape.vocab, (rows, shape.context), device=where.torch)
    policy = Precision(where.kind, dtype)
    with policy.autocast():
        return seconds(lambda: model(input_ids=ids, use_cache=False).logits, where)


if __name__ == "__main__":
    main()
