"""Adapters: a small network with a bottleneck after the sublayers, inside the residual branch.

Houlsby et al. (2019), *Parameter-efficient transfer learning for NLP*: after attention and after the feed-forward part;
Pfeiffer et al. (2021), *AdapterFusion*: after the feed-forward part only, half the weights.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from course_lib.errors import unknown
from course_lib.peft import base

PLACEMENTS = ("houlsby", "pfeiffer")


@dataclass(frozen=True)
class Adapter(base.Method):
    """`width` of the bottleneck; `placement`: houlsby or pfeiffer."""

    width: int = 16
    placement: str = "houlsby"

    def build(self, model: nn.Module) -> base.Added:
        """A bottleneck after every sublayer's last matrix. Raises CourseError for an unknown placement."""
        if self.placement not in PLACEMENTS:
            raise unknown("placement", self.placement, PLACEMENTS)
        found = {n: m for n, m in base.inner(model).items() if base.OUTPUTS.search(n)}
        if self.placement == "pfeiffer":
            found = {n: m for n, m in found.items() if not base.ATTENTION.search(n)}
        for name, module in found.items():
            base.check_rank(name, module, self.width)
        return base.Added({name: Bottleneck(base.shape(module)[0], self.width) for name, module in found.items()})


class Bottleneck(base.Part):
    """h ← h + U·gelu(Dh + d) + u, equation eq-adapter; U and u are zero, so nothing changes at the start."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.down, self.up = nn.Linear(size, width), nn.Linear(width, size)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        """(…, size) → (…, width) → (…, size)."""
        h = output.to(self.down.weight.dtype)
        return output + self.up(F.gelu(self.down(h))).to(output.dtype)
