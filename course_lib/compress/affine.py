"""Affine quantization: a real number as an integer on a grid, x ≈ s·(q − z).

Jacob et al. (2018), *Quantization and training of neural networks for efficient integer-arithmetic-only inference*,
equations 1 to 4; the straight-through gradient: Bengio et al. (2013), *Estimating or propagating gradients*.
"""

from dataclasses import dataclass
from typing import Any

import torch

from course_lib.errors import CourseError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Grid:
    """Integers `low` … `high`, `scale` apart in real numbers, `zero` where the real 0 is.

    `scale` and `zero` broadcast against the values: (), (channels, 1), (channels, groups, 1).
    """

    scale: torch.Tensor
    zero: torch.Tensor
    low: int
    high: int

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Q = clamp(round(x / s) + z), to the nearest even in a tie; int32. Equation eq-affine."""
        return (torch.round(x / self.scale) + self.zero).clamp(self.low, self.high).to(torch.int32)

    def dequantize(self, q: torch.Tensor) -> torch.Tensor:
        """s·(q − z), in the precision of the scale."""
        return (q - self.zero) * self.scale

    def fake(self, x: torch.Tensor) -> torch.Tensor:
        """To the grid and back, with a gradient: `StraightThrough`."""
        return StraightThrough.apply(x, self)


class StraightThrough(torch.autograd.Function):
    """Rounding has gradient zero almost everywhere, so nothing would learn: pass it on as if there were no rounding.

    Where the value was clamped the gradient is zero, as clamp's is. Equation eq-straight.
    """

    @staticmethod
    def forward(context: Any, x: torch.Tensor, grid: Grid) -> torch.Tensor:
        """X on the grid."""
        q = torch.round(x / grid.scale) + grid.zero
        context.save_for_backward((q >= grid.low) & (q <= grid.high))
        return grid.dequantize(q.clamp(grid.low, grid.high))

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The gradient inside the range, zero outside."""
        (inside,) = context.saved_tensors
        return gradients[0] * inside, None


def symmetric(x: torch.Tensor, bits: int, dims: tuple[int, ...] | None = None) -> Grid:
    """The grid around zero that just holds x: s = max|x| / (2ᵇ⁻¹ − 1), z = 0. One for every index outside `dims`.

    `dims`: what shares a scale; None: everything (per tensor). The lowest integer stays unused, so that −x is as exact.
    """
    check(x)
    most = 2 ** (bits - 1) - 1
    size = _over(x.abs(), dims, "amax") / most
    return Grid(_positive(size), torch.zeros_like(size), -most, most)


def asymmetric(x: torch.Tensor, bits: int, dims: tuple[int, ...] | None = None) -> Grid:
    """The grid from min x to max x (and zero, which padding and ReLU need exactly): s = (max − min) / (2ᵇ − 1)."""
    check(x)
    return between(_over(x, dims, "amin"), _over(x, dims, "amax"), bits)


def between(least: torch.Tensor, most: torch.Tensor, bits: int) -> Grid:
    """The grid that holds `least`, `most` and 0, signed: −2ᵇ⁻¹ … 2ᵇ⁻¹ − 1."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    least, most = least.clamp(max=0), most.clamp(min=0)
    scale = _positive((most - least) / (high - low))
    return Grid(scale, (low - torch.round(least / scale)).clamp(low, high), low, high)


def check(x: torch.Tensor) -> None:
    """Raise CourseError for what cannot be put on a grid."""
    if x.dtype not in FLOATS:
        raise CourseError(
            f"A tensor of {x.dtype} cannot be quantized: it is not made of real numbers. Dequantize first."
        )
    if not bool(torch.isfinite(x).all()):
        raise CourseError("A tensor with infinite values or NaN has no range to quantize. Find where training broke.")


def int_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a·bᵀ of integers (rows, in), (out, in), summed in 32-bit integers without rounding: (rows, out)."""
    if not torch.jit.is_tracing() and a.device.type == "cpu" and hasattr(torch, "_int_mm") and min(len(a), len(b)) > 0:
        return torch._int_mm(a.to(torch.int8), b.to(torch.int8).t())
    return (a.double() @ b.double().t()).to(torch.int32)  # exact: all sums are below 2⁵³


def affine_matmul(x: torch.Tensor, x_grid: Grid, w: torch.Tensor, w_grid: Grid) -> torch.Tensor:
    """Products of real matrices by integers alone: (rows, in), (out, in) → (rows, out).

    Σ s(q − z)·t·p = s·t·(Σ q·p − z·Σ p) for symmetric weights p with one scale t an output: Σ p is known beforehand,
    so the zero point costs one subtraction. Equation eq-affine-matmul; Jacob et al. (2018), equation 7.
    """
    sums = int_matmul(x, w) - x_grid.zero * w.sum(1)  # (rows, out)
    return sums * x_grid.scale * w_grid.scale.flatten()


def pack4(q: torch.Tensor) -> torch.Tensor:
    """Two integers of −8 … 7 in a byte: (…, even) → (…, half) uint8; the first is in the low bits."""
    nibbles = (q + 8).to(torch.uint8)
    return nibbles[..., ::2] | (nibbles[..., 1::2] << 4)


def unpack4(packed: torch.Tensor) -> torch.Tensor:
    """What `pack4` was given, int8."""
    pairs = torch.stack([packed & 15, packed >> 4], -1)
    return pairs.flatten(-2).to(torch.int8) - 8


def _over(x: torch.Tensor, dims: tuple[int, ...] | None, what: str) -> torch.Tensor:
    return getattr(x, what)() if dims is None else getattr(x, what)(dims, keepdim=True)


def _positive(scale: torch.Tensor) -> torch.Tensor:
    """All-zero channels get any scale; 0/0 would be NaN."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))
