"""Wrong and right answers to the exercises of chapter 1."""

from tests.exercises import Answers


# 1.1 another block
def flops_in_one_line(layers, h, m, V, n):  # noqa: N803
    return 6 * (layers * (4 * h * h + 2 * h * m) + V * h) + 12 * layers * h * n


def flops_by_passes(layers, h, m, V, n):  # noqa: N803
    products = [*[h * h] * 4, h * m, m * h, h * n, h * n]  # per layer; the last two are scores and averages
    forward = 2 * (layers * sum(products) + V * h)
    return 3 * forward


def forward_only(layers, h, m, V, n):  # noqa: N803
    return flops_in_one_line(layers, h, m, V, n) / 3


def gated(layers, h, m, V, n):  # noqa: N803
    return flops_in_one_line(layers, h, m, V, n) + 6 * layers * h * m


def embedding_too(layers, h, m, V, n):  # noqa: N803
    return flops_in_one_line(layers, h, m, V, n) + 6 * V * h


def without_attention(layers, h, m, V, n):  # noqa: N803
    return flops_in_one_line(layers, h, m, V, 0)


def one_layers_attention(layers, h, m, V, n):  # noqa: N803
    return flops_in_one_line(layers, h, m, V, 0) + 12 * h * n


# 1.2 the bill
def bill(flops, peak, mfu, euros_per_hour):
    hours = flops / peak / mfu / 3600
    return hours / 24, hours * euros_per_hour


def bill_from_days(flops, peak, mfu, euros_per_hour):
    days = flops / (peak * mfu * 86_400)
    return [days, 24 * days * euros_per_hour]


def times_mfu(flops, peak, mfu, euros_per_hour):
    return bill(flops * mfu * mfu, peak, mfu, euros_per_hour)


def in_hours(flops, peak, mfu, euros_per_hour):
    days, euros = bill(flops, peak, mfu, euros_per_hour)
    return 24 * days, euros


def paid_by_the_day(flops, peak, mfu, euros_per_hour):
    days, _ = bill(flops, peak, mfu, euros_per_hour)
    return days, days * euros_per_hour


def paid_at_full_use(flops, peak, mfu, euros_per_hour):
    days, _ = bill(flops, peak, mfu, euros_per_hour)
    return days, 24 * days * mfu * euros_per_hour


# 1.3 the valley
def best_closed(flops, A, B, alpha, beta):  # noqa: N803
    weights = (alpha * A / (beta * B) * (flops / 6) ** beta) ** (1 / (alpha + beta))
    return weights, flops / 6 / weights


def best_by_bisection(flops, A, B, alpha, beta):  # noqa: N803
    low, high = 1.0, flops / 6
    for _ in range(200):
        middle = (low * high) ** 0.5
        tokens = flops / 6 / middle
        falling = alpha * A / middle**alpha > beta * B / tokens**beta
        low, high = (middle, high) if falling else (low, middle)
    return low, flops / 6 / low


def without_the_six(flops, A, B, alpha, beta):  # noqa: N803
    weights, _ = best_closed(6 * flops, A, B, alpha, beta)
    return weights, flops / weights


def twenty(flops, A, B, alpha, beta):  # noqa: N803
    weights = (flops / 120) ** 0.5
    return weights, 20 * weights


def exponents_swapped(flops, A, B, alpha, beta):  # noqa: N803
    weights = (alpha * A / (beta * B) * (flops / 6) ** alpha) ** (1 / (alpha + beta))
    return weights, flops / 6 / weights


def terms_equal(flops, A, B, alpha, beta):  # noqa: N803
    weights = (A / B * (flops / 6) ** beta) ** (1 / (alpha + beta))
    return weights, flops / 6 / weights


# 1.4 utilization
def both(tokens_per_second, weights, peak, recompute):
    useful = 6 * weights * tokens_per_second / peak
    return useful, useful * (4 / 3 if recompute else 1)


def both_by_passes(tokens_per_second, weights, peak, recompute):
    forward = 2 * weights * tokens_per_second
    done = forward * (4 if recompute else 3)
    return [3 * forward / peak, done / peak]


def all_work_is_useful(tokens_per_second, weights, peak, recompute):
    _, hardware = both(tokens_per_second, weights, peak, recompute)
    return hardware, hardware


def forward_and_backward_again(tokens_per_second, weights, peak, recompute):
    model, _ = both(tokens_per_second, weights, peak, recompute)
    return model, model * (2 if recompute else 1)


def two_a_weight(tokens_per_second, weights, peak, recompute):
    return both(tokens_per_second / 3, weights, peak, recompute)


def never_recomputes(tokens_per_second, weights, peak, recompute):
    return both(tokens_per_second, weights, peak, False)


ANSWERS = {
    "ex01_1": Answers(
        wrong={
            "the matrices of a block": [forward_only, gated],
            "the head costs": [embedding_too],
            "attention adds": [without_attention, one_layers_attention],
            "GPT-2 XL": [without_attention, forward_only],
        },
        right=[flops_in_one_line, flops_by_passes],
    ),
    "ex01_2": Answers(
        wrong={
            "a device-day": [in_hours],
            "half the utilization": [times_mfu],
            "a day is paid": [paid_by_the_day],
            "what is slower": [paid_at_full_use],
        },
        right=[bill, bill_from_days],
    ),
    "ex01_3": Answers(
        wrong={
            "the pair spends": [without_the_six],
            "when both terms": [twenty],
            "no model that is": [exponents_swapped, terms_equal, twenty],
        },
        right=[best_closed, best_by_bisection],
    ),
    "ex01_4": Answers(
        wrong={
            "without recomputation": [two_a_weight],
            "recomputation is no useful": [all_work_is_useful],
            "the hardware does": [forward_and_backward_again, never_recomputes],
        },
        right=[both, both_by_passes],
    ),
}
