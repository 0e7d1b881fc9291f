"""LoRA: a weight moves by a product of two thin matrices.

Hu et al. (2022), *LoRA: low-rank adaptation of large language models*, equation 3; rank-stabilised scaling:
Kalajdzievski (2023), *A rank stabilization scaling factor for fine-tuning with LoRA*.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from course_lib.peft import base


@dataclass(frozen=True)
class LoRA(base.Method):
    """`targets`: ends of linear layers' paths; empty: all of attention; `("all",)`: all in the blocks."""

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    rslora: bool = False

    @property
    def scale(self) -> float:
        """α/r, or α/√r (rsLoRA), with which the size of a step does not shrink as the rank grows."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def build(self, model: nn.Module) -> base.Added:
        """A pair of matrices for every target. Raises CourseError for an unknown target or an impossible rank."""
        found = base.find(model, self.targets)
        for name, module in found.items():
            base.check_rank(name, module, self.rank)
        return base.Added({name: LowRank(module, self) for name, module in found.items()})


class LowRank(base.Part):
    """h = Wx + s·BAx, equation eq-lora: A (rank, in) is random and B (out, rank) zero, so nothing changes at first."""

    def __init__(self, module: nn.Module, method: LoRA):
        super().__init__()
        outputs, inputs = base.shape(module)
        self.lora_A = nn.Linear(inputs, method.rank, bias=False)
        self.lora_B = nn.Linear(method.rank, outputs, bias=False)
        nn.init.zeros_(self.lora_B.weight)
        self.scale, self.dropout = method.scale, method.dropout

    def delta(self) -> torch.Tensor:
        """s·BA, (out, in)."""
        return self.scale * self.lora_B.weight @ self.lora_A.weight

    def forward(self, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        """Two thin products, never the full matrix: (…, in) → (…, rank) → (…, out)."""
        x = args[0].to(self.lora_A.weight.dtype)  # a 16-bit base may have float32 adapters
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        low = self.scale * F.linear(x, self.lora_A.weight)  # scaled here, where it is small
        return output + F.linear(low, self.lora_B.weight).to(output.dtype)

    def merge(self, module: nn.Module, sign: int) -> None:
        """W ± s·BA; afterwards the model costs what the base costs."""
        base.add_to_weight(module, self.delta(), sign)
