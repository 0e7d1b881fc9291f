"""Chapter 7's ladder: who is measured against whom, and the interval of a gain."""

import numpy as np
import pytest
from scipy import stats

from course_lib.ladder import AGAIN, ASIDE, RUNGS, UNAVERAGED, compared, scores, settings
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
    assert set(over.values()) <= asked.keys() | {UNAVERAGED}
    assert all(over[name] == (UNAVERAGED if "tail_average" in change else AGAIN) for name, change in ASIDE[side])
    for name, changed in asked.items():  # one change at a time, so a gain has one cause
        if name in over and name != AGAIN and over[name] != UNAVERAGED:
            assert changed != asked[over[name]], f"{name} is {over[name]}"


def test_encoders_have_one_vocabulary():
    assert len({asked["vocab_size"] for asked in settings("encoder").values()}) == 1


def test_a_gain_is_student_s_interval_of_paired_differences():
    random = np.random.default_rng(0)
    drawn = {name: random.normal(2, 0.3, 3) for name in [*settings("encoder"), UNAVERAGED]}
    runs = [
        {"name": name, "seed": seed, "score": drawn[name][seed]}
        | ({"last": drawn[UNAVERAGED][seed]} if compared("encoder").get(name) == UNAVERAGED else {})
        for name in settings("encoder") for seed in range(3)
    ]  # fmt: skip
    random.shuffle(runs)
    assert scores(runs) == {name: dict(enumerate(each)) for name, each in drawn.items()}
    for row in summary("encoder", runs):
        if row["over"]:
            pair = stats.ttest_rel(drawn[row["over"]], drawn[row["name"]]).confidence_interval()
            assert (row["low"], row["high"]) == pytest.approx(tuple(pair), abs=1e-4)
        assert row["mean"] == pytest.approx(drawn[row["name"]].mean(), abs=1e-4)
