"""Graders of chapter 3, cross-entropy."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from course_lib.checks.grading import Properties, Watch, close, equal, grader, written
from course_lib.crossentropy import finite_differences
from course_lib.objectives import IGNORE

INF = math.inf


def numbers(*values: float) -> Tensor:
    """A float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """The same normal numbers every time, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def passing(*blocks: Tensor) -> Iterator[Tensor]:
    """Blocks that are gone as soon as the next one is asked for."""
    for block in blocks:
        lent = block.clone()
        yield lent
        lent.fill_(math.nan)


@grader
def ex03_1(online_log_sum_exp: Callable[[Iterable[Tensor]], Tensor], holds: Properties) -> None:
    """Log-sum-exp of logits that come in blocks."""
    values = draw(12)
    want = torch.logsumexp(values, 0)
    with holds("a single block gives log-sum-exp"):
        close(online_log_sum_exp([values]), want)
    with holds("logits of 1,000 do not overflow"):
        close(online_log_sum_exp([numbers(1000.0, 1000.0)]), 1000 + math.log(2))
    with holds("logits of −1,000 do not vanish"):
        close(online_log_sum_exp([numbers(-1000.0), numbers(-1001.0)]), -1000 + math.log1p(math.exp(-1)))
    with holds("a later block with a larger maximum rescales what was summed before"):
        close(online_log_sum_exp([numbers(1.0, 2.0), numbers(4.0, 3.0)]), torch.logsumexp(numbers(1, 2, 3, 4), 0))
    with holds("a later block with a smaller maximum is measured against the maximum so far"):
        close(online_log_sum_exp([numbers(4.0, 3.0), numbers(2.0, 1.0)]), torch.logsumexp(numbers(1, 2, 3, 4), 0))
    with holds("one block at a time is enough: an earlier block is never looked at again"):
        close(online_log_sum_exp(passing(*values.split(5))), want)
    with holds("a block of −∞ (tokens that are ruled out) adds nothing, first or last"):
        close(online_log_sum_exp([numbers(-INF, -INF), values, numbers(-INF)]), want)


@grader
def ex03_2(soft_gradient: Callable[[Tensor, Tensor, float], Tensor], holds: Properties) -> None:
    """∂/∂z of Σ −target · log softmax(z / T)."""
    logits, target = 3 * draw(4, 5), draw(4, 5, seed=1).softmax(-1)
    one_hot = F.one_hot(torch.tensor([0, 4, 2, 2]), 5).double()
    with holds("at temperature 1 and for a one-hot target it is the belief minus the truth"):
        close(soft_gradient(logits, one_hot, 1.0), logits.softmax(-1) - one_hot)
    with holds("a soft target is used as it is"):
        close(soft_gradient(logits, target, 1.0), logits.softmax(-1) - target)
    with holds("at a high temperature the belief is softened too: all logits then pull in proportion to 1/V − target"):
        found = soft_gradient(logits, one_hot, 1e6)
        written(found)
        close(found / found.abs().max(), (0.2 - one_hot) / 0.8, tolerance=1e-4)
    with holds("it is the difference quotient of the loss, at any temperature"):
        loss = lambda z: -(target * (z / 2.5).log_softmax(-1)).sum()
        close(soft_gradient(logits, target, 2.5), finite_differences(loss, logits), tolerance=1e-7)


@grader
def ex03_3(mean_loss: Callable[[list[tuple[Tensor, Tensor]]], Tensor], holds: Properties) -> None:
    """The mean loss per target over micro-batches of (logits, labels)."""
    logits, labels = draw(8, 6), torch.tensor([0, 5, 1, 3, 2, 2, 4, 0])
    whole = F.cross_entropy(logits, labels)
    some = labels.clone()
    some[[0, 1, 2, 5]] = IGNORE
    counted = F.cross_entropy(logits, some, ignore_index=IGNORE)
    nothing = (draw(3, 6, seed=1), torch.full((3,), IGNORE))
    with holds("one micro-batch gives the mean over its targets"):
        close(mean_loss([(logits, labels)]), whole)
    with holds("the same targets in unequal parts give the same mean"):
        close(mean_loss(list(zip(logits.split([5, 1, 2]), labels.split([5, 1, 2]), strict=True))), whole)
    with holds("a label of −100 counts neither above nor below the line"):
        close(mean_loss([(logits, some)]), counted)
    with holds("a micro-batch without any target changes nothing"):
        close(mean_loss([(logits, some), nothing]), counted)
    with holds("no target at all is a loss of zero, not NaN"):
        close(mean_loss([nothing]), 0.0)
    with holds("its gradient is that of the whole batch, through every micro-batch"):
        want = _gradient(lambda parts: F.cross_entropy(*parts[0]), logits, some, [8])
        close(_gradient(mean_loss, logits, some, [8]), want)
        close(_gradient(mean_loss, logits, some, [5, 3]), want)


def _gradient(
    mean_loss: Callable[[list[tuple[Tensor, Tensor]]], Tensor], logits: Tensor, labels: Tensor, sizes: list[int]
) -> Tensor:
    logits = logits.clone().requires_grad_()
    loss = mean_loss(list(zip(logits.split(sizes), labels.split(sizes), strict=True)))
    written(loss)
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        raise AssertionError("the result is a number without a gradient; keep it a tensor")
    return torch.autograd.grad(loss, logits)[0]


@grader
def ex03_4(kl_from_logits: Callable[[Tensor, Tensor], Tensor], holds: Properties) -> None:
    """KL(p ‖ q) of two sets of logits, one number a row."""
    p, q = 2 * draw(3, 5), 2 * draw(3, 5, seed=1)
    want = (p.softmax(-1) * (p.softmax(-1) / q.softmax(-1)).log()).sum(-1)
    with holds("each row has a number of its own"):
        found = kl_from_logits(p, q)
        written(found)
        equal(tuple(found.shape), (3,), "shape")
    with holds("logits that differ by a constant are the same distribution: zero"):
        close(kl_from_logits(p, p + 7.0), torch.zeros(3, dtype=torch.float64))
    with holds("p, the first argument, is the one that the mean is taken over"):
        close(kl_from_logits(p, q), want)
    with holds("logits of 1,000 do not overflow"):
        close(kl_from_logits(numbers(1000.0, 0.0)[None], numbers(0.0, 0.0)[None]), numbers(math.log(2)))
        close(kl_from_logits(numbers(0.0, 0.0)[None], numbers(1000.0, 0.0)[None]), numbers(500 - math.log(2)))
    with holds("a token that p rules out (−∞) adds nothing"):
        close(kl_from_logits(numbers(0.0, 0.0, -INF)[None], numbers(0.0, 0.0, 0.0)[None]), numbers(math.log(1.5)))


class _Memory(Watch):
    """Notes the most elements of a tensor made inside, and how many tensors of a chunk's size are kept at once."""

    def __init__(self, chunk: int):
        super().__init__(self.count)
        self.chunk, self.largest, self.most = chunk, 0, 0
        self.kept: set[StorageWeakRef] = set()

    def count(self, tensor: Tensor) -> None:
        self.largest = max(self.largest, tensor.numel())
        if tensor.numel() == self.chunk:
            self.kept.add(StorageWeakRef(tensor.untyped_storage()))
        self.kept = {storage for storage in self.kept if not storage.expired()}
        self.most = max(self.most, len(self.kept))


