"""Graders of chapter 9, generalization."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.checks.grading import Properties, close, equal, grader, written


def _random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@grader
def ex09_1(steepest: Callable[[list[float], list[float]], float], holds: Properties) -> None:
    """The learning rate at which a range test's loss falls fastest per decade."""

    def solve(rates: list[float], losses: list[float]) -> float:
        found = steepest(list(rates), list(losses))
        written(found)
        return found

    with holds("it is the rate where the steepest fall begins"):
        close(solve([1e-5, 1e-4, 1e-3, 1e-2], [3.0, 2.9, 2.0, 1.9]), 1e-4)
    with holds("a fall counts per decade, not per point"):
        close(solve([1e-4, 1e-3, 1.1e-3, 1e-1], [3.0, 2.5, 2.3, 2.2]), 1e-3)
    with holds("not the lowest loss"):
        close(solve([1e-4, 1e-3, 1e-2, 1e-1], [3.0, 1.5, 1.2, 9.0]), 1e-4)
    with holds("what comes after the loss is no number any more is ignored"):
        close(solve([1e-3, 1e-2, 1e-1, 1.0, 10.0], [3.0, 2.0, 4.0, math.nan, math.nan]), 1e-3)
        close(solve([1e-3, 1e-2, 1e-1, 1.0, 10.0], [3.0, 2.0, 4.0, math.inf, 1.0]), 1e-3)


@grader
def ex09_2(rdrop: Callable[[Tensor, Tensor, Tensor, float], Tensor], holds: Properties) -> None:
    """Equation eq-rdrop as a mean over texts, from the logits of two passes."""
    one, two, labels = _random(6, 3), _random(6, 3) * 0.5 + _random(3), torch.tensor([0, 1, 2, 2, 1, 0])
    nll = lambda logits: torch.nn.functional.cross_entropy(logits, labels)
    p, q = one.log_softmax(-1), two.log_softmax(-1)
    apart = (((p.exp() - q.exp()) * (p - q)).sum(-1) / 2).mean()
    with holds("two equal passes give the cross-entropy"):
        close(rdrop(one, one.clone(), labels, 2.0), nll(one), 1e-9)
    with holds("without alpha it is the mean of both cross-entropies"):
        close(rdrop(one, two, labels, 0.0), (nll(one) + nll(two)) / 2, 1e-9)
    with holds("alpha weighs half of the two divergences"):
        close(rdrop(one, two, labels, 1.0) - rdrop(one, two, labels, 0.0), apart, 1e-9)
        close(rdrop(one, two, labels, 3.0) - rdrop(one, two, labels, 0.0), 3 * apart, 1e-9)
    with holds("the passes may change places"):
        close(rdrop(one, two, labels, 1.5), rdrop(two, one, labels, 1.5), 1e-9)
    with holds("both passes learn from the divergence"):
        a, b = one.clone().requires_grad_(), two.clone().requires_grad_()
        (rdrop(a, b, labels, 5.0) - rdrop(a, b, labels, 0.0)).backward()
        equal([a.grad is not None and bool(a.grad.any()), b.grad is not None and bool(b.grad.any())], [True, True])


@grader
def ex09_3(perturb: Callable[[Callable[[Tensor], Tensor], Tensor, float], Tensor], holds: Properties) -> None:
    """The step of every text that raises the loss fastest."""
    x, weights = _random(3, 4, 5), _random(4, 5)
    loss = lambda embedded: ((embedded * weights).sum((1, 2)) ** 2).sum()
    gradient = 2 * (x * weights).sum((1, 2), keepdim=True) * weights
    unit = gradient / gradient.norm(dim=(1, 2), keepdim=True)
    with holds("it has the shape of the embeddings"):
        found = perturb(loss, x.clone(), 0.5)
        written(found)
        equal(tuple(found.shape), (3, 4, 5), "shape")
    with holds("every text moves by epsilon"):
        close(perturb(loss, x.clone(), 0.5).norm(dim=(1, 2)), [0.5] * 3, 1e-9)
    with holds("along its gradient, upward"):
        close(perturb(loss, x.clone(), 0.3), 0.3 * unit, 1e-9)
    with holds("where nothing pulls, nothing moves"):
        still = lambda embedded: loss(embedded[:2])
        found = perturb(still, x.clone(), 0.3)
        close(found[2], torch.zeros(4, 5), 1e-12)
        close(found[:2], 0.3 * unit[:2], 1e-9)
    with holds("the embeddings stay as they were"):
        given = x.clone()
        perturb(loss, given, 0.3)
        equal([torch.equal(given, x), given.requires_grad, given.grad is None], [True, False, True])
    with holds("the step is a constant: no gradient flows through it"):
        equal(perturb(loss, x.clone(), 0.3).requires_grad, False)


@grader
def ex09_4(hopeless: Callable[[list[float], list[list[float]]], bool], holds: Properties) -> None:
    """Whether a trial is worse than the median of the others at the same epoch."""
    others = [[1.0, 0.8, 0.6], [1.2, 1.0, 0.9], [0.9, 0.5, 0.4], [1.1, 0.7], [2.0]]

    def solve(losses: list[float], known: list[list[float]]) -> bool:
        found = hopeless(list(losses), [list(trial) for trial in known])
        written(found)
        return bool(found)

    with holds("worse than the median at this epoch"):
        equal(solve([1.2], others), True)
        equal(solve([1.05], others), False)
    with holds("only trials that came so far count"):
        equal(solve([1.3, 0.78], others), True)
        equal(solve([1.3, 0.74], others), False)
    with holds("a trial is as good as its best epoch"):
        equal(solve([1.0, 0.5, 0.9], others), False)
    with holds("so are the others"):
        equal(solve([0.9, 0.62], [[0.5, 0.9], [0.6, 0.8], [0.9, 0.7]]), True)
    with holds("equal to the median is not worse"):
        equal(solve([1.1], others), False)
    with holds("nobody came so far: go on"):
        equal(solve([9.0, 9.0, 9.0, 9.0], others), False)


@grader
def ex09_5(left: Callable[[list[float], float], float], holds: Properties) -> None:
    """What decoupled weight decay leaves of a weight that has no gradient."""
    with holds("one step takes rate times decay"):
        close(left([0.1], 0.5), 0.95, 1e-12)
    with holds("steps multiply"):
        close(left([0.1, 0.2, 0.0], 0.5), 0.95 * 0.9, 1e-12)
    with holds("no decay leaves everything"):
        close(left([1e-3] * 100, 0.0), 1.0, 1e-12)
    with holds("a short fine-tuning with the usual hundredth leaves almost everything"):
        close(left([1e-3] * 130, 0.01), (1 - 1e-5) ** 130, 1e-9)
    with holds("it is the same whatever the order"):
        close(left([0.3, 0.1, 0.2], 1.0), 0.7 * 0.9 * 0.8, 1e-12)
