"""The one mechanism of all methods: added weights live beside the base model, and act through hooks while switched on.

No module of the base is replaced, so its names, its checkpoint and its other adapters do not notice. A method is a
frozen dataclass of settings whose `build(model)` gives an `Added`; most are made of `Part`s, one a module of the base.
"""

import copy
import re
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from course_lib.errors import CourseError, unknown

BLOCK = re.compile(r"(?:^|\.)(?:layers?|h)\.\d+\.")  # what all stock models call their repeated layers
ATTENTION = re.compile(r"\.(?:attn|self_attn|attention)\.")
OUTPUTS = re.compile(
    r"\.(?:o_proj|down_proj|fc2|Wo|c_proj|output\.dense|out_lin|lin2|out_proj)$"
)  # what is added to the residual stream
# New for every task, so trained in full and stored with the adapter; the last, and what stock models put before it.
HEADS = {"classifier", "score", "qa_outputs", "classification_head"}
HEAD_LAYERS = HEADS | {"pre_classifier", "pooler"}
CONTAINER = "added"  # the attribute of a model that holds its adapters


class Handle(Protocol):
    """What undoes a hook."""

    def remove(self) -> None:
        """Take the hook away."""


class Method:
    """Settings of a method; its subclasses are frozen dataclasses."""

    def build(self, model: Any) -> "Added":
        """New added weights for `model`, which is not changed."""
        raise NotImplementedError

    def final(self) -> "Method":
        """The settings to store beside finished weights."""
        return self


class Part(nn.Module):
    """What a method adds at one module of the base. `forward` is called after it and gives the output to use."""

    def forward(self, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        """A forward hook: `args` and `kwargs` are the module's inputs, `output` its output, (…, out)."""
        raise NotImplementedError

    def merge(self, module: nn.Module, sign: int) -> None:
        """Put the part into the module's own weights (sign 1), or take it out again (−1)."""
        raise CourseError(f"{type(self).__name__} is not linear in its input, so it cannot be merged into weights.")

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored, by name."""
        return dict(self.named_parameters())

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `tensors` gave."""
        fill(self.tensors(), tensors)


class Head(Part):
    """The task's output layer: a trainable copy that answers in place of the base's own."""

    def __init__(self, module: Any, classes: int = 0):
        super().__init__()
        plain = isinstance(module, nn.Linear)  # some models have several layers here
        new = plain and classes not in (0, module.out_features)
        self.copy = nn.Linear(module.in_features, classes, module.bias is not None) if new else copy.deepcopy(module)

    def forward(self, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        """The copy's output instead of the module's, whose precision may be lower."""
        dtype = next(self.copy.parameters()).dtype
        cast = lambda x: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        found = self.copy(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})
        return found.to(output.dtype)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Named as in the base."""
        return dict(self.copy.named_parameters())


class Added(nn.Module):
    """All weights that one method adds to one model. `parts` and `heads`: {path of a module in the base: part}."""

    penalty_weight = 0.0
    parts: Any  # ModuleDicts of Part
    heads: Any

    def __init__(self, parts: Mapping[str, Part] | None = None):
        super().__init__()
        self.parts, self.heads = nn.ModuleDict(), nn.ModuleDict()
        for name, part in (parts or {}).items():
            self.parts[key(name)] = part

    def attach(self, model: nn.Module) -> list[Handle]:
        """Let the parts act on `model` until the handles are removed."""
        return hook(model, self.parts)

    def merge(self, model: nn.Module, sign: int) -> None:
        """Put all parts into the base's weights (1) or take them out (−1). Raises CourseError if that is impossible."""
        for name, part in self.parts.items():
            part.merge(model.get_submodule(path(name)), sign)

    def penalty(self) -> torch.Tensor:
        """What `penalty_weight` times is added to a step's loss, scalar."""
        return next(self.parameters()).new_zeros(())

    def after_step(self, progress: float) -> None:
        """Called after every optimizer step, while gradients are still there."""

    def settle(self) -> None:
        """Called when the weights were replaced, by their average or by earlier ones."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a file holds: {path of the module and name of the weight: values}."""
        every = [*self.parts.items(), *self.heads.items()]
        return {f"{path(name)}.{n}": tensor for name, part in every for n, tensor in part.tensors().items()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `tensors` gave. Raises CourseError when names or shapes differ."""
        expected = self.tensors()
        if different := sorted(expected.keys() ^ tensors.keys()):
            raise CourseError(f"The adapter's weights do not fit this model: {', '.join(different[:3])} …")
        for name, part in [*self.parts.items(), *self.heads.items()]:
            part.load({n: tensors[f"{path(name)}.{n}"] for n in part.tensors()})


def key(path: str) -> str:
    """A module's path as a name that a ModuleDict accepts."""
    return path.replace(".", "/")


def path(key: str) -> str:
    """The path that `key` was made of."""
    return key.replace("/", ".")


def hook(model: nn.Module, parts: Any) -> list[Handle]:
    """Call every part after its module."""
    return [
        model.get_submodule(path(name)).register_forward_hook(part.forward, with_kwargs=True)
        for name, part in parts.items()
    ]


@torch.no_grad()
def fill(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    """Copy weights of the same names and shapes."""
    for name, tensor in ours.items():
        if tensor.shape != theirs[name].shape:
            shapes = f"{tuple(theirs[name].shape)} in the file, {tuple(tensor.shape)} in the model"
            raise CourseError(f"The adapter's weights do not fit this model: '{name}' is {shapes}.")
        tensor.copy_(theirs[name])


def linears(model: nn.Module) -> dict[str, nn.Module]:
    """All linear layers of the base by path, heads included."""
    every = model.named_modules()
    return {n: m for n, m in every if isinstance(m, nn.Linear | Conv1D) and not n.startswith(f"{CONTAINER}.")}


def inner(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers inside the blocks."""
    return {n: m for n, m in linears(model).items() if BLOCK.search(n)}


def find(model: nn.Module, targets: tuple[str, ...]) -> dict[str, nn.Module]:
    """The linear layers that `targets` name by the end of their paths (`q_proj`, `attn.Wo`); all those of attention if
    there are none; `all`: all inside the blocks. Raises CourseError for a target that matches nothing.
    """
    if targets == ("all",):
        return inner(model)
    if not targets:
        return {n: m for n, m in inner(model).items() if ATTENTION.search(n)}
    every = linears(model)
    for target in targets:
        if not any(f".{n}".endswith(f".{target}") for n in every):
            raise unknown("linear layer", target, {".".join(n.split(".")[-k:]) for n in inner(model) for k in (1, 2)})
    return {n: m for n, m in every.items() if any(f".{n}".endswith(f".{target}") for target in targets)}


def shape(module: Any) -> tuple[int, int]:
    """(outputs, inputs) of a linear layer; GPT-2's `Conv1D` stores its matrix transposed."""
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, Conv1D) else (rows, columns)


def check_rank(name: str, module: nn.Module, rank: int) -> None:
    """Raise CourseError for a rank that the matrix cannot have."""
    if not 1 <= rank <= min(shape(module)):
        raise CourseError(
            f"Rank {rank} is impossible for '{name}', a matrix of {' × '.join(map(str, shape(module)))}. "
            f"Choose 1 to {min(shape(module))}, or other targets."
        )


@torch.no_grad()
def add_to_weight(module: Any, delta: torch.Tensor, sign: int) -> None:
    """W ← W ± Δ for Δ (out, in)."""
    module.weight.add_((delta.T if isinstance(module, Conv1D) else delta).to(module.weight.dtype), alpha=sign)
