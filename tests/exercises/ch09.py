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


def pairs(passes):
    return itertools.permutations(passes.log_softmax(-1), 2)


def mean_nll(passes, labels):
    return torch.stack([F.cross_entropy(logits, labels) for logits in passes]).mean()


def by_kl_div(passes, labels, alpha):
    kl = [F.kl_div(b, a, log_target=True, reduction="batchmean") for a, b in pairs(passes)]
    return mean_nll(passes, labels) + alpha * torch.stack(kl).mean()


def by_one_product(passes, labels, alpha):
    p = passes.softmax(-1)
    n, texts = passes.shape[:2]
    nll = -p[:, torch.arange(texts), labels].log().mean()
    kl = p[:, None] * (p[:, None] / p[None]).log()  # (n, n, texts, classes), zero on the diagonal
    return nll + alpha * kl.sum() / (n * (n - 1) * texts)


def first_two_only(passes, labels, alpha):
    return mean_nll(passes, labels) + by_kl_div(passes[:2], labels, alpha) - mean_nll(passes[:2], labels)


def sum_of_pairs(passes, labels, alpha):
    return by_kl_div(passes, labels, alpha * len(passes) * (len(passes) - 1) / 2)


def neighbours_only(passes, labels, alpha):
    kl = [F.kl_div(b, a, log_target=True, reduction="batchmean") for a, b in itertools.pairwise(passes.log_softmax(-1))]
    return mean_nll(passes, labels) + alpha * torch.stack(kl).mean()


def diagonal_counts(passes, labels, alpha):
    return by_kl_div(passes, labels, alpha * (len(passes) - 1) / len(passes))


def frozen_targets(passes, labels, alpha):
    kl = [F.kl_div(b, a.detach(), log_target=True, reduction="batchmean") for a, b in pairs(passes)]
    return mean_nll(passes, labels) + alpha * torch.stack(kl).mean()


def summed_losses(passes, labels, alpha):
    return len(passes) * by_kl_div(passes, labels, alpha)


def both_divergences(passes, labels, alpha):
    return by_kl_div(passes, labels, 2 * alpha)


def mean_over_classes(passes, labels, alpha):
    return by_kl_div(passes, labels, alpha / passes.size(-1))


def first_pass_only(passes, labels, alpha):
    return by_kl_div(passes, labels, alpha) - mean_nll(passes, labels) + F.cross_entropy(passes[0], labels)


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


def a_little_more_than_the_norm(loss_of, x, epsilon):
    g = by_gradient(loss_of, x)
    return epsilon * g / (g.norm(dim=(1, 2), keepdim=True) + 1e-6)


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


def by_log_sum_exp(logits, labels):
    chances = logits.log_softmax(-1)[:, torch.arange(len(labels)), labels]  # (models, texts)
    return (math.log(len(logits)) - chances.logsumexp(0)).mean()


def text_by_text(logits, labels):
    losses = []
    for text, label in enumerate(labels.tolist()):
        running = None
        for row in logits[:, text]:
            chance = row[label] - row.logsumexp(0)
            running = chance if running is None else torch.logaddexp(running, chance)
        losses.append(math.log(len(logits)) - running)
    return torch.stack(losses).mean()


def mean_of_logits(logits, labels):
    return F.cross_entropy(logits.mean(0), labels)


def mean_of_losses(logits, labels):
    return torch.stack([F.cross_entropy(rows, labels) for rows in logits]).mean()


def through_probabilities(logits, labels):
    return F.nll_loss(logits.softmax(-1).mean(0).log(), labels)


def kept_from_zero(logits, labels):
    return F.nll_loss(logits.softmax(-1).mean(0).clamp(min=1e-12).log(), labels)


def sum_over_texts(logits, labels):
    return by_log_sum_exp(logits, labels) * len(labels)


def forgets_the_number(logits, labels):
    return by_log_sum_exp(logits, labels) - math.log(len(logits))


def of_the_surest(logits, labels):
    chances = logits.log_softmax(-1)[:, torch.arange(len(labels)), labels]
    return -chances.max(0).values.mean()


def one_mean_of_all(logits, labels):
    chances = logits.log_softmax(-1)[:, torch.arange(len(labels)), labels]
    return math.log(chances.numel()) - chances.flatten().logsumexp(0)


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
            "equal passes": [summed_losses],
            "without alpha": [first_pass_only, summed_losses],
            "of two passes": [both_divergences, mean_over_classes, neighbours_only, diagonal_counts],
            "of three passes": [first_two_only, sum_of_pairs, diagonal_counts],
            "the passes may change": [neighbours_only, first_pass_only, first_two_only],
            "every pass learns": [frozen_targets],
        },
        right=[by_kl_div, by_one_product],
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
        right=[by_grad, by_backward, a_little_more_than_the_norm],
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
            "one model alone": [sum_over_texts],
            "probabilities are averaged": [mean_of_logits, mean_of_losses, forgets_the_number],
            "every text has": [one_mean_of_all, sum_over_texts],
            "a model that is sure": [mean_of_losses, of_the_surest],
            "where all are sure": [through_probabilities, kept_from_zero],
        },
        right=[by_log_sum_exp, text_by_text],
    ),
}
