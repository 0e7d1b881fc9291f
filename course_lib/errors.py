"""The one exception a user is meant to read."""

import difflib
from collections.abc import Iterable


class CourseError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do."""


def unknown(kind: str, name: str, known: Iterable[str]) -> CourseError:
    """An error for a name that does not exist, with the nearest ones that do."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names)}."
    return CourseError(f"There is no {kind} called '{name}'. {hint}")
