"""Several processes, one run: everything `torchrun` needs that is not the training itself.

With one process every function here does nothing. The engines are torch's: DistributedDataParallel, where every
process holds all weights, or FSDP2, where each holds a part of every weight (a `DTensor`), of its gradient and of its
optimizer state, and the parts of one block come together while that block computes.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from course_lib.errors import CourseError
from course_lib.objectives import Batch, Objective


def start(kind: str) -> None:
    """Join the group that `torchrun` made, if it did. `kind`: the device kind, which decides the back end."""
    if {"RANK", "WORLD_SIZE"} <= os.environ.keys() and not dist.is_initialized():  # some clusters set one of them
        if kind == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # The others wait while the first prepares a large text.
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timedelta(hours=12))


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
    """An objective whose gradients are averaged over the processes. `shard`: by FSDP2, which cuts up `model` in place.

    After that the model's parameters are other tensors: make the optimizers then, not before.
    """

    def __init__(self, model: nn.Module, objective: Objective, shard: bool = False):
        self.objective, self.weights = objective, objective.weights
        forward = _Forward(model, objective)
        self.engine = _sharded(forward) if shard else _replicated(forward)

    def counts(self, batch: Batch) -> dict[str, int]:
        """As the objective's."""
        return self.objective.counts(batch)

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """The objective's losses, through the engine."""
        return self.engine(batch)


def _replicated(forward: _Forward) -> nn.Module:
    device = next(forward.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    # A term may have no targets in a batch; its weights then get no gradient on some rank. BERT's pooler never has one
    # without sentence pairs.
    unused = len(forward.objective.weights) > 1 or any("pooler" in name for name, _ in forward.named_parameters())
    return nn.parallel.DistributedDataParallel(forward, device_ids=ids, find_unused_parameters=unused)


def _sharded(forward: _Forward) -> nn.Module:
    """`forward` with every block a unit of its own, and the rest (embeddings, norms, heads) one more."""
    if world_size() == 1:
        raise CourseError(
            "One process has nobody to share with. Use torchrun --nproc-per-node=N, or leave --shard out."
        )
    for tensor in forward.state_dict().values():  # as DistributedDataParallel does: rank 0's weights count
        dist.broadcast(tensor, src=0)
    mesh = init_device_mesh(next(forward.parameters()).device.type, (world_size(),))
    for blocks in [module for module in forward.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(forward, mesh=mesh)
    return forward


def syncs(objective: Objective, last: bool) -> contextlib.AbstractContextManager[Any]:
    """The context of a micro-batch's forward and backward: processes exchange gradients in a step's last one only."""
    engine = objective.engine if isinstance(objective, Parallel) else None
    if isinstance(engine, FSDPModule):
        engine.set_requires_gradient_sync(last)
    elif isinstance(engine, nn.parallel.DistributedDataParallel) and not last:
        return engine.no_sync()
    return contextlib.nullcontext()


@contextlib.contextmanager
def whole_weights(objective: Objective) -> Iterator[None]:
    """Let the model compute outside of its engine: sharded weights are complete on every process meanwhile."""
    engine = objective.engine if isinstance(objective, Parallel) else nn.Module()
    units = [module for module in engine.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.unshard()
    yield
    for unit in units:
        unit.reshard()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor of which this process may hold a part; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The part of `tensor`, which all have whole, that this process holds of `parameter`, if that is shared out."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    # `clone`: a part must not keep the whole in memory
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None).clone()


def collect(tree: Any, seen: dict[int, torch.Tensor] | None = None) -> Any:
    """A tree of dicts, lists and tensors with shared-out tensors whole, on rank 0's CPU; empty ones on the others.

    A tensor that stands in the tree twice (a tied weight) stays one.
    """
    seen = {} if seen is None else seen
    if isinstance(tree, dict):
        return {key: collect(value, seen) for key, value in tree.items()}
    if isinstance(tree, list):
        return [collect(value, seen) for value in tree]
    if not isinstance(tree, DTensor):
        return tree
    if id(tree) not in seen:
        tensor = whole(tree.detach())
        seen[id(tree)] = tensor.cpu() if rank() == 0 else tensor.new_empty(0)
    return seen[id(tree)]
