"""AdaLoRA: the update in the form of a singular value decomposition; its least important values are pruned on the way.

Zhang et al. (2023), *AdaLoRA: adaptive budget allocation for parameter-efficient fine-tuning*: equation 3 (P Λ Q), 4
(the penalty that keeps P and Q orthogonal), 9–11 (importance), 12 (budget), the last over progress instead of steps.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from course_lib.errors import CourseError
from course_lib.peft import base


@dataclass(frozen=True)
class AdaLoRA(base.Method):
    """`rank` singular values a matrix at first, `target` on average at the end.

    All are kept over the first share `warmup` of the budget; over the last share `final` the choice stays as it is.
    """

    rank: int = 12
    target: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    warmup: float = 0.1
    final_share: float = 0.3
    orthogonality: float = 0.5
    beta1: float = 0.85
    beta2: float = 0.85

    def build(self, model: nn.Module) -> "Allocated":
        """A triple P, Λ, Q for every target. Raises CourseError for an unknown target or an impossible rank."""
        found = base.find(model, self.targets)
        for name, module in found.items():
            base.check_rank(name, module, self.rank)
        if not 0 < self.target <= self.rank or self.warmup + self.final_share >= 1:
            raise CourseError("AdaLoRA needs 0 < target ≤ rank, and warmup + final_share below 1.")
        return Allocated({name: Singular(module, self) for name, module in found.items()}, self)


class Singular(base.Part):
    """h = Wx + s·P Λ Q x, equation eq-adalora: P (out, rank), Λ (rank, 1) zero at first, Q (rank, in)."""

    kept: torch.Tensor  # (rank,), which singular values are not pruned

    def __init__(self, module: nn.Module, method: AdaLoRA):
        super().__init__()
        outputs, inputs = base.shape(module)
        self.P = nn.Parameter(0.02 * torch.randn(outputs, method.rank))
        self.E = nn.Parameter(torch.zeros(method.rank, 1))
        self.Q = nn.Parameter(0.02 * torch.randn(method.rank, inputs))
        self.dropout, self.scale = method.dropout, method.alpha / (method.rank + 1e-5)  # 10⁻⁵ as in the reference
        self._forget()

    def _forget(self) -> None:
        """Everything is kept, and nothing is known about its importance."""
        self.register_buffer("kept", torch.ones(len(self.E), dtype=torch.bool, device=self.E.device))
        for name, p in list(self.named_parameters()):
            self.register_buffer(f"sensitivity_{name}", torch.zeros_like(p, requires_grad=False))
            self.register_buffer(f"uncertainty_{name}", torch.zeros_like(p, requires_grad=False))

    def forward(self, module: nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> torch.Tensor:
        """Thin products only: (…, in) → (…, rank) → (…, out)."""
        x = F.dropout(args[0].to(self.Q.dtype), self.dropout, self.training)
        return output + F.linear(F.linear(x, self.scale * self.E * self.Q), self.P).to(output.dtype)

    def merge(self, module: nn.Module, sign: int) -> None:
        """W ± s·P Λ Q."""
        base.add_to_weight(module, self.scale * self.P @ (self.E * self.Q), sign)

    def penalty(self) -> torch.Tensor:
        """‖PᵀP − I‖ + ‖QQᵀ − I‖, equation eq-adalora-penalty: theirs without the squares, as their code has it."""
        identity = torch.eye(len(self.E), device=self.E.device, dtype=self.E.dtype)
        return (self.P.T @ self.P - identity).norm() + (self.Q @ self.Q.T - identity).norm()

    @torch.no_grad()
    def watch(self, beta1: float, beta2: float) -> None:
        """Running mean of |w·∂L/∂w| (sensitivity) and of its deviation (uncertainty), equations 9 and 10."""
        for name, p in self.named_parameters():
            if p.grad is not None:
                mean, now = self.get_buffer(f"sensitivity_{name}"), (p * p.grad).abs()
                mean.lerp_(now, 1 - beta1)
                self.get_buffer(f"uncertainty_{name}").lerp_((now - mean).abs(), 1 - beta2)

    def importance(self) -> torch.Tensor:
        """(rank,): a singular value's score plus the means of its two vectors', equation 11."""
        score = {n: self.get_buffer(f"sensitivity_{n}") * self.get_buffer(f"uncertainty_{n}") for n in "PEQ"}
        return score["E"][:, 0] + score["P"].mean(0) + score["Q"].mean(1)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Only what was not pruned."""
        return {"P": self.P[:, self.kept], "E": self.E[self.kept], "Q": self.Q[self.kept]}

    def load(self, tensors: Any) -> None:
        """The rank becomes what the file has left."""
        if (len(tensors["P"]), tensors["Q"].size(1)) != (len(self.P), self.Q.size(1)):
            raise CourseError(f"The adapter's weights do not fit this model: P is {tuple(tensors['P'].shape)}.")
        for name, p in list(self.named_parameters()):
            setattr(self, name, nn.Parameter(tensors[name].to(p, copy=True)))
        self._forget()


class Allocated(base.Added):
    """The triples of all matrices, which compete for one budget."""

    frozen: torch.Tensor  # whether the choice is final

    def __init__(self, parts: dict[str, Singular], method: AdaLoRA):
        super().__init__(parts)
        self.method, self.penalty_weight = method, method.orthogonality
        self.register_buffer("frozen", torch.tensor(False))

    def penalty(self) -> torch.Tensor:
        """Mean distance of the P and Q from orthogonal matrices, scalar."""
        return torch.stack([part.penalty() for part in self.parts.values()]).sum() / (2 * len(self.parts))

    def budget(self, progress: float) -> int:
        """Singular values of all matrices together at `progress`: from `rank` to `target`, eq-adalora-budget."""
        m = self.method
        share = (1 - min(max((progress - m.warmup) / (1 - m.final_share - m.warmup), 0.0), 1.0)) ** 3
        return int(len(self.parts) * ((m.rank - m.target) * share + m.target) + 1e-9)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Set the singular values that the budget cannot keep to zero; they may come back until 1 − `final_share`."""
        ended = progress >= 1 - self.method.final_share - 1e-9
        for part in self.parts.values() if not ended else ():
            part.watch(self.method.beta1, self.method.beta2)
        if not self.frozen and progress > self.method.warmup + 1e-9:
            self._choose(self.budget(progress))
        self.frozen.fill_(ended)
        self.settle()

    def settle(self) -> None:
        """What was pruned is zero, as it will be in the file."""
        for part in self.parts.values():
            part.E.data.masked_fill_(~part.kept[:, None], 0.0)

    def _choose(self, budget: int) -> None:
        """Keep the `budget` most important triples of all matrices."""
        parts = list(self.parts.values())
        scores = torch.cat([part.importance() for part in parts])
        kept = torch.zeros_like(scores).bool().index_fill_(0, scores.topk(min(budget, len(scores))).indices, True)
        for part, chosen in zip(parts, kept.split([len(part.E) for part in parts]), strict=True):
            part.kept.copy_(chosen)
