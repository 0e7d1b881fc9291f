"""Answers to the exercises of chapter 10."""

import torch
import torch.nn.functional as F

from tests.exercises import Answers


def thin(x, w, a, b, which, alpha):
    return F.linear(x, w) + alpha / a.size(1) * (x @ a[which].mT @ b[which].mT)


def by_einsum(x, w, a, b, which, alpha):
    return x @ w.T + torch.einsum("nli,nri,nor->nlo", x, a[which], b[which]) * (alpha / a.size(1))


def adapter_by_adapter(x, w, a, b, which, alpha):
    out = x @ w.T
    for i in set(which.tolist()):
        out[which == i] += alpha / a.size(1) * (x[which == i] @ a[i].T @ b[i].T)
    return out


def without_the_base(x, w, a, b, which, alpha):
    return thin(x, torch.zeros_like(w), a, b, which, alpha)


def alpha_alone(x, w, a, b, which, alpha):
    return thin(x, w, a, b, which, alpha * a.size(1))


def by_the_root(x, w, a, b, which, alpha):
    return thin(x, w, a, b, which, alpha * a.size(1) ** 0.5)


def one_for_all(x, w, a, b, which, alpha):
    return x @ w.T + alpha / a.size(1) * (x @ a[0].T @ b[0].T)


def in_their_order(x, w, a, b, which, alpha):
    return thin(x, w, a, b, torch.arange(len(x)) % len(a), alpha)


def merges_in_place(x, w, a, b, which, alpha):
    w += alpha / a.size(1) * b[which[0]] @ a[which[0]]
    return x @ w.T


def a_matrix_for_every_row(x, w, a, b, which, alpha):
    return x @ (w + alpha / a.size(1) * b[which] @ a[which]).mT


def a_matrix_at_a_time(x, w, a, b, which, alpha):
    return torch.stack([row @ (w + alpha / a.size(1) * b[i] @ a[i]).T for row, i in zip(x, which, strict=True)])


def summed(shapes, rank):
    weights = rank * sum(map(sum, shapes))
    return weights, 12 * weights


def one_by_one(shapes, rank):
    weights = 0
    for outputs, inputs in shapes:
        weights += outputs * rank + rank * inputs
    return weights, 4 * weights + 2 * 4 * weights


def the_whole_change(shapes, rank):
    weights = sum(outputs * inputs for outputs, inputs in shapes)
    return weights, 12 * weights


def twice_the_inputs(shapes, rank):
    weights = sum(2 * rank * inputs for _, inputs in shapes)
    return weights, 12 * weights


def first_matrix_only(shapes, rank):
    weights = rank * sum(shapes[0])
    return weights, 12 * weights


def without_gradients(shapes, rank):
    weights, _ = summed(shapes, rank)
    return weights, 8 * weights


def with_the_weights(shapes, rank):
    weights, _ = summed(shapes, rank)
    return weights, 16 * weights


def by_svd(delta, rank):
    u, s, v = torch.linalg.svd(delta)
    return s[:rank].sqrt().diag() @ v[:rank], u[:, :rank] @ s[:rank].sqrt().diag()


def by_eigenvectors(delta, rank):
    values, vectors = torch.linalg.eigh(delta @ delta.T)  # ascending
    u, s = vectors[:, -rank:], values[-rank:].clamp(min=0).sqrt()
    return (u.T @ delta) / s.sqrt()[:, None], u * s.sqrt()


def swapped(delta, rank):
    return by_svd(delta, rank)[::-1]


def the_smallest(delta, rank):
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    return s[-rank:].sqrt()[:, None] * v[-rank:], u[:, -rank:] * s[-rank:].sqrt()


def without_singular_values(delta, rank):
    u, _, v = torch.linalg.svd(delta, full_matrices=False)
    return v[:rank], u[:, :rank]


def all_in_b(delta, rank):
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    return v[:rank], u[:, :rank] * s[:rank]


def first_rows(delta, rank):
    return delta[:rank], torch.eye(len(delta), rank, dtype=delta.dtype)


def text_scores(q, k):
    future = torch.ones(len(q), len(k)).triu(1).bool()
    return (q @ k.T / q.size(1) ** 0.5).masked_fill(future, -torch.inf)


def share_of_the_prefix(h, q, k, pk, pv):
    length = len(pk)
    shares = torch.cat([q @ pk.T / q.size(1) ** 0.5, text_scores(q, k)], 1).softmax(-1)[:, :length]
    return (1 - shares.sum(1, keepdim=True)) * h + shares @ pv


def by_log_sums(h, q, k, pk, pv):
    scores = q @ pk.T / q.size(1) ** 0.5
    part = torch.sigmoid(scores.logsumexp(1) - text_scores(q, k).logsumexp(1))[:, None]
    return (1 - part) * h + part * (scores.softmax(-1) @ pv)


def future_counts(h, q, k, pk, pv):
    shares = (q @ torch.cat([pk, k]).T / q.size(1) ** 0.5).softmax(-1)[:, : len(pk)]
    return (1 - shares.sum(1, keepdim=True)) * h + shares @ pv


