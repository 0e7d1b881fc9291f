import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_lib.schedule import trapezoid


def test_a_trapezoid_rises_stays_and_falls():
    schedule = trapezoid(warmup=0.1, cooldown=0.5, final=0.1)
    expected = {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.5: 1.0, 0.75: 0.55, 1.0: 0.1}
    assert {x: schedule(x) for x in expected} == pytest.approx(expected)


@given(st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 1), st.floats(0, 1))
def test_it_stays_within_zero_and_one(warmup, cooldown, final, progress):
    assert 0 <= trapezoid(warmup, cooldown, final)(progress) <= 1


def test_overlapping_parts_are_refused():
    with pytest.raises(ValueError, match="sum to at most 1"):
        trapezoid(warmup=0.6, cooldown=0.6)
