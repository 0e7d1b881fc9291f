"""What a GPU makes of every preset: tokens a second, share of its peak, and memory, at chapter 7's planned step.

    python -m tools.bench_gpu --out runs/bench-gpu-h100

Every case trains on random tokens with the loop and the optimizers of a pretraining. It begins with a whole step at
once, so that running out of memory is part of what is tried: the loop halves until it fits. A case is a process of its
own, so that each finds an empty GPU. Stopped, the same command goes on.
"""

import argparse
import itertools
import json
import statistics
import time
from typing import Any

import torch

from course_lib import device, models, optim, progress, training
from course_lib.budget import Budget, WorkClock
from course_lib.loop import train
from course_lib.objectives import CausalLM
from course_lib.precision import Precision
from tools.trials import Trials, record_parser

STEP_TOKENS = 2**17
WARM, STEPS, SECONDS = 4, 12, 6.0  # steps that do not count, that count, and after how long no more are begun
CASES: list[dict[str, Any]] = [
    {"size": "base", "dtype": "bfloat16", "compiled": False},
    {"size": "base", "dtype": "bfloat16", "compiled": True},
    {"size": "nano", "dtype": "bfloat16", "compiled": False},
    {"size": "nano", "dtype": "bfloat16", "compiled": True},
    {"size": "base", "dtype": "float16", "compiled": False},
    {"size": "base", "dtype": "float32", "compiled": False},
    {"size": "small", "dtype": "bfloat16", "compiled": False},
]


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = record_parser(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda; cpu only to try the tool out")
    parser.add_argument("--step-tokens", type=int, default=STEP_TOKENS)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # a case, as a process of its own
    options = parser.parse_args()
    progress.hush_transformers()
    if options.one:
        print(json.dumps(one(device.pick(options.device), options.step_tokens, **options.one)))
        return
    about = {"step_tokens": options.step_tokens, "asked_device": options.device}
    trials = Trials(options.out, "bench-gpu", options.single, options.device, **about)
    shared = [f"--out={options.out}", f"--device={options.device}", f"--step-tokens={options.step_tokens}"]
    for case in CASES:
        trials.run(case, ["-m", "tools.bench_gpu", *shared, f"--one={json.dumps(case)}"])
    for run in trials.record["runs"]:
        print("{size:6} {dtype:9} {compiled!s:5} {tokens_per_second:>10,} tokens/s  {memory} bytes".format(**run))


def one(where: device.Device, step_tokens: int, size: str, dtype: str, compiled: bool) -> dict[str, Any]:
    """Median, least and most tokens/s of whole steps, and what was in memory at most."""
    torch.manual_seed(0)
    shape = models.size(size)
    model: Any = models.build("qwen3", shape, models.Tokens(shape.vocab)).to(where.torch)
    optimizers = optim.build(model, "muon", matrix_lr=0.02, lr=0.01)
    if compiled:
        training.compile_body(model)
    rows = torch.randint(shape.vocab, (step_tokens // shape.context, shape.context + 1))
    step = [{"input_ids": rows[:, :-1], "labels": rows[:, 1:]}]
    policy, budget = Precision(where.kind, getattr(torch, dtype)), Budget(WorkClock(float("inf")))
    loop = train(model, itertools.repeat(step), CausalLM(), optimizers, lambda _: 1e-3, policy, budget)
    stamps, at_once, skipped = [time.perf_counter()], len(rows), 0
    for done in itertools.islice(loop, WARM + STEPS):
        stamps.append(time.perf_counter())
        at_once, skipped = done.shrunk or at_once, skipped + (not done.taken)
        if stamps[-1] - stamps[min(WARM, len(stamps) - 1)] > SECONDS:
            break
    seconds = [after - before for before, after in itertools.pairwise(stamps)]
    rates = [round(rows[:, 1:].numel() / took) for took in seconds[WARM:]]
    flops = models.flops_per_token(model, shape.context)
    rate = round(statistics.median(rates))
    return {
        "parameters": models.count_parameters(model), "rows_at_once": at_once, "context": shape.context,
        "first_step_seconds": round(seconds[0], 2), "steps": len(rates), "tokens_per_second": rate,
        "least": min(rates), "most": max(rates), "flops_per_token": flops,
        "mfu": round(rate * flops / where.peak_flops, 4) if where.peak_flops else None,
        "memory": where.peak_memory(), "state": sum(models.training_bytes(model, optimizers).values()),
        "skipped_steps": skipped, "loss": round(done.losses["clm"], 3),
    }  # fmt: skip


if __name__ == "__main__":
    main()
