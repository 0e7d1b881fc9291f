"""Settings on one line: `lora:rank=4,alpha=8` → a frozen dataclass of a registry."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from course_lib.errors import CourseError, unknown


def parse(text: str, kind: str, known: Mapping[str, Any]) -> Any:
    """`NAME` or `NAME:setting=value,…` → settings; a setting left out has its default. Raises CourseError, with the
    nearest names. `kind` is what the registry holds, for messages.
    """
    name, _, rest = text.partition(":")
    if name not in known:
        raise unknown(kind, name, known)
    defaults = {field.name: field.default for field in dataclasses.fields(known[name])}
    given = {}
    for option, _, value in (part.partition("=") for part in rest.split(",") if part):
        if option not in defaults:
            if not defaults:
                raise CourseError(f"{name} has no settings; '{option}' is one too many.")
            raise unknown(f"setting of {name}", option, defaults)
        given[option] = _value(f"{name}:{option}", value, defaults[option])
    return known[name](**given)


def _value(option: str, text: str, default: Any) -> Any:
    """`text` as a value of the same type as `default`."""
    if isinstance(default, tuple):
        return tuple(text.split("+"))
    if isinstance(default, bool):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise CourseError(f"{option} is true or false, not '{text}'.")
    try:
        return type(default)(text)
    except ValueError as error:
        raise CourseError(f"{option} is a number like {default}, not '{text}'.") from error
