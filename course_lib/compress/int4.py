"""Four bits for weights alone: every group of inputs has a scale and a zero point, since 16 levels are few."""

from dataclasses import dataclass
from typing import Any

from course_lib.compress import base, quantized


@dataclass(frozen=True)
class Int4(base.Step):
    """`group`: neighbouring inputs that share a scale; it must divide every matrix. The runtime has 16 to 256."""

    group: int = 32
    embeddings: bool = True

    @property
    def layout(self) -> quantized.Bits:
        """What the weights will be."""
        return quantized.Bits(4, "group", self.group)

    def apply(self, model: Any, work: base.Work) -> Any:
        """4 bits a weight and 40 a group: 5.25 bits for groups of 32."""
        return quantized.quantize(model, self.layout, self.layout if self.embeddings else None)
