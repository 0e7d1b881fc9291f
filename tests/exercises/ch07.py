"""Answers to the exercises of chapter 7."""

import math

import numpy as np
from scipy import stats
from scipy.optimize import curve_fit, minimize_scalar

from tests.exercises import Answers


def fills_it_all(state, row, memory, step_rows):
    return shared_out(state, row, memory * 10 // 9 + 1, step_rows)


def forgets_the_state(state, row, memory, step_rows):
    return shared_out(0, row, memory, step_rows)


def full_and_rest(state, row, memory, step_rows):
    rows = min(step_rows, int(0.9 * memory - state) // max(row, 1))
    return (rows, math.ceil(step_rows / rows)) if rows > 0 else (0, 0)


def rounds_down(state, row, memory, step_rows):
    rows, _ = full_and_rest(state, row, memory, step_rows)
    return (rows, step_rows // rows) if rows else (0, 0)


def halves(state, row, memory, step_rows):
    parts = 1
    while state + -(-step_rows // parts) * row > 0.9 * memory:
        if parts > step_rows:
            return 0, 0
        parts *= 2
    return -(-step_rows // parts), parts


def one_row_always(state, row, memory, step_rows):
    rows, parts = shared_out(state, row, memory, step_rows)
    return (rows, parts) if rows else (1, step_rows)


def always_accumulates(state, row, memory, step_rows):
    return 1, step_rows


def shared_out(state, row, memory, step_rows):
    room = memory * 9 // 10 - state
    most = step_rows if not row else min(step_rows, room // row)
    if room < 0 or most < 1:
        return 0, 0
    parts = -(-step_rows // most)
    return -(-step_rows // parts), parts


def counted_up(state, row, memory, step_rows):
    for parts in range(1, step_rows + 1):
        rows = math.ceil(step_rows / parts)
        if 10 * (state + rows * row) <= 9 * memory:
            return rows, parts
    return 0, 0


def no_floor(flops, bits):
    slope, start = np.polyfit(np.log(flops), np.log(bits), 1)
    return 0.0, math.exp(start), -slope


def floor_is_the_least(flops, bits):
    slope, start = np.polyfit(np.log(flops[:-1]), np.log(bits[:-1] - bits.min()), 1)
    return bits.min(), math.exp(start), -slope


def in_flop(flops, bits):
    floor, scale, power = least_squares(flops, bits)
    return floor, scale * 1e12**power, power


def sign_turned(flops, bits):
    floor, scale, power = least_squares(flops, bits)
    return floor, scale, -power


def through_the_ends(flops, bits):
    """Exact on three points, so that the others do not count."""
    return least_squares(flops[[0, 2, 5] * 2], bits[[0, 2, 5] * 2])


def least_squares(flops, bits):
    law = lambda c, floor, scale, power: floor + scale * c**-power
    found, _ = curve_fit(law, flops, bits, p0=(1.0, 2.0, 0.2), bounds=([0, 0, 0.01], [bits.min(), 20, 2]))
    return tuple(found)


def one_dimension(flops, bits):
    """Given α, the law is a straight line in C^−α."""

    def line(power):
        design = np.stack([np.ones_like(flops), flops**-power], 1)
        found, *_ = np.linalg.lstsq(design, bits, rcond=None)
        return found, ((design @ found - bits) ** 2).sum()

    power = minimize_scalar(lambda p: line(p)[1], bounds=(0.01, 2), method="bounded", options={"xatol": 1e-7}).x
    (floor, scale), _ = line(power)
    return floor, scale, power


def judged(mean, half, seeds):
    low, high = mean - half, mean + half
    verdict = "undecided" if seeds < 3 or low <= 0 <= high else "helps" if low > 0 else "hurts"
    return mean, low, high, verdict


def differences(old, new):
    return np.array([old[seed] - new[seed] for seed in sorted(old.keys() & new.keys())])


def with_scipy(old, new):
    d = differences(old, new)
    half = stats.t.ppf(0.975, len(d) - 1) * stats.sem(d) if len(d) > 1 else math.inf
    return judged(d.mean(), half, len(d))


def by_hand(old, new):
    both = [seed for seed in old if seed in new]
    gains = [old[seed] - new[seed] for seed in both]
    n, mean = len(gains), sum(gains) / len(gains)
    variance = sum((gain - mean) ** 2 for gain in gains) / max(n - 1, 1)
    student = stats.t(max(n - 1, 1)).interval(0.95)[1]
    return judged(mean, student * math.sqrt(variance / n), n)


def higher_is_better(old, new):
    return with_scipy(new, old)


def normal_quantile(old, new):
    d = differences(old, new)
    return judged(d.mean(), 1.96 * d.std(ddof=1) / len(d) ** 0.5, len(d))


def spread_of_the_seeds(old, new):
    d = differences(old, new)
    return judged(d.mean(), stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1), len(d))


def unpaired(old, new):
    a, b = (np.array(list(scores.values())) for scores in (old, new))
    error = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    return judged(a.mean() - b.mean(), stats.t.ppf(0.975, len(a) + len(b) - 2) * error, min(len(a), len(b)))


def in_order(old, new):
    pairs = list(zip(old.values(), new.values(), strict=False))
    return with_scipy({n: a for n, (a, _) in enumerate(pairs)}, {n: b for n, (_, b) in enumerate(pairs)})


def by_the_mean(old, new):
    mean, low, high, _ = with_scipy(old, new)
    return mean, low, high, "helps" if mean > 0 else "hurts"


def two_are_enough(old, new):
    mean, low, high, _ = with_scipy(old, new)
    return *judged(mean, high - mean, 3)[:3], "undecided" if low <= 0 <= high else "helps" if low > 0 else "hurts"


def formula(cost, between, budget):
    return min(budget, math.sqrt(2 * cost * between))


def searched(cost, between, budget):
    lost = lambda log: cost / math.exp(log) + math.exp(log) / (2 * between)
    return math.exp(minimize_scalar(lost, bounds=(math.log(1e-3), math.log(budget)), method="bounded").x)


def without_the_half(cost, between, budget):
    return min(budget, math.sqrt(cost * between))


def the_cost_below(cost, between, budget):
    return min(budget, math.sqrt(2 * between / cost))


def a_share_of_the_time_between(cost, between, budget):
    return min(budget, between / 40)


def longer_than_the_run(cost, between, budget):
    return math.sqrt(2 * cost * between)


def every_two_minutes(cost, between, budget):
    return min(budget, 120.0)


def from_the_end(budgets, scores, line):
    if scores[-1] < line:
        return math.inf
    for at in range(len(scores) - 2, -1, -1):
        if scores[at] < line:
            share = (line - scores[at]) / (scores[at + 1] - scores[at])
            return budgets[at] * (budgets[at + 1] / budgets[at]) ** share
    return budgets[0]


def with_numpy(budgets, scores, line):
    below = np.flatnonzero(np.array(scores) < line)
    if not len(below):
        return budgets[0]
    last = below[-1]
    if last == len(scores) - 1:
        return math.inf
    return float(np.exp(np.interp(line, scores[last : last + 2], np.log(budgets[last : last + 2]))))


def on_a_linear_scale(budgets, scores, line):
    logs = [math.exp(budget / 100) for budget in budgets]
    return 100 * math.log(from_the_end(logs, scores, line))


def first_time(budgets, scores, line):
    if scores[0] >= line:
        return budgets[0]
    for at in range(len(scores) - 1):
        if scores[at + 1] >= line:
            return from_the_end(budgets[at : at + 2], scores[at : at + 2], line)
    return math.inf


def next_measured(budgets, scores, line):
    found = from_the_end(budgets, scores, line)
    return found if math.isinf(found) else min(budget for budget in budgets if budget >= found)


def strictly_above(budgets, scores, line):
    return math.inf if line in scores else from_the_end(budgets, scores, line)


def nothing_below_is_infinite(budgets, scores, line):
    return math.inf if min(scores) >= line else from_the_end(budgets, scores, line)


def the_last_budget(budgets, scores, line):
    return min(from_the_end(budgets, scores, line), budgets[-1])


ANSWERS = {
    "ex07_1": Answers(
        wrong={
            "a step that fits": [always_accumulates],
            "state and rows": [fills_it_all, forgets_the_state],
            "there are as few": [full_and_rest, halves],
            "every row": [rounds_down],
            "where not one": [one_row_always, forgets_the_state],
        },
        right=[shared_out, counted_up],
    ),
    "ex07_2": Answers(
        wrong={
            "points on a curve": [no_floor, floor_is_the_least],
            "… and its A": [in_flop, no_floor],
            "… and its α": [sign_turned, floor_is_the_least],
            "points that scatter": [through_the_ends],
        },
        right=[least_squares, one_dimension],
    ),
    "ex07_3": Answers(
        wrong={
            "the mean": [higher_is_better],
            "the interval": [normal_quantile, spread_of_the_seeds],
            "a seed's luck": [unpaired],
            "only seeds": [in_order, unpaired],
            "the verdict": [by_the_mean],
            "fewer than": [two_are_enough],
        },
        right=[with_scipy, by_hand],
    ),
    "ex07_4": Answers(
        wrong={
            "neither more": [without_the_half, the_cost_below],
            "a checkpoint four": [a_share_of_the_time_between, the_cost_below],
            "a machine that": [every_two_minutes],
            "a run is never": [longer_than_the_run],
        },
        right=[formula, searched],
    ),
    "ex07_5": Answers(
        wrong={
            "between two": [on_a_linear_scale, next_measured],
            "a curve that comes": [first_time],
            "a budget that": [strictly_above],
            "a curve that is above": [nothing_below_is_infinite],
            "a curve that ends": [the_last_budget],
        },
        right=[from_the_end, with_numpy],
    ),
}
