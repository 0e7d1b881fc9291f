"""Graders of chapter 10, parameter-efficient fine-tuning."""

from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.checks.grading import Properties, Watch, close, equal, grader, written


def _random(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _matrices(weight: Tensor, made: list[tuple[int, ...]]) -> Watch:
    """Notes the shape of every matrix as large as `weight` that is made inside; views of it are none."""

    def see(tensor: Tensor) -> None:
        view = tensor.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
        if {*tensor.shape[-2:]} == {*weight.shape} and not view:
            made.append(tuple(tensor.shape))

    return Watch(see)


@grader
def ex10_1(lora: Callable[..., Tensor], holds: Properties) -> None:
    """LoRA as two thin products, with an adapter of its own for every row."""
    x, w, a, b = _random(6, 3, 7), _random(5, 7), _random(4, 2, 7), _random(4, 5, 2)
    which = torch.tensor([2, 0, 3, 2, 1, 0])

    def expected(which: Tensor, alpha: float) -> Tensor:
        return torch.stack([row @ (w + alpha / 2 * b[i] @ a[i]).T for row, i in zip(x, which.tolist(), strict=True)])

    with holds("a B of zeros leaves the base's output"):
        close(lora(x, w, a, torch.zeros_like(b), which, 4.0), x @ w.T, 1e-9)
    with holds("the change is scaled by alpha over the rank"):
        for alpha in (2.0, 6.0):
            found = lora(x, w, a[:1], b[:1], torch.zeros_like(which), alpha)
            close(found, expected(torch.zeros_like(which), alpha), 1e-9)
    with holds("every row has the adapter that `which` names"):
        found = lora(x, w, a, b, which, 6.0)
        written(found)
        equal(tuple(found.shape), (6, 3, 5), "shape")
        close(found, expected(which, 6.0), 1e-9)
    with holds("the base's weight stays as it was"):
        before = w.clone()
        lora(x, w, a, b, which, 6.0)
        equal(w, before)
    with holds("no other matrix of the size of W is made, for one row or for all"):
        made: list[tuple[int, ...]] = []
        with _matrices(w, made):
            lora(x, w, a, b, which, 6.0)
        equal(made, [], "shapes made")


@grader
def ex10_2(trained: Callable[[list[tuple[int, int]], int], tuple[int, int]], holds: Properties) -> None:
    """Weights of LoRA, and the bytes that training them keeps."""

    def solve(shapes: list[tuple[int, int]], rank: int) -> tuple[int, int]:
        found = trained(shapes, rank)
        written(found)
        return found

    with holds("a square matrix has a row and a column for every rank"):
        equal(solve([(160, 160)], 4)[0], 1280, "weights")
    with holds("outputs and inputs both count"):
        equal(solve([(416, 160)], 1)[0], 576, "weights")
    with holds("all matrices are added up"):
        equal(solve([(160, 160), (416, 160), (160, 416)], 8)[0], 11776, "weights")
    with holds("a gradient and two averages, four bytes each"):
        equal(solve([(160, 160)], 4)[1], 15360, "bytes")


@grader
def ex10_3(factor: Callable[[Tensor, int], tuple[Tensor, Tensor]], holds: Properties) -> None:
    """The best factors of a given rank."""
    delta = _random(6, 9)
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    with holds("A is (rank, in), B is (out, rank)"):
        found = factor(delta.clone(), 2)
        written(found)
        equal([tuple(part.shape) for part in found], [(2, 9), (6, 2)], "shapes")
    for rank in (1, 3):
        with holds(f"their product is the closest matrix of rank {rank}"):
            a, b = factor(delta.clone(), rank)
            close(b @ a, (u[:, :rank] * s[:rank]) @ v[:rank], 1e-8)
    with holds("at full rank nothing is lost"):
        a, b = factor(delta.clone(), 6)
        close(b @ a, delta, 1e-8)
    with holds("both have the same norm"):
        a, b = factor(delta.clone(), 3)
        close(a.norm(), b.norm(), 1e-8)


@grader
def ex10_4(prefixed: Callable[..., Tensor], holds: Properties) -> None:
    """Attention that is finished, and a prefix that joins it."""
    q, k, v, pk, pv = _random(5, 8), _random(5, 8) + 0.1, _random(5, 8) - 0.2, _random(3, 8), _random(3, 8) * 2

    def attend(q: Tensor, length: int) -> Tensor:
        keys, values = torch.cat([pk[:length], k]), torch.cat([pv[:length], v])
        seen = torch.ones(5, length + 5).tril(length).bool()
        return (q @ keys.T / 8**0.5).masked_fill(~seen, -torch.inf).softmax(-1) @ values

    def solve(q: Tensor, length: int, k: Tensor = k) -> Tensor:
        found = prefixed(attend(q, 0), q.clone(), k.clone(), pk[:length].clone(), pv[:length].clone())
        written(found)
        return found

    with holds("an empty prefix changes nothing"):
        close(solve(q, 0), attend(q, 0), 1e-9)
    with holds("the first token sees itself and the whole prefix"):
        close(solve(q, 3)[0], attend(q, 3)[0], 1e-9)
    with holds("no token counts a later one's key"):
        other = k.clone()
        other[-1] += 1
        close(solve(q, 3, other)[:-1], solve(q, 3)[:-1], 1e-12)
    with holds("the last token sees everything"):
        close(solve(q, 3)[-1], attend(q, 3)[-1], 1e-9)
    with holds("scores of a thousand do not overflow"):
        close(solve(2000 * q, 3), attend(2000 * q, 3), 1e-9)


@grader
def ex10_5(allocate: Callable[[list[Tensor], int], list[Tensor]], holds: Properties) -> None:
    """The most important singular values of all matrices together."""
    importance = [torch.tensor([5.0, 1.0, 4.0]), torch.tensor([0.5, 3.0]), torch.tensor([2.0, 0.1, 0.2])]

    def solve(budget: int) -> list[list[bool]]:
        found = allocate([part.clone() for part in importance], budget)
        written(found)
        return [part.tolist() for part in found]

    with holds("one boolean vector for each matrix"):
        equal([len(part) for part in solve(3)], [3, 2, 3], "lengths")
        equal({type(value) for part in solve(3) for value in part}, {bool}, "types")
    with holds("the most important of all matrices together"):
        equal(solve(3), [[True, False, True], [False, True], [False, False, False]])
    with holds("a larger budget keeps what the smaller one kept"):
        equal(solve(5), [[True, True, True], [False, True], [True, False, False]])
    with holds("nothing is kept of a budget of zero"):
        equal(sum(value for part in solve(0) for value in part), 0, "kept")
    with holds("a budget larger than all keeps all"):
        equal(sum(value for part in solve(99) for value in part), 8, "kept")
