"""A pretrained model learns a task: labelled texts → batches → the same loop → test predictions of every seed."""

import json
import shutil
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from course_lib import baselines, checkpoint, device, examples, metrics, models, optim, progress, schedule
from course_lib.budget import Budget, Clock, FirstOf, ReplayClock, WallClock, parse_duration
from course_lib.config import Tuning
from course_lib.data import labelled
from course_lib.errors import CourseError
from course_lib.objectives import Classification, Objective
from course_lib.peft import adapters, files, methods
from course_lib.precision import Precision
from course_lib.record import Run, Timer, now
from course_lib.recorder import Log, drive
from course_lib.storage import model_folder, new_folder
from course_lib.training import Training

PREDICTIONS = "predictions.json"


def finetune(
    tuning: Tuning,
    runs: Path = Path("runs"),
    run_id: str | None = None,
    fresh: bool = False,
    log: Log = print,
    started: float | None = None,
    checkpoint_every: str = "2m",
) -> Run:
    """Fine-tune once for every seed, and store scores, predictions and the model that is best on dev in `runs/<id>/`.

    Every seed is a run of its own in `seed-N/`; the same command goes on where it was stopped. Raises `Interrupted`,
    after saving, when Ctrl-C or SIGTERM asked it to stop.
    """
    started = time.monotonic() if started is None else started
    progress.hush_transformers()
    folder = model_folder(Path(tuning.model))
    if tuning.method:
        methods.parse(tuning.method)  # an error before anything is made
    task = labelled.load(tuning.task, tuning.encoding).with_labels(tuning.labels)
    where = device.pick(tuning.device)
    run = Run.begin(asdict(tuning), runs, _name(tuning, folder), run_id, fresh)
    try:
        run.update(kind="finetune", device=where.describe(), task=_describe(task))
        seeds = range(tuning.seed, tuning.seed + tuning.seeds)
        parts = [_one(replace(tuning, seed=seed), folder, task, where, run, log, checkpoint_every) for seed in seeds]
        best = max(parts, key=lambda part: part.info["result"]["dev"]["accuracy"])
        _keep_only(best, parts, run)
        run.update(result=_result(parts), status="finished", finished=now())
    finally:
        run.update(seconds=round(run.info.get("seconds", 0.0) + time.monotonic() - started, 3))
        run.release()
    log(summary(run))
    return run


def new_model(folder: Path, classes: list[str], tuning: Tuning) -> Any:
    """A stock sequence classifier with the pretrained weights, or the same network with new ones."""
    config = AutoConfig.from_pretrained(
        folder,
        num_labels=len(classes),
        id2label=dict(enumerate(classes)),
        label2id={c: i for i, c in enumerate(classes)},
    )
    if hasattr(config, "classifier_pooling"):
        config.classifier_pooling = "mean"
    if not tuning.scratch:
        return AutoModelForSequenceClassification.from_pretrained(folder, config=config, dtype=torch.float32)
    model = AutoModelForSequenceClassification.from_config(config)
    if config.model_type not in models.BASELINES:
        models.initialize(model)
    return model


def encode(tokenizer: PreTrainedTokenizerFast, side: labelled.Labelled, length: int) -> list[list[int]]:
    """Token ids of every text, head and tail where it is longer than `length` (0: than the model's context)."""
    ids = tokenizer(side.texts, split_special_tokens=True, verbose=False)["input_ids"]
    return [examples.fit(row, length or tokenizer.model_max_length) for row in ids]


@torch.no_grad()
def predict(model: Any, rows: list[list[int]], padding: int, precision: Precision, batch_rows: int = 64) -> np.ndarray:
    """Class probabilities, (rows, classes) float32, in the order of `rows`; the same for every `batch_rows`."""
    model.eval()
    where = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # neighbours in length share a batch
    found = torch.empty(len(rows), model.config.num_labels)
    for at in range(0, len(rows), batch_rows):
        chosen = order[at : at + batch_rows]
        batch = examples.pad([rows[i] for i in chosen], [0] * len(chosen), padding)
        with precision.autocast():
            logits = model(**{key: batch[key].to(where) for key in ("input_ids", "attention_mask")}).logits
        found[chosen] = logits.float().softmax(-1).cpu()
    return found.numpy()


