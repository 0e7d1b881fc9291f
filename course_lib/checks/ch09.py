"""Graders of chapter 9, generalization."""

import itertools
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
def ex09_2(agree: Callable[[Tensor, Tensor, float], Tensor], holds: Properties) -> None:
    """R-Drop for any number of passes, as a mean over texts; with two it is equation eq-rdrop."""
    one, two = _random(6, 3), _random(6, 3) * 0.5 + _random(3)
    three, labels = torch.stack([one, two, one - 2 * two]), torch.tensor([0, 1, 2, 2, 1, 0])
    nll = lambda logits: torch.nn.functional.cross_entropy(logits, labels)

    def apart(passes: Tensor) -> Tensor:
        """Mean over texts and over pairs; a pair's two divergences together count twice."""
        pairs = [(p, q, p.exp() - q.exp()) for p, q in itertools.combinations(passes.log_softmax(-1), 2)]
        return torch.stack([((p - q) * d).sum(-1).mean() for p, q, d in pairs]).mean() / 2

    with holds("equal passes give the cross-entropy"):
        close(agree(one.expand(3, -1, -1), labels, 2.0), nll(one), 1e-9)
    with holds("without alpha it is the mean of all cross-entropies"):
        close(agree(three, labels, 0.0), torch.stack([nll(logits) for logits in three]).mean(), 1e-9)
    with holds("of two passes, alpha weighs half of the two divergences"):
        for alpha in (1.0, 3.0):
            close(agree(three[:2], labels, alpha) - agree(three[:2], labels, 0.0), alpha * apart(three[:2]), 1e-9)
    with holds("of three passes, alpha weighs the mean of all six divergences"):
        close(agree(three, labels, 2.0) - agree(three, labels, 0.0), 2 * apart(three), 1e-9)
    with holds("the passes may change places"):
        close(agree(three, labels, 1.5), agree(three[[2, 0, 1]], labels, 1.5), 1e-9)
    with holds("every pass learns from its divergences, as p and as q"):
        found, want = three.clone().requires_grad_(), three.clone().requires_grad_()
        loss = agree(found, labels, 5.0) - agree(found, labels, 0.0)
        (got,) = torch.autograd.grad(loss, found)
        close(got, torch.autograd.grad(5 * apart(want), want)[0], 1e-9)


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
        close(perturb(loss, x.clone(), 0.5).norm(dim=(1, 2)), [0.5] * 3)
    with holds("along its gradient, upward"):
        close(perturb(loss, x.clone(), 0.3), 0.3 * unit)
    with holds("where nothing pulls, nothing moves"):
        still = lambda embedded: loss(embedded[:2])
        found = perturb(still, x.clone(), 0.3)
        close(found[2], torch.zeros(4, 5), 1e-12)
        close(found[:2], 0.3 * unit[:2])
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
def ex09_5(ensemble_loss: Callable[[Tensor, Tensor], Tensor], holds: Properties) -> None:
    """The log loss of averaged probabilities, from the logits of every model."""
    logits, labels = 2 * _random(3, 5, 4), torch.tensor([0, 3, 1, 1, 2])

    def solve(rows: list[list[list[float]]], *labels: int) -> Tensor:
        found = ensemble_loss(torch.tensor(rows, dtype=torch.float64), torch.tensor(labels))
        written(found)
        return found

    with holds("one model alone has its cross-entropy, a mean over texts"):
        close(ensemble_loss(logits[:1], labels), torch.nn.functional.cross_entropy(logits[0], labels), 1e-9)
    with holds("probabilities are averaged, neither logits nor losses"):
        nine, three = [math.log(9), 0.0], [math.log(3), math.log(7)]  # 0.9 and 0.3 for the first class
        close(solve([[nine], [three]], 0), -math.log(0.6), 1e-9)
    with holds("every text has a mean of its own, over all models"):
        chances = logits.softmax(-1).mean(0)
        close(ensemble_loss(logits, labels), -chances[torch.arange(5), labels].log().mean(), 1e-9)
    with holds("a model that is sure and wrong costs what its share is worth"):
        close(solve([[[1000.0, 0.0]], [[0.0, 1000.0]]], 0), math.log(2), 1e-9)
    with holds("where all are sure and wrong, the loss is large and not infinite"):
        close(solve([[[0.0, 1000.0]], [[0.0, 1000.0]]], 0), 1000.0, 1e-9)
