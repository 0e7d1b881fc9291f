"""What fits into a budget: the size of the model, its micro-batch, and how many tokens it will see."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise, repeat

import torch
from torch import nn

from course_lib import models
from course_lib.batches import split
from course_lib.budget import Budget, WorkClock
from course_lib.device import Device
from course_lib.loop import train
from course_lib.objectives import Batch, Objective
from course_lib.precision import Precision

OptimizersFor = Callable[[nn.Module], Sequence[torch.optim.Optimizer]]
PROBE_STEPS = 6
TOKENS_PER_WEIGHT = 20.0
# A choice: two cores get nano for five minutes and micro for two hours. Seen so far: at two minutes of a core it takes
# pico, which the ladder prefers to nano, and nano to tiny (runs/ladder-decoder).
SLACK = 2.0


def compute_optimal(flops: float, tokens_per_weight: float = TOKENS_PER_WEIGHT) -> tuple[float, float]:
    """(weights N, training tokens D) that spend `flops` FLOP at a given ratio: C = 6·N·D, D = ratio·N.

    20 tokens a weight is the compute-optimal ratio of Hoffmann et al. (2022), *Training compute-optimal large
    language models*. Equation eq-compute-optimal.
    """
    weights = (flops / (6 * tokens_per_weight)) ** 0.5
    return weights, tokens_per_weight * weights


def fitting_size(flops: float) -> str:
    """The largest preset whose inner weights are at most the compute-optimal number for `flops`, times `SLACK`."""
    affordable, _ = compute_optimal(flops)
    fitting = [name for name, shape in models.SIZES.items() if shape.inner_parameters <= affordable * SLACK]
    return fitting[-1] if fitting else next(iter(models.SIZES))


def choose_size(device: Device, seconds: float) -> str:
    """The preset for a budget, taking half of what the device would manage if it did nothing but multiply matrices."""
    return fitting_size(matmul_flops(device) * 0.5 * seconds)


def matmul_flops(device: Device, repeats: int = 8) -> float:
    """FLOP/s of a square product in the compute dtype, the best of `repeats`."""
    width = device.matmul_side
    a = torch.randn(width, width, device=device.torch, dtype=getattr(torch, device.dtype))
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # .item() waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * width**3 / best


@torch.random.fork_rng()  # a run that goes on does not probe, and must draw the same numbers
def probe(
    model: nn.Module,
    objective: Objective,
    optimizers: OptimizersFor,
    batch: Batch,
    precision: Precision,
    micro_rows: int = 0,
) -> tuple[int, float]:
    """(micro-batch rows that fit, tokens/s of whole steps), tried on a copy of the model with a real batch.

    Begins with `micro_rows` (0: the whole batch); the loop halves them when memory runs out. Accumulation keeps the
    step as large as `batch`.
    """
    rows = micro_rows or len(batch["input_ids"])
    step = split(batch, rows)
    copied = copy.deepcopy(model)
    fresh = Precision(precision.kind, precision.dtype)  # the real one's loss scale stays untouched
    stamps = [time.perf_counter()]
    steps, budget = repeat(step, PROBE_STEPS), Budget(WorkClock(float("inf")))
    for done in train(copied, steps, objective, optimizers(copied), lambda _: 1e-6, fresh, budget):
        stamps.append(time.perf_counter())
        rows = done.shrunk or rows
    # The first steps allocate memory and warm caches up; a run pays that once.
    seconds = statistics.median([after - before for before, after in pairwise(stamps)][PROBE_STEPS // 2 :])
    return rows, batch["input_ids"].numel() / seconds