@grader
def ex03_6(
    chunked_loss: Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor, Tensor]], holds: Properties
) -> None:
    """Summed loss of a linear layer, and both gradients, from a few rows of logits at a time."""
    hidden, weight = draw(50, 6), draw(40, 6, seed=1)
    labels = torch.arange(50) % 40
    labels[::7] = IGNORE
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = F.cross_entropy(h @ w.T, labels, ignore_index=IGNORE, reduction="sum")
    want = (loss, *torch.autograd.grad(loss, (h, w)))

    def solve(rows: int, of: int = 50) -> tuple[Tensor, Tensor, Tensor]:
        found = chunked_loss(hidden[:of], weight, labels[:of], rows)
        written(found)
        if len(found) != 3:
            raise AssertionError("return three things: loss, gradient of hidden, gradient of weight")
        return found

    with holds("in one chunk the loss is the sum over targets"):
        close(solve(50)[0], want[0])
    with holds("in one chunk the gradient of hidden is autograd's, zero rows for −100 included"):
        close(solve(50)[1], want[1])
    with holds("in one chunk the gradient of weight is autograd's"):
        close(solve(50)[2], want[2])
    with holds("chunks that do not divide the rows change nothing"):
        for got, expected in zip(solve(8), want, strict=True):
            close(got, expected)
    with holds("no tensor is larger than the logits of one chunk, or than the arguments"):
        with _Memory(8 * 40) as memory:
            solve(8)
        if memory.largest > 8 * 40:
            raise AssertionError(f"one had {memory.largest} elements; 8 rows of 40 logits are {8 * 40}")
    with holds("what a chunk made is gone before the next but one: more chunks keep no more tensors"):
        with _Memory(5 * 40) as three:
            solve(5, of=15)
        with _Memory(5 * 40) as ten:
            solve(5)
        if ten.most > three.most + 1:
            raise AssertionError(f"tensors of a chunk's size: {three.most} with three chunks, {ten.most} with ten")
