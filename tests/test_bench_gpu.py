"""The GPU bench, tried on the CPU, and its record against what its numbers must satisfy."""

import json

import pytest
import torch

from course_lib import device, models
from tools import bench_gpu
from tools.trials import ROOT

RECORD = json.loads((ROOT / "runs" / "bench-gpu-h200" / "run.json").read_text(encoding="utf-8"))


def test_a_case_counts_whole_steps_only(monkeypatch):
    monkeypatch.setattr(bench_gpu, "WARM", 1)
    monkeypatch.setattr(bench_gpu, "STEPS", 2)
    found = bench_gpu.one(device.pick("cpu"), 512, "pico", "float32", False)
    assert found["steps"] == 2
    assert found["rows_at_once"] == 512 // models.size("pico").context
    assert 0 < found["least"] <= found["tokens_per_second"] <= found["most"]
    assert found["skipped_steps"] == 0
    assert found["mfu"] is None, "a CPU has no peak in its data sheet"


def test_a_slow_case_ends_early_but_not_before_it_has_a_step(monkeypatch):
    monkeypatch.setattr(bench_gpu, "SECONDS", 0.0)
    assert bench_gpu.one(device.pick("cpu"), 256, "pico", "float32", False)["steps"] == 1


@pytest.mark.parametrize("run", RECORD["runs"], ids=lambda run: f"{run['size']}-{run['compiled']}")
def test_the_record_agrees_with_itself_and_with_the_library(run):
    shape, peak = models.size(run["size"]), RECORD["device"]["peak_flops"]
    with torch.device("meta"):  # no need for the weights themselves
        model = models.build("qwen3", shape, models.Tokens(shape.vocab))
    assert run["parameters"] == models.count_parameters(model)
    assert run["flops_per_token"] == models.flops_per_token(model, shape.context)
    assert run["mfu"] == pytest.approx(run["tokens_per_second"] * run["flops_per_token"] / peak, abs=1e-4)
    assert run["rows_at_once"] * shape.context == RECORD["step_tokens"], "no case ran out of memory"
    assert run["state"] < run["memory"] < RECORD["device"]["memory"]
    assert run["skipped_steps"] == 0
