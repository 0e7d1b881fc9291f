"""Options of a run: evaluation, early stopping, loggers, compiling, recomputed activations, tail averages."""

import copy
import itertools
import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch._dynamo
from transformers import AutoModel

from course_lib import checkpoint, loggers, models, objectives, plan, recipes, recorder, schedule, training
from course_lib import pretrain as pretraining
from course_lib.budget import Budget, WallClock, WorkClock
from course_lib.errors import CourseError
from course_lib.examples import Examples, Rows
from course_lib.precision import Precision
from course_lib.pretrain import pretrain
from course_lib.record import Run, Timer
from tests.test_pretrain import config, same, weights


@pytest.mark.parametrize("objective", ["mlm", "hybrid", "mlm+nsp", "rtd"])
def test_every_objective_trains_stores_and_scores(corpus_file, tmp_path, objective):
    run = pretrain(config(corpus_file, objective=objective, tokens=20_000), runs=tmp_path, log=lambda m: None)
    rows = list(run.metrics())
    scores = run.info["result"]["scores"]
    assert ("bits_per_byte" in scores) == (objective == "hybrid")
    assert {f"{term}_loss" for term in rows[0]["losses"]} <= scores.keys(), "of a hybrid, both kinds of steps"
    assert all(value > 0 for value in scores.values())
    terms = [name for name in rows[0]["losses"] if name == "mlm"]
    for term in terms:
        seen = [row["losses"][term] for row in rows if row["losses"][term]]
        assert sum(seen[-10:]) < sum(seen[:10])
    assert (run.folder / "model" / "model.safetensors").exists()
    dense = 6 * 300 * 64  # FLOP per token of the head, if it were applied everywhere
    kept, flops = AutoModel.from_pretrained(run.folder / "model"), run.info["plan"]["flops_per_token"]
    inner = 6 * sum(p.numel() for n, p in kept.named_parameters() if p.ndim == 2 and not models.is_outer(n))
    if objective == "mlm":
        assert flops == pytest.approx(inner + 0.225 * dense + 12 * 2 * 64 * 32, rel=0.1)


def test_evaluations_are_recorded_outside_the_budget_and_can_end_the_run(corpus_file, tmp_path):
    run = pretrain(config(corpus_file, evaluate_every=0.25), runs=tmp_path, log=lambda m: None)
    rows = list(run.metrics())
    evaluated = [row["valid"]["bits_per_byte"] for row in rows if "valid" in row]
    assert len(evaluated) == 4
    assert run.info["timings"]["evaluate"] > 0
    worse = config(corpus_file, evaluate_every=0.05, patience=1, lr=3.0, matrix_lr=3.0, schedule="constant")
    stopped = pretrain(worse, runs=tmp_path, log=lambda m: None)
    assert stopped.info["result"]["tokens"] < 6_400


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"evaluate_every": 0.5, "metric": "accuracy"}, "no metric 'accuracy' with clm, only bits_per_byte, clm_loss"),
        ({"patience": 1}, "add --evaluate-every"),
        ({"evaluate_every": 1.5}, "--evaluate-every is at least 0 and at most 1, not 1.5"),
        ({"mask_start": 1.5, "objective": "mlm"}, "--mask-start is at least 0 and at most 1"),
        ({"tail_average": 2.0}, "--tail-average is at least 0 and at most 1"),
        ({"lr": -1.0}, "--lr is at least 0, not -1.0"),
        ({"objective": "rtd", "architecture": "bert"}, "--objective rtd trains modernbert models only, not bert"),
        ({"objective": "mlm+nsp", "architecture": "modernbert"}, "trains bert models only, not modernbert"),
    ],
)
def test_what_no_training_has_is_refused_before_anything_is_made(wrong, message, corpus_file, tmp_path):
    with pytest.raises(CourseError, match=message):
        pretrain(config(corpus_file, **wrong), runs=tmp_path, log=lambda m: None)
    assert not list(tmp_path.glob("*/run.json"))


