"""Graders of chapter 5, the training loop."""

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from course_lib.checks.grading import Properties, close, equal, flat, grader, written

Multiplier = Callable[[float], float]


@grader
def ex05_1(sqrt_cooldown: Callable[[float, float], Multiplier], holds: Properties) -> None:
    """Linear warm-up, flat, and a cooldown of the shape 1 − √x."""

    def at(warmup: float, cooldown: float, *places: float) -> list[float]:
        multiplier = sqrt_cooldown(warmup, cooldown)
        written(multiplier)
        values = [multiplier(progress) for progress in places]
        written(values[0])
        return values

    with holds("the warm-up rises linearly from zero"):
        close(at(0.2, 0.5, 0.0, 0.05, 0.1), [0.0, 0.25, 0.5])
    with holds("between warm-up and cooldown the multiplier is 1"):
        close(at(0.2, 0.5, 0.2, 0.3, 0.5), [1.0, 1.0, 1.0])
    with holds("a quarter into the cooldown one half is left, and at 9/16 a quarter"):
        close(at(0.1, 0.4, 0.7, 0.6 + 0.4 * 9 / 16), [0.5, 0.25])
    with holds("the run ends at zero"):
        close(at(0.1, 0.3, 1.0), [0.0])
        close(at(0.0, 1.0, 1.0), [0.0])
    with holds("without warm-up it starts at 1"):
        close(at(0.0, 0.5, 0.0), [1.0])
    with holds("without cooldown it stays at 1"):
        close(at(0.1, 0.0, 0.5, 1.0), [1.0, 1.0])


@grader
def ex05_2(clip: Callable[[list[Tensor | None], float], float], holds: Properties) -> None:
    """Clipping of all gradients by their common norm."""

    def solve(*values: list[float] | None, limit: float = 1.0) -> tuple[list[Tensor | None], float]:
        gradients = [None if v is None else torch.tensor(v, dtype=torch.float64) for v in values]
        norm = clip(gradients, limit)
        written(norm)
        return gradients, float(norm)

    with holds("it returns the norm of all gradients together, before clipping"):
        close(solve([3.0], [0.0, 4.0])[1], 5.0)
        close(solve([0.3, 0.4])[1], 0.5)
    with holds("a matrix counts with all its numbers, beside gradients of other shapes"):
        matrix = torch.tensor([[2.0, 2.0, 2.0], [2.0, 2.0, -2.0]], dtype=torch.float64)
        norm = clip([matrix, torch.ones(1).double()], 1.0)
        written(norm)
        close(float(norm), 5.0)
        close(matrix, [[0.4, 0.4, 0.4], [0.4, 0.4, -0.4]])
    with holds("gradients within the limit stay as they are"):
        close(solve([0.3], [0.4])[0][0], [0.3], tolerance=1e-12)
    with holds("longer ones get exactly the limit as their common norm, in place"):
        gradients, _ = solve([3.0, 0.0], [4.0], limit=2.0)
        close(math.sqrt(sum(float(g.square().sum()) for g in gradients if g is not None)), 2.0)
    with holds("the direction stays the same"):
        gradients, _ = solve([30.0], [-40.0], [0.0])
        close([float(g) for g in gradients if g is not None], [0.6, -0.8, 0.0])
    with holds("a parameter without a gradient is passed over"):
        gradients, norm = solve([3.0], None, [4.0])
        close(norm, 5.0)
        equal(gradients[1] is None, True, "it has none afterwards")
    with holds("zero gradients stay zero"):
        gradients, norm = solve([0.0, 0.0])
        close([norm, *flat(gradients[0])], [0.0, 0.0, 0.0])
    with holds("a norm that is not finite is returned, and changes no gradient"):
        for bad in (math.inf, math.nan):
            gradients, norm = solve([bad], [4.0])
            equal(math.isfinite(norm), False, "finite")
            close(gradients[1], [4.0])


Part = tuple[Tensor, Tensor]


def network() -> nn.Linear:
    """The same small classifier every time."""
    torch.manual_seed(0)
    return nn.Linear(4, 3).double()


def slope(model: nn.Linear) -> Tensor:
    """The gradient that was left with weights and biases, one vector."""
    if model.weight.grad is None or model.bias.grad is None:
        raise AssertionError("there is no gradient afterwards")
    return torch.cat([model.weight.grad.flatten(), model.bias.grad])


class Saved:
    """A tensor that a graph has kept for its backward."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor


def order(accumulate: Callable[[nn.Module, list[Part]], float], parts: list[Part]) -> tuple[str, int]:
    """Forwards (f) and backwards (b) as they came, and how many tensors of earlier graphs a forward found alive."""
    model, came, old = network(), [], [0]
    alive: weakref.WeakSet[Saved] = weakref.WeakSet()

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        came.append("f")
        if output.requires_grad:
            output.register_hook(lambda gradient: came.append("b"))

    def keep(tensor: Tensor) -> Saved:
        saved = Saved(tensor)
        alive.add(saved)
        return saved

    model.register_forward_pre_hook(lambda *_: old.append(len(alive)))
    model.register_forward_hook(note)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved.tensor):
        written(accumulate(model, parts))
    return " ".join(came), max(old)


def part(rows: int, ignored: int, seed: int) -> Part:
    """Inputs and labels, of which the first `ignored` count nowhere."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, dtype=torch.float64, generator=draw)
    y = torch.randint(3, (rows,), generator=draw)
    y[:ignored] = -100
    return x, y


