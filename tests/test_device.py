from types import SimpleNamespace

import numpy as np
import pytest
import torch

from course_lib import device
from course_lib.errors import CourseError
from course_lib.precision import LossScaler, Precision


def pretend_cuda(monkeypatch, name, major):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    props = SimpleNamespace(name=name, major=major, total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: props)


@pytest.mark.parametrize(
    ("name", "major", "dtype", "peak"),
    [
        ("Tesla T4", 7, "float16", 65e12),
        ("NVIDIA A100-SXM4-40GB", 8, "bfloat16", 312e12),
        ("NVIDIA A10", 8, "bfloat16", 125e12),
        ("NVIDIA GeForce RTX 4090", 8, "bfloat16", 165e12),
        ("NVIDIA H100 80GB HBM3", 9, "bfloat16", 989e12),
        ("Some Future Card", 12, "bfloat16", None),
    ],
)
def test_cuda_cards_get_their_dtype_and_peak(monkeypatch, name, major, dtype, peak):
    pretend_cuda(monkeypatch, name, major)
    found = device.pick()
    assert (found.kind, found.dtype, found.peak_flops) == ("cuda", dtype, peak)


def test_a_gpus_speed_is_measured_with_a_product_that_fills_it(monkeypatch, cpu):
    pretend_cuda(monkeypatch, "NVIDIA H200", 9)
    assert device.pick().matmul_side >= 4096 > cpu.matmul_side


def test_a_cpu_computes_in_float32(cpu):
    assert (cpu.kind, cpu.dtype) == ("cpu", "float32")
    assert cpu.memory > 1e9
    assert cpu.peak_memory() > 1e7


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_said_in_one_sentence():
    with pytest.raises(CourseError, match="No CUDA GPU is visible"):
        device.pick("cuda")


def test_an_unknown_device_names_the_nearest():
    with pytest.raises(CourseError, match="Did you mean cuda"):
        device.pick("cud")


@pytest.mark.parametrize(("dtype", "scaled"), [(torch.float32, False), (torch.bfloat16, False), (torch.float16, True)])
def test_only_float16_scales_its_loss(dtype, scaled):
    assert Precision("cpu", dtype).scaler.is_enabled() == scaled


def quadratic(start):
    weight = torch.nn.Parameter(torch.tensor(start))
    return weight, torch.optim.SGD([weight], lr=0.1)


def test_a_non_finite_gradient_changes_no_weight_of_any_optimizer():
    """One optimizer's NaN must not reach the other's weights through the shared norm."""
    (good, first), (bad, second) = quadratic([1.0, 2.0]), quadratic([3.0, 4.0])
    good.grad, bad.grad = torch.ones(2), torch.tensor([float("nan"), 1.0])
    norm, taken = Precision("cpu", torch.float32).step([first, second], [good, bad], clip=1.0)
    assert not taken
    assert norm != norm
    assert good.tolist() == [1.0, 2.0]
    assert bad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize(("clip", "factor"), [(2.5, 0.5), (50.0, 1.0)])
def test_one_factor_clips_the_gradients_of_all_optimizers(clip, factor):
    """Equation eq-clip: gradients (3) and (0, 4) have norm 5 together; one by one they would keep other shares."""
    (one, first), (other, second) = quadratic([0.0]), quadratic([0.0, 0.0])
    one.grad, other.grad = torch.tensor([3.0]), torch.tensor([0.0, 4.0])
    norm, taken = Precision("cpu", torch.float32).step([first, second], [one, other], clip)
    assert (norm, taken) == (pytest.approx(5.0), True)
    moved = torch.cat([one.detach(), other.detach()])
    assert torch.allclose(moved, -0.1 * factor * torch.tensor([3.0, 0.0, 4.0]), rtol=1e-5)


