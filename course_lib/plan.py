"""What fits into a budget: the size of the model, its micro-batch, and how many tokens it will see."""

import time
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from course_lib import models
from course_lib.device import Device
from course_lib.errors import CourseError
from course_lib.objectives import CausalLM
from course_lib.precision import Precision

PROBE_STEPS = 3
SLACK = 2.0  # a model of twice the rule's size still wins at five minutes on two cores (book/lab-log.md)


@dataclass(frozen=True)
class Plan:
    """What a run is made of and how fast it should go; compared with what happened at its end."""

    size: str
    parameters: int
    step_tokens: int
    micro_rows: int
    tokens_per_second: float  # probed: forward and backward, without the optimizer
    flops_per_token: int


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
    model: PreTrainedModel, context: int, step_rows: int, device: Device, precision: Precision
) -> tuple[int, float]:
    """(micro-batch rows that fit, tokens/s of forward + backward). Halves the micro-batch when memory runs out."""
    rows, objective = step_rows, CausalLM()
    while True:
        ids = torch.randint(model.config.vocab_size, (rows, context), device=device.torch)
        try:
            rates = []
            for _ in range(PROBE_STEPS):
                started = time.perf_counter()
                with precision.autocast():
                    loss = objective(model, {"input_ids": ids, "labels": ids})["clm"] / ids.numel()
                loss.backward()
                loss.item()
                rates.append(rows * context / (time.perf_counter() - started))
            return rows, max(rates)
        except torch.OutOfMemoryError:
            if rows == 1:
                raise CourseError("Not even one row fits into memory. Use a smaller --size or --context.") from None
            rows = (rows + 1) // 2
        finally:
            model.zero_grad(set_to_none=True)


def make(size: str, model: PreTrainedModel, context: int, step_rows: int, device: Device, precision: Precision) -> Plan:
    """Probe the model and say what a second buys."""
    micro_rows, rate = probe(model, context, step_rows, device, precision)
    return Plan(
        size=size,
        parameters=models.count_parameters(model),
        step_tokens=step_rows * context,
        micro_rows=micro_rows,
        tokens_per_second=round(rate),
        flops_per_token=models.flops_per_token(model, context),
    )
