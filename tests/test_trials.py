"""The record that remembers which runs are done: what is repeated, what is refused, what is left out."""

import importlib
import json

import pytest

from tools import fill
from tools.trials import ROOT, SINGLE, Trials

WRITES = "import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir(); print('{}')"  # fails where the folder exists


@pytest.fixture
def trials(tmp_path):
    return Trials(tmp_path / "record", "test")


def test_a_run_is_done_once(trials, tmp_path):
    asked = [{"seed": 0}, ["-c", "print('{\"score\": 1}')"]]
    assert trials.run(*asked)
    assert not trials.run(*asked)
    assert json.loads(trials.path.read_text())["runs"] == [{"seed": 0, "score": 1}]


def test_its_processes_find_the_library_and_what_the_caller_put_on_the_path(trials, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    show = "import json, os; print(json.dumps({'path': os.environ['PYTHONPATH'].split(os.pathsep)}))"
    trials.run({"seed": 0}, ["-c", show])
    assert trials.record["runs"][0]["path"] == [str(ROOT), "/elsewhere"]


def test_a_single_one_ends_the_program_after_its_first_new_run(tmp_path):
    trials = Trials(tmp_path / "record", "test", single=True)
    command = ["-c", "print('{}')"]
    for seed in range(2):
        with pytest.raises(SystemExit) as ended:
            for asked in range(seed + 1):  # what is done does not end it
                trials.run({"seed": asked}, command)
        assert ended.value.code == 0
        assert len(trials.record["runs"]) == seed + 1
    assert not trials.run({"seed": 1}, command)


@pytest.mark.parametrize("record", list(fill.RECORDS))
def test_everything_that_can_be_filled_has_a_tool_that_makes_single_runs(record, monkeypatch, capsys):
    tool, *options = fill.RECORDS[record]
    monkeypatch.setattr("sys.argv", [tool, "--out=runs/none", SINGLE, *options, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(tool).main()
    assert ended.value.code == 0
    assert SINGLE in capsys.readouterr().out


def test_a_disturbed_run_is_repeated_in_a_fresh_folder(trials, tmp_path):
    shares = iter([0.5, 0.95])
    assert trials.run(
        {"seed": 0}, ["-c", WRITES, str(tmp_path / "run")], lambda _: {"cpu_share": next(shares)}, tmp_path / "run"
    )
    assert [run["cpu_share"] for run in trials.record["runs"]] == [0.95]


def test_a_run_that_is_disturbed_twice_does_not_count_and_can_be_run_again(trials, tmp_path):
    asked = [{"seed": 0}, ["-c", WRITES, str(tmp_path / "run")]]
    with pytest.raises(SystemExit, match="50% of the processor"):
        trials.run(*asked, lambda _: {"cpu_share": 0.5}, tmp_path / "run")
    assert trials.record["runs"] == []
    assert trials.run(*asked, lambda _: {"cpu_share": 1.0}, tmp_path / "run")


def test_the_command_of_a_record_is_the_one_that_does_all_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.orig_argv", ["/somewhere/python", "-m", "tools.x", "--out", "runs/x", "--single"])
    assert Trials(tmp_path, "test").about["command"] == ["python", "-m", "tools.x", "--out", "runs/x"]


def test_a_record_keeps_to_what_it_was_begun_with(tmp_path):
    Trials(tmp_path / "record", "test", budget=120, model="a").store()
    Trials(tmp_path / "record", "test", budget=120.0, model="a", seeds=3)
    with pytest.raises(SystemExit, match="was begun with budget 120, not 60. Choose another --out"):
        Trials(tmp_path / "record", "test", budget=60, model="a")
