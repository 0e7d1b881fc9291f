"""Several processes, one run: everything `torchrun` needs that is not the training itself.

With one process every function here does nothing. The engines are torch's: DistributedDataParallel, or FSDP2.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from course_lib.objectives import Batch, Objective


def start(kind: str) -> None:
    """Join the group that `torchrun` made, if it did. `kind`: the device kind, which decides the back end."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if kind == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")


def stop() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, 0 if it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def total(counts: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Sum of every entry over all processes, in one message."""
    if world_size() == 1:
        return dict(counts)
    values = torch.tensor([counts[key] for key in sorted(counts)], dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return dict(zip(sorted(counts), values.tolist(), strict=True))


def from_rank_0(value: float, device: torch.device) -> float:
    """Rank 0's value everywhere: two clocks never agree, and a schedule must be the same on all ranks."""
    if world_size() == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64, device=device)
    dist.broadcast(shared, src=0)
    return shared.item()


def least(value: int, device: torch.device) -> int:
    """The smallest value of all processes."""
    if world_size() == 1:
        return value
    shared = torch.tensor(value, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)
    return int(shared)


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def share(value: Any) -> Any:
    """Rank 0's object, on every rank."""
    holder = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(holder, src=0)
    return holder[0]


class _Forward(nn.Module):
    """Model and objective as one module, so that the engine sees the whole forward."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return self.objective(self.model, batch)


class Parallel:
    """An objective whose gradients are averaged over the processes by DistributedDataParallel."""

    def __init__(self, model: nn.Module, objective: Objective):
        self.objective, self.weights = objective, objective.weights
        device = next(model.parameters()).device
        ids = [device.index] if device.type == "cuda" else None
        # A term may have no targets in a batch; its weights then get no gradient on some rank.
        self.engine = nn.parallel.DistributedDataParallel(
            _Forward(model, objective), device_ids=ids, find_unused_parameters=len(self.weights) > 1
        )

    def counts(self, batch: Batch) -> dict[str, int]:
        """As the objective's."""
        return self.objective.counts(batch)

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """The objective's losses, through the engine."""
        return self.engine(batch)


def syncs(objective: Objective, last: bool) -> contextlib.AbstractContextManager[Any]:
    """The context of a micro-batch's forward and backward: processes exchange gradients in a step's last one only."""
    if last or not isinstance(objective, Parallel):
        return contextlib.nullcontext()
    return objective.engine.no_sync()
