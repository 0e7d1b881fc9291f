"""Mixed precision as one policy object: 16-bit arithmetic, float32 master weights, loss scaling if needed.

The rule (and what the source article has backwards): forward and backward run in 16 bit; the weights, the
optimizer state and the update stay in float32; float16 also needs its loss scaled, or small gradients
become zero.
"""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from course_lib import distributed
from course_lib.device import Device


class LossScaler:
    """Dynamic loss scaling from scratch, equation eq-scale: what `torch.amp.GradScaler` does, in chapter 4's lines.

    The loss is multiplied by `scale` so that small gradients do not vanish in float16. If a gradient overflows, the
    step is skipped and the scale halved; after `growth_interval` good steps in a row it is doubled. Source:
    Micikevicius et al. (2018), *Mixed precision training*.
    """

    def __init__(self, scale: float = 2.0**16, growth: float = 2.0, backoff: float = 0.5, growth_interval: int = 2000):
        self.scale, self.growth, self.backoff, self.growth_interval = scale, growth, backoff, growth_interval
        self.good_steps = 0
        self.overflowed = False

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to call backward on."""
        return loss * self.scale

    def unscale_(self, parameters: Iterable[torch.Tensor]) -> None:
        """Divide the gradients by the scale and note whether any is not finite."""
        for p in parameters:
            if p.grad is not None:
                p.grad.mul_(1 / self.scale)
                self.overflowed |= not bool(torch.isfinite(p.grad).all())

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the weights unless a gradient overflowed."""
        if not self.overflowed:
            optimizer.step()

    def update(self) -> None:
        """Adapt the scale after a step."""
        if self.overflowed:
            self.scale *= self.backoff
            self.good_steps = 0
        else:
            self.good_steps += 1
            if self.good_steps == self.growth_interval:
                self.scale *= self.growth
                self.good_steps = 0
        self.overflowed = False


class Precision:
    """Autocast and loss scaling for one device kind and compute dtype: equation eq-master.

    `Precision.for_device(device)` is what training uses. float32 → neither; bfloat16 → autocast only
    (its exponent range is float32's); float16 → autocast and a `GradScaler`.
    """

    def __init__(self, kind: str, dtype: torch.dtype):
        self.kind, self.dtype = kind, dtype
        self.scaler = torch.amp.GradScaler(kind, enabled=dtype == torch.float16)

    @classmethod
    def for_device(cls, device: Device) -> "Precision":
        """The policy that `device.pick` decided on."""
        return cls(device.kind, getattr(torch, device.dtype))

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of the forward pass."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.kind, self.dtype)

    def backward(self, loss: torch.Tensor) -> None:
        """Back-propagate the (scaled) loss."""
        self.scaler.scale(loss).backward()

    def step(
        self, optimizers: Sequence[torch.optim.Optimizer], parameters: Iterable[torch.Tensor], clip: float
    ) -> tuple[float, bool]:
        """Unscale, clip to norm `clip` (equation eq-clip), step. Returns (gradient norm, whether the step was taken).

        All optimizers are unscaled before clipping and step only if the *global* norm is finite: judged one
        by one, a NaN in one optimizer's gradients spreads through the shared norm into the other's weights.
        """
        for optimizer in optimizers:
            self.scaler.unscale_(optimizer)
        norm = float(distributed.whole(torch.nn.utils.clip_grad_norm_(parameters, clip)))
        taken = norm < float("inf")  # False for NaN, too
        if taken:
            for optimizer in optimizers:
                self.scaler.step(optimizer)
        if self.scaler.is_enabled():
            self.scaler.update()
        return norm, taken

    def state_dict(self) -> dict[str, Any]:
        """The scaler's state (empty when nothing is scaled)."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        if state:
            self.scaler.load_state_dict(state)
