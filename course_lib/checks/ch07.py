"""Graders of chapter 7, one GPU in one day."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from course_lib.checks.grading import Properties, close, equal, grader, plain, written

GB = 10**9
Law = tuple[float, float, float]


@grader
def ex07_1(micro_batch: Callable[[int, int, int, int], tuple[int, int]], holds: Properties) -> None:
    """Rows at once and micro-batches a step, for a memory."""

    def solve(state: int, row: int, memory: int, step_rows: int) -> tuple[int, int]:
        found = micro_batch(state, row, memory, step_rows)
        written(found)
        return found

    with holds("a step that fits is one micro-batch"):
        equal(solve(2 * GB, GB, 80 * GB, 32), (32, 1))
        equal(solve(0, 0, GB, 8), (8, 1))
    with holds("state and rows together fill at most nine tenths of the memory"):
        equal(solve(2 * GB, GB, 10 * GB, 7), (7, 1))  # 2 + 7 = 9 of 10
        equal(solve(2 * GB, GB, 10 * GB, 8), (4, 2))
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
def ex07_2(fit_law: Callable[[NDArray[Any], NDArray[Any]], Law], holds: Properties) -> None:
    """E, A and α of bits = E + A·C^−α."""
    flops = np.array([0.4, 1.1, 4.5, 14.7, 44.8, 180.0])

    def solve(bits: NDArray[Any]) -> Law:
        found = fit_law(flops.copy(), bits.copy())
        written(found)
        if len(found) != 3:
            raise AssertionError("return three numbers: E, A and α")
        return found

    def law(floor: float, scale: float, power: float) -> NDArray[Any]:
        return floor + scale * flops**-power

    def squares(found: Law, bits: NDArray[Any]) -> float:
        return float(((law(*found) - bits) ** 2).sum())

    with holds("points on a curve give its E back, the part that no computing removes"):
        close(solve(law(1.2, 1.0, 0.3))[0], 1.2, 0.01, "E")
    with holds("… and its A, in the units of C that you were given"):
        close(solve(law(1.2, 1.0, 0.3))[1], 1.0, 0.02, "A")
        close(solve(law(0.5, 2.5, 0.15))[1], 2.5, 0.02, "A")
    with holds("… and its α, positive for a curve that falls"):
        close(solve(law(1.2, 1.0, 0.3))[2], 0.3, 0.02, "α")
        close(solve(law(1.5, 0.8, 0.7))[2], 0.7, 0.02, "α")
    with holds("points that scatter get the curve with the least sum of squares"):
        scattered = law(1.2, 1.0, 0.3) + np.array([0.03, -0.04, 0.02, 0.02, -0.03, 0.01])
        found = solve(scattered)
        best = 0.0040015  # of a search for α, with E and A in closed form
        if squares(found, scattered) > 1.02 * best:
            raise AssertionError(f"the sum of squares is {plain(squares(found, scattered))}, and {plain(best)} is possible")


@grader
def ex07_3(gain: Callable[[dict[int, float], dict[int, float]], tuple[Any, ...]], holds: Properties) -> None:
    """Mean, interval and verdict of paired differences."""

    def solve(old: dict[int, float], new: dict[int, float]) -> tuple[Any, ...]:
        found = gain(dict(old), dict(new))
        written(found)
        if len(found) != 4:
            raise AssertionError("return four things: mean, low, high and the verdict")
        return found

    luck = {0: 2.0, 1: 2.4, 2: 1.9}
    better = {seed: score - step for (seed, score), step in zip(luck.items(), (0.1, 0.2, 0.3), strict=True)}
    steady = {seed: score - step for (seed, score), step in zip(luck.items(), (0.1, 0.1, 0.11), strict=True)}
    with holds("the mean is what the new one saves: lower bits are better"):
        close(solve(luck, better)[0], 0.2)
        close(solve(better, luck)[0], -0.2)
    with holds("the interval is Student's over the differences: two degrees of freedom for three seeds"):
        half = 4.302652730 * 0.1 / math.sqrt(3)
        close(solve(luck, better)[1:3], [0.2 - half, 0.2 + half])
    with holds("a seed's luck, which both have, is in neither end"):
        if solve(luck, steady)[3] != "helps":
            raise AssertionError("all three seeds gain a tenth, and yet the verdict is not 'helps'")
    with holds("only seeds that both have count"):
        close(solve({**luck, 7: 9.9}, {**better, 8: 0.1})[:3], solve(luck, better)[:3])
    with holds("the verdict is helps, hurts, or undecided where the interval holds zero"):
        equal(solve(luck, steady)[3], "helps")
        equal(solve(steady, luck)[3], "hurts")
        equal(solve(luck, better)[3], "undecided")
    with holds("fewer than three seeds decide nothing"):
        two = {seed: luck[seed] for seed in (0, 1)}
        equal(solve(two, {0: 1.0, 1: 1.4 + 1e-9})[3], "undecided")


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
