"""Answers to the exercises of chapter 10."""

import torch
import torch.nn.functional as F

from tests.exercises import Answers


def thin(x, w, a, b, alpha):
    return F.linear(x, w) + alpha / a.size(0) * F.linear(F.linear(x, a), b)


def by_einsum(x, w, a, b, alpha):
    return x @ w.T + torch.einsum("...i,ri,or->...o", x, a, b) * (alpha / len(a))


def without_the_base(x, w, a, b, alpha):
    return alpha / len(a) * (x @ a.T @ b.T)


def alpha_alone(x, w, a, b, alpha):
    return x @ w.T + alpha * (x @ a.T @ b.T)


def by_the_root(x, w, a, b, alpha):
    return x @ w.T + alpha / len(a) ** 0.5 * (x @ a.T @ b.T)


def rows_only(x, w, a, b, alpha):
    return x.reshape(-1, x.size(-1)) @ (w + alpha / len(a) * b @ a).T


def merges_in_place(x, w, a, b, alpha):
    w += alpha / len(a) * b @ a
    return x @ w.T


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


def masked(q, k, v, pk, pv):
    seen = torch.cat([torch.ones(len(q), len(pk)), torch.ones(len(q), len(k)).tril()], 1).bool()
    out = F.scaled_dot_product_attention(q[None], torch.cat([pk, k])[None], torch.cat([pv, v])[None], seen)
    return out[0]


def token_by_token(q, k, v, pk, pv):
    rows = []
    for i, query in enumerate(q):
        keys, values = torch.cat([pk, k[: i + 1]]), torch.cat([pv, v[: i + 1]])
        rows.append((keys @ query / len(query) ** 0.5).softmax(0) @ values)
    return torch.stack(rows)


def no_mask(q, k, v, pk, pv):
    return (q @ torch.cat([pk, k]).T / q.size(1) ** 0.5).softmax(-1) @ torch.cat([pv, v])


def mask_over_the_prefix(q, k, v, pk, pv):
    scores = q @ torch.cat([pk, k]).T / q.size(1) ** 0.5
    seen = torch.ones_like(scores).tril().bool()
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ torch.cat([pv, v])


def unscaled(q, k, v, pk, pv):
    return token_by_token(q * q.size(1) ** 0.5, k, v, pk, pv)


def forgets_the_prefix(q, k, v, pk, pv):
    return token_by_token(q, k, v, pk[:0], pv[:0])


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
            "any shape": [rows_only],
            "the base's weight stays": [merges_in_place],
        },
        right=[thin, by_einsum],
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
            "an empty prefix": [no_mask, unscaled],
            "the first token sees": [mask_over_the_prefix, forgets_the_prefix],
            "no token sees": [no_mask],
            "the last token sees": [forgets_the_prefix],
        },
        right=[masked, token_by_token],
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
