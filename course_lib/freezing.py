"""Which layers learn: all, some, or more and more of them from the top down."""

import re
from collections.abc import Callable
from typing import Any

import torch

from course_lib import models
from course_lib.errors import CourseError
from course_lib.objectives import Batch, Objective

THAWED_AT = 0.5  # the share of the budget after which gradual unfreezing has reached the embeddings


def depth(model: Any) -> int:
    """The level of the head; 0 is the embeddings', then come the layers. Of a model, or of its config alone."""
    return getattr(model, "config", model).num_hidden_layers + 1


def level(model: Any, name: str) -> int:
    """How far above the embeddings a parameter stands. What is above the last layer (norm, head) is one level."""
    layer = re.search(r"[./](?:layers?|h)[./](\d+)(?:[./]|$)", name)  # "/" in adapters' names, and lists end so
    return 0 if models.is_embedding(name) else int(layer[1]) + 1 if layer else depth(model)


def lowest(model: Any, how: str) -> int:
    """The lowest level that ever learns: of `none`, `embeddings`, `bottom-K`, `body`, `gradual`."""
    named = {"none": 0, "gradual": 0, "embeddings": 1, "body": depth(model)}
    if how in named:
        return named[how]
    bottom = re.fullmatch(r"bottom-(\d+)", how)
    most = depth(model) - 1
    if not bottom or not 1 <= int(bottom[1]) <= most:
        raise CourseError(
            f"--freeze is none, embeddings, body, gradual, or bottom-1 to bottom-{most} for this model; not '{how}'."
        )
    return int(bottom[1]) + 1


def freeze(model: Any, how: str) -> None:
    """Take what is below the lowest learning level out of the training for good."""
    learning = lowest(model, how)
    levels = {level(model, name) for name, _ in model.named_parameters()}
    if how not in ("none", "embeddings") and not levels.intersection(range(1, depth(model))):
        kind = f"a '{model.config.model_type}' model"
        raise CourseError(f"--freeze {how} does not know the layers of {kind}. Leave it out, or take another model.")
    for name, p in model.named_parameters():
        if level(model, name) < learning:  # else as it is: an adapter has frozen its base
            p.requires_grad_(False)


class Gradual:
    """An objective under which levels thaw from the head down (Howard and Ruder 2018, ULMFiT).

    The head learns from the start, each level below joins after an equal part of the first half of the budget. A pure
    function of `progress`, so a resumed run goes on as an unbroken one; what is frozen gets no gradient, hence costs no
    backward and is left alone by the optimizer, its weight decay too.
    """

    def __init__(self, objective: Objective, model: Any, progress: Callable[[], float]):
        self.objective, self.progress, top = objective, progress, depth(model)
        names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.starts = {name: THAWED_AT * (top - level(model, name)) / top for name in names}

    @property
    def weights(self) -> Any:
        """Those of the objective inside."""
        return self.objective.weights

    def counts(self, batch: Batch) -> dict[str, int]:
        """Those of the objective inside."""
        return self.objective.counts(batch)

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """The loss, with a graph only down to the lowest level that has thawed."""
        now = self.progress()
        for name, p in model.named_parameters():
            if name in self.starts:
                p.requires_grad_(now >= self.starts[name])
        return self.objective(model, batch)
