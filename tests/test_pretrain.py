"""The main job end to end: record, reload in a fresh process, stop, kill, continue, replay."""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from course_lib import cli, device, models
from course_lib.config import Config
from course_lib.errors import CourseError
from course_lib.pretrain import pretrain, resolve
from course_lib.record import Run
from course_lib.recorder import Interrupted
from tests import warm

TINY = {"size": "pico", "vocab_size": 300, "context": 32, "step_tokens": 128}


def config(corpus_file, **more):
    return Config(corpus=str(corpus_file), **{**TINY, "tokens": 6_400, **more})


def weights(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def command(corpus_file, runs, *more):
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in TINY.items()]
    return [
        sys.executable,
        "-m",
        "course_lib",
        "pretrain",
        "--corpus",
        str(corpus_file),
        "--runs",
        str(runs),
        *flags,
        *more,
    ]


def test_a_run_learns_and_leaves_a_complete_record(corpus_file, tmp_path):
    run = pretrain(config(corpus_file, tokens=60_000), runs=tmp_path)
    info = Run.open(run.folder).info
    assert info == run.info
    assert info["status"] == "finished"
    rows = list(run.metrics())
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert info["result"]["tokens"] == sum(row["tokens"] for row in rows) == pytest.approx(60_000, abs=128)
    assert rows[-1]["losses"]["clm"] < rows[0]["losses"]["clm"] - 2
    assert info["result"]["scores"]["bits_per_byte"] < 4
    assert {"fetch", "prepare", "plan", "train", "evaluate"} <= set(info["timings"])
    assert info["data"]["corpus"] == "grammar"
    assert not (run.folder / "checkpoints").exists()


def test_a_student_is_pretrained_by_its_teacher(corpus_file, tmp_path):
    teacher = pretrain(config(corpus_file, tokens=60_000), runs=tmp_path, run_id="teacher")
    taught = config(corpus_file, tokens=60_000, teacher=str(teacher.folder), seed=1)
    run = pretrain(taught, runs=tmp_path, run_id="student")
    rows = list(run.metrics())
    assert rows[-1]["losses"].keys() == {"clm", "logits"}
    assert rows[-1]["losses"]["logits"] < rows[0]["losses"]["logits"] / 2
    assert run.info["result"]["scores"]["bits_per_byte"] < 4
    with pytest.raises(CourseError, match="another tokenizer. Give the corpus"):
        pretrain(replace(taught, vocab_size=290), runs=tmp_path, run_id="other")
    with pytest.raises(CourseError, match="--objective mlm does not ask that"):
        pretrain(replace(taught, objective="mlm"), runs=tmp_path, run_id="masked")


def test_the_model_loads_in_a_fresh_process_without_this_library(corpus_file, tmp_path):
    run = pretrain(config(corpus_file), runs=tmp_path)
    code = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "m = AutoModelForCausalLM.from_pretrained(sys.argv[1]); t = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "ids = t('The film', return_tensors='pt').input_ids\n"
        "print(type(m).__name__, t.decode(ids[0, 1:]), round(float(m(input_ids=ids, labels=ids).loss), 4))\n"
        "assert 'course_lib' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.folder / "model")], capture_output=True, text=True, check=True, cwd="/"
    )
    name, *words, loss = done.stdout.split()
    assert (name, words) == ("Qwen3ForCausalLM", ["The", "film"])
    assert 0 < float(loss) < 6


def test_the_same_config_gives_the_same_weights_and_another_seed_does_not(corpus_file, tmp_path):
    first, second = (pretrain(config(corpus_file), runs=tmp_path) for _ in range(2))
    assert first.folder != second.folder
    assert same(weights(first.folder), weights(second.folder))
    other = pretrain(config(corpus_file, seed=1), runs=tmp_path)
    assert not same(weights(first.folder), weights(other.folder))


