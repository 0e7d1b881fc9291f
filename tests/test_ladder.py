"""Chapter 7's ladder: who is measured against whom, and the interval of a gain."""

import numpy as np
import pytest
from scipy import stats

from course_lib.ladder import AGAIN, ASIDE, RUNGS, compared, settings
from tools.ladder import summary

SIDES = pytest.mark.parametrize("side", RUNGS)


@SIDES
def test_a_rung_keeps_what_is_below_it_and_asides_do_not_add_up(side):
    asked = settings(side)
    (first, start), (second, change) = RUNGS[side][:2]
    assert asked[first] == start
    assert asked[second] == start | change
    top = asked[RUNGS[side][-1][0]]
    assert asked[AGAIN] == top
    for name, change in ASIDE[side]:
        assert asked[name] == top | change != top, f"{name} changes nothing"


@SIDES
def test_everything_but_the_start_is_measured_against_something(side):
    asked, over = settings(side), compared(side)
    assert over.keys() == asked.keys() - {RUNGS[side][0][0]}
    assert set(over.values()) <= asked.keys()
    assert all(over[name] == AGAIN for name, _ in ASIDE[side])
    for name, changed in asked.items():  # one change at a time, so a gain has one cause
        if name in over and name != AGAIN:
            assert changed != asked[over[name]], f"{name} is {over[name]}"


def test_encoders_have_one_vocabulary():
    assert len({asked["vocab_size"] for asked in settings("encoder").values()}) == 1


def test_a_gain_is_student_s_interval_of_paired_differences():
    random = np.random.default_rng(0)
    scores = {name: random.normal(2, 0.3, 3) for name in settings("encoder")}
    runs = [{"name": n, "seed": s, "score": x} for n, each in scores.items() for s, x in enumerate(each)]
    random.shuffle(runs)
    for row in summary("encoder", runs):
        if row["over"]:
            pair = stats.ttest_rel(scores[row["over"]], scores[row["name"]]).confidence_interval()
            assert (row["low"], row["high"]) == pytest.approx(tuple(pair), abs=1e-4)
        assert row["mean"] == pytest.approx(scores[row["name"]].mean(), abs=1e-4)