def correct(run: Run) -> np.ndarray:
    """(seeds, items): 1 where a finished fine-tuning run was right on the test text."""
    rows = []
    for path in sorted(run.folder.glob(f"seed-*/{PREDICTIONS}")):
        found = json.loads(path.read_text(encoding="utf-8"))
        rows.append(np.array(found["probabilities"]).argmax(1) == np.array(found["labels"]))
    if not rows:
        raise CourseError(f"{run.folder} holds no predictions; it is not a finished fine-tuning run.")
    return np.stack(rows).astype(float)


def compare(a: Run, b: Run | None) -> metrics.Difference:
    """Whether run a is better than run b, or than TF-IDF and logistic regression, on the same test texts."""
    for run in (a, b):
        if run is not None and "task" not in run.info:
            raise CourseError(f"{run.folder} is no fine-tuning run; make one with `finetune --model {run.folder}`.")
    if b is None:
        tuning = Tuning(**a.info["config"])
        task = labelled.load(tuning.task, tuning.encoding).with_labels(tuning.labels)
        if _describe(task) != a.info["task"]:
            raise CourseError(f"The texts of {a.folder} have changed since it ran.")
        return metrics.compare(correct(a), (baselines.tfidf(task).argmax(1) == task.test.labels)[None].astype(float))
    if a.info["task"]["test_hash"] != b.info["task"]["test_hash"]:
        raise CourseError(f"{a.folder} and {b.folder} were not tested on the same texts.")
    return metrics.compare(correct(a), correct(b))


def summary(run: Run) -> str:
    """One line for a terminal."""
    result, task = run.info["result"], run.info["task"]
    spread = f" ({result['least']:.1%} to {result['most']:.1%})" if result["seeds"] > 1 else ""
    return (
        f"{task['name']}: {result['accuracy']:.1%} right{spread} on {task['test']:,} test texts, "
        f"{result['seeds']} seed{'s' * (result['seeds'] > 1)}. Stored in {run.folder}"
    )


def _one(
    tuning: Tuning, folder: Path, task: labelled.Task, where: device.Device, parent: Run, log: Log, save_every: str
) -> Run:
    """One seed, from its beginning, its last checkpoint, or its result."""
    done = parent.folder / f"seed-{tuning.seed}"
    if (done / "run.json").exists() and Run.open(done).info["status"] == "finished":
        return Run.open(done)
    run = Run.begin(asdict(tuning), parent.folder, done.name, done.name)
    timer = Timer(run.info.get("timings", {}))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        state = build(tuning, folder, task, tokenizer, where)
        saved = checkpoint.load(run.folder / "checkpoints", log)
        if saved:
            state.load_state_dict(saved)
        run.rewind(state.step)
        run.update(settings=asdict(tuning), plan={"micro_rows": tuning.step_rows}, status="running")
        ask = Asking(state, tokenizer, tuning.max_length)
        shape = schedule.build(tuning.schedule, tuning.warmup, 1 - tuning.warmup)
        steps = ([batch] for batch in cast(examples.Examples, state.loader))
        with timer("train"):
            drive(run, state, steps, shape, lambda: ask.losses(task.dev), timer, log, parse_duration(save_every))
        with timer("evaluate"):
            _store(run, ask, task)
        with new_folder(run.folder / "model") as scratch:
            if tuning.method:  # the added weights alone; `files.restore` puts them on the base again
                files.save(state.model, scratch, str(folder))
                state.model.config.save_pretrained(scratch)
            else:
                state.model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
        run.update(status="finished", finished=now())
        checkpoint.remove(run.folder / "checkpoints")
    finally:
        run.update(timings=timer.seconds)
        run.release()
    return run


