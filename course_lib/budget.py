"""How long a run may take, and how far it has come.

The budget is the interface: you say `5m` or `24h`, and learning rate, mask rate and everything else
that changes over a run is a pure function of `progress` in [0, 1]. Nobody has to know a step count,
and the schedule always ends when the time does (a step-based cooldown under a wall-clock cap is a bug
that well-known courses shipped).
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence

from course_lib.errors import CourseError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+")


def parse_duration(text: str | float) -> float:
    """`"90s"`, `"5m"`, `"1h30m"`, `"1.5h"`, `"1d"` or a number of seconds → seconds (> 0)."""
    compact = str(text).strip().lower().replace(" ", "")
    try:
        seconds = float(compact)
    except ValueError:
        if not _DURATION.fullmatch(compact):
            raise CourseError(f"'{text}' is not a length of time. Write it like 90s, 5m, 1h30m or 24h.") from None
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", compact)
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if not 0 < seconds < float("inf"):
        raise CourseError(f"A budget must be longer than zero and finite; got '{text}'.")
    return seconds


def format_duration(seconds: float) -> str:
    """305 → `5m05s`; the inverse of `parse_duration` for whole seconds."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s" if rest else f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if minutes else f"{hours}h"


class Clock:
    """What a budget counts: `spent` of `total`, in `unit`. Subclasses say what a tick adds."""

    unit = ""

    def __init__(self, total: float):
        self.total, self.spent = float(total), 0.0

    @property
    def progress(self) -> float:
        """Share used at the last tick, in [0, 1]."""
        return min(1.0, self.spent / self.total)

    def start(self) -> None:
        """Start (or, after a pause, go on) counting."""

    def pause(self) -> None:
        """Stop counting: evaluation and checkpoints are recorded apart, not hidden in training."""

    def tick(self, tokens: int) -> None:
        """A step of `tokens` tokens is done; bring `spent` up to now."""
        raise NotImplementedError

    def state(self) -> list[float]:
        """What is spent, for a checkpoint."""
        return [self.spent]

    def restore(self, state: list[float]) -> None:
        """Go on from there."""
        (self.spent,) = state


class WallClock(Clock):
    """Seconds of real time, compile and warm-up included."""

    unit = "s"

    def __init__(self, total: float, now: Callable[[], float] = time.monotonic):
        super().__init__(total)
        self._now = now
        self._since: float | None = None

    def start(self) -> None:  # noqa: D102
        if self._since is None:
            self._since = self._now()

    def pause(self) -> None:  # noqa: D102
        if self._since is not None:
            self.spent += self._now() - self._since
            self._since = None

    def tick(self, tokens: int) -> None:  # noqa: D102
        if self._since is not None:
            self.pause()
            self.start()


class WorkClock(Clock):
    """Tokens instead of seconds: the same run on every machine, for notebooks, tests and equality claims."""

    unit = "tokens"

    def __init__(self, tokens: float):
        super().__init__(tokens)

    def tick(self, tokens: int) -> None:  # noqa: D102
        self.spent += tokens


class ReplayClock(Clock):
    """The recorded progress of an earlier run, step by step: repeats a wall-clock run exactly."""

    unit = "steps"

    def __init__(self, progress: Sequence[float]):
        super().__init__(len(progress))
        self.recorded = [*progress, 1.0]

    @property
    def progress(self) -> float:  # noqa: D102
        return self.recorded[min(int(self.spent), len(self.recorded) - 1)]

    def tick(self, tokens: int) -> None:  # noqa: D102
        self.spent += 1


class FirstOf(Clock):
    """Several clocks; the one that is furthest decides. "Three epochs, but no more than a minute"."""

    unit = "share"

    def __init__(self, *clocks: Clock):
        self.clocks = clocks
        super().__init__(1.0)

    @property
    def progress(self) -> float:  # noqa: D102
        return max(clock.progress for clock in self.clocks)

    def start(self) -> None:  # noqa: D102
        for clock in self.clocks:
            clock.start()

    def pause(self) -> None:  # noqa: D102
        for clock in self.clocks:
            clock.pause()

    def tick(self, tokens: int) -> None:  # noqa: D102
        for clock in self.clocks:
            clock.tick(tokens)

    def state(self) -> list[float]:  # noqa: D102
        return [spent for clock in self.clocks for spent in clock.state()]

    def restore(self, state: list[float]) -> None:  # noqa: D102
        for clock, spent in zip(self.clocks, state, strict=True):
            clock.restore([spent])


class Budget:
    """A clock and the share of it that is used up.

    `Budget("5m")` and `Budget(300)` count wall-clock time, `Budget(WorkClock(tokens=100_000))` work.
    """

    def __init__(self, clock: str | float | Clock):
        self.clock = clock if isinstance(clock, Clock) else WallClock(parse_duration(clock))

    @property
    def progress(self) -> float:
        """Share of the budget used at the last tick, in [0, 1]. It is 1.0 when the run is over."""
        return self.clock.progress

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Do something that is not training (evaluate, save) without spending the budget."""
        self.clock.pause()
        try:
            yield
        finally:
            self.clock.start()

    def state_dict(self) -> dict[str, list[float]]:
        """What a resumed run must know: how much is spent."""
        return {"spent": self.clock.state()}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Go on where a stopped run stood."""
        self.clock.restore(state["spent"])
