"""Answers to the exercises of chapter 9."""

import itertools
import math
import statistics

import numpy as np
import torch
import torch.nn.functional as F

from tests.exercises import Answers


def by_slopes(rates, losses):
    ends = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    x, y = np.log10(rates[:ends]), np.array(losses[:ends])
    return rates[int(np.argmin(np.diff(y) / np.diff(x)))]


def by_loop(rates, losses):
    best, where = math.inf, None
    for i in range(len(rates) - 1):
        if not math.isfinite(losses[i + 1]):
            break
        slope = (losses[i + 1] - losses[i]) / math.log(rates[i + 1] / rates[i])
        if slope < best:
            best, where = slope, rates[i]
    return where


def where_it_ends(rates, losses):
    return rates[rates.index(by_loop(rates, losses)) + 1]


def per_point(rates, losses):
    falls = [b - a for a, b in itertools.pairwise(losses) if math.isfinite(b)]
    return rates[falls.index(min(falls))]


def per_unit(rates, losses):
    pairs = itertools.pairwise(zip(rates, losses, strict=True))
    slopes = [(b - a) / (s - r) for (r, a), (s, b) in pairs if math.isfinite(b)]
    return rates[slopes.index(min(slopes))]


def the_lowest(rates, losses):
    known = [loss for loss in losses if math.isfinite(loss)]
    return rates[losses.index(min(known))]


def skips_the_gap(rates, losses):
    pairs = [(r, loss) for r, loss in zip(rates, losses, strict=True) if math.isfinite(loss)]
    return by_slopes([r for r, _ in pairs], [loss for _, loss in pairs])


def trusts_nan(rates, losses):
    slopes = np.diff(losses) / np.diff(np.log(rates))
    return rates[int(np.argmin(slopes))]  # a NaN counts as the least


def by_kl_div(one, two, labels, alpha):
    p, q = one.log_softmax(-1), two.log_softmax(-1)
    kl = lambda a, b: F.kl_div(b, a, log_target=True, reduction="batchmean")
    return (F.cross_entropy(one, labels) + F.cross_entropy(two, labels)) / 2 + alpha * (kl(p, q) + kl(q, p)) / 2


def by_hand(one, two, labels, alpha):
    p, q = one.softmax(-1), two.softmax(-1)
    rows = torch.arange(len(labels))
    nll = -(p[rows, labels].log() + q[rows, labels].log()) / 2
    return (nll + alpha / 2 * ((p - q) * (p / q).log()).sum(-1)).mean()


def one_direction(one, two, labels, alpha):
    kl = F.kl_div(two.log_softmax(-1), one.softmax(-1), reduction="batchmean")
    return (F.cross_entropy(one, labels) + F.cross_entropy(two, labels)) / 2 + alpha * kl


def frozen_target(one, two, labels, alpha):
    p, q = one.log_softmax(-1), two.detach().log_softmax(-1)
    apart = ((p.exp() - q.exp()) * (p - q)).sum(-1).mean() / 2
    return (F.cross_entropy(one, labels) + F.cross_entropy(two, labels)) / 2 + alpha * apart


def summed_losses(one, two, labels, alpha):
    return 2 * by_kl_div(one, two, labels, alpha)


def both_divergences(one, two, labels, alpha):
    return by_kl_div(one, two, labels, 2 * alpha)


def mean_over_classes(one, two, labels, alpha):
    return by_kl_div(one, two, labels, alpha / one.size(-1))


def first_pass_only(one, two, labels, alpha):
    return by_kl_div(one, two, labels, alpha) + (F.cross_entropy(one, labels) - F.cross_entropy(two, labels)) / 2


def by_grad(loss_of, x, epsilon):
    free = x.detach().clone().requires_grad_()
    (g,) = torch.autograd.grad(loss_of(free), free)
    norm = g.norm(dim=(1, 2), keepdim=True)
    return torch.where(norm > 0, epsilon * g / norm, 0)


def by_backward(loss_of, x, epsilon):
    delta = torch.zeros_like(x, requires_grad=True)
    loss_of(x + delta).backward()
    flat = delta.grad.flatten(1)
    lengths = flat.pow(2).sum(1).sqrt()
    lengths[lengths == 0] = 1
    return (epsilon * flat / lengths[:, None]).view_as(x)


def all_texts_together(loss_of, x, epsilon):
    g = by_gradient(loss_of, x)
    return epsilon * g / g.norm()


def by_gradient(loss_of, x):
    free = x.detach().clone().requires_grad_()
    return torch.autograd.grad(loss_of(free), free)[0]


def sign_step(loss_of, x, epsilon):
    return epsilon * by_gradient(loss_of, x).sign()


def downhill(loss_of, x, epsilon):
    return -by_grad(loss_of, x, epsilon)


def divides_by_zero(loss_of, x, epsilon):
    g = by_gradient(loss_of, x)
    return epsilon * g / g.norm(dim=(1, 2), keepdim=True)