STEP = [{"input_ids": torch.ones(1, 4).long(), "labels": torch.ones(1, 4).long()}]


def at_rest(model, objective, budget):
    """A training whose learning rate is zero."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.param_groups[0]["initial_lr"] = 0.0
    loader, precision = Examples(Rows([[1]], [0]), 1, 0, 0), Precision("cpu", torch.float32)
    return training.Training(model, objective, [optimizer], loader, torch.Generator(), precision, {}, budget)


class FakeTime:
    now = 100.0

    def __call__(self):
        return self.now


def test_evaluating_and_saving_cost_no_budget(tiny_model, tmp_path, monkeypatch):
    """A step takes a second, everything else a minute: ten seconds are ten steps."""
    time, run = FakeTime(), Run.create(tmp_path / "r", {})
    run.update(settings={"evaluate_every": 0.5, "metric": "clm_loss", "patience": 0, "log": ""}, plan={})

    def takes(seconds, value=None):
        time.now += seconds
        return value

    class Slow(objectives.CausalLM):
        def __call__(self, model, batch):
            return takes(1.0, super().__call__(model, batch))

    state = at_rest(tiny_model, Slow(), Budget(WallClock(10, time)))
    scored = []
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: takes(60.0))
    state.state_dict = lambda: takes(60.0, {})
    score = lambda: takes(60.0, scored.append(time.now) or {"clm_loss": 1.0})
    recorder.drive(run, state, itertools.repeat(STEP), lambda p: 1.0, score, Timer(), lambda m: None, save_every=-1.0)
    assert state.step == 10
    assert len(scored) == 2
    assert time.now == 100 + 10 * 1 + 2 * 60 + 11 * 120


@pytest.mark.parametrize(("steps", "every"), [(5, 0.2), (10, 0.1), (20, 0.05), (100, 0.1)])
def test_every_share_of_the_budget_is_evaluated_once_and_in_time(steps, every, tiny_model, tmp_path):
    """0.3 / 0.1 is 2.9999… in binary."""
    run = Run.create(tmp_path / "r", {})
    settings = {"evaluate_every": every, "metric": "clm_loss", "patience": 0, "log": ""}
    run.update(settings=settings, plan={})
    state = at_rest(tiny_model, objectives.CausalLM(), Budget(WorkClock(steps * 4)))
    scored = []
    score = lambda: scored.append(state.step) or {"clm_loss": 1.0}
    recorder.drive(run, state, itertools.repeat(STEP), lambda p: 1.0, score, Timer(), lambda m: None, save_every=1e9)
    assert scored == list(range(round(steps * every), steps + 1, round(steps * every)))


def test_patience_counts_evaluations_without_improvement():
    state = training.Training.__new__(training.Training)
    state.stopping = {}
    said = [training.improved(state, "loss", value, patience=2) for value in (3.0, 2.0, 2.5, 2.1, 1.0)]
    assert said == [True, True, True, False, True]
    assert state.stopping == {"metric": "loss", "best": 1.0, "since": 0}


def test_loggers_write_what_metrics_hold(corpus_file, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = pretrain(config(corpus_file, log="tensorboard,wandb", tokens=640), runs=tmp_path, log=lambda m: None)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    logged = [event.value for event in events.Scalars("losses/clm")]
    assert logged == pytest.approx([row["losses"]["clm"] for row in run.metrics()], rel=1e-6)
    assert list((run.folder / "wandb").glob("offline-run-*/*.wandb"))
    with pytest.raises(CourseError, match="Did you mean tensorboard"):
        loggers.check("tensorbord")


def test_recomputing_activations_changes_no_weight(corpus_file, tmp_path, monkeypatch):
    build, calls = training.build, []

    def counted(*arguments):
        state = build(*arguments)
        calls.append(0)

        def count(*ignored):
            calls[-1] += 1

        state.model.model.layers[0].mlp.register_forward_pre_hook(count)
        return state

    monkeypatch.setattr(training, "build", counted)
    plain = pretrain(config(corpus_file, tokens=1_280), runs=tmp_path, log=lambda m: None)
    recomputed = config(corpus_file, tokens=1_280, activation_checkpointing=True)
    again = pretrain(recomputed, runs=tmp_path, log=lambda m: None)
    assert same(weights(plain.folder), weights(again.folder))
    assert calls[1] > calls[0] + 10, "a second forward in the backward of every step"


needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs a C++ compiler")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch about itself, when it compiles
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=needs_compiler)])
def test_compiling_changes_no_weight(corpus_file, tmp_path, monkeypatch, backend):
    plain = pretrain(config(corpus_file, tokens=1_280), runs=tmp_path, log=lambda m: None)
    original, frames = training.compile_body, torch._dynamo.utils.counters["frames"]
    torch._dynamo.reset()
    frames.clear()
    monkeypatch.setattr(training, "compile_body", lambda model: original(model, backend=backend))
    compiled = pretrain(config(corpus_file, tokens=1_280, compile="on"), runs=tmp_path, log=lambda m: None)
    assert frames["ok"] == frames["total"] > 0, "something ran as it was, not compiled"
    ours, theirs = weights(plain.folder), weights(compiled.folder)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


def test_memory_that_runs_out_is_said_once_and_the_run_goes_on(corpus_file, tmp_path, monkeypatch):
    plain = pretrain(config(corpus_file, tokens=1_280), runs=tmp_path, log=lambda m: None)
    recipe, said = recipes.RECIPES["clm"], []

    class Shrinking(objectives.CausalLM):
        calls = 0

        def __call__(self, model, batch):
            self.calls += 1
            if self.calls > plan.PROBE_STEPS + 4 and len(batch["input_ids"]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(model, batch)

    monkeypatch.setitem(recipes.RECIPES, "clm", replace(recipe, objective=Shrinking()))
    monkeypatch.setattr(training, "score", lambda *arguments: {})
    halved = pretrain(config(corpus_file, tokens=1_280), runs=tmp_path, log=said.append)
    assert [s for s in said if "Memory" in s] == ["Memory ran out in step 5: repeated, and going on, 2 rows at once."]
    assert halved.info["plan"]["micro_rows"] == 2  # a resumed run begins there
    assert [row["shrunk"] for row in halved.metrics()] == [0] * 4 + [2] + [0] * 5
    ours, theirs = weights(plain.folder), weights(halved.folder)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


def weights_from(progress, monkeypatch):
    """A list that gets the weights after every step from `progress` on, in float64."""
    taken, after = [], recorder.Recorder.after

    def watched(self, step):
        row = after(self, step)
        if self.state.budget.progress >= progress:
            taken.append({n: p.detach().double().clone() for n, p in self.state.model.named_parameters()})
        return row

    monkeypatch.setattr(recorder.Recorder, "after", watched)
    return taken


def test_the_tail_average_is_what_gets_stored(corpus_file, tmp_path, monkeypatch):
    plain = pretrain(config(corpus_file), runs=tmp_path, log=lambda m: None)
    taken = weights_from(0.75, monkeypatch)
    averaged = pretrain(config(corpus_file, tail_average=0.25), runs=tmp_path, log=lambda m: None)
    assert 10 < len(taken) < 15, "a quarter of 50 steps"
    for name, stored in weights(averaged.folder).items():
        mean = torch.stack([seen[name] for seen in taken]).mean(0)
        torch.testing.assert_close(stored.double(), mean, rtol=1e-5, atol=1e-6)
    for a, b in zip(plain.metrics(), averaged.metrics(), strict=True):
        assert a["losses"] == b["losses"], "averaging must not touch the training itself"


def test_settings_reach_optimizers_and_schedule(corpus_file, tmp_path, tiny_model, monkeypatch):
    for name, rate in (("muon", 0.04), ("adamw", 0.02)):
        asked = config(corpus_file, optimizer=name, weight_decay=0.3, matrix_lr=0.04, lr=0.02)
        groups = [group for made in training.optimizers(tiny_model, asked) for group in made.param_groups]
        assert [(group["weight_decay"], group["initial_lr"]) for group in groups] == [(0.0, 0.02), (0.3, rate)]
    asked, build = [], schedule.build
    monkeypatch.setattr(schedule, "build", lambda *settings: asked.append(settings) or build(*settings))
    shaped = config(corpus_file, tokens=640, schedule="cosine", warmup=0.4, cooldown=0.3)
    pretrain(shaped, runs=tmp_path, log=lambda m: None)
    assert asked == [("cosine", 0.4, 0.3)] * 2, "once to check it, once to follow it"


def test_a_checkpoint_of_another_model_is_refused(tiny_model):
    class Nothing:
        def __getattr__(self, name):
            raise AssertionError("must be refused before anything is touched")

    state = training.Training.__new__(training.Training)
    state.signature = {"tokenizer": "a", "architecture": ["clm"], "number of weights": 3}
    state.budget = Nothing()
    saved = {"signature": copy.deepcopy(state.signature) | {"tokenizer": "b", "number of weights": 4}}
    with pytest.raises(CourseError, match="another tokenizer and number of weights. Start over with --fresh"):
        state.load_state_dict(saved)


def test_result_says_what_it_took(corpus_file, tmp_path):
    run = pretrain(config(corpus_file, tokens=1_280), runs=tmp_path, log=lambda m: None)
    info = json.loads((Run.open(run.folder).folder / "run.json").read_text())
    assert info["result"]["mfu"] is None  # nobody knows a CPU's peak
    assert info["result"]["flops_per_second"] > 1e6
    assert set(info["plan"]["memory"]) == {"weights", "gradients", "optimizer"}
    assert info["peak_memory"] > 1e8


@pytest.mark.parametrize("objective", ["clm", "mlm", "rtd", "mlm+nsp"])
def test_scores_do_not_depend_on_the_batch_size_or_disturb_the_rng(corpus_file, objective):
    from course_lib import evaluate, models, recipes
    from course_lib.config import Config
    from course_lib.data import corpora, prepare
    from course_lib.precision import Precision

    data = prepare.prepare(corpora.load(str(corpus_file)), 300, 32, 10**8, lambda m: None)
    recipe, ids = recipes.get(objective), recipes.token_ids(data.tokenizer)
    settings = Config(objective=objective, architecture=recipe.architecture)
    model = recipes.new_model(settings, models.Size(32, 1, 2, 300, 32), ids)
    before = torch.get_rng_state()
    found = [
        evaluate.losses(
            model, recipe.objective, recipes.evaluation_transforms(recipe, data.tokenizer)[0], data.valid, 32,
            Precision("cpu", torch.float32), batch_rows,
        )
        for batch_rows in (7, 64)
    ]  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)
    for term in found[0]:
        if term != "rtd":  # its samples are drawn batch by batch
            assert found[0][term] == pytest.approx(found[1][term], rel=1e-5)


def test_a_run_that_stopped_early_does_not_train_on(corpus_file, tmp_path, monkeypatch):
    """Killed while its end was scored, the same command has only that left to do; on a machine with fewer GPUs, too."""
    worse = config(corpus_file, evaluate_every=0.05, patience=1, lr=3.0, matrix_lr=3.0, schedule="constant")
    state_dict, gpus = training.Training.state_dict, {"cuda_rng": [torch.zeros(16, dtype=torch.uint8)] * 2}

    def killed(*arguments):
        raise CourseError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "_finish", killed)
        patch.setattr(training.Training, "state_dict", lambda self: state_dict(self) | gpus)
        with pytest.raises(CourseError, match="killed"):
            pretrain(worse, runs=tmp_path, run_id="r", log=lambda m: None)
    before = list(Run.open(tmp_path / "r").metrics())
    assert len(before) < 50
    run = pretrain(worse, runs=tmp_path, run_id="r", log=lambda m: None)
    assert run.info["status"] == "finished"
    assert list(run.metrics()) == before
