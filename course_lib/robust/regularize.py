"""What keeps a fine-tuning from learning its texts by heart, as objectives around the head's own.

`dropout:rate=0.1+rdrop:alpha=1`, from the inside outward. Adding one: a frozen dataclass with `around` below, a line in
`REGULARIZERS`, a test.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from course_lib import spec
from course_lib.errors import CourseError
from course_lib.objectives import IGNORE, Batch, Objective
from course_lib.peft import base

Losses = dict[str, torch.Tensor]
LIFT = 2.0**10  # only the direction of a gradient counts, and in float16 that of a text learnt by heart would be zero


@dataclass(frozen=True)
class Dropout:
    """Units of the embeddings and of what layers add to the residual stream go missing (Srivastava et al. 2014).

    For models whose own configuration has no dropout, as those pretrained here. Nothing of it is stored.
    """

    rate: float = 0.1

    def around(self, model: Any, objective: Objective) -> Objective:
        """The same objective; the model has hooks that act while it trains."""
        if not 0 <= self.rate < 1:
            raise CourseError(f"dropout:rate is at least 0 and below 1, not {self.rate}.")
        writes = [module for name, module in base.inner(model).items() if base.OUTPUTS.search(name)]
        if not writes:
            raise CourseError(f"dropout does not know the layers of a '{model.config.model_type}' model.")
        for module in [model.get_input_embeddings(), *writes]:
            module.register_forward_hook(self._hook)
        return objective

    def _hook(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, self.rate, module.training)


@dataclass(frozen=True)
class RDrop:
    """Two dropout masks should agree: equation eq-rdrop (Wu et al. 2021). `alpha` weighs their divergence."""

    alpha: float = 1.0

    def around(self, model: Any, objective: Objective) -> Objective:
        """Raises CourseError for heads that have no class probabilities, and where both passes would be the same."""
        if "classification" not in objective.weights:
            raise CourseError("rdrop compares class probabilities, so it is for heads with one class a text or word.")
        if not _drops(model):
            raise CourseError("rdrop needs dropout, and this model has none. Ask for dropout+rdrop.")
        return Consistent(objective, self.alpha)


def _drops(model: Any) -> bool:
    """Whether two forwards of it while it trains differ: by configuration, modules, adapters, or `Dropout` above."""
    rates = [rate for name, rate in model.config.to_dict().items() if "drop" in name and isinstance(rate, float)]
    modules = list(model.modules())
    rates += [module.p for module in modules if isinstance(module, nn.Dropout)]
    rates += [module.dropout for module in modules if isinstance(getattr(module, "dropout", None), float)]
    hooks = (hook for module in modules for hook in module._forward_hooks.values())
    return any(rate > 0 for rate in rates) or any(isinstance(getattr(h, "__self__", None), Dropout) for h in hooks)


class Consistent:
    """An objective's loss averaged over two passes, and the symmetric divergence between their probabilities.

    The paper adds the two losses up, so its alpha is twice this one; the mean leaves a learning rate what it was.
    """

    def __init__(self, objective: Objective, alpha: float):
        self.objective = objective
        self.weights = {**objective.weights, "divergence": alpha}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Those of the objective inside; the divergence counts what has a label."""
        return {**self.objective.counts(batch), "divergence": int((batch["labels"] != IGNORE).sum())}

    def __call__(self, model: Any, batch: Batch) -> Losses:
        """One forward over the batch twice, whose halves meet different dropout masks."""
        logits: list[torch.Tensor] = []
        handle = model.register_forward_hook(lambda module, args, output: logits.append(output.logits))
        try:
            losses = self.objective(model, {k: torch.cat([v, v]) for k, v in batch.items()})
        finally:
            handle.remove()
        one, two = logits[-1].float().chunk(2)  # (rows[, length], classes)
        apart = divergence(one, two)[batch["labels"] != IGNORE].sum()
        return {**{term: loss / 2 for term, loss in losses.items()}, "divergence": apart}


