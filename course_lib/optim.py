"""Optimizers: Muon for the matrices inside the network, AdamW for everything else.

Muon replaces the momentum of a matrix by the nearest (semi-)orthogonal matrix, so that every direction moves
equally far; it needs about half the steps of AdamW here. Source: Jordan et al. (2024), *Muon: an optimizer for
hidden layers in neural networks*. `torch.optim.Muon` always iterates in bfloat16, which is 40 times slower than
float32 on a CPU without AMX and not available on a T4, hence these lines.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from course_lib.errors import unknown

# Quintic Newton–Schulz coefficients: f(x) = ax + bx³ + cx⁵ drives singular values from (0, 1] towards 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The polar factor UVᵀ of `matrix` = USVᵀ, approximately: singular values end in about [0.7, 1.2].

    `matrix`: (rows, columns), any scale. Computed in bfloat16 on CUDA cards that have it, else in float32.
    """
    a, b, c = NEWTON_SCHULZ
    fast = matrix.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    x = matrix.to(torch.bfloat16 if fast else matrix.dtype)
    x = x / (x.norm() + 1e-7)  # spectral norm ≤ 1, where the iteration converges
    tall = x.size(0) > x.size(1)
    x = x.mT if tall else x  # the smaller Gram matrix
    for _ in range(steps):
        gram = x @ x.mT  # (small, small)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; decoupled weight decay. For 2-D parameters only.

    The update is scaled by √max(1, rows/columns), so that its effect on the layer's output has the same size
    for every shape. State: one momentum buffer a weight (AdamW keeps two).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 5,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps})
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon is for 2-D weights; give vectors and embeddings to AdamW")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalize(p.grad.lerp(momentum, group["momentum"]), group["steps"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * max(1.0, p.size(0) / p.size(1)) ** 0.5)


def split_parameters(model: PreTrainedModel) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices inside the network, everything else). Embeddings and the output head count as the rest."""
    outer = {
        id(p)
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        if module is not None
        for p in module.parameters()
    }
    trainable = [p for p in model.parameters() if p.requires_grad]
    inner = [p for p in trainable if p.ndim == 2 and id(p) not in outer]
    chosen = {id(p) for p in inner}
    return inner, [p for p in trainable if id(p) not in chosen]


OPTIMIZERS = ("muon", "adamw")


def check(name: str) -> None:
    """Raise CourseError for an optimizer that does not exist."""
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)


def build(
    model: PreTrainedModel, name: str, matrix_lr: float, lr: float, weight_decay: float = 0.0
) -> list[torch.optim.Optimizer]:
    """The optimizers of a run, `initial_lr` set for the schedule. `name`: `muon` (+ AdamW) or `adamw`."""
    check(name)
    inner, rest = split_parameters(model)
    if name == "adamw":
        inner, rest = [], rest + inner
    # `fused` has no meta-device kernel, which the device tests need
    fused = all(p.device.type != "meta" for p in rest)
    decayed = [p for p in rest if p.ndim >= 2]
    plain = [p for p in rest if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-10, fused=fused)
    ]
    if inner:
        optimizers.append(Muon(inner, lr=matrix_lr, weight_decay=weight_decay))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers
