"""BitFit: only the biases learn. Ben Zaken et al. (2022), *BitFit: simple parameter-efficient fine-tuning*.

The change of a bias is stored, not the bias, so that several adapters share one base. Modern blocks have no biases;
there every linear layer gets one.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from course_lib.errors import CourseError
from course_lib.peft import base


@dataclass(frozen=True)
class BitFit(base.Method):
    """No settings."""

    def build(self, model: nn.Module) -> base.Added:
        """A vector for every bias in the blocks, norms' too, or for every linear layer if none has one."""
        inside = ((n, m) for n, m in model.named_modules() if base.BLOCK.search(n) and not n.startswith(base.CONTAINER))
        found = {n: m for n, m in inside if biased(m)}
        return base.Added({name: Shift(module) for name, module in (found or base.inner(model)).items()})


def biased(module: Any) -> bool:
    """Whether a module has a bias that learns; GPT-Neo calls a mask so."""
    return isinstance(getattr(module, "bias", None), nn.Parameter)


class Shift(base.Part):
    """h = Wx + b + Δ, Δ zero at the start."""

    def __init__(self, module: Any):
        super().__init__()
        size = len(module.bias) if biased(module) else base.shape(module)[0]
        self.delta = nn.Parameter(torch.zeros(size))

    def forward(self, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        """(…, size) → (…, size)."""
        return output + self.delta.to(output.dtype)

    @torch.no_grad()
    def merge(self, module: Any, sign: int) -> None:
        """Add Δ to b or take it off. Raises CourseError where the stock architecture has no bias to put it into."""
        if not biased(module):
            raise CourseError("This architecture has no biases to merge into; keep the adapter beside it.")
        module.bias.add_(self.delta.to(module.bias.dtype), alpha=sign)
