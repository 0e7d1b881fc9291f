"""Answers to the exercises of chapter 5."""

import math

import torch
import torch.nn.functional as F

from tests.exercises import Answers


def no_warmup(warmup, cooldown):
    return lambda p: 1 - math.sqrt(max(0.0, (p - (1 - cooldown)) / cooldown)) if cooldown else 1.0


def linear_cooldown(warmup, cooldown):
    return lambda p: min(1.0, p / warmup if warmup else 1.0, (1 - p) / cooldown if cooldown else 1.0)


def root_of_what_is_left(warmup, cooldown):
    return lambda p: min(1.0, p / warmup if warmup else 1.0, math.sqrt(min(1.0, (1 - p) / cooldown)) if cooldown else 1)


def over_the_whole_run(warmup, cooldown):
    return lambda p: min(p / warmup if warmup else 1.0, 1 - math.sqrt(p) if cooldown else 1.0)


def leaves_a_tenth(warmup, cooldown):
    return lambda p: max(0.1, by_cases(warmup, cooldown)(p)) if p > warmup else by_cases(warmup, cooldown)(p)


def divides_by_warmup(warmup, cooldown):
    return lambda p: min(1.0, p / warmup) * (1 - math.sqrt(max(0.0, (p - (1 - cooldown)) / cooldown)))


def by_cases(warmup, cooldown):
    def multiplier(p):
        if p < warmup:
            return p / warmup
        if p <= 1 - cooldown:
            return 1.0
        return 1 - math.sqrt((p - (1 - cooldown)) / cooldown)

    return multiplier


def as_a_product(warmup, cooldown):
    def multiplier(p):
        rising = min(1.0, p / warmup) if warmup else 1.0
        over = max(0.0, 1 - (1 - p) / cooldown) if cooldown else 0.0
        return rising * (1 - over**0.5)

    return multiplier


def present(gradients):
    return [g for g in gradients if g is not None]


def norm_of(gradients):
    return math.sqrt(sum(float(g.square().sum()) for g in present(gradients)))


def one_by_one(gradients, limit):
    norm = norm_of(gradients)
    for g in present(gradients):
        g.mul_(min(1.0, limit / max(float(g.norm()), 1e-12)))
    return norm


def by_value(gradients, limit):
    norm = norm_of(gradients)
    for g in present(gradients):
        g.clamp_(-limit, limit)
    return norm


def times(gradients, factor):
    for g in present(gradients):
        g.mul_(factor)


def shortened(gradients, limit, norm):
    times(gradients, limit / norm if limit < norm < math.inf else 1.0)
    return norm


def to_the_limit_always(gradients, limit):
    norm = norm_of(gradients)
    times(gradients, limit / norm)
    return norm


def norm_afterwards(gradients, limit):
    shortened(gradients, limit, norm_of(gradients))
    return norm_of(gradients)


def not_in_place(gradients, limit):
    norm = norm_of(gradients)
    gradients = [g * min(1.0, limit / max(norm, 1e-12)) for g in present(gradients)]
    return norm


def trips_over_none(gradients, limit):
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
    return norm if norm <= limit else [g.mul_(limit / norm) for g in gradients] and norm


def spreads_nan(gradients, limit):
    norm = norm_of(gradients)
    times(gradients, 1.0 if norm <= limit else limit / norm)
    return norm


def without_flattening(gradients, limit):
    return shortened(gradients, limit, torch.cat(present(gradients)).norm().item())


def largest_singular_values(gradients, limit):
    squares = [float(torch.linalg.norm(g, 2)) ** 2 for g in present(gradients)]
    return shortened(gradients, limit, math.sqrt(sum(squares)))


def common_factor(gradients, limit):
    return shortened(gradients, limit, norm_of(gradients))


def through_one_vector(gradients, limit):
    norm = torch.cat([g.flatten() for g in gradients if g is not None]).norm()
    if torch.isfinite(norm):
        factor = (limit / norm.clamp(min=1e-300)).clamp(max=1.0)
        for g in gradients:
            if g is not None:
                g *= factor
    return norm.item()


