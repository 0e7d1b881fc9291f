"""Graders of chapter 1, background."""

from collections.abc import Callable

from course_lib.checks.grading import Properties, close, grader, written


@grader
def ex01_1(gpt2_flops: Callable[[int, int, int, int, int], float], holds: Properties) -> None:
    """Training FLOP per token of a GPT-2: layers, width, inner width, vocabulary, context."""
    with holds("the matrices of a block cost 6 each weight: 4·h·h for attention and 2·h·m for the network"):
        close(gpt2_flops(3, 8, 20, 0, 0), 6 * 3 * (4 * 64 + 2 * 160))
    with holds("the head costs 6·V·h, once; the look-up costs nothing"):
        close(_difference(gpt2_flops, (3, 8, 20, 50, 16), (3, 8, 20, 0, 16)), 6 * 50 * 8)
    with holds("attention adds 12·layers·h·n"):
        close(_difference(gpt2_flops, (3, 8, 20, 50, 16), (3, 8, 20, 50, 0)), 12 * 3 * 8 * 16)
    with holds("GPT-2 XL at its full context costs about 10 GFLOP per token"):
        close(gpt2_flops(48, 1600, 6400, 50257, 1024), 10.27e9, tolerance=1e-3)


def _difference(function: Callable[..., float], first: tuple[int, ...], second: tuple[int, ...]) -> float:
    written(function(*first))
    return function(*first) - function(*second)


@grader
def ex01_2(bill: Callable[[float, float, float, float], tuple[float, float]], holds: Properties) -> None:
    """(device-days, euros) of a training."""
    with holds("a device-day at full use is peak · 86,400 FLOP"):
        written(bill(1e12 * 86_400, 1e12, 1.0, 1.0))
        close(bill(1e12 * 86_400, 1e12, 1.0, 1.0)[0], 1.0)
    with holds("half the utilization takes twice as long"):
        close(bill(1e12 * 86_400, 1e12, 0.5, 1.0)[0], 2.0)
    with holds("a day is paid as 24 hours"):
        close(bill(1e12 * 86_400, 1e12, 1.0, 2.5)[1], 60.0)
    with holds("what is slower costs more"):
        close(bill(1e12 * 86_400, 1e12, 0.5, 2.5)[1], 120.0)


Fit = tuple[float, float, float, float]
FITS: list[Fit] = [(406.4, 410.7, 0.34, 0.28), (482.01, 2085.43, 0.3478, 0.3658)]


@grader
def ex01_3(best: Callable[[float, float, float, float, float], tuple[float, float]], holds: Properties) -> None:
    """Weights and tokens that minimise A / N^α + B / D^β at a given compute."""
    with holds("the pair spends the budget: 6·N·D = C"):
        for fit in FITS:
            written(best(1e19, *fit))
            weights, tokens = best(1e19, *fit)
            close(6 * weights * tokens, 1e19)
    with holds("when both terms are alike, half of the budget's logarithm goes to each: N = D"):
        weights, tokens = best(6e18, 300.0, 300.0, 0.3, 0.3)
        close(weights, tokens)
    with holds("no model that is 1 % larger or smaller is better"):
        for fit in FITS:
            for flops in (1e17, 1e21):
                _lowest(best(flops, *fit)[0], flops, fit)


def _lowest(weights: float, flops: float, fit: Fit) -> None:
    a, b, alpha, beta = fit

    def loss(n: float) -> float:
        return a / n**alpha + b / (flops / 6 / n) ** beta

    for factor in (0.99, 1.01):
        if not loss(weights) < loss(factor * weights):
            raise AssertionError(f"at {flops:.0e} FLOP, {factor * weights:.4g} weights are better than {weights:.4g}")


@grader
def ex01_4(
    utilizations: Callable[[float, float, float, bool], tuple[float, float]],
    holds: Properties,
) -> None:
    """(model, hardware) FLOP utilization."""
    with holds("without recomputation both are 6·N·tokens per second over the peak"):
        written(utilizations(1e5, 1e9, 1e15, False))
        close(utilizations(1e5, 1e9, 1e15, False), (0.6, 0.6))
    with holds("recomputation is no useful work: the model's share stays at 6"):
        close(utilizations(1e5, 1e9, 1e15, True)[0], 0.6)
    with holds("the hardware does one forward more: 8"):
        close(utilizations(1e5, 1e9, 1e15, True)[1], 0.8)
