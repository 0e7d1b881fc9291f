"""Chapter 3's equations as functions, written to be read; training calls torch's, which a test holds them against.

Logits are unnormalised log-probabilities, (…, classes). Losses are in nats and *summed*: only the loop divides.
"""

from collections.abc import Callable

import torch

from course_lib.objectives import IGNORE


def kl_divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) = Σ p log(p/q) of distributions (…, classes) → (…), nats; equation eq-kl. 0 log 0 is 0."""
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(-1)


def binary_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Σ −[y log σ(z) + (1−y) log(1−σ(z))], from logits z, so that neither logarithm meets a zero; equation eq-bce."""
    return (logits.clamp(min=0) - targets * logits + torch.log1p(torch.exp(-logits.abs()))).sum()


def binary_gradient(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """∂/∂z of `binary_cross_entropy`: σ(z) − y; equation eq-bce-grad."""
    return torch.sigmoid(logits) - targets


def log_sum_exp(logits: torch.Tensor) -> torch.Tensor:
    """Log Σ exp(z) over the last dimension, shifted by the maximum, so that nothing overflows; equation eq-lse."""
    top = logits.amax(-1, keepdim=True)  # (…, 1)
    shift = torch.where(top.isfinite(), top, 0)  # −∞ everywhere: log 0, not NaN
    return ((logits - shift).exp().sum(-1, keepdim=True).log() + shift).squeeze(-1)


def softmax(logits: torch.Tensor) -> torch.Tensor:
    """exp(z − log Σ exp z), (…, classes); equation eq-softmax."""
    return (logits - log_sum_exp(logits)[..., None]).exp()


def smooth(labels: torch.Tensor, classes: int, epsilon: float) -> torch.Tensor:
    """Target distributions (…, classes): 1−ε on the label plus ε spread over all classes; equation eq-smoothing.

    Source: Szegedy et al. (2016), *Rethinking the Inception architecture for computer vision*.
    """
    one_hot = torch.nn.functional.one_hot(labels, classes).double()
    return (1 - epsilon) * one_hot + epsilon / classes


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, epsilon: float = 0.0) -> torch.Tensor:
    """Σ over targets of log Σ exp z − ⟨target, z⟩; equation eq-ce. Finite (targets, classes), (targets,) → scalar.

    Labels that are `IGNORE` add nothing. `epsilon` smooths the target.
    """
    logits, labels = logits[labels != IGNORE], labels[labels != IGNORE]
    target = smooth(labels, logits.size(-1), epsilon).to(logits.dtype)
    return (log_sum_exp(logits) - (target * logits).sum(-1)).sum()


def cross_entropy_gradient(logits: torch.Tensor, labels: torch.Tensor, epsilon: float = 0.0) -> torch.Tensor:
    """∂/∂z of `cross_entropy`: softmax(z) − target, zero at `IGNORE`; equation eq-ce-grad. (targets, classes)."""
    counted = labels != IGNORE
    target = smooth(labels.where(counted, 0), logits.size(-1), epsilon).to(logits.dtype)
    return (softmax(logits) - target) * counted[:, None]


def finite_differences(
    function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor, step: float = 1e-6
) -> torch.Tensor:
    """The gradient of a scalar `function` by central differences; in float64, where the error is about 1e-10."""
    gradient = torch.zeros_like(at)
    for i in range(at.numel()):
        nudge = torch.zeros_like(at)
        nudge.view(-1)[i] = step
        gradient.view(-1)[i] = (function(at + nudge) - function(at - nudge)) / (2 * step)
    return gradient