@pytest.mark.parametrize(("objective", "steps"), [("clm", 20), ("mlm", 8), ("rtd", 8)])
def test_a_stopped_run_continues_to_the_same_weights(objective, steps, corpus_file, tmp_path, monkeypatch):
    """Also what is drawn on the way: masks, and a generator's guesses."""
    asked = config(corpus_file, objective=objective, tokens=320 * steps)
    whole = pretrain(asked, runs=tmp_path / "whole")
    from course_lib import progress

    moved = []

    def stop(shown, share, **values):
        moved.append(share)
        if len(moved) == steps:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(progress, "move", stop)
    with pytest.raises(Interrupted, match=r"Stopped at \d+%; saved in .*same command again"):
        pretrain(asked, runs=tmp_path / "parts")
    stopped = Run.open(next((tmp_path / "parts").iterdir()))
    assert stopped.info["status"] == "stopped"
    assert len(list(stopped.metrics())) == steps
    said = []
    finished = pretrain(asked, runs=tmp_path / "parts", log=said.append)
    assert finished.folder == stopped.folder
    assert any("Continuing" in s for s in said)
    assert same(weights(whole.folder), weights(finished.folder))
    timed = ("seconds", "worked")
    rows = [[{k: v for k, v in row.items() if k not in timed} for row in run.metrics()] for run in (finished, whole)]
    assert rows[0] == rows[1]
    assert 0 < whole.info["result"]["cpu_share"] < 1.1


def test_a_run_that_was_killed_before_its_first_checkpoint_draws_the_same_numbers(corpus_file, tmp_path, monkeypatch):
    """The plan is not made again, so its probe must leave the generator of random numbers alone."""
    asked = config(corpus_file, objective="rtd", tokens=640)
    whole = pretrain(asked, runs=tmp_path / "whole", log=lambda m: None)

    def dies(*arguments):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("course_lib.recorder.Recorder.after", dies)
        with pytest.raises(RuntimeError, match="killed"):
            pretrain(asked, runs=tmp_path / "parts", log=lambda m: None)
    again = pretrain(asked, runs=tmp_path / "parts", log=lambda m: None)
    assert same(weights(whole.folder), weights(again.folder))


def newest(runs):
    return max((path.name for path in runs.glob("*/checkpoints/step-*")), default="")


def test_kill_9_at_20_random_moments_changes_nothing(corpus_file, tmp_path):
    """Checkpoints every 20 ms, so that many kills hit a save; the end must be bit-equal to an unbroken run."""
    runs, whole = tmp_path / "killed", command(corpus_file, tmp_path / "whole", "--tokens=80000")[3:]
    again = command(corpus_file, runs, "--tokens=80000", "--checkpoint-every=0.02s")[3:]
    draw, progressed = random.Random(7), 0
    with warm.server("course_lib.pretrain", "sklearn.utils") as server:
        assert warm.Child(server, whole).wait() == 0
        (unbroken,) = (path.parent for path in (tmp_path / "whole").glob("*/run.json"))
        step = statistics.median(row["worked"] for row in Run.open(unbroken).metrics())  # seconds, on this machine
        for _ in range(20):
            before = newest(runs)
            child = warm.Child(server, again)
            while newest(runs) <= before and child.poll() is None:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 6 * step))  # somewhere in training, or inside a save
            assert child.poll() is None, "the run ended before 20 kills; give it more tokens"
            child.kill()
            assert child.wait() == -signal.SIGKILL
            progressed += newest(runs) > before
        assert warm.Child(server, again).wait() == 0
    assert progressed == 20
    (killed,) = (path.parent for path in runs.glob("*/run.json"))
    assert same(weights(killed), weights(unbroken))
    steps = [row["step"] for row in Run.open(killed).metrics()]
    assert steps == list(range(1, len(steps) + 1))
    assert not list(killed.glob("checkpoints/*"))


