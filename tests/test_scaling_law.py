"""The law of `tools.scaling`: what it is fitted to, and that it finds what is there."""

import pytest

from tools import scaling


def a_run(size, budget, flops, seed=0, worse=0.0):
    score = scaling.bits(flops / 1e12, 1.2, 0.9, 0.3) + worse
    return {
        "size": size,
        "budget": budget,
        "seed": seed,
        "flops": flops,
        "seconds": flops / 4e10,
        "bits_per_byte": score,
    }


SMALL = [a_run("nano", f"{n}m", n * 1e11) for n in (1, 2, 4)]
LARGE = [a_run("tiny", f"{n}m", n * 1e12) for n in (1, 5, 25, 125)]


def test_the_law_is_found_again_from_both_sizes():
    found = scaling.law([*SMALL, *LARGE])
    assert found["E"]["fit"] == pytest.approx(1.2, abs=1e-3)
    assert found["A"]["fit"] == pytest.approx(0.9, abs=1e-3)
    assert found["alpha"]["fit"] == pytest.approx(0.3, abs=1e-3)
    day = 4e10 * scaling.DAY / 1e12
    assert found["day"]["fit"] == pytest.approx(scaling.bits(day, 1.2, 0.9, 0.3), abs=1e-3)
    low, high = found["day"]["interval"]
    assert low <= found["day"]["fit"] <= high


def test_what_a_cheaper_run_beats_is_left_out():
    slow = a_run("nano", "60m", 3e12, worse=0.4)  # worse than tiny's 1m, for more
    assert scaling.front([*SMALL, *LARGE, slow]) == [*SMALL, *LARGE]
    assert scaling.law([*SMALL, *LARGE, slow]) == scaling.law([*SMALL, *LARGE])


def test_a_group_is_judged_by_its_mean():
    lucky, unlucky = a_run("nano", "9m", 3e12, 0, -0.3), a_run("nano", "9m", 3e12, 1, 0.9)
    assert lucky not in scaling.front([*LARGE, lucky, unlucky])
    assert lucky in scaling.front([*LARGE, lucky])


def test_four_points_are_too_few_for_three_numbers():
    assert scaling.law(LARGE) == {}
