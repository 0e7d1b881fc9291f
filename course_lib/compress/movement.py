"""Movement pruning: what goes is not what is small, but what shrinks while the task is learnt.

Sanh et al. (2020), *Movement pruning: adaptive sparsity by fine-tuning*: every weight has a score S, the mask keeps the
highest, and the straight-through gradient of S is ∂L/∂W' · W: negative, so that S grows, where W moves away from zero.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from course_lib.compress import base
from course_lib.compress.magnitude import matrices, settle, top
from course_lib.errors import CourseError


@dataclass(frozen=True)
class Movement(base.Step):
    """`ratio` of zeros in every matrix of the blocks, reached by a cubic curve after `ramp` of the training.

    `ramp` is a share above 0, at most 1.
    """

    ratio: float = 0.5
    epochs: float = 2.0
    ramp: float = 0.7

    def apply(self, model: Any, work: base.Work) -> Any:
        """Learn weights and scores together."""
        base.check_ratio(self.ratio, "weights")
        if not 0 < self.ramp <= 1:
            raise CourseError(f"A ramp over {self.ramp:g} of the training has no end. Choose above 0, at most 1.")
        scored = []
        for module in matrices(model).values():
            part = Scored(module.weight)
            parametrize.register_parametrization(module, "weight", part)
            scored.append(part)

        def after(progress: float) -> None:
            for part in scored:
                part.share = 1 - self.zeros(progress)

        base.learn(work, model, self.epochs, after=after)
        after(1.0)
        return settle(model)

    def zeros(self, progress: float) -> float:
        """ratio·(1 − (1 − t)³) with t = progress / ramp: fast at first, while many can go (Zhu and Gupta 2017)."""
        return self.ratio * (1 - (1 - min(1.0, progress / self.ramp)) ** 3)


class Scored(nn.Module):
    """W ∘ top(S), equation eq-movement; S starts at zero, so that the order of the first steps' gradients decides."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.scores = nn.Parameter(torch.zeros_like(weight))
        self.share = 1.0

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        mask: torch.Tensor = Top.apply(self.scores, self.share)
        return weight * mask


class Top(torch.autograd.Function):
    """The mask of the highest scores, with the identity as its gradient."""

    @staticmethod
    def forward(context: Any, scores: torch.Tensor, share: float) -> torch.Tensor:
        """1 at the `share` of the highest scores, 0 elsewhere."""
        return top(scores, share).to(scores.dtype)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Straight through."""
        return gradients[0], None
