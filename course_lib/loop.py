"""The one training loop: pretraining, fine-tuning and distillation all run through `train`."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from course_lib import distributed
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

    `batches` gives the micro-batches of one step at a time. The caller decides between steps what to log, evaluate or
    save, and may stop by leaving its `for`; what must not count as training goes under `budget.paused()`.
    """
    device = next(model.parameters()).device
    parameters = [p for p in model.parameters() if p.requires_grad]
    world = distributed.world_size()
    budget.clock.start()
    skipped = 0
    for micro_batches in batches:
        progress = distributed.from_rank_0(budget.progress, device)
        if progress >= 1:
            break
        model.train()
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["initial_lr"] * schedule(progress)
        counts = Counter(tokens=sum(batch["input_ids"].numel() for batch in micro_batches))
        for batch in micro_batches:
            counts.update(objective.counts(batch))
        targets = distributed.total(counts, device)

        sums = {term: torch.zeros((), device=device) for term in objective.weights}
        for batch in micro_batches:
            with precision.autocast():
                losses = objective(model, {k: v.to(device, non_blocking=True) for k, v in batch.items()})
            # Scale before backward: dividing float16 gradients afterwards would be too late, they overflow.
            # Engines average over processes, hence `world`.
            scaled = [objective.weights[t] * world / max(targets[t], 1) * loss for t, loss in losses.items()]
            precision.backward(torch.stack(scaled).sum())
            for term, loss in losses.items():
                sums[term] += loss.detach()

        norm, taken = precision.step(optimizers, parameters, clip)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        skipped = 0 if taken else skipped + 1
        if skipped >= MAX_SKIPPED:
            raise CourseError(f"The gradient was not finite for {skipped} steps in a row. Lower the learning rate.")
        budget.clock.tick(int(targets["tokens"]))
        means = {
            t: value / max(targets[t], 1)
            for t, value in distributed.total({t: s.item() for t, s in sums.items()}, device).items()
        }
        yield Step(progress, means, norm, int(targets["tokens"]), taken)
    budget.clock.pause()
