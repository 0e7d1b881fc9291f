"""The methods by name. Adding one: a file with its settings and its weights, a line in `METHODS`, a test."""

from typing import Any

from course_lib import spec
from course_lib.errors import unknown
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
    made: Method = spec.parse(text, "method", METHODS)
    return made
