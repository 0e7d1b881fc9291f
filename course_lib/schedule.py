"""Schedules as pure functions of progress. `schedule(progress)` multiplies every peak learning rate."""

from collections.abc import Callable

Schedule = Callable[[float], float]


def trapezoid(warmup: float = 0.02, cooldown: float = 0.5, final: float = 0.0) -> Schedule:
    """Linear warm-up over the first `warmup` of the budget, flat, linear cooldown over the last `cooldown`.

    All three are shares in [0, 1]; with `warmup + cooldown = 1` it is a triangle. At progress 1 the
    multiplier is `final`.
    """
    if min(warmup, cooldown, final) < 0 or warmup + cooldown > 1:
        raise ValueError(f"warmup {warmup} and cooldown {cooldown} must be ≥ 0 and sum to at most 1")

    def multiplier(progress: float) -> float:
        up = min(1.0, progress / warmup) if warmup else 1.0
        down = min(1.0, (1 - progress) / cooldown) if cooldown else 1.0
        return up * (final + (1 - final) * down)

    return multiplier