def reference(*parts: Part) -> tuple[float, Tensor]:
    """Mean loss and gradient of one large batch."""
    model = network()
    x, y = (torch.cat(column) for column in zip(*parts, strict=True))
    loss = F.cross_entropy(model(x), y, ignore_index=-100)
    loss.backward()
    return loss.item(), slope(model)


@grader
def ex05_3(accumulate: Callable[[nn.Module, list[Part]], float], holds: Properties) -> None:
    """The big batch's gradient from micro-batches."""

    def solve(*parts: Part) -> tuple[float, Tensor]:
        model = network()
        loss = accumulate(model, list(parts))
        written(loss)
        return float(loss.detach() if isinstance(loss, Tensor) else loss), slope(model)

    even, uneven = [part(4, 0, 1), part(4, 0, 2)], [part(6, 0, 3), part(6, 5, 4)]
    with holds("equal parts give the big batch's gradient"):
        close(solve(*even)[1], reference(*even)[1], tolerance=1e-9)
    with holds("unequal parts do, too"):
        close(solve(*uneven)[1], reference(*uneven)[1], tolerance=1e-9)
    with holds("what is returned is the mean loss over all targets"):
        close(solve(*uneven)[0], reference(*uneven)[0], tolerance=1e-9)
    with holds("a part without targets changes nothing"):
        loss, gradient = solve(*uneven, part(3, 3, 5))
        close(loss, reference(*uneven)[0], tolerance=1e-9)
        close(gradient, reference(*uneven)[1], tolerance=1e-9)
    with holds("a part's backward comes before the next part's forward"):
        equal(order(accumulate, even)[0], "f b f b", "forwards and backwards")
    with holds("no graph of an earlier part is alive in a forward"):
        equal(order(accumulate, even)[1], 0, "tensors kept for a backward that is over")
    with holds("the gradient of the step before is not in it"):
        model = network()
        written(accumulate(model, even))
        accumulate(model, uneven)
        close(slope(model), reference(*uneven)[1], tolerance=1e-9)


@grader
def ex05_4(stop_at: Callable[[list[float], int], tuple[int, int]], holds: Properties) -> None:
    """Where early stopping ends a run, and whose weights it keeps."""

    def solve(scores: list[float], patience: int) -> list[int]:
        found = stop_at(scores, patience)
        written(found)
        return list(found)

    with holds("it ends when the best is `patience` evaluations old"):
        equal(solve([3.0, 2.0, 2.5, 2.6, 1.0], 2), [3, 1])
        equal(solve([3.0, 2.0, 2.5, 1.5, 1.6, 1.7, 0.5], 2), [5, 3])
    with holds("falling scores run to the end"):
        equal(solve([3.0, 2.0, 1.0], 1), [2, 2])
    with holds("the same score once more is no improvement"):
        equal(solve([2.0, 2.0, 2.0, 1.0], 2), [2, 0])
    with holds("what counts is the best so far, not the one before"):
        equal(solve([1.0, 3.0, 2.0, 1.5, 1.2], 3), [3, 0])
    with holds("patience 0 never ends a run early"):
        equal(solve([1.0, 2.0, 3.0, 4.0], 0), [3, 0])
    with holds("a score that is not a number is no improvement"):
        equal(solve([math.nan, 2.0, math.nan, math.nan, 1.0], 2), [3, 1])


@grader
def ex05_5(best_segment: Callable[[int, float, float], int], holds: Properties) -> None:
    """How many layers a checkpointed segment should have."""

    def solve(layers: int, inside: float, between: float) -> int:
        found = best_segment(layers, inside, between)
        written(found)
        return int(found)

    def memory(k: int, layers: int, inside: float, between: float) -> float:
        return math.ceil(layers / k) * between + k * inside

    with holds("it is a whole number of layers"):
        found = best_segment(12, 10.0, 1.0)
        written(found)
        equal(float(found).is_integer(), True, "whole")
    with holds("with equal costs it is the root of the number of layers"):
        equal(solve(16, 1.0, 1.0), 4)
        equal(solve(100, 1.0, 1.0), 10)
    with holds("boundaries that cost next to nothing make segments of one layer"):
        equal(solve(24, 1.0, 1e-6), 1)
    with holds("boundaries that cost much make a single segment"):
        equal(solve(24, 1.0, 1e6), 24)
    with holds("no other number needs less memory"):
        for layers, inside, between in [(12, 17.0, 1.0), (48, 3.0, 2.0), (7, 1.0, 3.0), (31, 2.0, 5.0), (20, 1.0, 8.0)]:
            least = min(memory(k, layers, inside, between) for k in range(1, layers + 1))
            k = solve(layers, inside, between)
            close(memory(min(max(k, 1), layers), layers, inside, between), least, what=f"memory with {k} layers")
