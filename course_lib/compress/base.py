"""What a recipe is made of: steps, and what a step may ask for."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from course_lib.errors import CourseError
from course_lib.examples import Rows
from course_lib.objectives import Batch, Objective


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


def check_ratio(ratio: float, what: str) -> None:
    """Raise CourseError for a share that would leave nothing, or is none."""
    if not 0 <= ratio < 1:
        raise CourseError(f"Pruning {ratio:g} of the {what} leaves no model. Choose a ratio from 0 up to, not with, 1.")
