import json
import os
import subprocess
import sys

import pytest

from course_lib.config import Config
from course_lib.errors import CourseError
from course_lib.record import Run, Timer
from tests.conftest import ROOT


def test_a_run_is_stored_with_its_provenance(tmp_path):
    run = Run.create(tmp_path / "a", {"seed": 1})
    run.update(status="finished")
    again = Run.open(tmp_path / "a")
    assert again.info == run.info
    assert again.info["id"] == "a"
    assert again.info["config"] == {"seed": 1}
    assert set(again.info["versions"]) >= {"python", "torch", "transformers"}


def test_metrics_keep_every_digit_and_can_be_rewound(tmp_path):
    run = Run.create(tmp_path / "a", {})
    rows = [{"step": i, "progress": i / 3} for i in range(5)]
    run.log(rows[:2])
    run.log(rows[2:])
    assert list(run.metrics()) == rows
    run.rewind(3)
    assert list(run.metrics()) == rows[:3]
    run.rewind(0)
    assert list(run.metrics()) == []


def test_a_name_in_use_missing_or_damaged_is_an_error(tmp_path):
    Run.create(tmp_path / "a", {})
    with pytest.raises(CourseError, match="exists already"):
        Run.create(tmp_path / "a", {})
    with pytest.raises(CourseError, match="no run at"):
        Run.open(tmp_path / "b")
    (tmp_path / "a" / "run.json").write_text('{"id": ')
    with pytest.raises(CourseError, match="damaged"):
        Run.open(tmp_path / "a")


def test_of_two_that_begin_at_once_one_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "acquire", lambda run: False)  # the other one was faster
    with pytest.raises(CourseError, match="Another process has just begun"):
        Run.begin(Config(), tmp_path, "a")


def test_run_json_is_for_people_too(tmp_path):
    text = (Run.create(tmp_path / "a", {"corpus": "影评"}).folder / "run.json").read_text(encoding="utf-8")
    assert "影评" in text
    assert json.loads(text)["status"] == "running"


def test_a_timer_adds_up_even_when_a_part_fails():
    timer = Timer({"train": 2.0})
    with pytest.raises(RuntimeError), timer("train"):
        raise RuntimeError
    assert timer.seconds["train"] >= 2.0


def test_a_record_says_how_its_tool_was_called_without_where_it_lies(tmp_path):
    (tmp_path / "a_tool.py").write_text("from course_lib.record import invocation\nprint(*invocation())\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    called = [sys.executable, "-m", "a_tool", "--out", "runs/x"]
    done = subprocess.run(called, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["python", "-m", "a_tool", "--out", "runs/x"]


def test_two_commands_with_the_same_options_do_not_continue_each_other(tmp_path):
    plain = Run.begin(Config(), tmp_path, "a")
    plain.release()
    other = Run.begin(Config(), tmp_path, "a", kind="cram")
    assert other.folder != plain.folder
    other.release()
    assert Run.begin(Config(), tmp_path, "a", kind="cram").folder == other.folder
    assert Run.begin(Config(), tmp_path, "a").folder == plain.folder