def summed(model, x, y):
    return F.cross_entropy(model(x), y, ignore_index=-100, reduction="sum")


def targets(parts):
    return sum(int((y != -100).sum()) for _, y in parts)


def one_after_the_other(model, parts, loss_of):
    total = 0.0
    for x, y in parts:
        loss = loss_of(model, x, y)
        loss.backward()
        total += loss.item()
    return total


def mean_of_means(model, parts):
    model.zero_grad()
    share = lambda model, x, y: F.cross_entropy(model(x), y, ignore_index=-100) / len(parts)
    return one_after_the_other(model, parts, share)


def counts_the_ignored(model, parts):
    model.zero_grad()
    rows = sum(len(y) for _, y in parts)
    return one_after_the_other(model, parts, lambda *part: summed(*part) / rows)


def only_sums(model, parts):
    model.zero_grad()
    return one_after_the_other(model, parts, summed) / targets(parts)


def last_part_only(model, parts):
    alone = lambda *part: model.zero_grad() or summed(*part) / targets(parts)
    return one_after_the_other(model, parts, alone)


def one_big_graph(model, parts):
    model.zero_grad()
    loss = sum(summed(model, x, y) for x, y in parts) / targets(parts)
    loss.backward()
    return loss.item()


def keeps_every_graph(model, parts):
    model.zero_grad()
    losses = []
    for x, y in parts:
        losses.append(summed(model, x, y) / targets(parts))
        losses[-1].backward(retain_graph=True)
    return sum(losses).item()


def bias_of_the_sum(model, parts):
    mean = scaled_first(model, parts)
    model.bias.grad *= targets(parts)
    return mean


def never_clears(model, parts):
    return one_after_the_other(model, parts, lambda *part: summed(*part) / targets(parts))


def returns_the_sum(model, parts):
    return scaled_first(model, parts) * targets(parts)


def scaled_first(model, parts):
    model.zero_grad()
    return one_after_the_other(model, parts, lambda *part: summed(*part) / targets(parts))


def divided_afterwards(model, parts):
    for p in model.parameters():
        p.grad = None
    count = nats = 0
    for x, y in parts:
        log_p = model(x).log_softmax(-1)
        chosen = y != -100
        loss = -log_p[chosen, y[chosen]].sum()
        loss.backward()
        count, nats = count + int(chosen.sum()), nats + loss.item()
    for p in model.parameters():
        p.grad /= count
    return nats / count


def into_zeros(model, parts):
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    return one_after_the_other(model, parts, lambda *part: summed(*part) / targets(parts))


def set_at_the_end(model, parts):
    weights, losses, slopes = list(model.parameters()), [], []
    for part in parts:
        losses.append(summed(model, *part) / targets(parts))
        slopes.append(torch.autograd.grad(losses[-1], weights))
    for p, *some in zip(weights, *slopes, strict=True):
        p.grad = sum(some)
    return sum(losses)


def walked(scores, patience, better=lambda new, old: new < old, over=lambda age, most: most and age >= most):
    best = 0
    for at, score in enumerate(scores):
        best = at if better(score, scores[best]) else best
        if over(at - best, patience):
            return at, best
    return len(scores) - 1, best


def one_too_late(scores, patience):
    return walked(scores, patience, over=lambda age, most: most and age > most)


def compared_with_the_one_before(scores, patience):
    since = best = 0
    for at in range(1, len(scores)):
        since = 0 if scores[at] < scores[at - 1] else since + 1
        best = at if scores[at] < scores[best] else best
        if patience and since >= patience:
            return at, best
    return len(scores) - 1, best


def ties_improve(scores, patience):
    return walked(scores, patience, better=lambda new, old: new <= old)


def zero_is_at_once(scores, patience):
    return walked(scores, patience, over=int.__ge__)


def keeps_the_last(scores, patience):
    at, _ = by_a_running_best(scores, patience)
    return at, at


