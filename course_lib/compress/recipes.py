"""The steps by name, and recipes of several. Adding one: a file with its settings, a line in `STEPS`, a test.

`int8` · `heads:ratio=0.4` · `distill:layers=2+int8:scheme=dynamic`
"""

import copy
import itertools
from typing import Any

from course_lib import spec
from course_lib.compress import quantized, structure
from course_lib.compress.base import Step, Work
from course_lib.compress.distill import Distill
from course_lib.compress.int4 import Int4
from course_lib.compress.int8 import Int8
from course_lib.compress.layers import Layers
from course_lib.compress.magnitude import Magnitude
from course_lib.compress.movement import Movement
from course_lib.compress.qat import QAT
from course_lib.compress.units import Heads, Neurons
from course_lib.errors import CourseError

STEPS: dict[str, Any] = {
    "int8": Int8,
    "int4": Int4,
    "qat": QAT,
    "magnitude": Magnitude,
    "movement": Movement,
    "heads": Heads,
    "neurons": Neurons,
    "layers": Layers,
    "distill": Distill,
}
LAST = ("int8", "int4", "qat")  # integers do not learn any more


def parse(text: str) -> list[Step]:
    """A recipe as its steps. Raises CourseError for unknown names, and for a step after the weights are integers."""
    names = [part.partition(":")[0] for part in text.split("+")]
    steps = [spec.parse(part, "recipe", STEPS) for part in text.split("+")]
    for name, following in itertools.pairwise(names):
        if name in LAST:
            raise CourseError(f"'{following}' cannot follow '{name}': integers do not learn. Put '{name}' last.")
    return steps


def apply(steps: list[Step], model: Any, work: Work) -> Any:
    """What the steps make of a copy of the model. In a `work` that does not learn it is quick, and shows what fails.

    Raises CourseError as the steps do, and for groups that do not divide what pruning leaves.
    """
    made = copy.deepcopy(model)
    for step in steps:
        layout = getattr(step, "layout", None)
        if layout and layout.per == "group":
            _check_groups(layout.group, made, model)
        made = step.apply(made, work)
    return made


def _check_groups(group: int, made: Any, model: Any) -> None:
    """Raise CourseError, with a ratio that works, where groups divide the inputs of the model but not what is left."""
    for name, module in quantized.matrices(made, embeddings=False):
        left, whole = (structure.weight(m).size(1) for m in (module, model.get_submodule(name)))
        kept = -(-left // group) * group
        if kept != left and kept < whole and not whole % group:
            raise CourseError(
                f"Pruning leaves {left} of the {whole} inputs of {name}, which groups of {group} do not divide. "
                f"Prune with ratio={1 - kept / whole:.4g}, which leaves {kept}, or use a smaller group."
            )
