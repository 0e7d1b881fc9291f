"""Layers that hold integers: what a quantized model is made of, and how a model becomes one."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from course_lib.compress import affine
from course_lib.errors import CourseError, unknown
from course_lib.objectives import Batch
from course_lib.peft.base import HEADS

SCHEMES = ("weight", "dynamic", "static")


@dataclass(frozen=True)
class Bits:
    """How a layer is stored and computed. `per`: tensor, channel, or group (of `group` neighbouring inputs).

    `scheme`: weight (integers are stored, reals multiplied), dynamic (inputs become 8-bit integers on a grid of their
    own for every token), static (on one grid, from calibration).
    """

    bits: int = 8
    per: str = "channel"
    group: int = 32
    scheme: str = "weight"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise CourseError(f"Integers of {self.bits} bits are not stored. Use 2 to 8.")
        if self.per not in ("tensor", "channel", "group"):
            raise unknown("granularity", self.per, ("tensor", "channel", "group"))
        if self.scheme not in SCHEMES:
            raise unknown("scheme", self.scheme, SCHEMES)

    def blocks(self, weight: torch.Tensor, name: str = "a matrix") -> torch.Tensor:
        """The weight (out, in) as (out, groups, group); one group if there are none."""
        size = self.group if self.per == "group" else weight.size(1)
        if size < 1 or weight.size(1) % size:
            raise CourseError(
                f"Groups of {size} do not divide the {weight.size(1)} inputs of {name}. Choose a divisor."
            )
        return weight.unflatten(1, (-1, size))

    def grid(self, weight: torch.Tensor, name: str = "a matrix") -> tuple[torch.Tensor, affine.Grid]:
        """The blocks of a weight and their grid: symmetric, except that groups have a zero point of their own."""
        blocks = self.blocks(weight, name)
        if self.per == "group":
            return blocks, affine.asymmetric(blocks.detach(), self.bits, (2,))
        return blocks, affine.symmetric(blocks.detach(), self.bits, (1, 2) if self.per == "channel" else None)

    def fake(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as it will be once it is stored, with the straight-through gradient; the same shape."""
        blocks, grid = self.grid(weight)
        return grid.fake(blocks).flatten(1)


class Quantized(nn.Module):
    """A matrix (out, in) of integers with its grid, on disk and in memory."""

    q: torch.Tensor  # (out, in) int8, or (out, in / 2) uint8 with two 4-bit integers a byte
    scale: torch.Tensor
    zero: torch.Tensor

    def __init__(self, weight: torch.Tensor, bits: Bits, name: str = "a matrix"):
        super().__init__()
        self.bits = bits
        blocks, grid = bits.grid(weight.detach(), name)
        q = grid.quantize(blocks).flatten(1).to(torch.int8)
        if bits.bits <= 4 and q.size(1) % 2:
            raise CourseError(f"{name} has {q.size(1)} inputs, an odd number, which 4 bits cannot pack. Use int8.")
        self.register_buffer("q", affine.pack4(q) if bits.bits <= 4 else q)
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero", grid.zero.to(torch.int8))

    def integers(self) -> torch.Tensor:
        """(out, in) int8."""
        return affine.unpack4(self.q) if self.bits.bits <= 4 else self.q

    def grid(self) -> affine.Grid:
        """Where the integers lie."""
        most = 2 ** (self.bits.bits - 1) - 1
        return affine.Grid(self.scale, self.zero.to(self.scale.dtype), -most - (self.bits.per == "group"), most)

    def dense(self) -> torch.Tensor:
        """The weight as real numbers, (out, in)."""
        return self.grid().dequantize(self.bits.blocks(self.integers())).flatten(1)

    def plain(self) -> nn.Module:
        """The float layer that computes with `dense`."""
        raise NotImplementedError


