"""Two gloo processes do what one does, through the command line that a user would type."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from course_lib.errors import CourseError
from course_lib.pretrain import pretrain
from course_lib.record import Run
from tests import distributed_worker
from tests.test_pretrain import TINY, command, config, weights

# Random embeddings: from those in closed form, the order of a float32 sum alone moves weights by 8e-5 within 40 steps.
FLAGS = ["--tokens=5120", "--seed=3", "--embeddings=random"]


def launch(corpus_file, runs, *more):
    arguments = command(corpus_file, runs, *FLAGS, *more)[2:]  # without `python -m`
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", *arguments]


def torchrun(corpus_file, runs, *more):
    line = launch(corpus_file, runs, *more)
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)


# BERT's pooler never gets a gradient without sentence pairs.
@pytest.mark.parametrize("chosen", [["--objective=clm"], ["--objective=mlm", "--architecture=bert"]])
def test_two_processes_equal_one(corpus_file, tmp_path, chosen):
    done = torchrun(corpus_file, tmp_path / "two", *chosen, "--micro-rows=1")  # of the 2 rows that a rank has
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Plan:") == 1, "only the first process speaks"
    alone = command(corpus_file, tmp_path / "one", *FLAGS, *chosen)
    subprocess.run(alone, check=True, capture_output=True)
    two, one = only_run(tmp_path / "two"), only_run(tmp_path / "one")
    assert Run.open(two).info["processes"] == 2
    assert [Run.open(folder).info["plan"]["micro_rows"] for folder in (two, one)] == [1, 4]
    assert difference(two, one) < 3e-5  # float32 sums in another order, grown over 40 steps
    assert_same_steps(two, one, count=40)


def only_run(runs):
    (found,) = (path.parent for path in runs.glob("*/run.json"))
    return found


def difference(first, second):
    """The largest one, but for biases of keys: softmax ignores them, and AdamW makes steps of their rounding errors."""
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    return max((ours[k] - theirs[k]).abs().max().item() for k in ours if not k.endswith("key.bias"))


def assert_same_steps(first, second, count):
    steps = [list(Run.open(folder).metrics()) for folder in (first, second)]
    assert len(steps[0]) == len(steps[1]) == count
    for a, b in zip(*steps, strict=True):
        assert a["tokens"] == b["tokens"] == TINY["step_tokens"]
        assert a["progress"] == b["progress"]
        assert a["norm"] == pytest.approx(b["norm"], rel=1e-3)
        assert list(a["losses"].values()) == pytest.approx(list(b["losses"].values()), rel=1e-4)
        assert a.get("valid") == pytest.approx(b.get("valid"), abs=2e-4)


# Muon needs whole matrices, the tail average and the evaluation in mid-run whole weights.
SHARDED = ["--tokens=2560", "--tail-average=0.3", "--evaluate-every=0.5"]


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_two_processes_that_share_out_the_weights_equal_one(corpus_file, tmp_path, objective):
    chosen = [*SHARDED, f"--objective={objective}"]
    done = torchrun(corpus_file, tmp_path / "two", *chosen, "--shard", "--micro-rows=1")
    assert done.returncode == 0, done.stderr[-2000:]
    subprocess.run(command(corpus_file, tmp_path / "one", *FLAGS, *chosen), check=True, capture_output=True)
    two, one = only_run(tmp_path / "two"), only_run(tmp_path / "one")
    assert difference(two, one) < 5e-4  # twenty steps of rounding, on some processors more than on others
    assert_same_steps(two, one, count=20)


def newest(runs):
    return max((path.name for path in runs.glob("*/checkpoints/step-*")), default="")


def test_a_sharded_run_that_is_killed_goes_on_and_even_in_one_process(corpus_file, tmp_path):
    """A checkpoint holds whole tensors, so it does not matter how many processes continue it."""
    flags = ["--tokens=8960", "--tail-average=0.9", "--lr=0.001", "--matrix-lr=0.002"]
    killed, alone, unbroken = (tmp_path / name for name in ("killed", "alone", "unbroken"))
    line = launch(corpus_file, killed, *flags, "--shard", "--checkpoint-every=0.05s")
    child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while newest(killed) < "step-00000020":
        assert child.poll() is None
        time.sleep(0.01)
    for worker in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
        os.kill(int(worker), signal.SIGKILL)
    assert child.wait(60) != 0
    shutil.copytree(killed, alone)
    outputs = [torchrun(corpus_file, runs, *flags, "--shard").stdout for runs in (killed, unbroken)]
    one = command(corpus_file, alone, *FLAGS, *flags)
    outputs.append(subprocess.run(one, check=True, capture_output=True, text=True).stdout)
    assert ["Continuing" in output for output in outputs] == [True, False, True]
    assert difference(only_run(killed), only_run(unbroken)) == 0
    assert difference(only_run(killed), only_run(alone)) < 2e-4


def test_one_process_has_nobody_to_share_with(corpus_file, tmp_path):
    with pytest.raises(CourseError, match="nobody to share with. Use torchrun"):
        pretrain(config(corpus_file, tokens=640), runs=tmp_path, shard=True)


def on_two_ranks(out, micro_rows, *cases):
    """Run cases of the worker; every rank sees half of the rows, `micro_rows` at a time."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    worker = ["-m", "tests.distributed_worker", str(out), str(micro_rows), *cases]
    return subprocess.run([*launcher, *worker], capture_output=True, text=True, check=False, timeout=120)


def test_micro_batches_on_two_ranks_equal_one_process(tmp_path):
    """Terms without targets on any rank (hybrid), or on one of two (lopsided), neither hang nor move the result."""
    cases = ["accumulation", "hybrid", "lopsided"]
    done = on_two_ranks(tmp_path, 1, *cases)
    assert done.returncode == 0, done.stderr[-2000:]
    for case in cases:
        found = load_file(tmp_path / f"{case}.safetensors")
        expected, _ = distributed_worker.run(case, micro_rows=distributed_worker.ROWS)
        assert max((found[name] - expected[name]).abs().max().item() for name in expected) < 1e-10
        exchanged = json.loads((tmp_path / f"{case}.json").read_text())
        assert exchanged == [1] * distributed_worker.STEPS, "one bucket, once a step, however many micro-batches"


def test_a_rank_without_memory_ends_the_run_and_says_how_to_go_on(tmp_path):
    done = on_two_ranks(tmp_path, 2, "memory")
    assert done.returncode != 0
    assert "Process 1 ran out of memory with 2 rows at once" in done.stderr
    assert "The same command with --micro-rows 1 continues from the last checkpoint" in done.stderr


def test_rows_that_cannot_be_shared_are_refused(corpus_file, tmp_path):
    done = torchrun(corpus_file, tmp_path, "--step-tokens=96")
    assert done.returncode != 0
    assert "A step has 3 rows, which 2 processes cannot share" in done.stderr


def test_one_process_needs_no_group():
    from course_lib import distributed

    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.total({"a": 2.0, "b": 3.0}, torch.device("cpu")) == {"a": 2.0, "b": 3.0}
    assert distributed.from_rank_0(0.5, torch.device("cpu")) == 0.5
    assert distributed.share("x") == "x"
