import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_lib.budget import Budget, ReplayClock, WallClock, WorkClock, format_duration, parse_duration
from course_lib.errors import CourseError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("24h", 86400),
        ("1d", 86400),
        (12, 12),
        (" 2 m ", 120),
    ],
)
def test_durations_are_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["5 parsecs", "", "m", "-5m", "0s", "5m later", "inf", "nan", "1e400"])
def test_other_durations_are_refused_in_one_sentence(text):
    with pytest.raises(CourseError, match=r"budget|length of time"):
        parse_duration(text)


@given(st.integers(1, 10 * 86400))
def test_what_is_shown_reads_back(seconds):
    shown = parse_duration(format_duration(seconds))
    assert abs(shown - seconds) < (1 if seconds < 3600 else 60)


class FakeTime:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_wall_clock_counts_only_while_running():
    time = FakeTime()
    budget = Budget(WallClock(10, time))
    budget.clock.start()
    time.now += 4
    budget.clock.tick(1)
    assert budget.progress == pytest.approx(0.4)
    with budget.paused():
        time.now += 100  # an evaluation
    time.now += 2
    budget.clock.tick(1)
    assert budget.progress == pytest.approx(0.6)
    time.now += 50
    budget.clock.tick(1)
    assert budget.progress == 1.0


def test_a_resumed_clock_goes_on_where_it_stood():
    first = Budget(WorkClock(100))
    first.clock.tick(30)
    second = Budget(WorkClock(100))
    second.load_state_dict(first.state_dict())
    second.clock.tick(20)
    assert second.progress == 0.5


def test_a_replay_repeats_the_recorded_progress_and_ends():
    budget = Budget(ReplayClock([0.0, 0.3, 0.9]))
    seen = []
    while budget.progress < 1:
        seen.append(budget.progress)
        budget.clock.tick(7)
    assert seen == [0.0, 0.3, 0.9]
