"""Optimizers: Muon for the matrices inside the network, AdamW for everything else.

Muon replaces the momentum of a matrix by the nearest (semi-)orthogonal matrix, so that every direction moves
equally far; it learns more from a token, and on one CPU thread its steps take the time that this saves. Source: Jordan
et al. (2024), *Muon: an optimizer for hidden layers in neural networks*. `torch.optim.Muon` always iterates in
bfloat16, which is 40 times slower than float32 on a CPU without AMX and not available on a T4, hence these lines.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from course_lib import distributed, freezing, models
from course_lib.errors import unknown

Groups = list[dict[str, Any]]

# Quintic Newton–Schulz coefficients: f(x) = ax + bx³ + cx⁵ drives singular values from (0, 1] towards 1.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The polar factor UVᵀ of `matrix` = USVᵀ, approximately: singular values end in about [0.7, 1.2].

    `matrix`: (…, rows, columns), any scale; leading dimensions are a batch. Computed in bfloat16 on CUDA cards that
    have it, else in the given dtype.
    """
    a, b, c = NEWTON_SCHULZ
    fast = matrix.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    x = matrix.to(torch.bfloat16 if fast else matrix.dtype)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # spectral norm ≤ 1, where the iteration converges
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x  # the smaller Gram matrix
    for _ in range(steps):
        gram = x @ x.mT  # (…, small, small)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; decoupled weight decay. For 2-D parameters only.

    Equation eq-muon. The update is scaled by √max(1, outputs/inputs), so that its effect on the layer's output has the
    same size for every shape; a group of weights that are stored as (inputs, outputs) says `transposed`. State: one
    momentum buffer a weight (AdamW keeps two). On a GPU, weights of one shape are orthogonalised in one batch; on a CPU
    that gains nothing.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 5,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps})
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon is for 2-D weights; give vectors and embeddings to AdamW")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            outputs, inputs = (1, 0) if group.get("transposed") else (0, 1)  # older checkpoints do not say
            for batch in _stacks([p for p in group["params"] if p.grad is not None]):
                directions = [distributed.whole(self._direction(p, group["momentum"])) for p in batch]
                updates = orthogonalize(torch.stack(directions), group["steps"])  # (batch, rows, columns)
                for p, update in zip(batch, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    scale = max(1.0, p.size(outputs) / p.size(inputs)) ** 0.5
                    p.add_(distributed.like(update, p), alpha=-group["lr"] * scale)

    def _direction(self, p: torch.Tensor, beta: float) -> torch.Tensor:
        """Nesterov: the gradient moved towards its running mean, after that has moved towards the gradient."""
        assert p.grad is not None
        momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
        momentum.lerp_(p.grad, 1 - beta)
        return p.grad.lerp(momentum, beta)


def _stacks(parameters: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Parameters to orthogonalise together: those of one shape on a GPU, each alone elsewhere."""
    by_shape: dict[Any, list[torch.Tensor]] = {}
    for number, p in enumerate(parameters):
        by_shape.setdefault(p.shape if p.is_cuda else number, []).append(p)
    return list(by_shape.values())


class AdamW(torch.optim.Optimizer):
    """AdamW to read, equation eq-adamw (Loshchilov and Hutter 2019); training uses torch's, the same and faster.

    Moments m ← β₁m + (1−β₁)g and v ← β₂v + (1−β₂)g², corrected for their start at zero; then θ ← θ − ηλθ − ηm̂/(√v̂+ε).
    The decay acts on the weights, not through the gradient, so it is not scaled by 1/√v̂.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                if not state:
                    state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["step"] += 1
                state["m"].lerp_(p.grad, 1 - beta1)
                state["v"].lerp_(p.grad.square(), 1 - beta2)
                mean = state["m"] / (1 - beta1 ** state["step"])
                spread = (state["v"] / (1 - beta2 ** state["step"])).sqrt()
                p.mul_(1 - lr * group["weight_decay"])
                p.sub_(lr * mean / (spread + group["eps"]))


class TailAverage:
    """The mean of the weights over the last part of a run (Polyak averaging), from progress `start` on.

    Call `update` after every step, `swap_in` at the end. Costs one copy of the weights.
    """

    def __init__(self, model: nn.Module, start: float):
        self.model, self.start, self.count = model, start, 0
        self.mean: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """Take the present weights into the mean."""
        if progress < self.start:
            return
        self.count += 1
        for name, p in self.model.named_parameters():
            if self.count == 1:
                self.mean[name] = p.detach().clone()
            else:
                self.mean[name].lerp_(p, 1 / self.count)

    @torch.no_grad()
    def swap_in(self) -> None:
        """Replace the model's weights by their mean, if there is one."""
        for name, p in self.model.named_parameters() if self.count else ():
            p.copy_(self.mean[name])

    def state_dict(self) -> dict[str, Any]:
        """The mean so far."""
        return {"count": self.count, "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.count = state["count"]
        ours = dict(self.model.named_parameters())
        self.mean = {
            n: distributed.like(value.to(ours[n].device, copy=True), ours[n]) for n, value in state["mean"].items()
        }


class Best:
    """The weights that scored best so far, for early stopping. Costs one copy of them, from the first evaluation on.

    Buffers go with them: an adapter that prunes itself keeps its choice there.
    """

    def __init__(self, model: nn.Module):
        self.model, self.value = model, float("inf")
        self.weights: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def offer(self, value: float) -> None:
        """Keep the present weights if `value` is lower than all before."""
        if value < self.value:
            self.value = value
            self.weights = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    @torch.no_grad()
    def swap_in(self) -> None:
        """Go back to the best weights, if any were offered."""
        ours = self._tensors()
        for name, tensor in self.weights.items():
            ours[name].copy_(tensor)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.model.named_parameters()) | dict(self.model.named_buffers())

    def state_dict(self) -> dict[str, Any]:
        """The best so far; JSON has no infinity."""
        return {"value": self.value if self.weights else None, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        if state["value"] is not None:
            ours = self._tensors()
            self.value = state["value"]
            self.weights = {n: t.to(ours[n].device, copy=True) for n, t in state["weights"].items()}


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices inside the network, everything else). Embeddings and the output head count as the rest."""
    outer = {id(p) for name, p in model.named_parameters() if models.is_outer(name)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    inner = [p for p in trainable if p.ndim == 2 and id(p) not in outer]
    chosen = {id(p) for p in inner}
    return inner, [p for p in trainable if id(p) not in chosen]


def _adamw(groups: Groups, lr: float) -> torch.optim.Optimizer:
    # `fused` has no meta-device kernel, which the device tests need
    fused = all(p.device.type != "meta" for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-10, fused=fused)


OPTIMIZERS: dict[str, Callable[[Groups, float], torch.optim.Optimizer]] = {
    "muon": _adamw,  # for what is not a matrix; the matrices go to Muon
    "adamw": _adamw,
    "adafactor": lambda groups, lr: torch.optim.Adafactor(groups, lr=lr),
    "sgd": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True),
}


def check(name: str) -> None:
    """Raise CourseError for an optimizer that does not exist."""
    if name not in OPTIMIZERS:
        raise unknown("optimizer", name, OPTIMIZERS)


def build(
    model: nn.Module, name: str, matrix_lr: float, lr: float, weight_decay: float = 0.0
) -> list[torch.optim.Optimizer]:
    """The optimizers of a run, `initial_lr` set for the schedule. Only matrices inside the network are decayed.

    A rare token's embedding would decay at every step and learn at few; vectors (norms, biases) are scales, not sizes.
    """
    check(name)
    inner, rest = split_parameters(model)
    groups: Groups = [{"params": rest, "weight_decay": 0.0}]
    if inner and name != "muon":
        groups.append({"params": inner, "weight_decay": weight_decay})
    optimizers = [OPTIMIZERS[name](groups, lr)]
    if inner and name == "muon":
        turned = {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}  # GPT-2's
        stored = [[p for p in inner if (id(p) in turned) == transposed] for transposed in (False, True)]
        matrices = [{"params": side, "transposed": bool(i)} for i, side in enumerate(stored) if side]
        optimizers.append(Muon(matrices, lr=matrix_lr, weight_decay=weight_decay))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers


def for_finetuning(
    model: Any, lr: float, layer_decay: float = 1.0, weight_decay: float = 0.0, freeze: str = "none"
) -> torch.optim.Optimizer:
    """AdamW whose rate falls by `layer_decay` from each layer to the one below it (Howard and Ruder 2018); head on top.

    Embeddings are the lowest layer. Vectors are never decayed. `freeze` as in `freezing.lowest`; what it names stays
    as it is, except that `gradual` needs the objective wrapped in `freezing.Gradual`, too.
    """
    freezing.freeze(model, freeze)
    depth = freezing.depth(model)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups.setdefault((freezing.level(model, name), p.ndim >= 2), []).append(p)
    rates = [
        {"params": members, "lr": lr * layer_decay ** (depth - level), "weight_decay": weight_decay * matrix}
        for (level, matrix), members in groups.items()
    ]
    fused = all(p.device.type != "meta" for p in model.parameters())
    optimizer = torch.optim.AdamW(rates, lr=lr, betas=(0.9, 0.98), fused=fused)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer
