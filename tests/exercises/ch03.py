"""Answers to the exercises of chapter 3."""

import math

import torch
import torch.nn.functional as F

from course_lib import crossentropy as ce
from course_lib.objectives import IGNORE
from tests.exercises import Answers


def sums_exponentials(blocks):
    return sum(block.exp().sum() for block in blocks).log()


def forgets_to_rescale(blocks):
    top, total = torch.tensor(-math.inf), 0.0
    for block in blocks:
        top = torch.maximum(top, block.max())
        total = total + (block - top).exp().sum()
    return top + torch.as_tensor(total).log()


def newest_maximum(blocks):
    top, total = torch.tensor(-math.inf), torch.tensor(0.0)
    for block in blocks:
        total = total * (top - block.max()).exp() + (block - block.max()).exp().sum()
        top = torch.maximum(top, block.max())
    return top + total.log()


def keeps_the_blocks(blocks):
    return torch.logsumexp(torch.cat(list(blocks)), 0)


def nan_from_infinities(blocks):
    top, total = torch.tensor(-math.inf), torch.tensor(0.0)
    for block in blocks:
        new = torch.maximum(top, block.max())
        total = total * (top - new).exp() + (block - new).exp().sum()
        top = new
    return top + total.log()


def mean_of_exponentials(blocks):
    return nan_from_infinities([torch.cat([b.clone() for b in blocks])]) - math.log(2)


def top_and_total(blocks):
    top, total = torch.tensor(-math.inf), torch.tensor(0.0)
    for block in blocks:
        new = torch.maximum(top, block.max())
        if torch.isfinite(new):
            total = total * (top - new).exp() + (block - new).exp().sum()
            top = new
    return top + total.log()


def starts_at_zero(blocks):
    top, total = torch.tensor(0.0), torch.tensor(0.0)
    for block in blocks:
        new = torch.maximum(top, block.max())
        total = total * (top - new).exp() + (block - new).exp().sum()
        top = new
    return top + total.log()


def pairs_of_logs(blocks):
    running = None
    for block in blocks:
        part = torch.logsumexp(block, 0)
        running = part if running is None else torch.logaddexp(running, part)
    return running


def truth_minus_belief(logits, target, temperature):
    return (target - (logits / temperature).softmax(-1)) / temperature


def no_inner_derivative(logits, target, temperature):
    return (logits / temperature).softmax(-1) - target


def temperature_outside_only(logits, target, temperature):
    return (logits.softmax(-1) - target) / temperature


def hard_target(logits, target, temperature):
    one_hot = F.one_hot(target.argmax(-1), target.size(-1)).double()
    return ((logits / temperature).softmax(-1) - one_hot) / temperature


def mean_over_rows(logits, target, temperature):
    return ((logits / temperature).softmax(-1) - target) / temperature / len(logits)


def temperature_squared(logits, target, temperature):
    return ((logits / temperature).softmax(-1) - target) * temperature


def derived(logits, target, temperature):
    return ((logits / temperature).softmax(-1) - target) / temperature


def by_autograd(logits, target, temperature):
    z = logits.clone().requires_grad_()
    (-(target * (z / temperature).log_softmax(-1)).sum()).backward()
    return z.grad


def mean_of_means(micro_batches):
    return torch.stack([F.cross_entropy(z, y, ignore_index=IGNORE) for z, y in micro_batches]).mean()


def over_all_positions(micro_batches):
    total = sum(F.cross_entropy(z, y, ignore_index=IGNORE, reduction="sum") for z, y in micro_batches)
    return total / sum(len(y) for _, y in micro_batches)


def divides_by_nothing(micro_batches):
    total = sum(F.cross_entropy(z, y, ignore_index=IGNORE, reduction="sum") for z, y in micro_batches)
    return total / sum((y != IGNORE).sum() for _, y in micro_batches)


def padding_is_class_zero(micro_batches):
    logits, labels = (torch.cat(part) for part in zip(*micro_batches, strict=True))
    return F.cross_entropy(logits, labels.clamp(min=0))


def a_plain_number(micro_batches):
    return float(summed_and_counted(micro_batches))


def sum_only(micro_batches):
    return sum(F.cross_entropy(z, y, ignore_index=IGNORE, reduction="sum") for z, y in micro_batches)


def learns_from_the_last(micro_batches):
    constant = [(logits.detach(), labels) for logits, labels in micro_batches[:-1]]
    return summed_and_counted([*constant, micro_batches[-1]])


def summed_and_counted(micro_batches):
    total, count = 0.0, 0
    for logits, labels in micro_batches:
        total = total + F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
        count += int((labels != IGNORE).sum())
    return total / max(count, 1)


def gathered(micro_batches):
    logits, labels = (torch.cat(part) for part in zip(*micro_batches, strict=True))
    keep = labels != IGNORE
    if not keep.any():
        return logits.sum() * 0
    return -logits[keep].log_softmax(-1).gather(1, labels[keep, None]).mean()


def other_way_round(p, q):
    return F.kl_div(p.log_softmax(-1), q.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def one_number(p, q):
    return F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="batchmean", log_target=True)


def through_probabilities(p, q):
    p, q = p.exp() / p.exp().sum(-1, keepdim=True), q.exp() / q.exp().sum(-1, keepdim=True)
    return (p * (p / q).log()).sum(-1)


def of_raw_logits(p, q):
    return (p.softmax(-1) * (p - q)).sum(-1)


