"""What a grader is made of: named properties, each checked on its own, and a message that says which one fails."""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from course_lib.errors import CourseError


class UnsolvedError(CourseError):
    """An answer that misses at least one property: `failed` lists (property, reason), `names` all properties."""

    def __init__(self, exercise: str, names: list[str], failed: list[tuple[str, str]]):
        self.names, self.failed = names, failed
        lines = [f"  ✗ {name}: {reason}" for name, reason in failed]
        held = len(names) - len(failed)
        super().__init__(f"{exercise}: {held} of {len(names)} properties hold.\n" + "\n".join(lines))


class Properties:
    """Collects what holds; call it with a property's name, as a context in which any exception means no."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.failed: list[tuple[str, str]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run the body; an AssertionError's text is the reason, any other error is the learner's own."""
        self.names.append(name)
        try:
            yield
        except AssertionError as error:
            self.failed.append((name, str(error) or "it does not"))
        except Exception as error:  # the learner's code may raise anything
            self.failed.append((name, f"your code raised {type(error).__name__}: {error}"))


def grader(check: Callable[[Any, Properties], None]) -> Callable[[Any], None]:
    """Turn `check(answer, holds)` into `exNN_k(answer)`, which prints that all holds or raises `UnsolvedError`."""

    @functools.wraps(check)
    def graded(answer: Any) -> None:
        if not callable(answer):
            raise CourseError(f"{check.__name__} wants your function itself, not {type(answer).__name__}.")
        holds = Properties()
        check(answer, holds)
        if holds.failed:
            raise UnsolvedError(check.__name__, holds.names, holds.failed)
        print(f"{check.__name__}: all {len(holds.names)} properties hold.")

    return graded


class Watch(TorchDispatchMode):
    """Shows `see` every tensor that is made inside."""

    def __init__(self, see: Callable[[Tensor], None]):
        super().__init__()
        self.see = see

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then look."""
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self.see(tensor)
        return made


def equal(got: Any, want: Any, what: str = "") -> None:
    """Raise AssertionError unless `got == want`; `what` says what was computed."""
    written(got)
    same = got == want
    if not (same.all() if hasattr(same, "all") else same):
        alike = plain(got) == plain(want)
        more = f": {type(want).__name__} {want!r} and {type(got).__name__} {got!r}" if alike else ""
        raise AssertionError(f"{what + ': ' if what else ''}expected {plain(want)}, got {plain(got)}{more}")


def close(got: Any, want: Any, tolerance: float = 1e-6, what: str = "") -> None:
    """Raise AssertionError unless numbers or tensors agree within `tolerance`, relative or absolute."""
    written(got)
    pairs = list(zip(flat(got), flat(want), strict=False))
    if len(flat(got)) != len(flat(want)):
        raise AssertionError(f"expected {len(flat(want))} values, got {len(flat(got))}")
    if not all(math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) for a, b in pairs):
        alike = plain(flat(got)) == plain(flat(want))
        more = f"; the largest difference is {max(abs(a - b) for a, b in pairs):.1e}" if alike else ""
        raise AssertionError(f"{what + ': ' if what else ''}expected {plain(want)}, got {plain(got)}{more}")


def written(got: Any) -> None:
    """Say it plainly when the stub is still in place."""
    if got is None or got is ...:
        raise AssertionError("your function returns nothing yet")


def flat(value: Any) -> list[float]:
    """All numbers in a number, tensor, array or nested list, in order."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return [x for part in value for x in flat(part)] if isinstance(value, list | tuple) else [float(value)]


def plain(value: Any) -> str:
    """A value as a learner would write it: tensors as numbers, floats with six digits."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return "[" + ", ".join(plain(part) for part in value) + "]"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
