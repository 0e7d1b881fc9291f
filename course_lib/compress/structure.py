"""Cutting whole units out: matrices really become smaller, so every runtime gains.

A unit is what a sublayer's last matrix, the writer, reads together: the columns of a head, or one inner neuron. Its
rows in the matrices before, the readers, go with it. How much a unit matters is the first-order change of the loss if
its gate closes, |∂L/∂ξ| at ξ = 1 (Michel et al. 2019, *Are sixteen heads really better than one?*; Molchanov et al.
2017).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from course_lib.errors import CourseError
from course_lib.objectives import Batch, Objective

ATTRIBUTES = ("head_dim", "attention_head_size")
FORMS = {  # kind: (readers in a block, equal parts in each, writer) of every stock architecture
    "heads": [
        (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), 1, "self_attn.o_proj"),
        (("attention.self.query", "attention.self.key", "attention.self.value"), 1, "attention.output.dense"),
        (("attn.Wqkv",), 3, "attn.Wo"),
        (("attn.c_attn",), 3, "attn.c_proj"),
    ],
    "neurons": [
        (("mlp.gate_proj", "mlp.up_proj"), 1, "mlp.down_proj"),
        (("mlp.fc1",), 1, "mlp.fc2"),
        (("intermediate.dense",), 1, "output.dense"),
        (("mlp.Wi",), 2, "mlp.Wo"),
        (("mlp.c_fc",), 1, "mlp.c_proj"),
    ],
}


@dataclass(frozen=True)
class Sublayer:
    """The matrices of one sublayer by path, and how many units they hold."""

    readers: tuple[str, ...]
    parts: int
    writer: str
    units: int


def blocks(model: Any) -> tuple[str, nn.ModuleList]:
    """(path, the repeated layers). Raises CourseError for a model without a list of them."""
    size = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == size:
            return name, module
    kind = model.config.model_type
    raise CourseError(f"A {kind} model has no list of {size} layers to cut in. Use int8, say, or another model.")


def sublayers(model: Any, kind: str) -> list[Sublayer]:
    """The attention (`heads`) or feed-forward sublayers (`neurons`) of all blocks."""
    path, layers = blocks(model)
    found = []
    for number, layer in enumerate(layers):
        names = {name for name, _ in layer.named_modules()}
        fitting = [form for form in FORMS[kind] if {*form[0], form[2]} <= names]
        if not fitting:
            raise CourseError(f"A {model.config.model_type} model has no {kind} that this library knows how to cut.")
        readers, parts, writer = fitting[0]
        inputs = weight(layer.get_submodule(writer)).size(1)
        size = _head_size(layer) if kind == "heads" else 1
        at = f"{path}.{number}"
        found.append(Sublayer(tuple(f"{at}.{r}" for r in readers), parts, f"{at}.{writer}", inputs // size))
    return found


def _head_size(layer: nn.Module) -> int:
    """Columns of a head; heads that share keys and values are one unit."""
    attention = next(m for m in layer.modules() if any(hasattr(m, name) for name in ATTRIBUTES))
    size = next(getattr(attention, name) for name in ATTRIBUTES if hasattr(attention, name))
    return size * getattr(attention, "num_key_value_groups", 1)


def weight(module: Any) -> torch.Tensor:
    """(out, in); a view."""
    return module.weight.T if isinstance(module, Conv1D) else module.weight


def gated(model: Any, chosen: list[Sublayer], gates: list[torch.Tensor]) -> list[Any]:
    """Multiply what every writer reads by its units' gates, (units,). Returns the hooks."""

    def hook(gate: torch.Tensor) -> Any:
        return lambda module, args: (args[0] * gate.repeat_interleave(args[0].size(-1) // len(gate)), *args[1:])

    return [
        model.get_submodule(sub.writer).register_forward_pre_hook(hook(gate))
        for sub, gate in zip(chosen, gates, strict=True)
    ]


def importance(
    model: Any, chosen: list[Sublayer], objective: Objective, batches: Iterable[Batch]
) -> list[torch.Tensor]:
    """Σ over batches of |∂L/∂ξ| for the gate ξ of every unit, (units,) for every sublayer: equation eq-importance.

    Raises CourseError without a batch.
    """
    model.eval()
    p = next(model.parameters())
    gates = [torch.ones(sub.units, dtype=p.dtype, device=p.device, requires_grad=True) for sub in chosen]
    sums = [torch.zeros_like(gate) for gate in gates]
    hooks, seen = gated(model, chosen, gates), 0
    try:
        for batch in batches:
            seen += 1
            loss = torch.stack(list(objective(model, batch).values())).sum()
            for total, gradient in zip(sums, torch.autograd.grad(loss, gates), strict=True):
                total += gradient.abs()
    finally:
        for handle in hooks:
            handle.remove()
    if not seen:
        raise CourseError("The importance of units was asked on no texts at all. Give some batches.")
    return sums


def survivors(scores: list[torch.Tensor], ratio: float) -> list[torch.Tensor]:
    """The indices that stay in every sublayer: the best of its own, so that all blocks keep one shape; at least one."""
    kept = [max(1, len(s) - round(ratio * len(s))) for s in scores]
    return [s.topk(k).indices.sort().values for s, k in zip(scores, kept, strict=True)]


@torch.no_grad()
def shrink(model: Any, chosen: list[Sublayer], kept: list[torch.Tensor]) -> None:
    """Delete all other units' rows and columns, in place."""
    for sub, units in zip(chosen, kept, strict=True):
        for name in sub.readers:
            rows = weight(model.get_submodule(name)).size(0) // sub.parts
            some = _spread(units, rows // sub.units)
            cut(model, name, torch.cat([part * rows + some for part in range(sub.parts)]), 0)
        columns = weight(model.get_submodule(sub.writer)).size(1)
        cut(model, sub.writer, _spread(units, columns // sub.units), 1)


def _spread(units: torch.Tensor, size: int) -> torch.Tensor:
    """Units' indices → those of their `size` rows each."""
    return (units[:, None] * size + torch.arange(size, device=units.device)).flatten()


def cut(model: nn.Module, name: str, index: torch.Tensor, dim: int) -> None:
    """Keep some outputs (dim 0) or inputs (dim 1) of the matrix at a path."""
    module: Any = model.get_submodule(name)
    module.weight = nn.Parameter(module.weight.index_select(1 - dim if isinstance(module, Conv1D) else dim, index))
    if dim == 0 and module.bias is not None:
        module.bias = nn.Parameter(module.bias[index])
    _note_shape(model, name)


def fit(model: nn.Module, name: str, tensors: dict[str, torch.Tensor], is_quantized: bool) -> None:
    """Give the matrix at a path the shape that its stored tensors have."""
    module: Any = model.get_submodule(name)
    if is_quantized:
        q = tensors[f"{name}.q"]
        shape: tuple[int, ...] = (q.size(0), q.size(1) * (2 if q.dtype == torch.uint8 else 1))
        shape = shape[::-1] if isinstance(module, Conv1D) else shape
    else:
        shape = tuple(tensors[f"{name}.weight"].shape)
    if tuple(module.weight.shape) != shape:
        module.weight = nn.Parameter(module.weight.new_zeros(shape))
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias.new_zeros(weight(module).size(0)))
    _note_shape(model, name)


def _note_shape(model: nn.Module, name: str) -> None:
    """Let a layer's numbers agree with its matrix."""
    module: Any = model.get_submodule(name)
    outputs, inputs = weight(module).shape
    if isinstance(module, Conv1D):
        module.nf, module.nx = outputs, inputs
        if name.endswith(".c_attn"):
            owner: Any = model.get_submodule(name.rpartition(".")[0])
            owner.split_size = outputs // 3
    else:
        module.out_features, module.in_features = outputs, inputs


def keep_layers(model: Any, kept: list[int]) -> None:
    """Drop all other blocks, in place: the config says so, so the checkpoint stays stock."""
    path, layers = blocks(model)
    parent, _, leaf = path.rpartition(".")
    left = nn.ModuleList(layers[i] for i in kept)
    setattr(model.get_submodule(parent), leaf, left)
    for number, layer in enumerate(left):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # type: ignore[assignment]
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]
    model.config.num_hidden_layers = len(kept)
