"""A smaller student, begun with some of its teacher's layers, learns from labels, logits and layers."""

import copy
from dataclasses import dataclass
from typing import Any

from course_lib.compress import base, losses, structure
from course_lib.compress.layers import chosen


@dataclass(frozen=True)
class Distill(base.Step):
    """`layers` of the student, 0: the model as it is (after pruning, say); weights and `temperature`: `losses`.

    The teacher is the model before the recipe's first step. With `texts` it also says what it thinks of so many
    sentences of `corpus`, which need no labels.
    """

    layers: int = 2
    which: str = "bottom"
    temperature: float = 2.0
    alpha: float = 0.5
    hidden: float = 1.0
    attention: float = 0.0
    epochs: float = 3.0
    texts: int = 0
    corpus: str = "movie_reviews"

    def apply(self, model: Any, work: base.Work) -> Any:
        """Drop layers, learn."""
        if self.layers:
            structure.keep_layers(model, chosen(model.config.num_hidden_layers, self.layers, self.which))
        teacher = copy.deepcopy(work.teacher)
        objective = losses.Distillation(
            work.objective(), teacher, self.temperature, self.alpha, self.hidden, self.attention
        )
        rows = work.more(self.corpus, self.texts) if self.texts else None
        base.learn(work, model, self.epochs, objective=objective, rows=rows)
        model.set_attn_implementation("sdpa")
        return model
