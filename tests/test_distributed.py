"""Two gloo processes do what one does, through the command line that a user would type."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from course_lib.record import Run
from tests import distributed_worker
from tests.test_pretrain import TINY, command, weights

FLAGS = ["--tokens=5120", "--seed=3"]


def torchrun(corpus_file, runs, *more, processes=2):
    arguments = command(corpus_file, runs, *FLAGS, *more)[2:]  # without `python -m`
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    return subprocess.run([*launcher, *arguments], capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("objective", ["clm", "mlm"])
def test_two_processes_equal_one(corpus_file, tmp_path, objective):
    chosen = f"--objective={objective}"
    done = torchrun(corpus_file, tmp_path / "two", chosen, "--micro-rows=1")  # of the 2 rows that a rank has
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Plan:") == 1, "only the first process speaks"
    alone = command(corpus_file, tmp_path / "one", *FLAGS, chosen)
    subprocess.run(alone, check=True, capture_output=True)
    (two,), (one,) = ([p.parent for p in (tmp_path / n).glob("*/run.json")] for n in ("two", "one"))
    assert Run.open(two).info["processes"] == 2
    assert [Run.open(folder).info["plan"]["micro_rows"] for folder in (two, one)] == [1, 4]
    ours, theirs = weights(two), weights(one)
    assert ours.keys() == theirs.keys()
    worst = max((ours[k] - theirs[k]).abs().max().item() for k in ours)
    assert worst < 1e-4, worst
    steps = [list(Run.open(folder).metrics()) for folder in (two, one)]
    assert len(steps[0]) == len(steps[1]) == 40
    for a, b in zip(*steps, strict=True):
        assert a["tokens"] == b["tokens"] == TINY["step_tokens"]
        assert a["progress"] == b["progress"]
        assert list(a["losses"].values()) == pytest.approx(list(b["losses"].values()), rel=1e-4)


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
    done = torchrun(corpus_file, tmp_path, "--step-tokens=96", processes=2)
    assert done.returncode != 0
    assert "A step has 3 rows, which 2 processes cannot share" in done.stderr


def test_one_process_needs_no_group():
    from course_lib import distributed

    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.total({"a": 2.0, "b": 3.0}, torch.device("cpu")) == {"a": 2.0, "b": 3.0}
    assert distributed.from_rank_0(0.5, torch.device("cpu")) == 0.5
    assert distributed.share("x") == "x"