class QuantizedLinear(Quantized):
    """y = Wx + b with W in integers. GPT-2's `Conv1D` becomes one, too."""

    input_scale: torch.Tensor
    input_zero: torch.Tensor

    def __init__(self, module: Any, bits: Bits, seen: affine.Grid | None = None, name: str = "a matrix"):
        super().__init__(module.weight.T if isinstance(module, Conv1D) else module.weight, bits, name)
        if bits.scheme != "weight" and bits.per == "group":
            raise CourseError("Integer products need one scale an output: use per=channel or per=tensor.")
        self.bias = module.bias
        if bits.scheme == "static":
            one = torch.ones((), dtype=self.scale.dtype)
            self.register_buffer("input_scale", seen.scale if seen else one)
            self.register_buffer("input_zero", seen.zero if seen else torch.zeros_like(one))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out)."""
        if self.bits.scheme == "weight":
            return F.linear(x, self.dense(), self.bias)
        rows = x.flatten(0, -2)  # (tokens, in)
        if self.bits.scheme == "dynamic":
            grid = affine.asymmetric(rows, 8, (1,))
        else:
            grid = affine.Grid(self.input_scale, self.input_zero, -128, 127)
        y = affine.affine_matmul(grid.quantize(rows), grid, self.integers(), self.grid()).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias

    def plain(self) -> nn.Module:
        """A `Linear`."""
        weight = self.dense()
        layer = nn.Linear(weight.size(1), weight.size(0), self.bias is not None, dtype=weight.dtype)
        layer.weight.data = weight
        if self.bias is not None:
            layer.bias.data = self.bias.data
        return layer


class QuantizedEmbedding(Quantized):
    """A table in integers; only the rows that a text needs become real."""

    def __init__(self, module: Any, bits: Bits, name: str = "a table"):
        super().__init__(module.weight, bits, name)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(…) → (…, size)."""
        q = self.q[ids]
        q = affine.unpack4(q) if self.bits.bits <= 4 else q
        whole = self.bits.per == "tensor"
        scale, zero = (t if whole else t[ids] for t in (self.scale, self.zero))
        shape = (*ids.shape, *((1, q.size(-1)) if self.bits.per != "group" else (-1, self.bits.group)))
        return ((q.view(shape) - zero.to(scale.dtype)) * scale).flatten(-2)

    def plain(self) -> nn.Module:
        """An `Embedding`."""
        return nn.Embedding.from_pretrained(self.dense(), freeze=False)


def matrices(model: nn.Module, embeddings: bool = True) -> Iterator[tuple[str, Any]]:
    """(path, layer) of everything that is worth quantizing: all matrices and tables but a task's small output layer.

    A table of a kind of its own stays real: it does more than look up (Gemma's is scaled, OPT counts positions first).
    """
    for name, module in model.named_modules():
        table = embeddings and parametrize.type_before_parametrizations(module) is nn.Embedding
        if (table or isinstance(module, nn.Linear | Conv1D)) and name.rpartition(".")[2] not in HEADS:
            yield name, module


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the layer at a path."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def quantize(model: Any, bits: Bits, embeddings: Bits | None = None, batches: Iterable[Batch] = ()) -> Any:
    """Turn a model's matrices (and its tables if `embeddings` says how) into integers, in place; returns the model.

    `batches` are what a static scheme is calibrated on. Raises CourseError for an empty calibration and for weights
    that are no reals.
    """
    model.eval()
    seen = calibrate(model, batches) if bits.scheme == "static" else {}
    done: dict[int, Quantized] = {}
    for name, module in list(matrices(model, embeddings is not None)):
        if isinstance(module, nn.Embedding):
            assert embeddings
            made: Quantized = QuantizedEmbedding(module, embeddings, name)
        else:
            made = QuantizedLinear(module, bits, seen.get(name), name)
        twin = done.setdefault(id(module.weight), made)
        if twin.q.shape == made.q.shape and twin.scale.shape == made.scale.shape:  # a tied table is stored once
            made.q, made.scale, made.zero = twin.q, twin.scale, twin.zero
        put(model, name, made)
    model.config.tie_word_embeddings = False  # there is no weight left to tie
    return model


@torch.no_grad()
def calibrate(model: Any, batches: Iterable[Batch]) -> dict[str, affine.Grid]:
    """{path of a matrix: the 8-bit grid from the least to the greatest input it saw}."""
    found: dict[str, list[torch.Tensor]] = {}
    layers = list(matrices(model, embeddings=False))
    hooks = [
        module.register_forward_pre_hook(
            lambda m, args, name=name: found.setdefault(name, []).append(torch.stack(args[0].aminmax()))
        )
        for name, module in layers
    ]
    try:
        for batch in batches:
            model(**{k: v for k, v in batch.items() if k != "labels"})
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise CourseError("A static scheme was calibrated on no texts at all. Give some, or use scheme=dynamic.")
    ends = {name: torch.stack(pairs) for name, pairs in found.items()}
    return {name: affine.between(pairs[:, 0].min(), pairs[:, 1].max(), 8) for name, pairs in ends.items()}


def layers(model: nn.Module) -> dict[str, Quantized]:
    """The quantized layers by path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Quantized)}


def describe(model: nn.Module) -> dict[str, dict[str, Any]]:
    """{path: its bits, and whether it is a table}, for a file."""
    return {
        name: asdict(module.bits) | {"table": isinstance(module, QuantizedEmbedding)}
        for name, module in layers(model).items()
    }


def plain(model: Any) -> Any:
    """The same model with every layer dequantized, in place."""
    for name, module in layers(model).items():
        put(model, name, module.plain())
    return model


def signal_to_noise(x: torch.Tensor, rounded: torch.Tensor) -> float:
    """10·log₁₀ of signal over error, dB; about 6 dB a bit, since the error is eq-rounding-error."""
    return 10 * math.log10(float(x.square().sum() / (x - rounded).square().sum()))
