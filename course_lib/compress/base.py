"""What a recipe is made of: steps, and what a step may ask for."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.utils import parametrize

from course_lib.errors import CourseError
from course_lib.examples import Rows
from course_lib.objectives import Batch, Objective

PRUNED = "pruned"  # the attribute of a layer whose zeros are for good


class Work(Protocol):
    """The surroundings of a recipe. `work.Workshop` is the real one; a chapter may bring its own."""

    teacher: Any  # the model as it was before the first step

    def batches(self, rows: int) -> Sequence[Batch]:
        """So many training texts as padded batches, always the same."""
        ...

    def more(self, corpus: str, texts: int) -> Rows:
        """Train, and so many sentences of a corpus without a label; none of them is a held-out text."""
        ...

    def objective(self) -> Objective:
        """What the task minimises."""
        ...

    def learn(
        self,
        model: Any,
        epochs: float,
        objective: Objective | None = None,
        after: Callable[[float], None] | None = None,
        rows: Rows | None = None,
    ) -> None:
        """Train the model in place through the ordinary fine-tuning loop. `after(progress)`: called after each step."""
        ...


class Step:
    """Settings of a step; its subclasses are frozen dataclasses."""

    def apply(self, model: Any, work: Work) -> Any:
        """The compressed model; `model` itself may be changed."""
        raise NotImplementedError


def learn(work: Work, model: Any, epochs: float, **how: Any) -> None:
    """`work.learn`, in which weights that an earlier step has pruned stay zero: without a gradient nothing moves them.

    Where they are is read off the weights, so it survives copies, and whole units may be cut out in between.
    """
    hooks = [weight.register_hook(_without(weight.detach() == 0)) for weight in _pruned(model)]
    try:
        work.learn(model, epochs, **how)
    finally:
        for hook in hooks:
            hook.remove()


def _pruned(model: nn.Module) -> Iterator[torch.Tensor]:
    """The weights of the layers that are marked, as the optimizer sees them: behind what rounds or scores them."""
    for module in model.modules():
        if getattr(module, PRUNED, False):
            parts: Any = module
            whole = parametrize.is_parametrized(module, "weight")
            yield parts.parametrizations["weight"].original if whole else parts.weight


def _without(gone: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda gradient: gradient.masked_fill(gone, 0)


def check_ratio(ratio: float, what: str) -> None:
    """Raise CourseError for a share that would leave nothing, or is none."""
    if not 0 <= ratio < 1:
        raise CourseError(f"Pruning {ratio:g} of the {what} leaves no model. Choose a ratio from 0 up to, not with, 1.")
