"""Graders of chapter 4, mixed precision."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.checks.grading import Properties, close, equal, grader, written

BF16 = torch.bfloat16


def draw(*shape: int) -> Tensor:
    """The same normal numbers every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@grader
def ex04_1(to_float8: Callable[[Tensor], tuple[Tensor, float]], holds: Properties) -> None:
    """float32 → float8 E4M3 with a scale."""

    def solve(x: Tensor) -> tuple[Tensor, float]:
        found = to_float8(x)
        written(found)
        return found

    with holds("the numbers have the type float8_e4m3fn"):
        equal(solve(draw(10))[0].dtype, torch.float8_e4m3fn)
    with holds("the largest number takes the largest code, 448"):
        close(solve(draw(1000))[0].float().abs().max(), 448.0)
    with holds("q.float() * scale is x, up to a 16th of each number that is not small"):
        for x in (draw(1000), torch.tensor([1.0, -3.0])):
            q, scale = solve(x)
            worst = ((q.float() * scale - x).abs() / x.abs())[x.abs() > x.abs().max() / 1000].max()
            if not worst <= 1 / 16:
                raise AssertionError(f"one is off by {worst:.0%} of itself")
    with holds("tiny and huge numbers fare alike"):
        for factor in (1e-20, 1e20):
            q, scale = solve(factor * draw(100))
            close(q.float() * scale / factor, solve(draw(100))[0].float() * solve(draw(100))[1], tolerance=1e-4)
    with holds("zeros come back as zeros"):
        q, scale = solve(torch.zeros(3))
        close(q.float() * scale, torch.zeros(3))


@grader
def ex04_2(kahan_step: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], holds: Properties) -> None:
    """Compensated addition in bfloat16."""

    def solve(weight: list[float], rest: list[float], update: list[float]) -> tuple[Tensor, Tensor]:
        found = kahan_step(*(torch.tensor(x, dtype=BF16) for x in (weight, rest, update)))
        written(found)
        return found

    def many(start: float, update: float, steps: int) -> float:
        weight, rest = torch.tensor([start], dtype=BF16), torch.zeros(1, dtype=BF16)
        for _ in range(steps):
            weight, rest = kahan_step(weight, rest, torch.tensor([update], dtype=BF16))
        return float(weight)

    with holds("weight and rest stay bfloat16"):
        equal([part.dtype for part in solve([1.0], [0.0], [0.5])], [BF16, BF16])
    with holds("an update that fits is added, and leaves no rest"):
        weight, rest = solve([1.0, -3.0], [0.0, 0.0], [0.5, 1.0])
        close(weight, [1.5, -2.0])
        close(rest, [0.0, 0.0])
    with holds("an update that is lost becomes the rest"):
        weight, rest = solve([1.0], [0.0], [2.0**-10])
        close(weight, [1.0])
        close(rest, [2.0**-10])
    with holds("the rest of earlier steps is added"):
        weight, rest = solve([1.0], [2.0**-8], [2.0**-8])
        close(weight, [1.0 + 2.0**-7])
        close(rest, [0.0])
    with holds("4,096 updates of 1/4,096 make one, upwards and downwards"):
        written(kahan_step(*(torch.ones(1, dtype=BF16) for _ in range(3))))
        close(many(1.0, 2.0**-12, 4096), 2.0, tolerance=0.01)
        close(many(3.0, -(2.0**-12), 4096), 2.0, tolerance=0.01)


Gradient = Callable[[Tensor, float], Tensor]


def _constant(value: float, seen: list[Tensor]) -> Gradient:
    """The gradient `value` everywhere; keeps the weights that it was asked at."""

    def gradient_of(weights: Tensor, scale: float) -> Tensor:
        seen.append(weights)
        return torch.full_like(weights, value * scale)

    return gradient_of