def divergence(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """½ (KL(p‖q) + KL(q‖p)) of two sets of logits, (…, classes) → (…), nats; it equals ½ Σ (p − q)(log p − log q)."""
    p, q = one.log_softmax(-1), two.log_softmax(-1)
    return ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2


class Adversarial:
    """An objective's loss, and its loss where each text's embeddings have moved by δ, ‖δ‖ ≤ `radius`, to raise it.

    Equation eq-adversarial. The weights are never touched: δ is added to what the embedding layer gives.
    """

    def __init__(self, objective: Objective, epsilon: float, step: float, steps: int):
        self.objective, self.epsilon, self.step, self.steps = objective, epsilon, step, steps
        self.weights = {**objective.weights, **{f"adversarial_{t}": w for t, w in objective.weights.items()}}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Those of the objective inside, for either loss."""
        inside = self.objective.counts(batch)
        return {**inside, **{f"adversarial_{term}": count for term, count in inside.items()}}

    def __call__(self, model: Any, batch: Batch) -> Losses:
        """Climb, then learn from where it led. The first forward gives the clean loss, and the first climb its way."""
        embeddings = model.get_input_embeddings()
        scale = float(embeddings.weight.detach().norm(dim=1).mean())  # epsilon counts embeddings, whatever their size
        with moved(embeddings) as shift:
            clean = losses = self.objective(model, batch)
            for number in range(self.steps):
                losses = losses if number == 0 else self.objective(model, batch)
                total = torch.stack([w * losses[t] for t, w in self.objective.weights.items()]).sum()
                shift.climb(total, self.step * scale, self.epsilon * scale)
            after = self.objective(model, batch)
        return {**clean, **{f"adversarial_{term}": loss for term, loss in after.items()}}


class Shift:
    """δ, (rows, length, size), added to what the embedding layer gives; zero at first."""

    delta: torch.Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        """A forward hook."""
        if self.delta is None:
            self.delta = torch.zeros_like(output).requires_grad_()
        return output + self.delta

    def climb(self, loss: torch.Tensor, length: float, radius: float) -> None:
        """Move every text's δ by `length` along its gradient, and back into the ball of `radius`."""
        assert self.delta is not None
        (gradient,) = torch.autograd.grad(loss * LIFT, self.delta, retain_graph=True)
        delta = self.delta.detach() + length * _unit(gradient)
        norm = delta.norm(dim=(1, 2), keepdim=True)
        self.delta = (delta * (radius / norm.clamp(min=radius))).requires_grad_()


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Every text's part at length 1; where nothing pulls, or more than the numbers hold, zero."""
    norm = x.norm(dim=(1, 2), keepdim=True)
    return torch.where((norm > 0) & norm.isfinite(), x / norm, 0)


@contextlib.contextmanager
def moved(embeddings: nn.Module) -> Iterator[Shift]:
    """While the block runs, the embedding layer's outputs move by the δ of what is yielded."""
    shift = Shift()
    handle = embeddings.register_forward_hook(shift)
    try:
        yield shift
    finally:
        handle.remove()


@dataclass(frozen=True)
class FGM:
    """One step to the edge of the ball (Miyato et al. 2017). `epsilon`: in mean norms of a token's embedding."""

    epsilon: float = 0.06

    def around(self, model: Any, objective: Objective) -> Objective:
        """Twice the cost."""
        _above_zero("fgm", epsilon=self.epsilon)
        return Adversarial(objective, self.epsilon, self.epsilon, 1)


@dataclass(frozen=True)
class PGD:
    """Several shorter steps, each back into the ball (Madry et al. 2018)."""

    epsilon: float = 0.06
    step: float = 0.03
    steps: int = 3

    def around(self, model: Any, objective: Objective) -> Objective:
        """`steps` + 1 times the cost."""
        _above_zero("pgd", epsilon=self.epsilon, step=self.step, steps=self.steps)
        return Adversarial(objective, self.epsilon, self.step, self.steps)


def _above_zero(name: str, **settings: float) -> None:
    for setting, value in settings.items():
        if value <= 0:
            raise CourseError(f"{name}:{setting} is above 0, not {value}.")


REGULARIZERS: dict[str, Any] = {"dropout": Dropout, "rdrop": RDrop, "fgm": FGM, "pgd": PGD}


def parse(text: str) -> list[Any]:
    """`dropout:rate=0.1+rdrop` → settings, from the inside outward; none if it is empty.

    Raises CourseError for one that is named twice, and for two attacks: only the outer one would count.
    """
    found = [spec.parse(part, "regularizer", REGULARIZERS) for part in text.split("+")] if text else []
    kinds = ["an attack" if isinstance(settings, FGM | PGD) else type(settings).__name__ for settings in found]
    if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
        raise CourseError(f"'{text}' asks for {twice.lower()} twice. Choose one.")
    return found


def around(model: Any, objective: Objective, text: str) -> Objective:
    """The objective with all regularizers of `text` around it."""
    for settings in parse(text):
        objective = settings.around(model, objective)
    return objective
