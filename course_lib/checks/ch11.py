"""Graders of chapter 11, compression."""

from collections.abc import Callable

import torch
from torch import Tensor

from course_lib.checks.grading import Properties, Watch, close, equal, grader, written


def _random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@grader
def ex11_1(grids: Callable[[Tensor, int], tuple[Tensor, Tensor]], holds: Properties) -> None:
    """Scale and zero point of an affine grid for every row."""

    def solve(rows: list[list[float]], bits: int = 8) -> tuple[Tensor, Tensor]:
        found = grids(torch.tensor(rows, dtype=torch.float64), bits)
        written(found)
        scales, zeros = found
        return scales, zeros

    with holds("one scale and one zero point for each row"):
        equal([tuple(part.shape) for part in solve([[-1.0, 0.5, 1.55], [-2.0, 0.0, 0.1]])], [(2,), (2,)], "shapes")
    with holds("the ends of a row are the ends of its grid"):
        scales, zeros = solve([[-1.0, 0.5, 1.55], [-5.1, 0.0, 0.0]])
        close(scales, [0.01, 0.02])
        close(zeros, [-28, 127])
    with holds("fewer bits, larger steps"):
        scales, zeros = solve([[-1.0, 0.5, 1.55]], 4)
        close([*scales, *zeros], [0.17, -2])
    with holds("zero is on the grid when all values of a row are positive"):
        scales, zeros = solve([[1.0, 2.55]])
        close([*scales, *zeros], [0.01, -128])
    with holds("zero is on the grid when all values of a row are negative"):
        scales, zeros = solve([[-2.55, -1.0]])
        close([*scales, *zeros], [0.01, 127])
    with holds("tiny values have a tiny scale"):
        close(solve([[-1e-5, 1.55e-5]])[0] * 1e7, [1.0])
    with holds("a row of zeros has a scale above zero, and leaves the others alone"):
        scales, _ = solve([[0.0, 0.0, 0.0], [-1.0, 0.5, 1.55]])
        equal(bool(scales[0] > 0), True, "scale above zero")
        close(scales[1], 0.01)


@grader
def ex11_2(product: Callable[..., Tensor], holds: Properties) -> None:
    """A product of two real matrices from integers, both with zero points."""
    draw = torch.Generator().manual_seed(0)
    q, p = (torch.randint(-128, 128, shape, generator=draw) for shape in ((5, 64), (3, 64)))
    t, y = torch.tensor([0.5, 0.25, 2.0], dtype=torch.float64), torch.tensor([3, -7, 100])
    none = torch.zeros_like(y)
    expected = lambda s, z, y: (s * (q - z).double()) @ (t[:, None] * (p - y[:, None])).T
    with holds("zero points of zero: the scales of both sides"):
        found = product(q, 0.25, 0, p, t, none)
        written(found)
        equal(tuple(found.shape), (5, 3), "shape")
        close(found, expected(0.25, 0, none), 1e-9)
    with holds("each output has its own scale"):
        close(product(q, 1.0, 0, p, t, none)[:, 2], expected(1.0, 0, none)[:, 2], 1e-9)
    with holds("the zero point of the inputs is taken off"):
        close(product(q, 0.25, -28, p, t, none), expected(0.25, -28, none), 1e-9)
    with holds("each output's zero point is taken off"):
        close(product(q, 0.25, 0, p, t, y), expected(0.25, 0, y), 1e-9)
    with holds("both zero points at once"):
        close(product(q, 0.25, -28, p, t, y), expected(0.25, -28, y), 1e-9)
    with holds("neither sums nor differences overflow a byte"):
        bytes_ = lambda *shape: torch.full(shape, 127, dtype=torch.int8)
        found = product(bytes_(1, 64), 1.0, -128, bytes_(3, 64), torch.ones(3).double(), -1 - bytes_(3))
        close(found, torch.full((1, 3), 255.0 * 255 * 64), 1e-9)
    with holds("before the last line there are integers alone: no real tensor is larger than the result"):
        made: list[Tensor] = []
        with Watch(made.append):
            product(q, 0.25, -28, p, t, y)
        large = [tuple(tensor.shape) for tensor in made if tensor.is_floating_point() and tensor.numel() > 15]
        equal(large, [], "shapes of real tensors")


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
    with holds("a ratio of one keeps none"):
        equal(sum(value for rows in solve(1.0) for row in rows for value in row), 0, "kept")


@grader
def ex11_5(distil: Callable[[Tensor, Tensor, Tensor, float], Tensor], holds: Properties) -> None:
    """The loss of softened logits, of which the teacher's largest were stored."""
    student, teacher = _random(6, 5), _random(6, 5, seed=9)

    def stored(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values, places = logits.topk(k)
        return values, places

    def expected(student: Tensor, values: Tensor, places: Tensor, temperature: float) -> Tensor:
        p, q = (values / temperature).log_softmax(-1), (student / temperature).log_softmax(-1).gather(1, places)
        return temperature**2 * (p.exp() * (p - q)).sum()

    with holds("with all logits stored, two equal answers cost nothing"):
        close(distil(teacher, *stored(teacher, 5), 2.0), 0.0, 1e-9)
    with holds("at a temperature of one it is the summed divergence from the teacher"):
        close(distil(student, *stored(teacher, 5), 1.0), expected(student, *stored(teacher, 5), 1.0), 1e-9)
    with holds("a temperature softens both sides, and its square makes up for the size"):
        close(distil(student, *stored(teacher, 5), 3.0), expected(student, *stored(teacher, 5), 3.0), 1e-9)
    with holds("what was not stored has no probability for the teacher, and still some for the student"):
        close(distil(student, *stored(teacher, 2), 2.0), expected(student, *stored(teacher, 2), 2.0), 1e-9)
    with holds("logits in the hundreds are no trouble"):
        far = (500 * student, *stored(500 * teacher, 3))
        close(distil(*far, 1.0), expected(*far, 1.0), 1e-9)
    with holds("the student gets the gradient, and the teacher none"):
        a, b = student.clone().requires_grad_(), teacher.clone().requires_grad_()
        distil(a, *stored(b, 3), 2.0).backward()
        want = student.clone().requires_grad_()
        close(a.grad, torch.autograd.grad(expected(want, *stored(teacher, 3), 2.0), want)[0], 1e-9)
        equal(b.grad is None or not bool(b.grad.any()), True, "no gradient")
