"""Quantization-aware training: learn with rounded weights and inputs, then round for good (Jacob et al. 2018)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from course_lib.compress import affine, base, quantized


@dataclass(frozen=True)
class QAT(base.Step):
    """`bits` 8: as int8:scheme=dynamic computes; fewer: weights only, in groups."""

    bits: int = 8
    group: int = 32
    epochs: float = 1.0

    @property
    def layout(self) -> quantized.Bits:
        """What the weights will be."""
        if self.bits == 8:
            return quantized.Bits(8, "channel", scheme="dynamic")
        return quantized.Bits(self.bits, "group", self.group)

    def apply(self, model: Any, work: base.Work) -> Any:
        """Simulate, train, round."""
        hooks = simulate(model, self.layout)
        base.learn(work, model, self.epochs)
        for hook in hooks:
            hook.remove()
        for _, module in quantized.matrices(model):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        return quantized.quantize(model, self.layout, _table(self.layout))


class Rounded(nn.Module):
    """A weight as it will be stored; its gradient goes to the real weight behind it."""

    def __init__(self, bits: quantized.Bits, transposed: bool):
        super().__init__()
        self.bits, self.transposed = bits, transposed

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The same shape."""
        return self.bits.fake(weight.T).T if self.transposed else self.bits.fake(weight)


def simulate(model: nn.Module, bits: quantized.Bits) -> list[Any]:
    """Let every matrix and table compute with rounded weights, and matrices with rounded inputs if the scheme says so.

    Returns the hooks that round inputs; `torch.nn.utils.parametrize` keeps the weights.
    """
    hooks = []
    for _, module in list(quantized.matrices(model)):
        table = isinstance(module, nn.Embedding)
        rounded = Rounded(_table(bits) if table else bits, not table and not isinstance(module, nn.Linear))
        parametrize.register_parametrization(module, "weight", rounded)
        if bits.scheme == "dynamic" and not table:
            hooks.append(module.register_forward_pre_hook(_round_input))
    return hooks


def _round_input(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    x = args[0]
    return (affine.asymmetric(x.detach(), 8, (-1,)).fake(x), *args[1:])


def _table(bits: quantized.Bits) -> quantized.Bits:
    """Tables are looked up, not multiplied."""
    return quantized.Bits(bits.bits, bits.per, bits.group)
