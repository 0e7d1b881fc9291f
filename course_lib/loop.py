"""The one training loop: pretraining, fine-tuning and distillation all run through `train`."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from course_lib import distributed
from course_lib.batches import split
from course_lib.budget import Budget
from course_lib.errors import CourseError
from course_lib.objectives import Batch, Objective
from course_lib.precision import Precision
from course_lib.schedule import Schedule

MAX_SKIPPED = 20  # non-finite steps in a row before a run is given up


@dataclass(frozen=True)
class Step:
    """What one optimizer step did. `losses`: mean per target and term, nats. `progress`: before the step."""

    progress: float
    losses: dict[str, float]
    norm: float
    tokens: int
    taken: bool  # False: the gradient was not finite and the weights were left alone
    shrunk: int = 0  # rows at once from now on, if memory ran out in this step


def train(
    model: nn.Module,
    batches: Iterable[Sequence[Batch]],
    objective: Objective,
    optimizers: Sequence[torch.optim.Optimizer],
    schedule: Schedule,
    precision: Precision,
    budget: Budget,
    clip: float = 1.0,
) -> Iterator[Step]:
    """Train until the budget is spent, yielding after every optimizer step. What is minimised: equation eq-mean.

    `batches` gives the micro-batches of one step at a time. When memory runs out, the step is repeated with half the
    rows at once, and so are all that follow. The caller decides between steps what to log, evaluate or save, and may
    stop by leaving its `for`; what must not count as training goes under `budget.paused()`.
    """
    device = next(model.parameters()).device
    learning = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    parameters = [p for p in model.parameters() if id(p) in learning]  # of which some may thaw later
    budget.clock.start()
    skipped, fitting = 0, 2**31
    for micro_batches in batches:
        progress = distributed.from_rank_0(budget.progress, device)
        if progress >= 1:
            break
        model.train()
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["initial_lr"] * schedule(progress)
        counts = Counter(dict.fromkeys(objective.weights, 0))
        for batch in micro_batches:
            counts.update(objective.counts(batch), tokens=batch["input_ids"].numel())
        targets = distributed.total(counts, device)

        micro_batches = _at_most(fitting, micro_batches)
        shrunk = 0
        while (sums := _gradients(model, micro_batches, objective, precision, targets)) is None:
            model.zero_grad(set_to_none=True)
            fitting = shrunk = _half(_rows(micro_batches), objective)
            micro_batches = _at_most(fitting, micro_batches)

        norm, taken = precision.step(optimizers, parameters, clip)
        model.zero_grad(set_to_none=True)
        skipped = 0 if taken else skipped + 1
        if skipped >= MAX_SKIPPED:
            raise CourseError(f"The gradient was not finite for {skipped} steps in a row. Lower the learning rate.")
        budget.clock.tick(int(targets["tokens"]))
        summed = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
        means = {term: value / max(targets[term], 1) for term, value in distributed.total(summed, device).items()}
        yield Step(progress, means, norm, int(targets["tokens"]), taken, shrunk)
    budget.clock.pause()


def _gradients(
    model: nn.Module,
    micro_batches: Sequence[Batch],
    objective: Objective,
    precision: Precision,
    targets: Mapping[str, float],
) -> dict[str, torch.Tensor] | None:
    """Forward and backward of one step: the summed loss of every term, or None if memory ran out."""
    device = next(model.parameters()).device
    sums = {term: torch.zeros((), device=device) for term in objective.weights}
    # Scale before backward: dividing float16 gradients afterwards would be too late, they overflow.
    # Engines average over processes, hence the world's size.
    shares = {t: w * distributed.world_size() / max(targets[t], 1) for t, w in objective.weights.items()}
    try:
        for number, batch in enumerate(micro_batches, 1):
            with distributed.syncs(objective, last=number == len(micro_batches)):
                with precision.autocast():
                    losses = objective(model, {k: v.to(device, non_blocking=True) for k, v in batch.items()})
                precision.backward(torch.stack([shares[t] * loss for t, loss in losses.items()]).sum())
            for term, loss in losses.items():
                sums[term] += loss.detach()
    except RuntimeError as error:  # Apple's GPUs raise no OutOfMemoryError
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
            raise
        return None  # what the exception holds must be free before the next try
    return sums


def _rows(micro_batches: Sequence[Batch]) -> int:
    return max(len(batch["input_ids"]) for batch in micro_batches)


def _at_most(rows: int, micro_batches: Sequence[Batch]) -> list[Batch]:
    return [part for batch in micro_batches for part in split(batch, rows)]


def _half(rows: int, objective: Objective) -> int:
    """How many rows to try after `rows` did not fit."""
    if rows == 1:
        raise CourseError("Not even one row fits into memory. Use a smaller --size or --context.")
    half = (rows + 1) // 2
    if isinstance(objective, distributed.Parallel):  # the others wait in the middle of this step
        raise CourseError(
            f"Process {distributed.rank()} ran out of memory with {rows} rows at once, and cannot repeat a step alone. "
            f"The same command with --micro-rows {half} continues from the last checkpoint."
        )
    return half
