"""The one mechanism of all methods: added weights live beside the base model, and act through hooks while switched on.

No module of the base is replaced, so its names, its checkpoint and its other adapters do not notice. A method is a
frozen dataclass of settings whose `build(model)` gives an `Added`; most are made of `Part`s, one a module of the base.
"""

import copy
import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from course_lib import models
from course_lib.errors import CourseError, unknown

BLOCK = re.compile(r"(?:^|\.)(?:layers?|h)\.\d+\.")  # what all stock models call their repeated layers
ATTENTION = re.compile(r"\.(?:attn|self_attn|attention)\.")
OUTPUTS = re.compile(
    r"\.(?:o_proj|down_proj|fc2|Wo|c_proj|output\.dense|out_lin|lin2|out_proj)$"
)  # what is added to the residual stream
# New for every task, so trained in full and stored with the adapter; the last, and what stock models put before it.
HEADS = {"classifier", "score", "qa_outputs", "classification_head", "logits_proj"}
HEAD_LAYERS = HEADS | {"pre_classifier", "pooler", "sequence_summary"}
CONTAINER = "added"  # the attribute of a model that holds its adapters
LACKING = "lacking"  # the attribute of a model that names the parameters its base has no weights for
LIMITS = {"dropout": (0, 1), "length": (1, math.inf), "width": (0, math.inf)}  # of settings: at least, and below
SAMPLE = 64  # values of every matrix that the fingerprint looks at


class Handle(Protocol):
    """What undoes a hook."""

    def remove(self) -> None:
        """Take the hook away."""


class Method:
    """Settings of a method; its subclasses are frozen dataclasses."""

    @property
    def positions(self) -> int:
        """How many positions of the model's context the method takes from the text."""
        return 0

    def __post_init__(self) -> None:
        """Raise CourseError for a setting outside its `LIMITS`."""
        for name, (least, below) in LIMITS.items():
            if not least <= getattr(self, name, least) < below:
                most = "" if below == math.inf else f" and below {below}"
                value = f"'{name}' is {getattr(self, name)}"
                raise CourseError(f"{type(self).__name__}: {value}, but must be at least {least}{most}.")

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
        uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        modules: dict[str, Any] = {name: model.get_submodule(path(name)) for name in self.parts}
        if tied := [path(name) for name, module in modules.items() if uses[id(module.weight)] > 1]:
            shared = f"'{tied[0]}' shares its weights with another layer (the embeddings), which would change, too"
            raise CourseError(f"{shared}, so nothing can be merged into it. Keep the adapter beside the base.")
        for name, part in self.parts.items():
            part.merge(modules[name], sign)

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


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """A hash of the base's blocks: some values of every weight, in float16, so that the precision is all the same.

    What a task adds (heads) does not count, nor does an adapter.
    """
    digest = hashlib.sha256()
    for name, p in model.named_parameters():
        block = BLOCK.search(name)
        if block and not name.startswith(f"{CONTAINER}."):
            values = p.detach().flatten()[:: max(1, p.numel() // SAMPLE)].to("cpu", torch.float16)
            digest.update(f"{name[block.start() :].strip('.')} {tuple(p.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()


def heads(model: nn.Module) -> dict[str, nn.Module]:
    """Layers by path that are trained in full and stored with an adapter: those of a task, and what the base lacks.

    Raises CourseError if the base lacks weights of the network itself.
    """
    layers = {name: module for name, module in model.named_children() if name in HEAD_LAYERS}
    layers = layers if HEADS & layers.keys() else {}  # a bare body has a pooler, not a task
    for name in getattr(model, LACKING, ()):
        owner = name.rpartition(".")[0]
        if owner.split(".")[0] in layers:
            continue
        module = model.get_submodule(owner)
        if BLOCK.search(name) or models.is_embedding(name) or any(True for _ in module.children()):
            raise CourseError(f"The base lacks the weights of '{name}'. Take another, or fine-tune without --method.")
        layers[owner] = module
    return layers


def linears(model: nn.Module) -> dict[str, nn.Module]:
    """All linear layers of the base by path, heads included."""
    every = model.named_modules()
    return {n: m for n, m in every if isinstance(m, nn.Linear | Conv1D) and not n.startswith(f"{CONTAINER}.")}


def inner(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers inside the blocks."""
    return {n: m for n, m in linears(model).items() if BLOCK.search(n)}


def find(model: nn.Module, targets: tuple[str, ...]) -> dict[str, nn.Module]:
    """The linear layers that `targets` name by the end of their paths (`q_proj`, `attn.Wo`); all those of attention if
    there are none; `all`: all inside the blocks. Raises CourseError for a target that matches nothing, or only layers
    of a task (`heads`), which learn anyway.
    """
    if targets == ("all",):
        return inner(model)
    if not targets:
        return {n: m for n, m in inner(model).items() if ATTENTION.search(n)}
    task = tuple(f"{name}." for name in heads(model))
    every, found = linears(model), set[str]()
    for target in targets:
        named = [n for n in every if f".{n}".endswith(f".{target}")]
        free = {n for n in named if not f"{n}.".startswith(task)}
        if not named:
            raise unknown("linear layer", target, {".".join(n.split(".")[-k:]) for n in inner(model) for k in (1, 2)})
        if not free:
            raise CourseError(f"'{named[0]}' is the task's and learns in full. It cannot be a target, too.")
        found |= free
    return {n: m for n, m in every.items() if n in found}


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
