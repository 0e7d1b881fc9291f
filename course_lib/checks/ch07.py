"""Graders of chapter 7, one GPU in one day."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from course_lib.checks.grading import Properties, close, equal, grader, written

GB = 10**9


@grader
def ex07_1(micro_batch: Callable[[int, int, int, int], tuple[int, int]], holds: Properties) -> None:
    """Rows at once and micro-batches a step, for a memory."""

    def solve(state: int, row: int, memory: int, step_rows: int) -> tuple[int, int]:
        found = micro_batch(state, row, memory, step_rows)
        written(found)
        rows, parts = found
        return rows, parts

    with holds("a step that fits is one micro-batch"):
        equal(solve(2 * GB, GB, 80 * GB, 32), (32, 1))
        equal(solve(0, 1, GB, 8), (8, 1))
    with holds("state and rows together fill at most nine tenths of the memory"):
        equal(solve(2 * GB, GB, 10 * GB, 7), (7, 1))  # 2 + 7 = 9 of 10
        equal(solve(2 * GB, GB, 10 * GB, 8), (4, 2))
        equal(solve(50 * GB, GB, 100 * GB, 44), (22, 2))  # 40 rows would fit
    with holds("there are as few micro-batches as possible, and each has its share of the rows"):
        equal(solve(2 * GB, GB, 16 * GB, 24), (12, 2))  # 12.4 would fit
        equal(solve(2 * GB, GB, 16 * GB, 26), (9, 3))
    with holds("every row of the step is in one of them"):
        for step_rows in range(1, 30):
            rows, parts = solve(GB, GB, 8 * GB, step_rows)
            if rows * parts < step_rows:
                raise AssertionError(f"{parts} × {rows} rows are less than {step_rows}")
    with holds("where not one row fits, both numbers are 0"):
        equal(solve(15 * GB, GB, 16 * GB, 8), (0, 0))
        equal(solve(20 * GB, GB, 16 * GB, 8), (0, 0))


@grader
def ex07_2(compute_for: Callable[[float, float, float, float], float], holds: Properties) -> None:
    """The law solved for C: what a number of bits costs."""

    def solve(bits: float, floor: float = 1.2, scale: float = 0.9, power: float = 0.25) -> float:
        found = compute_for(bits, floor, scale, power)
        written(found)
        return found

    with holds("put into the law, the answer gives the bits back"):
        for bits in (2.1, 1.7, 1.35):
            close(1.2 + 0.9 * solve(bits) ** -0.25, bits, 1e-4)
    with holds("only what is above the floor can be bought: without E it would be cheaper"):
        close(solve(1.65, 1.2, 0.9, 0.5), 4.0)
        close(solve(0.45, 0.0, 0.9, 0.5), 4.0)
    with holds("half of what is above the floor costs 2^(1/α) times as much"):
        close(solve(1.2 + 0.2), 16 * solve(1.2 + 0.4), 1e-4)
        close(solve(1.2 + 0.2, power=0.5), 4 * solve(1.2 + 0.4, power=0.5), 1e-4)
    with holds("the floor itself, and what is below it, cost infinity"):
        equal(solve(1.2), math.inf)
        equal(solve(1.0), math.inf)


@grader
def ex07_3(seeds_needed: Callable[[float, float], int], holds: Properties) -> None:
    """The fewest seeds whose interval is no wider than the effect."""

    def solve(spread: float, effect: float) -> int:
        found = seeds_needed(spread, effect)
        written(found)
        return found

    def half(spread: float, seeds: int) -> float:
        return float(stats.t.ppf(0.975, seeds - 1) * spread / math.sqrt(seeds))

    with holds("with so many seeds, half of the interval is at most the effect"):
        for spread in (0.02, 0.05, 0.11):
            seeds = solve(spread, 0.03)
            if half(spread, seeds) > 0.03:
                raise AssertionError(f"spread {spread}, effect 0.03: {seeds} seeds give ± {half(spread, seeds):.4f}")
    with holds("with one fewer, it is more"):
        for spread in (0.02, 0.05, 0.11):
            seeds = solve(spread, 0.03)
            if seeds > 3 and half(spread, seeds - 1) <= 0.03:
                raise AssertionError(f"spread {spread}, effect 0.03: {seeds - 1} seeds are enough")
    with holds("a few seeds pay more than the factor 1.96"):
        equal(solve(0.02, 0.02), 7)
    with holds("half the effect takes four times the seeds, once they are many"):
        close(solve(1.0, 0.05) / solve(1.0, 0.1), 4, 0.02)
    with holds("three are the least, and a whole number is returned"):
        equal(solve(0.001, 0.5), 3)
        equal(solve(0.0, 0.5), 3)
        equal(solve(0.05, 0.03), int(solve(0.05, 0.03)))


@grader
def ex07_4(save_every: Callable[[float, float, float], float], holds: Properties) -> None:
    """Seconds between checkpoints: Young's interval, within the budget."""

    def solve(cost: float, between: float, budget: float = 86_400.0) -> float:
        found = save_every(cost, between, budget)
        written(found)
        return found

    with holds("neither more nor fewer checkpoints lose less"):
        lost = lambda every: 5 / every + every / (2 * 14_400)
        found = solve(5, 14_400)
        if lost(found) > 1.0001 * min(lost(every) for every in np.geomspace(10, 10_000, 4000)):
            raise AssertionError(f"every {found:.0f} s loses {lost(found):.2%}, and less is possible")
    with holds("a checkpoint four times as dear is made half as often"):
        close(solve(20, 7200), 2 * solve(5, 7200), 1e-3)
    with holds("a machine that fails a quarter as often is trusted twice as long"):
        close(solve(5, 7200), 2 * solve(5, 1800), 1e-3)
    with holds("a run is never shorter than its interval"):
        close(solve(10, 1e9, 300.0), 300, 1e-3)
        close(solve(5, math.inf, 600.0), 600, 1e-3)


@grader
def ex07_5(crossing: Callable[[Sequence[float], Sequence[float], float], float], holds: Properties) -> None:
    """The budget from which a curve stays above a line."""
    budgets = [30.0, 60.0, 120.0, 480.0]

    def solve(scores: list[float], line: float) -> float:
        found = crossing(list(budgets), list(scores), line)
        written(found)
        return found

    with holds("between two budgets, the place is found on a logarithmic scale"):
        close(solve([0.6, 0.6, 0.7, 0.8], 0.75), 240)
        close(solve([0.5, 0.7, 0.8, 0.9], 0.6), 30 * math.sqrt(2))
    with holds("a curve that comes down again has not crossed for good"):
        close(solve([0.6, 0.8, 0.7, 0.8], 0.75), 240)
        close(solve([0.8, 0.6, 0.7, 0.8], 0.75), 240)
    with holds("a budget that reaches the line exactly is enough"):
        close(solve([0.6, 0.7, 0.75, 0.8], 0.75), 120)
    with holds("a curve that is above from the start needs the least budget that was tried"):
        close(solve([0.8, 0.8, 0.9, 0.9], 0.75), 30)
    with holds("a curve that ends below never crosses: infinity"):
        equal(solve([0.5, 0.6, 0.7, 0.7], 0.75), math.inf)
        equal(solve([0.8, 0.8, 0.8, 0.7], 0.75), math.inf)
