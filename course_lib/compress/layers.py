"""Dropping whole blocks (Sajjad et al. 2023, *On the effect of dropping layers of pre-trained transformer models*)."""

from dataclasses import dataclass
from typing import Any

from course_lib.compress import base, structure
from course_lib.errors import CourseError, unknown


@dataclass(frozen=True)
class Layers(base.Step):
    """`keep` so many; `which`: bottom, or even (spread from the first to the last)."""

    keep: int = 2
    which: str = "bottom"
    epochs: float = 1.0

    def apply(self, model: Any, work: base.Work) -> Any:
        """Drop the others, learn with what is left."""
        structure.keep_layers(model, chosen(model.config.num_hidden_layers, self.keep, self.which))
        if self.epochs:
            base.learn(work, model, self.epochs)
        return model


def chosen(layers: int, keep: int, which: str) -> list[int]:
    """The blocks that stay; the first is always among them, it stands on the embeddings."""
    if not 1 <= keep <= layers:
        raise CourseError(f"Of {layers} layers {keep} cannot be kept. Choose 1 to {layers}.")
    if which == "bottom":
        return list(range(keep))
    if which == "even":
        return [round(i * (layers - 1) / max(1, keep - 1)) for i in range(keep)]
    raise unknown("choice of layers", which, ("bottom", "even"))