@grader
def ex04_3(mixed_step: Callable[[Tensor, Gradient, float, float], tuple[Tensor, bool]], holds: Properties) -> None:
    """A step of plain descent with master weights and a loss scale."""
    seen: list[Tensor] = []
    constant = lambda value: _constant(value, seen)

    def solve(master: Tensor, gradient_of: Gradient, lr: float, scale: float) -> tuple[Tensor, bool]:
        found = mixed_step(master, gradient_of, lr, scale)
        written(found)
        return found

    with holds("the gradient is taken at float16 weights"):
        solve(torch.ones(2), constant(1.0), 0.1, 1.0)
        equal(seen[-1].dtype, torch.float16)
    with holds("the weights move against the unscaled gradient"):
        new, taken = solve(torch.ones(2), constant(0.5), 0.1, 1024.0)
        equal(bool(taken), True, "taken")
        close(new, [0.95, 0.95])
    with holds("the new weights are float32, and an update below float16's gap arrives"):
        new, _ = solve(torch.ones(1), constant(1.0), 1e-5, 8.0)
        equal(new.dtype, torch.float32)
        close((1 - new) / 1e-5, [1.0], tolerance=0.02)
    with holds("what the scale saved is not lost when it is divided"):
        new, _ = solve(torch.zeros(1), constant(2.0**-28), 2.0**28, 2.0**12)
        close(new, [-1.0])
    with holds("gradients that are large, but finite one by one, are taken"):
        new, taken = solve(torch.ones(100), constant(1000.0), 1e-4, 1.0)
        equal(bool(taken), True, "taken")
        close(new, [0.9] * 100)
    with holds("an infinite or undefined gradient changes nothing, and says so"):
        for bad in (math.inf, -math.inf, math.nan):
            new, taken = solve(torch.ones(2), constant(bad), 0.1, 2.0)
            equal(bool(taken), False, "taken")
            close(new, [1.0, 1.0])
    with holds("a single infinite gradient among good ones is enough"):
        new, taken = solve(torch.ones(2), lambda w, s: torch.tensor([1.0, math.inf]).half(), 0.1, 2.0)
        equal(bool(taken), False, "taken")
        close(new, [1.0, 1.0])


@grader
def ex04_4(round_by_chance: Callable[[Tensor, torch.Generator], Tensor], holds: Properties) -> None:
    """Stochastic rounding to bfloat16."""

    def solve(value: float, times: int = 20_000, seed: int = 0) -> Tensor:
        found = round_by_chance(torch.full((times,), value), torch.Generator().manual_seed(seed))
        written(found)
        return found

    gap = 2.0**-7  # of bfloat16 between 1 and 2
    with holds("the result is bfloat16"):
        equal(solve(1.0).dtype, BF16)
    with holds("a number that bfloat16 has stays as it is"):
        for value in (1.0, -2.5, 0.0, 3 * 2.0**-130):
            close(solve(value, 100).float().unique(), [value], tolerance=0)
    with holds("any other becomes one of its two neighbours"):
        close(solve(1 + 0.3 * gap).float().unique(), [1.0, 1 + gap])
    with holds("the mean is the number itself"):
        for share in (0.1, 0.3, 0.5, 0.9):
            ups = (solve(1 + share * gap).float() > 1).float().mean().item()
            if abs(ups - share) > 0.02:
                raise AssertionError(f"at {share} of the gap, {ups:.2f} of the draws went up")
    with holds("negative numbers are treated alike"):
        ups = (solve(-1 - 0.3 * gap).float() < -1).float().mean().item()
        if abs(ups - 0.3) > 0.02:
            raise AssertionError(f"at 0.3 of the gap, {ups:.2f} of the draws went away from zero")
    with holds("chance comes from the generator: the same seed gives the same bits, another one others"):
        equal(torch.equal(solve(1.001), solve(1.001)), True, "same seed, same bits")
        equal(torch.equal(solve(1.001), solve(1.001, seed=1)), False, "another seed, same bits")


@grader
def ex04_6(remaining: Callable[[list[float], float], float], holds: Properties) -> None:
    """What AdamW's decay leaves of a weight without a gradient."""
    with holds("without decay everything is left"):
        close(remaining([0.1, 0.2], 0.0), 1.0)
    with holds("one step takes lr · decay"):
        close(remaining([0.1], 0.5), 0.95)
    with holds("shares of several steps multiply"):
        close(remaining([0.5, 0.5], 1.0), 0.25)
    with holds("each step counts with its own learning rate"):
        close(remaining([0.4, 0.0, 0.2], 0.5), 0.8 * 0.9)
    with holds("it is what torch's AdamW does"):
        weight = torch.ones((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.AdamW([weight], weight_decay=0.3)
        for lr in (lrs := [0.3, 0.02, 0.1]):
            optimizer.param_groups[0]["lr"] = lr
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
        close(remaining(lrs, 0.3), weight.item())