@dataclass
class Asking:
    """What a model in training answers about a side of the task."""

    state: Training
    tokenizer: PreTrainedTokenizerFast
    max_length: int

    def probabilities(self, side: labelled.Labelled) -> np.ndarray:
        """(texts, classes)."""
        rows = encode(self.tokenizer, side, self.max_length)
        return predict(self.state.model, rows, self.tokenizer.pad_token_id, self.state.precision)

    def losses(self, side: labelled.Labelled) -> dict[str, float]:
        """What early stopping can look at: lower is better."""
        found = self.probabilities(side)
        right = found[np.arange(len(side)), side.labels]
        return {
            "error": round(float((found.argmax(1) != side.labels).mean()), 4),
            "log_loss": round(float(-np.log(np.maximum(right, 1e-12)).mean()), 4),
        }


def _store(run: Run, ask: Asking, task: labelled.Task) -> None:
    """Scores into the record, the test texts' probabilities beside it."""
    dev, test = ask.probabilities(task.dev), ask.probabilities(task.test)
    score = lambda side, found: metrics.classification(side.labels, found.argmax(1).tolist())
    run.update(result={"dev": score(task.dev, dev), "test": score(task.test, test)})
    rows = [[round(float(p), 5) for p in row] for row in test]
    content = {"classes": task.classes, "labels": task.test.labels, "probabilities": rows}
    (run.folder / PREDICTIONS).write_text(json.dumps(content), encoding="utf-8")


def build(
    tuning: Tuning, folder: Path, task: labelled.Task, tokenizer: PreTrainedTokenizerFast, where: device.Device
) -> Training:
    """Model, optimizer and examples at step 0."""
    torch.manual_seed(tuning.seed)
    model = new_model(folder, task.classes, tuning).to(where.torch)
    rows = encode(tokenizer, task.train, tuning.max_length)
    loader = examples.Examples(rows, task.train.labels, tuning.step_rows, tokenizer.pad_token_id, tuning.seed)
    objective: Objective = Classification(tuning.smoothing)
    if tuning.method:
        objective = adapters.objective(adapters.apply(model, methods.parse(tuning.method)), objective)
    steps = max(1, round(tuning.epochs * loader.steps_per_epoch))
    clocks: list[Clock] = [ReplayClock([step / steps for step in range(steps)])]
    if tuning.budget:
        clocks.append(WallClock(parse_duration(tuning.budget)))
    budget = Budget(FirstOf(*clocks))
    optimizers = [optim.for_finetuning(model, tuning.lr, tuning.layer_decay, tuning.weight_decay)]
    if tuning.method:
        adapters.follow(model, optimizers, budget)
    return Training(
        model=model,
        objective=objective,
        optimizers=optimizers,
        loader=loader,
        masking=torch.Generator(),
        precision=Precision.for_device(where),
        signature={"task": task.name, "classes": task.classes, "number of weights": models.count_parameters(model)},
        budget=budget,
    )


def _describe(task: labelled.Task) -> dict[str, Any]:
    return {
        "name": task.name, "classes": task.classes, "train": len(task.train), "dev": len(task.dev),
        "test": len(task.test), "test_hash": task.test.identity(),
    }  # fmt: skip


def _result(parts: list[Run]) -> dict[str, Any]:
    accuracies = [part.info["result"]["test"]["accuracy"] for part in parts]
    mean = lambda side, name: round(statistics.mean(part.info["result"][side][name] for part in parts), 4)
    return {
        "seeds": len(parts), "accuracy": mean("test", "accuracy"), "macro_f1": mean("test", "macro_f1"),
        "dev_accuracy": mean("dev", "accuracy"), "least": round(min(accuracies), 4), "most": round(max(accuracies), 4),
    }  # fmt: skip


def _name(tuning: Tuning, folder: Path) -> str:
    """A readable name: what was tuned on what."""
    source = folder.parent if folder.name == "model" else folder
    suffix = f"-{tuning.method.partition(':')[0]}" if tuning.method else ""
    return f"{source.name}-{Path(tuning.task).stem}" + "-scratch" * tuning.scratch + suffix


def _keep_only(best: Run, parts: list[Run], run: Run) -> None:
    """The best model on dev becomes the run's; the others' predictions stay, their weights go."""
    if (best.folder / "model").exists():
        shutil.rmtree(run.folder / "model", ignore_errors=True)
        (best.folder / "model").rename(run.folder / "model")
    for part in parts:
        shutil.rmtree(part.folder / "model", ignore_errors=True)
