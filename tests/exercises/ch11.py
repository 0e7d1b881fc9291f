"""Answers to the exercises of chapter 11."""

import torch
import torch.nn.functional as F

from tests.exercises import Answers


def by_ends(x, bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    least, most = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
    scale = (most - least) / (high - low)
    scale = torch.where(scale > 0, scale, 1.0)
    return scale, low - torch.round(least / scale).long()


def row_by_row(x, bits):
    scales, zeros = [], []
    for row in x.tolist():
        most, least = max(*row, 0.0), min(*row, 0.0)
        scales.append((most - least) / (2**bits - 1) or 1.0)
        zeros.append(2 ** (bits - 1) - 1 - round(most / scales[-1]))
    return torch.tensor(scales, dtype=x.dtype), torch.tensor(zeros)


def one_for_all(x, bits):
    scale, zero = by_ends(x.reshape(1, -1), bits)
    return scale.expand(len(x)), zero.expand(len(x))


def one_alone(x, bits):
    return by_ends(x.reshape(1, -1), bits)


def around_zero(x, bits):
    scale = x.abs().amax(1) / (2 ** (bits - 1) - 1)
    return torch.where(scale > 0, scale, 1.0), torch.zeros(len(x))


def always_eight(x, bits):
    return by_ends(x, 8)


def without_zero(x, bits):
    scale = (x.amax(1) - x.amin(1)) / (2**bits - 1)
    scale = torch.where(scale > 0, scale, 1.0)
    return scale, -(2 ** (bits - 1)) - torch.round(x.amin(1) / scale)


def divides_by_zero(x, bits):
    least, most = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
    scale = (most - least) / (2**bits - 1)
    return scale, -(2 ** (bits - 1)) - torch.round(least / scale)


def one_zero_row_for_all(x, bits):
    scale, zero = by_ends(x, bits)
    return (scale, zero) if x.any(1).all() else (torch.ones(len(x)), torch.zeros(len(x)))


def never_below_a_hundredth(x, bits):
    scale, zero = by_ends(x, bits)
    return scale.clamp(min=0.01), zero


def one_step_more(x, bits):
    scale, zero = by_ends(x, bits)
    return scale * (2**bits - 1) / 2**bits, zero


def by_sums(q, s, z, p, t, y):
    q, p, y = q.long(), p.long(), y.long()
    return s * t * (q @ p.T - z * p.sum(1) - q.sum(1)[:, None] * y + q.size(1) * z * y)


def shifted_first(q, s, z, p, t, y):
    return ((q.long() - z) @ (p.long() - y.long()[:, None]).T).double() * s * t


def no_zero_point(q, s, z, p, t, y):
    return by_sums(q, s, 0, p, t, y)


def adds_the_zero_point(q, s, z, p, t, y):
    return by_sums(q, s, -z, p, t, y)


def symmetric_weights(q, s, z, p, t, y):
    return by_sums(q, s, z, p, t, 0 * y)


def first_zero_point(q, s, z, p, t, y):
    return by_sums(q, s, z, p, t, y[:1].expand(len(p)))


def forgets_the_last_term(q, s, z, p, t, y):
    return by_sums(q, s, z, p, t, y) - s * t * q.size(1) * z * y


def one_scale(q, s, z, p, t, y):
    return by_sums(q, s, z, p, t[:1], y)


def no_input_scale(q, s, z, p, t, y):
    return by_sums(q, 1.0, z, p, t, y)


def in_bytes(q, s, z, p, t, y):
    return s * t * (q @ p.T - z * p.sum(1) - q.sum(1)[:, None] * y + q.size(1) * z * y)


def widened_too_late(q, s, z, p, t, y):
    return s * t * ((q - z).long() @ (p - y[:, None]).long().T)


def in_real_numbers(q, s, z, p, t, y):
    return (s * (q.double() - z)) @ (t[:, None] * (p.double() - y[:, None])).T


def real_products(q, s, z, p, t, y):
    terms = (q.long() - z)[:, None] * (p.long() - y.long()[:, None])  # (rows, out, in)
    return (s * t[:, None] * terms).sum(-1)


def by_detach(x, scale, low, high):
    inside = x.clamp(scale * low, scale * high)
    done = torch.round(x / scale).clamp(low, high) * scale
    return inside + (done - inside).detach()


def by_mask(x, scale, low, high):
    q = torch.round(x / scale)
    inside = ((q >= low) & (q <= high)).to(x.dtype)
    done = q.clamp(low, high).detach() * scale
    return done + inside * (x - x.detach())


def no_gradient(x, scale, low, high):
    return torch.round(x / scale).clamp(low, high) * scale + 0 * x


def passes_everywhere(x, scale, low, high):
    return x + (torch.round(x / scale).clamp(low, high) * scale - x).detach()


def no_ends(x, scale, low, high):
    return x + (torch.round(x / scale) * scale - x).detach()


def not_scaled_back(x, scale, low, high):
    return x + (torch.round(x / scale).clamp(low, high) - x).detach()


def scaled_gradient(x, scale, low, high):
    return by_mask(x, scale, low, high) / scale * scale + (1 / scale - 1) * (x - x.detach())


def rounds_down(x, scale, low, high):
    return by_mask(torch.floor(x / scale).detach() * scale + (x - x.detach()), scale, low, high)


def by_topk(weights, ratio):
    every = torch.cat([w.abs().flatten() for w in weights])
    kept = torch.zeros(len(every), dtype=torch.bool)
    kept[every.topk(len(every) - round(ratio * len(every))).indices] = True
    return [part.view_as(w) for part, w in zip(kept.split([w.numel() for w in weights]), weights, strict=True)]


def by_rank(weights, ratio):
    values = sorted(float(v) for w in weights for v in w.abs().flatten())
    gone = round(ratio * len(values))
    if gone == 0:
        return [torch.ones_like(w, dtype=torch.bool) for w in weights]
    order = torch.cat([w.abs().flatten() for w in weights]).argsort(stable=True)
    kept = torch.ones(len(values)).bool()
    kept[order[:gone]] = False
    sizes = [w.numel() for w in weights]
    return [k.reshape(w.shape) for k, w in zip(torch.split(kept, sizes), weights, strict=True)]


def each_alone(weights, ratio):
    return [by_topk([w], ratio)[0] for w in weights]


def with_sign(weights, ratio):
    return [
        m.view_as(w)
        for m, w in zip(by_topk([w - min(v.min() for v in weights) for w in weights], ratio), weights, strict=True)
    ]


def the_large_ones(weights, ratio):
    return [~mask for mask in by_topk(weights, 1 - ratio)]


def as_numbers(weights, ratio):
    return [mask.float() for mask in by_topk(weights, ratio)]


def above_the_least(weights, ratio):
    every = torch.cat([w.abs().flatten() for w in weights]).sort().values
    return [w.abs() > every[max(round(ratio * len(every)) - 1, 0)] for w in weights]


def at_least_one(weights, ratio):
    return by_topk(weights, min(ratio, 1 - 1 / sum(w.numel() for w in weights)))


def by_kl_div(student, values, places, temperature):
    p = F.log_softmax(values.detach() / temperature, -1)
    q = F.log_softmax(student / temperature, -1).gather(1, places)
    return temperature**2 * F.kl_div(q, p, reduction="sum", log_target=True)


def by_entropies(student, values, places, temperature):
    with torch.no_grad():
        logs = (values / temperature).log_softmax(-1)
    found = student / temperature
    rows = torch.arange(len(found))[:, None]
    gaps = logs - found[rows, places] + found.logsumexp(-1, keepdim=True)
    return (logs.exp() * gaps).sum() * temperature * temperature


def without_the_square(student, values, places, temperature):
    return by_kl_div(student, values, places, temperature) / temperature**2


def student_first(student, values, places, temperature):
    p, q = (values.detach() / temperature).log_softmax(-1), (student / temperature).log_softmax(-1).gather(1, places)
    return temperature**2 * (q.exp() * (q - p)).sum()


def cross_entropy(student, values, places, temperature):
    p = (values.detach() / temperature).softmax(-1)
    return -(temperature**2) * (p * (student / temperature).log_softmax(-1).gather(1, places)).sum()


def one_side_softened(student, values, places, temperature):
    return by_kl_div(student, values * temperature, places, temperature)


def averaged(student, values, places, temperature):
    return by_kl_div(student, values, places, temperature) / len(student)


def among_the_stored(student, values, places, temperature):
    return by_kl_div(student.gather(1, places), values, torch.arange(places.size(1)).expand_as(places), temperature)


def in_their_order(student, values, places, temperature):
    return by_kl_div(student, values, torch.arange(places.size(1)).expand_as(places), temperature)


def zeros_for_the_rest(student, values, places, temperature):
    every = torch.zeros_like(student).scatter(1, places, values.detach())
    return by_kl_div(student, every, torch.arange(student.size(1)).expand_as(student), temperature)


def by_plain_logs(student, values, places, temperature):
    p = (values.detach() / temperature).softmax(-1)
    q = (student / temperature).softmax(-1).gather(1, places)
    return temperature**2 * (p * (p / q).log()).sum()


def kept_from_zero(student, values, places, temperature):
    p = (values.detach() / temperature).softmax(-1)
    q = (student / temperature).softmax(-1).gather(1, places)
    return temperature**2 * (p * (p.clamp(min=1e-30) / q.clamp(min=1e-30)).log()).sum()


def teaches_the_teacher(student, values, places, temperature):
    p, q = (values / temperature).log_softmax(-1), (student / temperature).log_softmax(-1).gather(1, places)
    return temperature**2 * (p.exp() * (p - q)).sum()


ANSWERS = {
    "ex11_1": Answers(
        wrong={
            "one scale and one": [one_alone],
            "the ends of a row": [around_zero, one_step_more, one_for_all],
            "fewer bits": [always_eight, around_zero],
            "zero is on the grid when all values of a row are positive": [without_zero],
            "zero is on the grid when all values of a row are negative": [without_zero],
            "tiny values": [never_below_a_hundredth],
            "a row of zeros": [divides_by_zero, one_zero_row_for_all],
        },
        right=[by_ends, row_by_row],
    ),
    "ex11_2": Answers(
        wrong={
            "zero points of zero": [no_input_scale, one_scale],
            "each output has": [one_scale],
            "the zero point of": [no_zero_point, adds_the_zero_point],
            "each output's zero": [symmetric_weights, first_zero_point],
            "both zero points": [forgets_the_last_term],
            "neither sums": [in_bytes, widened_too_late],
            "before the last line": [in_real_numbers, real_products],
        },
        right=[by_sums, shifted_first],
    ),
    "ex11_3": Answers(
        wrong={
            "values go to the nearest": [not_scaled_back, rounds_down],
            "what lies beyond": [no_ends],
            "inside, the gradient": [no_gradient, scaled_gradient],
            "beyond the ends it is": [passes_everywhere],
        },
        right=[by_detach, by_mask],
    ),
    "ex11_4": Answers(
        wrong={
            "one boolean mask": [as_numbers],
            "one threshold": [each_alone, the_large_ones],
            "the sign": [with_sign],
            "a ratio of zero": [above_the_least],
            "a ratio of one": [at_least_one],
        },
        right=[by_topk, by_rank],
    ),
    "ex11_5": Answers(
        wrong={
            "with all logits": [cross_entropy, in_their_order],
            "at a temperature of one": [student_first, averaged],
            "a temperature softens": [without_the_square, one_side_softened],
            "what was not stored": [among_the_stored, zeros_for_the_rest],
            "logits in the hundreds": [by_plain_logs, kept_from_zero],
            "the student gets": [teaches_the_teacher],
        },
        right=[by_kl_div, by_entropies],
    ),
}
