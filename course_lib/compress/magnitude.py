"""Magnitude pruning: the smallest weights become zero and stay so (Han et al. 2015).

The matrices keep their shape: zeros save time only where a runtime skips them. What is measured is how many weights a
task needs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from course_lib.compress import base
from course_lib.errors import CourseError, unknown
from course_lib.peft.base import inner


@dataclass(frozen=True)
class Magnitude(base.Step):
    """`ratio`: share of zeros in the blocks; `scope`: global (one threshold) or layer (one for each matrix)."""

    ratio: float = 0.5
    scope: str = "global"
    epochs: float = 1.0

    def apply(self, model: Any, work: base.Work) -> Any:
        """Mask, then learn with what is left."""
        weights = {name: module.weight.data for name, module in matrices(model).items()}
        for name, mask in masks(weights, self.ratio, self.scope).items():
            parametrize.register_parametrization(model.get_submodule(name), "weight", Mask(mask))
        if self.epochs:
            base.learn(work, model, self.epochs)
        return settle(model)


class Mask(nn.Module):
    """Some weights are zero: W ∘ M."""

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        return weight * self.mask


def matrices(model: Any) -> dict[str, Any]:
    """The linear layers inside the blocks by path. Raises CourseError for a model whose blocks nobody knows."""
    if not (found := inner(model)):
        kind = model.config.model_type
        raise CourseError(f"A {kind} model has no blocks that this library knows how to prune. Use int8, say.")
    return found


def masks(weights: dict[str, torch.Tensor], ratio: float, scope: str = "global") -> dict[str, torch.Tensor]:
    """{name: bool, True where |w| is above the `ratio` quantile} of all weights, or of each matrix (eq-magnitude)."""
    base.check_ratio(ratio, "weights")
    if scope not in ("global", "layer"):
        raise unknown("scope", scope, ("global", "layer"))
    if scope == "layer":
        return {name: top(w.abs(), 1 - ratio) for name, w in weights.items()}
    every = torch.cat([w.abs().flatten() for w in weights.values()])
    parts = top(every, 1 - ratio).split([w.numel() for w in weights.values()])
    return {name: part.view_as(w) for part, (name, w) in zip(parts, weights.items(), strict=True)}


def top(scores: torch.Tensor, share: float) -> torch.Tensor:
    """True at that share of the highest scores."""
    chosen = scores.flatten().topk(round(share * scores.numel())).indices
    return torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device).scatter_(0, chosen, True).view_as(scores)


def settle(model: Any) -> Any:
    """Put what parametrizations compute into the weights, and mark the layers: what learns later leaves their zeros."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
            setattr(module, base.PRUNED, True)
    return model


def sparsity(model: Any) -> float:
    """Share of zeros among the blocks' weights."""
    weights = [module.weight for module in matrices(model).values()]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)