def test_ctrl_c_on_the_command_line_saves_and_exits_with_130(corpus_file, tmp_path):
    child = subprocess.Popen(
        command(corpus_file, tmp_path, "--budget=5m"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("*/metrics.jsonl")) or not next(tmp_path.glob("*/metrics.jsonl")).stat().st_size:
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 130
    assert error.startswith("Stopped at ")
    assert "same command again" in error
    assert len(list(tmp_path.glob("*/checkpoints/step-*"))) == 1


def test_a_wall_clock_run_ends_on_time_and_can_be_replayed(corpus_file, tmp_path):
    run = pretrain(config(corpus_file, tokens=0, budget="6s"), runs=tmp_path, started=time.monotonic())
    assert run.info["result"]["seconds"] == pytest.approx(run.info["plan"]["seconds"], abs=0.3)
    again = pretrain(Config(replay=str(run.folder)), runs=tmp_path / "again")
    assert same(weights(run.folder), weights(again.folder))


def test_preparation_and_scoring_eat_into_a_short_budget(corpus_file, tmp_path):
    """The whole command keeps to budget × 1.15, so a late start leaves less to train; never less than a quarter."""
    late = pretrain(config(corpus_file, tokens=0, budget="6s"), runs=tmp_path, started=time.monotonic() - 4)
    assert late.info["plan"]["seconds"] == pytest.approx(1.5, abs=0.2)


def test_a_corpus_that_changed_is_not_mixed_into_an_old_run(corpus_file, tmp_path):
    unfinished = Run.create(tmp_path / "old", config(corpus_file).__dict__)
    unfinished.update(settings=config(corpus_file).__dict__, device={}, data={"prepared": "another"})
    with pytest.raises(CourseError, match="corpus has changed.*--fresh"):
        pretrain(config(corpus_file), runs=tmp_path)
    assert pretrain(config(corpus_file), runs=tmp_path, fresh=True).folder != unfinished.folder


def test_an_option_that_is_younger_than_the_run_does_not_keep_it_from_going_on(corpus_file, tmp_path):
    (tmp_path / "a-tools-record").mkdir()
    (tmp_path / "a-tools-record" / "run.json").write_text('{"runs": []}')
    asked = config(corpus_file)
    unfinished = Run.create(tmp_path / "old", {k: v for k, v in asked.__dict__.items() if k != "weight_decay"})
    assert pretrain(asked, runs=tmp_path).folder == unfinished.folder
    other = Run.create(tmp_path / "other", {k: v for k, v in asked.__dict__.items() if k != "seed"} | {"lr": 0.5})
    assert pretrain(asked, runs=tmp_path).folder != other.folder


def test_a_used_run_id_is_refused(corpus_file, tmp_path):
    pretrain(config(corpus_file), runs=tmp_path, run_id="mine")
    with pytest.raises(CourseError, match="exists already"):
        pretrain(config(corpus_file), runs=tmp_path, run_id="mine")


def test_two_processes_never_write_to_one_run(corpus_file, tmp_path):
    busy = Run.create(tmp_path / "busy", config(corpus_file).__dict__)
    assert busy.acquire()
    assert not Run.open(busy.folder).acquire()
    other = pretrain(config(corpus_file), runs=tmp_path)
    assert other.folder != busy.folder
    busy.release()
    assert Run.open(busy.folder).acquire()


def test_json_output_is_json_and_nothing_else(corpus_file, tmp_path):
    done = subprocess.run(
        command(corpus_file, tmp_path, "--tokens=1280", "--json"), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["status"] == "finished"
    assert "Plan:" in done.stderr


def test_an_encoder_may_read_characters_and_a_decoder_may_not(tmp_path):
    text = tmp_path / "zh.txt"
    text.write_text(
        "\n\n".join(f"第{i}段：北京的天气今天很好，我们去公园散步。" * 8 for i in range(400)), encoding="utf-8"
    )
    asked = config(text, objective="mlm", tokenizer="characters", vocab_size=0, tokens=640)
    run = pretrain(asked, runs=tmp_path / "runs", log=lambda m: None)
    vocabulary = AutoTokenizer.from_pretrained(run.folder / "model").get_vocab()
    assert {"北", "京"} < vocabulary.keys()
    assert "北京" not in vocabulary
    with pytest.raises(CourseError, match="loses part of the text.*--objective=mlm"):
        pretrain(replace(asked, objective="clm"), runs=tmp_path / "runs")
    with pytest.raises(CourseError, match="'charcters'. Did you mean characters"):
        pretrain(replace(asked, tokenizer="charcters"), runs=tmp_path / "runs")


def test_too_little_held_out_text_is_said_before_training(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n} {'word ' * 60}"}) + "\n" for n in range(100)))
    with pytest.raises(CourseError, match=r"There are only \d+ tokens held out, less than a row of 1024"):
        pretrain(config(path, context=1024, step_tokens=1024), runs=tmp_path / "runs", log=lambda m: None)


def test_a_step_suits_the_size_unless_it_is_asked_for():
    gpu = device.Device("cuda", "T4", "float16", 16 * 10**9, 2, 65e12)
    steps = lambda where, **more: resolve(Config(corpus="docs", **more), where).step_tokens
    assert [steps(gpu, size=size) for size in ("nano", "base")] == [2**11, 2**17]
    assert steps(gpu, size="base", step_tokens=4096) == 4096
    assert steps(device.pick("cpu"), size="base") == 2**11
    assert list(models.STEP_TOKENS) == list(models.SIZES)


def test_a_folder_that_may_not_be_written_is_an_error_in_a_sentence(corpus_file, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert cli.main(command(corpus_file, tmp_path / "file" / "runs")[3:]) == 1
    assert "file/runs" in capsys.readouterr().err.splitlines()[-1]
