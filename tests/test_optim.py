from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

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


@pytest.mark.parametrize(("outputs", "inputs"), [(12, 3), (3, 12)])
def test_muon_moves_gpt2s_transposed_matrix_as_far_as_any_other(outputs, inputs):
    linear, turned = torch.nn.Linear(inputs, outputs, bias=False), Conv1D(outputs, inputs)
    turned.weight.data = linear.weight.data.T.clone()
    before, x = linear.weight.detach().clone(), torch.randn(7, inputs)
    for module in (linear, turned):
        model = torch.nn.ModuleDict({"hidden": module})
        module(x).square().sum().backward()
        for optimizer in optim.build(model, "muon", matrix_lr=0.1, lr=0.1):
            optimizer.step()
    assert (linear.weight - before).abs().max() > 0.01
    assert torch.allclose(turned.weight.T, linear.weight, atol=1e-5)


def test_the_quintic_is_applied_as_written():
    a, b, c = optim.NEWTON_SCHULZ
    x = torch.tensor([[0.5, 0.0], [0.0, 0.25]], dtype=torch.float64)
    start = (x / x.norm()).diagonal()
    expected = a * start + b * start**3 + c * start**5
    assert torch.allclose(optim.orthogonalize(x, steps=1).diagonal(), expected, rtol=1e-6)


def test_muon_step_is_the_formula():
    """Equation eq-muon, two steps by hand: momentum, Nesterov, orthogonalise, decay, scale by the shape."""
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


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_our_adamw_is_torchs(decay):
    """Equation eq-adamw."""
    torch.manual_seed(3)
    start = torch.randn(5, 4, dtype=torch.float64)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": decay}
    mine, reference = optim.AdamW([ours], **options), torch.optim.AdamW([theirs], **options)
    for _ in range(20):
        gradient = torch.randn(5, 4, dtype=torch.float64)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
        assert (ours - theirs).abs().max() < 1e-14


def test_a_batch_of_matrices_is_orthogonalised_one_by_one():
    stack = torch.randn(3, 6, 4, dtype=torch.float64) * torch.tensor([1.0, 100.0, 1e-3])[:, None, None]
    single = torch.stack([optim.orthogonalize(m) for m in stack])
    assert torch.allclose(optim.orthogonalize(stack), single, atol=1e-12)


def test_equal_shapes_are_stacked_on_a_gpu_only(monkeypatch):
    weights = [torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2, 3)]
    assert [len(stack) for stack in optim._stacks(weights)] == [1, 1, 1]
    on_gpu = [SimpleNamespace(shape=w.shape, is_cuda=True) for w in weights]
    assert [len(stack) for stack in optim._stacks(on_gpu)] == [2, 1]


def test_the_tail_average_is_the_mean_of_the_last_weights():
    layer = torch.nn.Linear(2, 2, bias=False).double()
    average, seen = optim.TailAverage(layer, start=0.6), []
    for step in range(10):
        torch.nn.init.normal_(layer.weight)
        average.update(step / 10)
        seen.append(layer.weight.detach().clone())
        if step == 7:  # interrupted and resumed
            resumed = optim.TailAverage(layer, start=0.6)
            resumed.load_state_dict(average.state_dict())
            average = resumed
    average.swap_in()
    assert torch.allclose(layer.weight, torch.stack(seen[6:]).mean(0), atol=1e-12)


def test_a_tail_that_never_began_leaves_the_weights():
    layer = torch.nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    optim.TailAverage(layer, start=0.9).swap_in()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
def test_every_optimizer_learns(name, tiny_model):
    ids = torch.arange(32).repeat(4, 1)
    optimizers = optim.build(tiny_model, name, 0.02, {"sgd": 0.5, "adafactor": 0.1}.get(name, 0.01))
    losses = []
    for _ in range(15):
        loss = tiny_model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.5


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
    with pytest.raises(CourseError, match="Did you mean adamw"):
        optim.build(tiny_model, "adam", 0.02, 0.01)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_without_a_gradient_only_the_matrices_inside_shrink(name, tiny_model):
    """A rare token's embedding must not decay while it waits for its next occurrence."""
    before = {key: p.detach().clone().add_(0.5) for key, p in tiny_model.named_parameters()}
    optimizers = optim.build(tiny_model, name, matrix_lr=0.1, lr=0.1, weight_decay=0.5)
    for key, p in tiny_model.named_parameters():
        p.data.copy_(before[key])
        p.grad = torch.zeros_like(p)
    for optimizer in optimizers:
        optimizer.step()
    inner = {id(p) for p in optim.split_parameters(tiny_model)[0]}
    for key, p in tiny_model.named_parameters():
        assert torch.allclose(p, before[key] * (0.95 if id(p) in inner else 1.0)), key
    assert 0 < len(inner) < len(before)