def test_float16_steps_on_cpu_like_float32():
    """fp16 autocast and GradScaler end to end at toy size: same path as a T4."""
    weights = {}
    for dtype in (torch.float32, torch.float16):
        torch.manual_seed(0)
        layer = torch.nn.Linear(8, 8)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        policy = Precision("cpu", dtype)
        x = torch.randn(16, 8)
        for _ in range(5):
            with policy.autocast():
                loss = (layer(x) - x).float().square().mean()
            policy.backward(loss)
            _, taken = policy.step([optimizer], list(layer.parameters()), clip=10.0)
            assert taken
            optimizer.zero_grad()
        weights[dtype] = layer.weight.detach()
        assert layer.weight.dtype == torch.float32  # master weights
    difference = (weights[torch.float16] - weights[torch.float32]).abs().max()
    assert 0 < difference < 2e-3


def test_a_float16_overflow_skips_the_step_and_halves_the_scale():
    weight, optimizer = quadratic([1.0])
    policy = Precision("cpu", torch.float16)
    before = policy.scaler.get_scale()
    policy.backward((weight * 1e38).sum())  # times the scale: beyond float32, too
    _, taken = policy.step([optimizer], [weight], clip=1.0)
    assert not taken
    assert weight.tolist() == [1.0]
    assert policy.scaler.get_scale() == before / 2


@pytest.mark.parametrize("pattern", ["....x...xx......x.", "xxxx", "........", "x.x.x.x."])
def test_our_loss_scaler_has_the_states_of_torchs(pattern):
    """Equation eq-scale: same scale, counter and weights after every step of a forced overflow pattern."""
    ours, theirs = quadratic([1.0, -2.0]), quadratic([1.0, -2.0])
    scaler = LossScaler(scale=2.0**10, growth_interval=3)
    reference = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    for mark in pattern:
        factor = float("inf") if mark == "x" else 1.0
        for _, optimizer in (ours, theirs):
            optimizer.zero_grad()
        scaler.scaled((ours[0].square() * factor).sum()).backward()
        scaler.unscale_([ours[0]])
        scaler.step(ours[1])
        scaler.update()
        reference.scale((theirs[0].square() * factor).sum()).backward()
        reference.unscale_(theirs[1])
        reference.step(theirs[1])
        reference.update()
        state = reference.state_dict()
        assert (scaler.scale, scaler.good_steps) == (state["scale"], state["_growth_tracker"])
        assert torch.equal(ours[0], theirs[0])


def test_mixed_precision_is_the_rule_bit_by_bit():
    """Equation eq-master, against NumPy: float16 weights and gradient, float32 sum."""
    start, goal, lr = np.float32([1.0, 1.2, 0.7, 0.3]), np.float32([0.5, 0.9, 1.3, 0.301]), 2.0**-6
    weight = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer, policy = torch.optim.SGD([weight], lr=lr), Precision("cpu", torch.float16)
    expected, scale = start, np.float32(policy.scaler.get_scale())
    for _ in range(50):
        optimizer.zero_grad()
        difference = weight.half() - torch.from_numpy(goal).half()
        policy.backward((0.5 * difference.float().square()).sum())
        assert policy.step([optimizer], [weight], clip=float("inf"))[1]
        gradient = np.float16(scale * np.float32(np.float16(expected) - np.float16(goal)))
        expected = expected - np.float32(lr) * (np.float32(gradient) / scale)
        assert np.array_equal(weight.detach().numpy(), expected)
    assert weight.dtype == torch.float32


def test_peak_bytes_counts_what_is_held_at_once():
    def held():
        a = torch.ones(1_000_000)
        b = a + 1
        return a, b

    def one_after_the_other():
        torch.ones(1_000_000)
        torch.ones(1_000_000)

    assert device.peak_bytes(held) == pytest.approx(8e6, rel=0.01)
    assert device.peak_bytes(one_after_the_other) == pytest.approx(4e6, rel=0.01)
    assert device.peak_bytes(lambda: None) == 0
