"""Graders of chapter 11, compression."""

from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.checks.grading import Properties, close, equal, grader, written


def _random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@grader
def ex11_1(grid: Callable[[Tensor, int], tuple[float, int]], holds: Properties) -> None:
    """Scale and zero point of an affine grid."""

    def solve(values: list[float], bits: int) -> tuple[float, int]:
        found = grid(torch.tensor(values, dtype=torch.float64), bits)
        written(found)
        return float(found[0]), int(found[1])

    with holds("the ends of the range are the ends of the grid"):
        close(solve([-1.0, 0.5, 1.55], 8), (0.01, -28))
    with holds("fewer bits, larger steps"):
        close(solve([-1.0, 0.5, 1.55], 4), (0.17, -2))
    with holds("zero is on the grid when all values are positive"):
        close(solve([1.0, 2.55], 8), (0.01, -128))
    with holds("zero is on the grid when all values are negative"):
        close(solve([-2.55, -1.0], 8), (0.01, 127))
    with holds("values that are all zero give a scale above zero"):
        equal(solve([0.0, 0.0], 8)[0] > 0, True, "scale above zero")


@grader
def ex11_2(product: Callable[..., Tensor], holds: Properties) -> None:
    """A product of two real matrices from integers."""
    draw = torch.Generator().manual_seed(0)
    q, p = (torch.randint(-128, 128, shape, generator=draw) for shape in ((5, 64), (3, 64)))
    t = torch.tensor([0.5, 0.25, 2.0], dtype=torch.float64)
    expected = lambda s, z: (s * (q - z).double()) @ (t[:, None] * p).T
    with holds("a zero point of zero: the scales of both sides"):
        found = product(q, 0.25, 0, p, t)
        equal(tuple(found.shape), (5, 3), "shape")
        close(found, expected(0.25, 0), 1e-9)
    with holds("each output has its own scale"):
        found = product(q, 1.0, 0, p, t)
        close(found[:, 2], expected(1.0, 0)[:, 2], 1e-9)
    with holds("the zero point is taken off"):
        close(product(q, 0.25, -28, p, t), expected(0.25, -28), 1e-9)
    with holds("sums do not overflow a byte"):
        q2, p2 = torch.full((1, 64), 127, dtype=torch.int8), torch.full((3, 64), 127, dtype=torch.int8)
        close(product(q2, 1.0, 1, p2, torch.ones(3, dtype=torch.float64)), torch.full((1, 3), 126.0 * 127 * 64), 1e-9)


@grader
def ex11_3(rounded: Callable[[Tensor, float, int, int], Tensor], holds: Properties) -> None:
    """Rounding with a straight-through gradient."""
    x = torch.tensor([-0.9, -0.24, 0.0, 0.13, 0.26, 0.7], dtype=torch.float64)

    def solve() -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        out = rounded(leaf, 0.1, -4, 3)
        written(out)
        out.backward(torch.arange(1.0, 7.0, dtype=torch.float64))
        assert leaf.grad is not None, "no gradient came back"
        return out.detach(), leaf.grad

    with holds("values go to the nearest point of the grid"):
        close(solve()[0][1:5], [-0.2, 0.0, 0.1, 0.3], 1e-9)
    with holds("what lies beyond the ends goes to the ends"):
        close(solve()[0][[0, 5]], [-0.4, 0.3], 1e-9)
    with holds("inside, the gradient passes unchanged"):
        close(solve()[1][1:5], [2.0, 3.0, 4.0, 5.0], 1e-9)
    with holds("beyond the ends it is zero"):
        close(solve()[1][[0, 5]], [0.0, 0.0], 1e-9)


@grader
def ex11_4(masks: Callable[[list[Tensor], float], list[Tensor]], holds: Properties) -> None:
    """Global magnitude pruning."""
    weights = [torch.tensor([[1.0, -5.0], [0.1, 3.0]]), torch.tensor([[0.2, -0.3], [2.0, 0.4]])]

    def solve(ratio: float, some: list[Tensor] = weights) -> list[list[list[bool]]]:
        found = masks([w.clone() for w in some], ratio)
        written(found)
        return [mask.tolist() for mask in found]

    with holds("one boolean mask of the same shape for each matrix"):
        uneven = [weights[0], torch.ones(1, 3)]
        found = solve(0.5, uneven)
        equal([[len(rows), len(rows[0])] for rows in found], [[2, 2], [1, 3]], "shapes")
        equal({type(value) for rows in found for row in rows for value in row}, {bool}, "types")
    with holds("one threshold for all matrices together"):
        equal(solve(0.5), [[[True, True], [False, True]], [[False, False], [True, False]]])
    with holds("the sign does not count"):
        equal(solve(0.875), [[[False, True], [False, False]], [[False, False], [False, False]]])
    with holds("a ratio of zero keeps all"):
        equal(sum(value for rows in solve(0.0) for row in rows for value in row), 8, "kept")


@grader
def ex11_5(distil: Callable[[Tensor, Tensor, float], Tensor], holds: Properties) -> None:
    """The loss of softened logits."""
    student, teacher = _random(6, 4), _random(6, 4, seed=9)

    def divergence(a: Tensor, b: Tensor, temperature: float) -> Tensor:
        p, q = (b / temperature).softmax(-1), (a / temperature).softmax(-1)
        return (p * (p / q).log()).sum()

    with holds("two equal answers cost nothing"):
        close(distil(teacher, teacher, 2.0), 0.0, 1e-9)
    with holds("at a temperature of one it is the summed divergence from the teacher"):
        close(distil(student, teacher, 1.0), divergence(student, teacher, 1.0), 1e-9)
    with holds("a temperature softens both sides, and its square makes up for the size"):
        close(distil(student, teacher, 3.0), 9 * divergence(student, teacher, 3.0), 1e-9)
    with holds("logits in the hundreds stay finite"):
        found = distil(500 * student, 500 * teacher, 1.0)
        written(found)
        equal(bool(torch.isfinite(found)), True, "finite")
    with holds("the teacher gets no gradient"):
        a, b = student.clone().requires_grad_(), teacher.clone().requires_grad_()
        distil(a, b, 2.0).backward()
        equal(a.grad is not None, True, "the student has a gradient")
        equal(b.grad is None or not bool(b.grad.any()), True, "no gradient")