def added_on_top(h, q, k, pk, pv):
    return h + (q @ pk.T / q.size(1) ** 0.5).softmax(-1) @ pv


def by_numbers_of_tokens(h, q, k, pk, pv):
    part = len(pk) / (len(pk) + torch.arange(1, len(q) + 1.0).double())[:, None]
    return (1 - part) * h + part * ((q @ pk.T / q.size(1) ** 0.5).softmax(-1) @ pv)


def unscaled(h, q, k, pk, pv):
    return share_of_the_prefix(h, q * q.size(1) ** 0.5, k, pk, pv)


def forgets_the_prefix(h, q, k, pk, pv):
    return h


def by_exponentials(h, q, k, pk, pv):
    there, here = (q @ pk.T / q.size(1) ** 0.5).exp(), text_scores(q, k).exp()
    total = there.sum(1, keepdim=True) + here.sum(1, keepdim=True)
    return here.sum(1, keepdim=True) / total * h + there / total @ pv


def largest_of_the_prefix(h, q, k, pk, pv):
    scores = q @ pk.T / q.size(1) ** 0.5
    top = scores.max(1, keepdim=True).values  # there is none of an empty prefix
    log = top + (scores - top).exp().sum(1, keepdim=True).log()
    part = torch.sigmoid(log - text_scores(q, k).logsumexp(1, keepdim=True))
    return (1 - part) * h + part * (scores.softmax(-1) @ pv)


def prefix_is_masked(h, q, k, pk, pv):
    scores = q @ torch.cat([pk, k]).T / q.size(1) ** 0.5
    seen = torch.ones_like(scores).tril().bool()
    shares = scores.masked_fill(~seen, -torch.inf).softmax(-1)[:, : len(pk)]
    return (1 - shares.sum(1, keepdim=True)) * h + shares @ pv


def by_topk(importance, budget):
    scores = torch.cat(importance)
    kept = torch.zeros_like(scores).bool()
    kept[scores.argsort(descending=True)[:budget]] = True
    return list(kept.split([len(part) for part in importance]))


def by_threshold(importance, budget):
    scores = sorted((value for part in importance for value in part.tolist()), reverse=True)
    least = scores[budget - 1] if 0 < budget <= len(scores) else float("inf") if budget == 0 else -float("inf")
    return [part >= least for part in importance]


def a_share_each(importance, budget):
    each = -(-budget // len(importance))
    return [part >= part.sort(descending=True).values[:each][-1] for part in importance]


def the_least_important(importance, budget):
    return by_topk([-part for part in importance], budget)


def as_numbers(importance, budget):
    return [part.float() for part in by_topk(importance, budget)]


def in_one_vector(importance, budget):
    return [torch.cat(by_topk(importance, budget))]


def without_a_limit(importance, budget):
    scores = torch.cat(importance)
    kept = torch.zeros_like(scores).bool()
    kept[scores.topk(budget).indices] = True  # raises if there are fewer
    return list(kept.split([len(part) for part in importance]))


def one_too_many(importance, budget):
    return by_topk(importance, budget + 1)


ANSWERS = {
    "ex10_1": Answers(
        wrong={
            "a B of zeros": [without_the_base],
            "the change is scaled": [alpha_alone, by_the_root],
            "every row has": [one_for_all, in_their_order],
            "the base's weight stays": [merges_in_place],
            "no other matrix": [a_matrix_for_every_row, a_matrix_at_a_time],
        },
        right=[thin, by_einsum, adapter_by_adapter],
    ),
    "ex10_2": Answers(
        wrong={
            "a square matrix": [the_whole_change],
            "outputs and inputs": [twice_the_inputs],
            "all matrices": [first_matrix_only],
            "a gradient and two": [without_gradients, with_the_weights],
        },
        right=[summed, one_by_one],
    ),
    "ex10_3": Answers(
        wrong={
            "A is (rank, in)": [swapped],
            "their product is the closest matrix of rank 1": [the_smallest, without_singular_values, first_rows],
            "their product is the closest matrix of rank 3": [the_smallest, first_rows],
            "at full rank": [without_singular_values],
            "both have the same norm": [all_in_b],
        },
        right=[by_svd, by_eigenvectors],
    ),
    "ex10_4": Answers(
        wrong={
            "an empty prefix": [largest_of_the_prefix],
            "the first token sees": [prefix_is_masked, forgets_the_prefix, future_counts, unscaled],
            "no token counts": [future_counts],
            "the last token sees": [forgets_the_prefix, by_numbers_of_tokens, added_on_top],
            "scores of a thousand": [by_exponentials],
        },
        right=[share_of_the_prefix, by_log_sums],
    ),
    "ex10_5": Answers(
        wrong={
            "one boolean vector": [as_numbers, in_one_vector],
            "the most important": [a_share_each, the_least_important],
            "a larger budget": [a_share_each, the_least_important],
            "nothing is kept": [one_too_many],
            "a budget larger": [without_a_limit],
        },
        right=[by_topk, by_threshold],
    ),
}
