import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_lib import schedule
from course_lib.errors import CourseError


@pytest.mark.parametrize(
    ("name", "warmup", "cooldown", "expected"),
    [
        ("trapezoid", 0.1, 0.5, {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0}),
        ("triangle", 0.25, 0.0, {0.0: 0.0, 0.125: 0.5, 0.25: 1.0, 0.625: 0.5, 1.0: 0.0}),
        ("cosine", 0.0, 1.0, {0.0: 1.0, 0.25: 0.5 + math.sqrt(0.125), 0.5: 0.5, 1.0: 0.0}),
        ("cosine", 0.2, 0.5, {0.0: 0.0, 0.1: 0.5, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0}),
        ("constant", 0.1, 0.9, {0.0: 0.0, 0.1: 1.0, 1.0: 1.0}),
    ],
)
def test_schedules_in_closed_form(name, warmup, cooldown, expected):
    """Equation eq-trapezoid and the other shapes, at points where their values are plain."""
    made = schedule.build(name, warmup, cooldown)
    assert {x: made(x) for x in expected} == pytest.approx(expected)


@given(st.sampled_from(list(schedule.SCHEDULES)), st.floats(0, 0.5), st.floats(0.01, 0.5), st.floats(0, 1))
def test_they_stay_within_zero_and_one_and_end_at_zero(name, warmup, cooldown, progress):
    made = schedule.build(name, warmup, cooldown)
    assert 0 <= made(progress) <= 1
    if name != "constant":
        assert made(1.0) == pytest.approx(0, abs=1e-12)


def test_overlapping_parts_and_unknown_names_are_refused():
    with pytest.raises(CourseError, match="sum to at most 1"):
        schedule.trapezoid(warmup=0.6, cooldown=0.6)
    with pytest.raises(CourseError, match="Did you mean cosine"):
        schedule.build("cosin", 0, 0)