def leaves_a_gradient(loss_of, x, epsilon):
    x.requires_grad_()
    loss_of(x).backward()
    g = x.grad
    return torch.nan_to_num(epsilon * g / g.norm(dim=(1, 2), keepdim=True))


def moves_in_place(loss_of, x, epsilon):
    delta = by_grad(loss_of, x, epsilon)
    x += delta
    return delta


def with_a_graph(loss_of, x, epsilon):
    free = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss_of(free), free, create_graph=True)
    norm = g.norm(dim=(1, 2), keepdim=True).clamp(min=1e-30)
    return epsilon * g / norm


def one_text(loss_of, x, epsilon):
    return by_grad(loss_of, x, epsilon)[0]


def median_of_bests(losses, others):
    epoch = len(losses)
    known = [min(trial[:epoch]) for trial in others if len(trial) >= epoch]
    return bool(known) and min(losses) > statistics.median(known)


def by_numpy(losses, others):
    reached = [np.minimum.accumulate(trial)[len(losses) - 1] for trial in others if len(trial) >= len(losses)]
    return len(reached) > 0 and bool(np.min(losses) > np.median(reached))


def against_the_mean(losses, others):
    known = [min(trial[: len(losses)]) for trial in others if len(trial) >= len(losses)]
    return bool(known) and min(losses) > statistics.mean(known)


def against_their_ends(losses, others):
    return min(losses) > statistics.median(trial[-1] for trial in others)


def against_everybody(losses, others):
    known = [min(trial[: len(losses)]) for trial in others]
    return min(losses) > statistics.median(known)


def this_epoch_only(losses, others):
    known = [min(trial[: len(losses)]) for trial in others if len(trial) >= len(losses)]
    return bool(known) and losses[-1] > statistics.median(known)


def their_epoch_only(losses, others):
    known = [trial[len(losses) - 1] for trial in others if len(trial) >= len(losses)]
    return bool(known) and min(losses) > statistics.median(known)


def not_better(losses, others):
    known = [min(trial[: len(losses)]) for trial in others if len(trial) >= len(losses)]
    return bool(known) and min(losses) >= statistics.median(known)


def alone_is_hopeless(losses, others):
    known = [min(trial[: len(losses)]) for trial in others if len(trial) >= len(losses)]
    return not known or min(losses) > statistics.median(known)


def by_product(rates, decay):
    return math.prod(1 - rate * decay for rate in rates)


def step_by_step(rates, decay):
    weight = 1.0
    for rate in rates:
        weight -= rate * decay * weight
    return weight


def added_up(rates, decay):
    return 1 - decay * sum(rates)


def without_the_rate(rates, decay):
    return (1 - decay) ** len(rates)


def what_is_gone(rates, decay):
    return 1 - by_product(rates, decay)


def last_rate(rates, decay):
    return (1 - rates[-1] * decay) ** len(rates)


def exponential(rates, decay):
    return math.exp(-decay * sum(rates))


ANSWERS = {
    "ex09_1": Answers(
        wrong={
            "it is the rate": [where_it_ends, per_unit],
            "a fall counts per decade": [per_point],
            "not the lowest loss": [the_lowest],
            "what comes after": [trusts_nan, skips_the_gap],
        },
        right=[by_slopes, by_loop],
    ),
    "ex09_2": Answers(
        wrong={
            "two equal passes": [summed_losses],
            "without alpha": [first_pass_only, summed_losses],
            "alpha weighs half": [both_divergences, mean_over_classes, one_direction],
            "the passes may change": [one_direction, first_pass_only],
            "both passes learn": [frozen_target],
        },
        right=[by_kl_div, by_hand],
    ),
    "ex09_3": Answers(
        wrong={
            "it has the shape": [one_text],
            "every text moves": [all_texts_together, sign_step],
            "along its gradient": [downhill, sign_step],
            "where nothing pulls": [divides_by_zero],
            "the embeddings stay": [leaves_a_gradient, moves_in_place],
            "the step is a constant": [with_a_graph],
        },
        right=[by_grad, by_backward],
    ),
    "ex09_4": Answers(
        wrong={
            "worse than the median": [against_the_mean],
            "only trials that came": [against_everybody],
            "a trial is as good": [this_epoch_only],
            "so are the others": [their_epoch_only],
            "equal to the median": [not_better],
            "nobody came so far": [alone_is_hopeless, against_their_ends],
        },
        right=[median_of_bests, by_numpy],
    ),
    "ex09_5": Answers(
        wrong={
            "one step": [without_the_rate, what_is_gone, exponential],
            "steps multiply": [added_up, last_rate],
            "no decay": [what_is_gone],
            "a short fine-tuning": [without_the_rate],
            "it is the same": [last_rate, added_up],
        },
        right=[by_product, step_by_step],
    ),
}
