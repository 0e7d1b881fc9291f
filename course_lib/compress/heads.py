"""Pruning of whole attention heads: the matrices become smaller, and everything faster."""

from dataclasses import dataclass
from typing import Any

from course_lib.compress import base, structure


@dataclass(frozen=True)
class Heads(base.Step):
    """`ratio` of the attention heads in every block go, those the loss misses least; `samples`: texts to judge by."""

    ratio: float = 0.5
    samples: int = 256
    epochs: float = 1.0

    def apply(self, model: Any, work: base.Work) -> Any:
        """Judge, cut, learn with what is left."""
        base.check_ratio(self.ratio, "attention heads")
        chosen = structure.sublayers(model, "heads")
        scores = structure.importance(model, chosen, work.objective(), work.batches(self.samples))
        structure.shrink(model, chosen, structure.survivors(scores, self.ratio))
        if self.epochs:
            work.learn(model, self.epochs)
        return model
