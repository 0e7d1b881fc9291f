"""Answers to the exercises of chapter 11."""

import torch
import torch.nn.functional as F

from tests.exercises import Answers


def by_ends(x, bits):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    least, most = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (most - least) / (high - low) or 1.0
    return scale, low - round(least / scale)


def by_the_upper_end(x, bits):
    most, least = x.max().clamp(min=0), x.min().clamp(max=0)
    scale = (most - least) / (2**bits - 1)
    if scale == 0:
        return 1.0, 0
    return scale.item(), 2 ** (bits - 1) - 1 - round(float(most / scale))


def around_zero(x, bits):
    return float(x.abs().max()) / (2 ** (bits - 1) - 1) or 1.0, 0


def always_eight(x, bits):
    return by_ends(x, 8)


def without_zero(x, bits):
    scale = float(x.max() - x.min()) / (2**bits - 1) or 1.0
    return scale, -(2 ** (bits - 1)) - round(float(x.min()) / scale)


def divides_by_zero(x, bits):
    least, most = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (most - least) / (2**bits - 1)
    return scale, -(2 ** (bits - 1)) - round(least / max(scale, 1e-9))


def one_step_more(x, bits):
    scale, _ = by_ends(x, bits)
    scale *= (2**bits - 1) / 2**bits
    return scale, -(2 ** (bits - 1)) - round(min(float(x.min()), 0.0) / scale)


def by_sums(q, s, z, p, t):
    q, p = q.long(), p.long()
    return s * t * (q @ p.T - z * p.sum(1))


def shifted_first(q, s, z, p, t):
    return ((q.long() - z) @ p.long().T).double() * s * t


def no_zero_point(q, s, z, p, t):
    return s * t * (q.long() @ p.long().T)


def adds_the_zero_point(q, s, z, p, t):
    return s * t * (q.long() @ p.long().T + z * p.long().sum(1))


def one_scale(q, s, z, p, t):
    return s * t[0] * (q.long() @ p.long().T - z * p.long().sum(1))


def no_input_scale(q, s, z, p, t):
    return t * (q.long() @ p.long().T - z * p.long().sum(1))


def in_bytes(q, s, z, p, t):
    return s * t * (q @ p.T - z * p.sum(1))


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


def by_kl_div(student, teacher, temperature):
    p, q = F.log_softmax(teacher.detach() / temperature, -1), F.log_softmax(student / temperature, -1)
    return temperature**2 * F.kl_div(q, p, reduction="sum", log_target=True)


def by_entropies(student, teacher, temperature):
    with torch.no_grad():
        logs = (teacher / temperature).log_softmax(-1)
    found = logs.exp() * (logs - (student / temperature).log_softmax(-1))
    return found.sum() * temperature * temperature


def without_the_square(student, teacher, temperature):
    return by_kl_div(student, teacher, temperature) / temperature**2


def student_first(student, teacher, temperature):
    p, q = (student / temperature).log_softmax(-1), (teacher.detach() / temperature).log_softmax(-1)
    return temperature**2 * (p.exp() * (p - q)).sum()


def cross_entropy(student, teacher, temperature):
    p = (teacher.detach() / temperature).softmax(-1)
    return -(temperature**2) * (p * (student / temperature).log_softmax(-1)).sum()


def one_side_softened(student, teacher, temperature):
    p, q = teacher.detach().log_softmax(-1), (student / temperature).log_softmax(-1)
    return temperature**2 * (p.exp() * (p - q)).sum()


def averaged(student, teacher, temperature):
    return by_kl_div(student, teacher, temperature) / len(student)


def by_plain_logs(student, teacher, temperature):
    p, q = (teacher.detach() / temperature).softmax(-1), (student / temperature).softmax(-1)
    return temperature**2 * (p * (p / q).log()).sum()


def teaches_the_teacher(student, teacher, temperature):
    p, q = (teacher / temperature).log_softmax(-1), (student / temperature).log_softmax(-1)
    return temperature**2 * (p.exp() * (p - q)).sum()


ANSWERS = {
    "ex11_1": Answers(
        wrong={
            "the ends of the range": [around_zero, one_step_more],
            "fewer bits": [always_eight, around_zero],
            "zero is on the grid when all values are positive": [without_zero],
            "zero is on the grid when all values are negative": [without_zero],
            "values that are all zero": [divides_by_zero],
        },
        right=[by_ends, by_the_upper_end],
    ),
    "ex11_2": Answers(
        wrong={
            "a zero point of zero": [no_input_scale, one_scale],
            "each output": [one_scale],
            "the zero point is taken off": [no_zero_point, adds_the_zero_point],
            "sums do not overflow": [in_bytes],
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
        },
        right=[by_topk, by_rank],
    ),
    "ex11_5": Answers(
        wrong={
            "two equal answers": [cross_entropy],
            "at a temperature of one": [student_first, averaged],
            "a temperature softens": [without_the_square, one_side_softened],
            "logits in the hundreds": [by_plain_logs],
            "the teacher gets no": [teaches_the_teacher],
        },
        right=[by_kl_div, by_entropies],
    ),
}