def higher_is_better(scores, patience):
    return by_a_running_best([-score for score in scores], patience)


def by_a_running_best(scores, patience):
    least, best, since = math.inf, 0, 0
    for at, score in enumerate(scores):
        if score < least:
            least, best, since = score, at, 0
        else:
            since += 1
        if patience and since >= patience:
            return at, best
    return len(scores) - 1, best


def by_looking_back(scores, patience):
    clean = [math.inf if score != score else score for score in scores]
    place = lambda end: min(range(end + 1), key=lambda i: clean[i])
    for end in range(len(scores)):
        stale = end - place(end) if clean[place(end)] < math.inf else end + 1
        if patience > 0 and stale >= patience:
            return end, place(end)
    return len(scores) - 1, place(len(scores) - 1)


def without_rounding(layers, inside, between):
    return min(max(math.sqrt(layers * between / inside), 1), layers)


def root_of_layers(layers, inside, between):
    return round(math.sqrt(layers))


def turned_over(layers, inside, between):
    return min(max(round(math.sqrt(layers * inside / between)), 1), layers)


def without_limits(layers, inside, between):
    return round(math.sqrt(layers * between / inside))


def number_of_segments(layers, inside, between):
    return max(1, round(layers / math.sqrt(layers * between / inside)))


def always_one(layers, inside, between):
    return 1


def tried(layers, inside, between):
    return min(range(1, layers + 1), key=lambda k: -(-layers // k) * between + k * inside)


def fewest_boundaries_first(layers, inside, between):
    best = layers
    for segments in range(1, layers + 1):
        k = math.ceil(layers / segments)
        if math.ceil(layers / k) * between + k * inside < math.ceil(layers / best) * between + best * inside:
            best = k
    return best


ANSWERS = {
    "ex05_1": Answers(
        wrong={
            "the warm-up": [no_warmup],
            "between warm-up": [over_the_whole_run],
            "a quarter": [linear_cooldown, root_of_what_is_left],
            "the run ends": [leaves_a_tenth],
            "without warm-up": [divides_by_warmup],
            "without cooldown": [divides_by_warmup],
        },
        right=[by_cases, as_a_product],
    ),
    "ex05_2": Answers(
        wrong={
            "it returns": [norm_afterwards],
            "a matrix counts": [without_flattening, largest_singular_values],
            "gradients within": [to_the_limit_always],
            "longer ones": [not_in_place, one_by_one],
            "the direction": [by_value, one_by_one],
            "a parameter": [trips_over_none],
            "zero gradients": [to_the_limit_always],
            "a norm": [spreads_nan, to_the_limit_always],
        },
        right=[common_factor, through_one_vector],
    ),
    "ex05_3": Answers(
        wrong={
            "equal parts": [only_sums, last_part_only, bias_of_the_sum],
            "unequal parts": [mean_of_means, counts_the_ignored],
            "what is returned": [mean_of_means, returns_the_sum],
            "a part without": [mean_of_means],
            "a part's backward": [one_big_graph],
            "no graph of": [keeps_every_graph, one_big_graph],
            "the gradient of": [never_clears],
        },
        right=[scaled_first, divided_afterwards, into_zeros, set_at_the_end],
    ),
    "ex05_4": Answers(
        wrong={
            "it ends": [one_too_late, keeps_the_last],
            "falling scores": [higher_is_better],
            "the same score": [ties_improve],
            "what counts": [compared_with_the_one_before],
            "patience 0": [zero_is_at_once],
            "a score": [walked],
        },
        right=[by_a_running_best, by_looking_back],
    ),
    "ex05_5": Answers(
        wrong={
            "it is a whole": [without_rounding],
            "with equal": [always_one],
            "boundaries that cost next": [root_of_layers, without_limits],
            "boundaries that cost much": [root_of_layers, turned_over],
            "no other": [root_of_layers, number_of_segments],
        },
        right=[tried, fewest_boundaries_first],
    ),
}
