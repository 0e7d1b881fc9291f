"""Right and wrong answers to every exercise that has a grader; `tests/test_checks.py` runs the graders on them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Answers:
    """What a grader must reject, by the beginning of the property that each wrong answer misses, and accept."""

    wrong: dict[str, list[Callable[..., Any]]]
    right: list[Callable[..., Any]]
