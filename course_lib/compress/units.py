"""Pruning of whole attention heads or inner neurons: the matrices become smaller, and everything faster."""

from dataclasses import dataclass
from typing import Any, ClassVar

from course_lib.compress import base, structure


@dataclass(frozen=True)
class Units(base.Step):
    """`ratio` of the units in every block go, those that the loss misses least; `samples`: texts to judge by."""

    ratio: float = 0.5
    samples: int = 256
    epochs: float = 1.0
    kind: ClassVar[str]  # as `structure.FORMS` calls it

    def apply(self, model: Any, work: base.Work) -> Any:
        """Judge, cut, learn with what is left."""
        base.check_ratio(self.ratio, self.kind)
        chosen = structure.sublayers(model, self.kind)
        scores = structure.importance(model, chosen, work.objective(), work.batches(self.samples))
        structure.shrink(model, chosen, structure.survivors(scores, self.ratio))
        if self.epochs:
            base.learn(work, model, self.epochs)
        return model


class Heads(Units):
    """Attention heads."""

    kind = "heads"


class Neurons(Units):
    """Inner neurons of the feed-forward parts."""

    kind = "neurons"
