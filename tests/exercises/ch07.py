"""Answers to the exercises of chapter 7."""

import math

import numpy as np
from scipy import stats
from scipy.optimize import brentq, minimize_scalar

from tests.exercises import Answers


def fills_it_all(state, row, memory, step_rows):
    return shared_out(state, row, memory * 10 // 9 + 1, step_rows)


def forgets_the_state(state, row, memory, step_rows):
    return shared_out(0, row, memory, step_rows)


def nine_tenths_of_the_rest(state, row, memory, step_rows):
    return shared_out(0, row, max(memory - state, 0), step_rows)


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


def as_a_list(state, row, memory, step_rows):
    return list(shared_out(state, row, memory, step_rows))


def counted_up(state, row, memory, step_rows):
    for parts in range(1, step_rows + 1):
        rows = math.ceil(step_rows / parts)
        if 10 * (state + rows * row) <= 9 * memory:
            return rows, parts
    return 0, 0


def solved(bits, floor, scale, power):
    return (scale / (bits - floor)) ** (1 / power) if bits > floor else math.inf


def by_bisection(bits, floor, scale, power):
    if bits <= floor:
        return math.inf
    return math.exp(brentq(lambda log: floor + scale * math.exp(-power * log) - bits, -60, 60, xtol=1e-12))


def without_a_floor(bits, floor, scale, power):
    return (scale / bits) ** (1 / power)


def upside_down(bits, floor, scale, power):
    return ((bits - floor) / scale) ** (1 / power) if bits > floor else math.inf


def wrong_root(bits, floor, scale, power):
    return (scale / (bits - floor)) ** power if bits > floor else math.inf


def clipped_at_the_floor(bits, floor, scale, power):
    return (scale / max(bits - floor, 1e-9)) ** (1 / power)


def half_width(spread, seeds):
    return stats.t.ppf(0.975, seeds - 1) * spread / math.sqrt(seeds)


def one_more_and_one_more(spread, effect):
    seeds = 3
    while half_width(spread, seeds) > effect:
        seeds += 1
    return seeds


def by_halving(spread, effect):
    """The width falls with the seeds: double, then search between."""
    enough = 3
    while half_width(spread, enough) > effect:
        enough *= 2
    return next(seeds for seeds in range(max(3, enough // 2), enough + 1) if half_width(spread, seeds) <= effect)


def with_the_normal_quantile(spread, effect):
    return max(3, math.ceil((1.96 * spread / effect) ** 2))


def one_too_many(spread, effect):
    return one_more_and_one_more(spread, effect) + 1


def without_the_root(spread, effect):
    return max(3, math.ceil(1.96 * spread / effect))


def two_are_enough(spread, effect):
    return next(seeds for seeds in range(2, 10_000) if half_width(spread, seeds) <= effect)


def whole_interval(spread, effect):
    return one_more_and_one_more(spread, effect / 2)


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
            "state and rows": [fills_it_all, forgets_the_state, nine_tenths_of_the_rest],
            "there are as few": [full_and_rest, halves],
            "every row": [rounds_down],
            "where not one": [one_row_always, forgets_the_state],
        },
        right=[shared_out, counted_up, as_a_list],
    ),
    "ex07_2": Answers(
        wrong={
            "put into the law": [upside_down, without_a_floor],
            "only what is above": [without_a_floor, upside_down],
            "half of what": [wrong_root, without_a_floor],
            "the floor itself": [clipped_at_the_floor, without_a_floor],
        },
        right=[solved, by_bisection],
    ),
    "ex07_3": Answers(
        wrong={
            "with so many": [with_the_normal_quantile, without_the_root],
            "with one fewer": [one_too_many, whole_interval],
            "a few seeds": [with_the_normal_quantile],
            "half the effect": [without_the_root],
            "three are": [two_are_enough, one_too_many],
        },
        right=[one_more_and_one_more, by_halving],
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