def cross_entropy_instead(p, q):
    return -(p.softmax(-1) * q.log_softmax(-1)).sum(-1)


def zero_times_infinity(p, q):
    return (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)


def with_where(p, q):
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return torch.where(log_p == -math.inf, 0.0, log_p.exp() * (log_p - log_q)).sum(-1)


def minus_entropy(p, q):
    share = p.softmax(-1)
    log_q = q - torch.logsumexp(q, -1, keepdim=True)
    return torch.special.xlogy(share, share).sum(-1) - (share * log_q).sum(-1)


def all_at_once(hidden, weight, labels, rows):
    logits = hidden @ weight.T
    gradient = ce.cross_entropy_gradient(logits, labels)
    return ce.cross_entropy(logits, labels), gradient @ weight, gradient.T @ hidden


def walk(hidden, weight, labels, rows, gradient_of, last=True):
    loss, hidden_gradient, weight_gradient = 0.0, torch.zeros_like(hidden), torch.zeros_like(weight)
    for start in range(0, len(hidden) if last else len(hidden) // rows * rows, rows):
        part = slice(start, start + rows)
        logits = hidden[part] @ weight.T
        gradient = gradient_of(logits, labels[part])
        loss = loss + ce.cross_entropy(logits, labels[part])
        hidden_gradient[part] = gradient @ weight
        weight_gradient += gradient.T @ hidden[part]
    return loss, hidden_gradient, weight_gradient


def drops_the_rest(hidden, weight, labels, rows):
    return walk(hidden, weight, labels, rows, ce.cross_entropy_gradient, last=False)


def counts_padding(hidden, weight, labels, rows):
    one_hot = lambda y: F.one_hot(y.clamp(min=0), len(weight)).double()
    return walk(hidden, weight, labels, rows, lambda z, y: z.softmax(-1) - one_hot(y))


def last_chunk_only(hidden, weight, labels, rows):
    loss, hidden_gradient, weight_gradient = walk(hidden, weight, labels, rows, ce.cross_entropy_gradient)
    gradient = ce.cross_entropy_gradient(hidden[-rows:] @ weight.T, labels[-rows:])
    return (
        loss,
        hidden_gradient,
        gradient.T @ hidden[-rows:] * (rows < len(hidden)) + weight_gradient * (rows >= len(hidden)),
    )


def mean_instead_of_sum(hidden, weight, labels, rows):
    found = walk(hidden, weight, labels, rows, ce.cross_entropy_gradient)
    return tuple(part / (labels != IGNORE).sum() for part in found)


def in_chunks(hidden, weight, labels, rows):
    return walk(hidden, weight, labels, rows, ce.cross_entropy_gradient)


def one_graph_of_all(hidden, weight, labels, rows):
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = 0.0
    for x, y in zip(h.split(rows), labels.split(rows), strict=True):
        loss = loss + F.cross_entropy(x @ w.T, y, ignore_index=IGNORE, reduction="sum")
    loss.backward()
    return loss.detach(), h.grad, w.grad


def by_chunked_autograd(hidden, weight, labels, rows):
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = torch.zeros((), dtype=hidden.dtype)
    for x, y in zip(h.split(rows), labels.split(rows), strict=True):
        part = F.cross_entropy(x @ w.T, y, ignore_index=IGNORE, reduction="sum")
        part.backward(retain_graph=True)
        loss += part.detach()
    return loss, h.grad, w.grad


ANSWERS = {
    "ex03_1": Answers(
        wrong={
            "a single block": [mean_of_exponentials],
            "logits of 1,000": [sums_exponentials],
            "logits of −1,000": [starts_at_zero, sums_exponentials],
            "a later block with a larger": [forgets_to_rescale],
            "a later block with a smaller": [newest_maximum],
            "one block at a time": [keeps_the_blocks],
            "a block of −∞": [nan_from_infinities],
        },
        right=[top_and_total, pairs_of_logs],
    ),
    "ex03_2": Answers(
        wrong={
            "at temperature 1": [truth_minus_belief, mean_over_rows],
            "a soft target": [hard_target],
            "at a high temperature": [temperature_outside_only],
            "it is the difference quotient": [no_inner_derivative, temperature_squared],
        },
        right=[derived, by_autograd],
    ),
    "ex03_3": Answers(
        wrong={
            "one micro-batch": [sum_only],
            "the same targets": [mean_of_means],
            "a label of −100": [over_all_positions, padding_is_class_zero],
            "a micro-batch without": [over_all_positions, mean_of_means],
            "no target at all": [divides_by_nothing],
            "its gradient": [a_plain_number, learns_from_the_last],
        },
        right=[summed_and_counted, gathered],
    ),
    "ex03_4": Answers(
        wrong={
            "each row": [one_number],
            "logits that differ": [of_raw_logits, cross_entropy_instead],
            "p, the first": [other_way_round],
            "logits of 1,000": [through_probabilities],
            "a token that p": [zero_times_infinity],
        },
        right=[with_where, minus_entropy],
    ),
    "ex03_6": Answers(
        wrong={
            "in one chunk the loss": [mean_instead_of_sum],
            "in one chunk the gradient of hidden": [counts_padding, mean_instead_of_sum],
            "in one chunk the gradient of weight": [counts_padding],
            "chunks that do not": [drops_the_rest, last_chunk_only],
            "no tensor": [all_at_once],
            "what a chunk made": [one_graph_of_all],
        },
        right=[in_chunks, by_chunked_autograd],
    ),
}
