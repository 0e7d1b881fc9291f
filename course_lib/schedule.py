"""Schedules as pure functions of progress. `schedule(progress)` multiplies every peak learning rate.

Adding one: a function below and a line in `SCHEDULES`.
"""

import math
from collections.abc import Callable

from course_lib.errors import CourseError, unknown

Schedule = Callable[[float], float]


def trapezoid(warmup: float = 0.02, cooldown: float = 0.6) -> Schedule:
    """Equation eq-trapezoid: linear warm-up over `warmup` of the budget, flat, linear cooldown to 0 over `cooldown`."""
    _check(warmup, cooldown)

    def multiplier(progress: float) -> float:
        return _warm(progress, warmup) * (min(1.0, (1 - progress) / cooldown) if cooldown else 1.0)

    return multiplier


def triangle(warmup: float = 0.3, cooldown: float = 0.0) -> Schedule:
    """Up to the peak at `warmup`, then down to zero. `cooldown` follows from it and is ignored."""
    return trapezoid(warmup, 1 - warmup)


def cosine(warmup: float = 0.02, cooldown: float = 1.0) -> Schedule:
    """Linear warm-up, flat, then half a cosine down to zero over the last `cooldown` (Loshchilov and Hutter 2017)."""
    cooldown = min(cooldown, 1 - warmup)
    _check(warmup, cooldown)

    def multiplier(progress: float) -> float:
        fallen = max(0.0, (progress - (1 - cooldown)) / cooldown) if cooldown else 0.0
        return _warm(progress, warmup) * 0.5 * (1 + math.cos(math.pi * fallen))

    return multiplier


def constant(warmup: float = 0.02, cooldown: float = 0.0) -> Schedule:
    """Linear warm-up, then flat to the end; what a scheduled run should beat."""
    return trapezoid(warmup, 0.0)


SCHEDULES: dict[str, Callable[[float, float], Schedule]] = {
    "trapezoid": trapezoid,
    "triangle": triangle,
    "cosine": cosine,
    "constant": constant,
}


def build(name: str, warmup: float, cooldown: float) -> Schedule:
    """A schedule by name."""
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    return SCHEDULES[name](warmup, cooldown)


def _warm(progress: float, warmup: float) -> float:
    return min(1.0, progress / warmup) if warmup else 1.0


def _check(warmup: float, cooldown: float) -> None:
    if min(warmup, cooldown) < 0 or warmup + cooldown > 1:
        raise CourseError(f"Warm-up {warmup} and cooldown {cooldown} must be at least 0 and sum to at most 1.")
