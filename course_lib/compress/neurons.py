"""Pruning of whole inner neurons: the matrices become smaller, and everything faster."""

from dataclasses import dataclass
from typing import Any

from course_lib.compress import base, structure


@dataclass(frozen=True)
class Neurons(base.Step):
    """`ratio` of the inner neurons in every block go, those that the loss misses least; `samples`: texts that judge."""

    ratio: float = 0.5
    samples: int = 256
    epochs: float = 1.0

    def apply(self, model: Any, work: base.Work) -> Any:
        """Judge, cut, learn with what is left."""
        base.check_ratio(self.ratio, "inner neurons")
        chosen = structure.sublayers(model, "neurons")
        scores = structure.importance(model, chosen, work.objective(), work.batches(self.samples))
        structure.shrink(model, chosen, structure.survivors(scores, self.ratio))
        if self.epochs:
            work.learn(model, self.epochs)
        return model
