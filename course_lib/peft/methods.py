"""The methods by name. Adding one: a file with its settings and its weights, a line in `METHODS`, a test."""

import dataclasses
from typing import Any

from course_lib.errors import CourseError, unknown
from course_lib.peft.adalora import AdaLoRA
from course_lib.peft.base import Method
from course_lib.peft.bitfit import BitFit
from course_lib.peft.bottleneck import Adapter
from course_lib.peft.lora import LoRA
from course_lib.peft.prefix import Prefix
from course_lib.peft.prompt import Prompt

METHODS: dict[str, Any] = {
    "lora": LoRA,
    "adalora": AdaLoRA,
    "adapter": Adapter,
    "prefix": Prefix,
    "prompt": Prompt,
    "bitfit": BitFit,
}


def get(name: str) -> Any:
    """The class of a method, or an error with the nearest names."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def name_of(method: Any) -> str:
    """The name under which a method is registered."""
    return next(name for name, kind in METHODS.items() if kind is type(method))


def parse(text: str) -> Method:
    """`lora` or `lora:rank=4,targets=q_proj+v_proj,rslora=true` → settings."""
    name, _, rest = text.partition(":")
    kind = get(name)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    given = {}
    for option, _, value in (part.partition("=") for part in rest.split(",") if part):
        if option not in defaults:
            raise unknown(f"setting of {name}", option, defaults)
        given[option] = _value(f"{name}:{option}", value, defaults[option])
    made: Method = kind(**given)
    return made


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
