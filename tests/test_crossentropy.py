"""Chapter 3's equations against an independent form: torch, another library, finite differences in float64."""

import math

import pytest
import scipy.special
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import crossentropy as ce
from course_lib.objectives import IGNORE

LABELS = torch.tensor([2, IGNORE, 0, 4, 4])


def draw(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kl_divergence_is_scipys():
    """Equation eq-kl."""
    p, q = draw(4, 6).softmax(-1), draw(4, 6, seed=1).softmax(-1)
    expected = scipy.stats.entropy(p.numpy(), q.numpy(), axis=1)
    assert torch.allclose(ce.kl_divergence(p, q), torch.from_numpy(expected), atol=1e-12)
    certain = torch.tensor([1.0, 0.0], dtype=torch.float64)
    half = torch.tensor([0.5, 0.5], dtype=torch.float64)
    assert ce.kl_divergence(certain, half).item() == pytest.approx(math.log(2))
    assert ce.kl_divergence(half, certain).item() == math.inf


def test_binary_cross_entropy_is_torchs_and_never_overflows():
    """Equation eq-bce."""
    logits = torch.cat([draw(20), torch.tensor([800.0, -800.0], dtype=torch.float64)])
    targets = torch.arange(22).remainder(2).double()
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    assert ce.binary_cross_entropy(logits, targets).item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_binary_gradient_is_the_difference_quotient():
    """Equation eq-bce-grad."""
    logits, targets = draw(9), torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    numeric = ce.finite_differences(lambda z: ce.binary_cross_entropy(z, targets), logits)
    assert torch.allclose(ce.binary_gradient(logits, targets), numeric, atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4) | st.just(-math.inf), min_size=1, max_size=6))
def test_log_sum_exp_is_scipys(values):
    """Equation eq-lse."""
    if all(v == -math.inf for v in values):
        assert ce.log_sum_exp(torch.tensor(values)).item() == -math.inf
        return
    found = ce.log_sum_exp(torch.tensor(values, dtype=torch.float64)).item()
    assert found == pytest.approx(float(scipy.special.logsumexp(values)), rel=1e-12, abs=1e-12)


def test_softmax_is_torchs():
    """Equation eq-softmax."""
    logits = draw(3, 4, 5, scale=200.0)
    assert torch.allclose(ce.softmax(logits), logits.softmax(-1), atol=1e-14)


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_cross_entropy_is_torchs(epsilon):
    """Equation eq-ce."""
    logits = draw(5, 6, scale=50.0)
    expected = F.cross_entropy(logits, LABELS, ignore_index=IGNORE, label_smoothing=epsilon, reduction="sum")
    assert ce.cross_entropy(logits, LABELS, epsilon).item() == pytest.approx(expected.item(), rel=1e-12)
    assert ce.cross_entropy(logits[:1], torch.tensor([IGNORE]), epsilon) == 0


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_the_gradient_is_the_difference_quotient(epsilon):
    """Equation eq-ce-grad."""
    logits = draw(5, 6)
    numeric = ce.finite_differences(lambda z: ce.cross_entropy(z, LABELS, epsilon), logits)
    found = ce.cross_entropy_gradient(logits, LABELS, epsilon)
    assert torch.allclose(found, numeric, atol=1e-8)
    assert (found[1] == 0).all()
    assert found.sum(-1).abs().max() < 1e-14


def test_smoothed_targets_are_distributions():
    """Equation eq-smoothing."""
    target = ce.smooth(torch.tensor([1, 3]), 4, 0.2)
    expected = torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.05, 0.05, 0.05, 0.85]], dtype=torch.float64)
    assert torch.allclose(target, expected, atol=1e-15)
