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
from course_lib.errors import CourseError
from course_lib.loop import train
from course_lib.objectives import Batch, Objective
from course_lib.precision import Precision

OptimizersFor = Callable[[nn.Module], Sequence[torch.optim.Optimizer]]
PROBE_STEPS = 6
SLACK = 2.0  # a choice, not yet ablated: two cores get nano for five minutes and micro for two hours


def choose_size(device: Device, seconds: float) -> str:
    """The largest preset whose inner weights N satisfy C ≥ 6·N·(20·N) for the budget's compute C.

    20 tokens a weight is the compute-optimal ratio of Hoffmann et al. (2022), *Training compute-optimal large
    language models*. C is half of what the device would manage if it did nothing but multiply matrices.
    """
    compute = matmul_flops(device) * 0.5 * seconds
    affordable = (compute / 120) ** 0.5
    fitting = [name for name, shape in models.SIZES.items() if shape.inner_parameters <= affordable * SLACK]
    return fitting[-1] if fitting else next(iter(models.SIZES))


def matmul_flops(device: Device, width: int = 512, repeats: int = 8) -> float:
    """FLOP/s of a (width × width) product in the compute dtype, the best of `repeats`."""
    a = torch.randn(width, width, device=device.torch, dtype=getattr(torch, device.dtype))
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        (a @ a)[0, 0].item()  # .item() waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * width**3 / best


def probe(
    model: nn.Module, objective: Objective, optimizers: OptimizersFor, batch: Batch, precision: Precision
) -> tuple[int, float]:
    """(micro-batch rows that fit, tokens/s of whole steps), tried on a copy of the model with a real batch.

    Halves the micro-batch when memory runs out; accumulation keeps the step as large as `batch`.
    """
    rows = len(batch["input_ids"])
    while True:
        try:
            seconds = _seconds_per_step(copy.deepcopy(model), objective, optimizers, split(batch, rows), precision)
            return rows, batch["input_ids"].numel() / seconds
        except torch.OutOfMemoryError:
            if rows == 1:
                raise CourseError("Not even one row fits into memory. Use a smaller --size or --context.") from None
            rows = (rows + 1) // 2


def _seconds_per_step(
    model: nn.Module, objective: Objective, optimizers: OptimizersFor, step: list[Batch], precision: Precision
) -> float:
    fresh = Precision(precision.kind, precision.dtype)  # the real one's loss scale stays untouched
    stamps = [time.perf_counter()]
    budget = Budget(WorkClock(float("inf")))
    for _ in train(model, repeat(step, PROBE_STEPS), objective, optimizers(model), lambda _: 1e-6, fresh, budget):
        stamps.append(time.perf_counter())
    # The first steps allocate memory and warm caches up; a run pays that once.
    return statistics.median([after - before for before, after in pairwise(stamps)][PROBE_STEPS // 2 :])
