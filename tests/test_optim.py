import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import optim
from course_lib.errors import CourseError


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 1000))
def test_orthogonalize_keeps_directions_and_evens_out_lengths(rows, columns, seed):
    """Against the exact polar factor from an SVD in float64: same singular vectors, values near one."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    in_basis = u.T @ optim.orthogonalize(matrix, steps=5) @ vt.T
    values = in_basis.diagonal()
    assert torch.allclose(in_basis, values.diag(), atol=1e-9)
    clear = s / s.norm() > 0.02  # five steps do not lift what is almost zero
    assert values[clear].min() > 0.3
    assert values.max() < 1.3


def test_the_quintic_is_applied_as_written():
    a, b, c = optim.NEWTON_SCHULZ
    x = torch.tensor([[0.5, 0.0], [0.0, 0.25]], dtype=torch.float64)
    start = (x / x.norm()).diagonal()
    expected = a * start + b * start**3 + c * start**5
    assert torch.allclose(optim.orthogonalize(x, steps=1).diagonal(), expected, rtol=1e-6)


def test_muon_step_is_the_formula():
    """Two steps by hand: momentum, Nesterov, orthogonalise, decay, scale by the shape."""
    torch.manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(6, 3, dtype=torch.float64))
    by_hand, momentum = weight.detach().clone(), torch.zeros(6, 3, dtype=torch.float64)
    muon = optim.Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    for _ in range(2):
        gradient = torch.randn(6, 3, dtype=torch.float64)
        weight.grad = gradient.clone()
        muon.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        update = optim.orthogonalize(0.1 * gradient + 0.9 * momentum)
        by_hand = by_hand * (1 - 0.1 * 0.5) - 0.1 * 2**0.5 * update
    assert torch.allclose(weight, by_hand, atol=1e-12)


def test_muon_agrees_with_torch_up_to_bfloat16():
    torch.manual_seed(2)
    start, gradient = torch.randn(32, 32), torch.randn(32, 32)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    ours.grad, theirs.grad = gradient.clone(), gradient.clone()
    optim.Muon([ours], lr=0.1).step()
    torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, momentum=0.95).step()
    step = (theirs - start).norm()
    assert (ours - theirs).norm() / step < 0.03


def test_muon_refuses_vectors():
    with pytest.raises(ValueError, match="2-D"):
        optim.Muon([torch.nn.Parameter(torch.ones(3))])


def test_every_weight_has_exactly_one_optimizer(tiny_model):
    optimizers = optim.build(tiny_model, "muon", matrix_lr=0.02, lr=0.01)
    owned = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(map(id, owned)) == sorted(map(id, tiny_model.parameters()))
    matrices = {id(p) for group in optimizers[1].param_groups for p in group["params"]}
    assert id(tiny_model.get_input_embeddings().weight) not in matrices
    assert id(tiny_model.lm_head.weight) not in matrices
    assert all(group["initial_lr"] == group["lr"] for o in optimizers for group in o.param_groups)


def test_adamw_alone_and_unknown_names(tiny_model):
    assert len(optim.build(tiny_model, "adamw", 0.02, 0.01)) == 1
    with pytest.raises(CourseError, match="'sgd'"):
        optim.build(tiny_model, "sgd", 0.02, 0.01)
