"""A pretrained model learns a task: labelled texts → batches → the same loop → test predictions of every seed."""

import json
import shutil
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import AutoConfig

from course_lib import (
    baselines,
    checkpoint,
    device,
    examples,
    freezing,
    metrics,
    models,
    optim,
    progress,
    schedule,
    training,
)
from course_lib.budget import Budget, Clock, FirstOf, ReplayClock, WallClock, parse_duration
from course_lib.config import Tuning, restore
from course_lib.data import labelled, pretrained
from course_lib.errors import CourseError
from course_lib.examples import Rows
from course_lib.heads import base, registry
from course_lib.heads.base import load_tokenizer
from course_lib.objectives import Objective
from course_lib.peft import adapters, files, methods
from course_lib.precision import Precision
from course_lib.record import Run, Timer, command, now
from course_lib.recorder import Log, drive
from course_lib.robust import augment, regularize
from course_lib.storage import new_folder
from course_lib.training import Training

PREDICTIONS = "predictions.json"
AVERAGED_FROM = 0.5  # progress from which `--keep average` takes part


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

    Every seed is a run of its own in `seed-N/`; the same command goes on where it was stopped, and a finished `run_id`
    trains the seeds asked for beyond its own. Raises `Interrupted`, after saving, upon Ctrl-C or SIGTERM.
    """
    started = time.monotonic() if started is None else started
    progress.hush_transformers()
    folder, head = pretrained.locate(tuning.model), registry.get(tuning.head)
    _parse(tuning, folder)  # an error before anything is made
    task = head.task(tuning)
    for note in task.notes:
        log(note)
    where = device.pick(tuning.device)
    if run_id and not fresh:
        _reopen(runs / run_id, tuning, task)
    run = Run.begin(tuning, runs, _name(tuning, folder), run_id, fresh, "finetune")
    try:
        run.update(device=where.describe(), task=_unchanged(run, task))
        seeds = range(tuning.seed, tuning.seed + tuning.seeds)
        parts = [_one(replace(tuning, seed=seed), folder, task, where, run, log, checkpoint_every) for seed in seeds]
        best = max(parts, key=lambda part: part.info["result"]["dev"][head.metric])
        _keep_only(best, parts, run)
        run.update(result=_result(parts, head), status="finished", finished=now())
    finally:
        run.end(seconds=round(run.info.get("seconds", 0.0) + time.monotonic() - started, 3))
    if text := head.report(_predictions(best)):
        found = run.info["result"]
        log(f"{text}\nCalibration error {found['ece_raw']:.4f}, by a temperature fitted on dev {found['ece']:.4f}.")
    log(summary(run))
    return run


def _reopen(folder: Path, tuning: Tuning, task: labelled.Task) -> None:
    """Let a finished run go on if nothing but more seeds is asked of it."""
    if not (folder / "run.json").exists():
        return
    run = Run.open(folder)
    begun = asdict(Tuning()) | run.info.get("config", {})
    more = begun["seeds"] < tuning.seeds and begun | {"seeds": tuning.seeds} == asdict(tuning)
    if more and run.info["status"] == "finished" and _unchanged(run, task) and run.acquire():
        run.end(config=asdict(tuning), status="stopped", command=command())


def _unchanged(run: Run, task: labelled.Task) -> dict[str, Any]:
    """What the record says of the task. Raises CourseError if a run that goes on would mix texts."""
    if "task" in run.info and task.is_other(run.info["task"]):
        raise CourseError(f"The texts of {run.folder} have changed since it began. Add --fresh, or another --run-id.")
    return task.describe()


def _parse(tuning: Tuning, folder: Path) -> None:
    """Raise CourseError for settings that nothing understands."""
    base.check(tuning, registry.get(tuning.head))
    schedule.build(tuning.schedule, tuning.warmup, 1 - tuning.warmup)
    if tuning.budget:
        parse_duration(tuning.budget)
    freezing.lowest(AutoConfig.from_pretrained(folder), tuning.freeze)
    if tuning.method:
        methods.parse(tuning.method)
    if tuning.augment:
        augment.parse(tuning.augment)
    regularize.parse(tuning.regularize)


def new_model(folder: Path, classes: list[str], tuning: Tuning) -> Any:
    """The head's stock model with the pretrained weights, or the same network with new ones."""
    head = registry.get(tuning.head)
    config = AutoConfig.from_pretrained(folder, **head.outputs(classes))
    if hasattr(config, "classifier_pooling"):
        config.classifier_pooling = "mean"  # our encoders have learnt nothing at a first token
    try:
        if not tuning.scratch:  # a discriminator's output layer gives way to a new one
            return files.stock(head.auto, folder, config)
        model = head.auto.from_config(config, dtype=torch.float32)  # whatever the stored weights are
    except ValueError as error:
        raise CourseError(f"A {config.model_type} model has no head for '{tuning.head}'; try another model.") from error
    if config.model_type not in models.BASELINES:
        models.initialize(model)
    return model


def correct(run: Run) -> np.ndarray:
    """What a finished fine-tuning run scored on each test text, higher is better: (seeds, items).

    1 where it was right; for heads judged by F1 (seeds, items, 2), see `metrics.compare`.
    """
    head = registry.get(_tuned(run).get("head", "sequence"))
    folders = sorted(path.parent for path in run.folder.glob(f"seed-*/{PREDICTIONS}"))
    if not folders:
        raise CourseError(f"{run.folder} holds no predictions; it is not a finished fine-tuning run.")
    return np.stack([head.hits(_predictions(Run(folder, {}))) for folder in folders])


def compare(a: Run, b: Run | None) -> metrics.Difference:
    """Whether run a is better than run b, or than TF-IDF and logistic regression, on the same test texts."""
    for run in (a, b):
        if run is not None and "task" not in run.info:
            raise CourseError(f"{run.folder} is no fine-tuning run; make one with `finetune --model {run.folder}`.")
    if b is None:
        tuning = restore(Tuning, _tuned(a))
        if tuning.head != "sequence":
            raise CourseError(f"TF-IDF sorts texts into classes; {a.folder} learnt '{tuning.head}'.")
        task = registry.get(tuning.head).task(tuning)
        if task.is_other(a.info["task"]):
            raise CourseError(f"The texts of {a.folder} have changed since it ran.")
        theirs = (baselines.tfidf(task).argmax(1) == task.test.labels)[None].astype(float)
        return metrics.compare(correct(a), theirs, trained=False)
    if a.info["task"]["test_hash"] != b.info["task"]["test_hash"]:
        raise CourseError(f"{a.folder} and {b.folder} were not tested on the same texts.")
    return metrics.compare(correct(a), correct(b))


def summary(run: Run) -> str:
    """One line for a terminal."""
    result, task, head = run.info["result"], run.info["task"], registry.get(run.info["config"]["head"])
    bare = lambda value: head.shown(value).removeprefix(f"{head.metric} ").removesuffix(" right")
    spread = f" ({bare(result['least'])} to {bare(result['most'])})" if result["seeds"] > 1 else ""
    return (
        f"{task['name']}: {head.shown(result[head.metric])}{spread} on {task['test']:,} test texts, "
        f"{result['seeds']} seed{'s' * (result['seeds'] > 1)}. Stored in {run.folder}"
    )


def _one(
    tuning: Tuning, folder: Path, task: labelled.Task, where: device.Device, parent: Run, log: Log, save_every: str
) -> Run:
    """One seed, from its beginning, its last checkpoint, or its result."""
    done = parent.folder / f"seed-{tuning.seed}"
    if (done / "run.json").exists() and Run.open(done).info["status"] == "finished":
        return Run.open(done)
    run = Run.begin(tuning, parent.folder, done.name, done.name)
    timer = Timer(run.info.get("timings", {}))
    try:
        tokenizer = load_tokenizer(folder)
        state = build(tuning, folder, task, tokenizer, where)
        ask = Asking(state, tokenizer, task, tuning)
        saved = checkpoint.load(run.folder / "checkpoints", log)
        if saved:
            state.load_state_dict(saved)
        run.rewind(state.step)
        run.update(settings=asdict(tuning), plan={"micro_rows": tuning.step_rows}, status="running")
        shape = schedule.build(tuning.schedule, tuning.warmup, 1 - tuning.warmup)
        steps = ([batch] for batch in cast(examples.Examples, state.loader))
        with timer("train"):
            if not training.stopped(state, tuning.patience):
                drive(run, state, steps, shape, ask.losses, timer, log, parse_duration(save_every))
            _settle(run, ask)
        with timer("evaluate"):
            _store(run, ask)
        with new_folder(run.folder / "model") as scratch:
            if tuning.method:  # the added weights alone; `files.restore` puts them on the base again
                files.save(state.model, scratch, str(folder))
                state.model.config.save_pretrained(scratch)
            else:
                state.model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
        run.update(status="finished", finished=now(), cpu_share=run.cpu_share() if where.kind == "cpu" else None)
        checkpoint.remove(run.folder / "checkpoints")
    finally:
        run.end(timings=timer.seconds)
    return run


def _settle(run: Run, ask: "Asking") -> None:
    """The weights that are kept: the best on dev, and of an adapter what its file will hold."""
    if best := ask.state.best:
        if not any("valid" in row for row in list(run.metrics())[-1:]):  # the end of training may be the best, too
            run.update(valid_at_end=ask.losses())
        best.swap_in()
    if ask.tuning.method:
        adapters.active(ask.state.model).settle()


class Asking:
    """What a model in training answers about a side of the task."""

    def __init__(self, state: Training, tokenizer: Any, task: labelled.Task, tuning: Tuning):
        self.state, self.tokenizer, self.task, self.tuning = state, tokenizer, task, tuning
        self.head = registry.get(tuning.head)
        self.encoded: dict[str, Rows] = {}

    def logits(self, name: str) -> Any:
        """The head's merged outputs for the side `dev` or `test`."""
        side = getattr(self.task, name)
        if name not in self.encoded:
            self.encoded[name] = encode(self.state.model, self.tokenizer, side, self.tuning)
        rows = self.encoded[name]
        outputs = base.run(self.state.model, rows, self.tokenizer.pad_token_id, self.state.precision)
        return self.head.merge(outputs, rows, side)

    def losses(self) -> dict[str, float]:
        """What early stopping can look at, on dev: lower is better. Keeps the weights that are best so far."""
        answers = self.head.answers(self.logits("dev"), self.task.dev, self.state.model.config.calibration)
        found = self.head.losses(self.task.dev, answers, self.task.classes)
        if self.state.best and self.tuning.metric in found:
            self.state.best.offer(found[self.tuning.metric])
        return found


def _store(run: Run, ask: Asking) -> None:
    """Scores into the record, calibration into the model's config, what was said about the test texts beside it."""
    head, task = ask.head, ask.task
    dev, test = ask.logits("dev"), ask.logits("test")
    fitted = head.fit(dev, task.dev, head.calibration(task))
    ask.state.model.config.calibration = fitted

    def score(side: labelled.Labelled, logits: Any) -> dict[str, float]:
        answers = head.answers(logits, side, fitted)
        return head.scores(side, answers, task.classes) | head.trust(logits, side, fitted)

    run.update(result={"dev": score(task.dev, dev), "test": score(task.test, test), "calibration": fitted})
    stored = head.stored(task.test, test, task.classes, fitted)
    (run.folder / PREDICTIONS).write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")
    for name, text in head.export(stored).items():
        (run.folder / name).write_text(text, encoding="utf-8", newline="\n")


def _tuned(run: Run) -> dict[str, Any]:
    """The settings of the fine-tuning behind a run; a compressed model's are not the run's own."""
    return run.info.get("tuning") or run.info.get("config", {})


def _predictions(run: Run) -> dict[str, Any]:
    return json.loads((run.folder / PREDICTIONS).read_text(encoding="utf-8"))


def encode(model: Any, tokenizer: Any, side: labelled.Labelled, tuning: Tuning) -> Rows:
    """A side as rows that fit into the model's context, with token types if the model knows any."""
    known = base.context(model, tokenizer) - (methods.parse(tuning.method).positions if tuning.method else 0)
    if known < 1:
        raise CourseError(f"--method {tuning.method} leaves no room for a text. Choose a smaller length.")
    length = min(tuning.max_length or known, known)
    rows = registry.get(tuning.head).rows(tokenizer, side, length, tuning.stride)
    return rows if getattr(model.config, "type_vocab_size", 0) > 1 else replace(rows, types=None)


def build(tuning: Tuning, folder: Path, task: labelled.Task, tokenizer: Any, where: device.Device) -> Training:
    """Model, optimizer and examples at step 0."""
    torch.manual_seed(tuning.seed)
    model = new_model(folder, task.classes, tuning).to(where.torch)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.calibration = registry.get(tuning.head).calibration(task)
    return around(model, tuning, task, tokenizer, where)


def around(
    model: Any,
    tuning: Tuning,
    task: labelled.Task,
    tokenizer: Any,
    where: device.Device,
    objective: Objective | None = None,
    rows: Rows | None = None,
) -> Training:
    """Optimizer and examples for a model at step 0, to learn the head's objective or another one on train or `rows`."""
    head = registry.get(tuning.head)
    rows = rows or encode(model, tokenizer, augment.enlarge(head.lesson(task), tuning.augment, tuning.seed), tuning)
    loader = examples.Examples(rows, tuning.step_rows, tokenizer.pad_token_id, tuning.seed)
    steps = max(1, round(tuning.epochs * loader.steps_per_epoch))
    clocks: list[Clock] = [ReplayClock([step / steps for step in range(steps)])]
    if tuning.budget:
        clocks.append(WallClock(parse_duration(tuning.budget)))
    budget = Budget(FirstOf(*clocks))
    if tuning.method:
        adapters.apply(model, methods.parse(tuning.method))
    optimizer = optim.for_finetuning(model, tuning.lr, tuning.layer_decay, tuning.weight_decay, tuning.freeze)
    if objective is None:
        objective = regularize.around(model, head.objective(tuning, task), tuning.regularize)
    if tuning.method:
        objective = adapters.objective(model, objective)
        adapters.follow(model, [optimizer], budget)
    if tuning.freeze == "gradual":
        objective = freezing.Gradual(objective, model, lambda: budget.progress)
    return Training(
        model=model,
        objective=objective,
        optimizers=[optimizer],
        loader=loader,
        masking=torch.Generator(),
        precision=Precision.for_device(where),
        signature={"task": task.name, "classes": task.classes, "number of weights": models.count_parameters(model)},
        budget=budget,
        average=optim.TailAverage(model, AVERAGED_FROM) if tuning.keep == "average" else None,
        best=optim.Best(model) if tuning.keep == "best" and tuning.evaluate_every else None,
    )


def _result(parts: list[Run], head: base.Head) -> dict[str, Any]:
    """Means over the seeds, and how far they are apart."""
    mean = lambda side, name: round(statistics.mean(part.info["result"][side][name] for part in parts), 4)
    values = [part.info["result"]["test"][head.metric] for part in parts]
    shares = [part.info["cpu_share"] for part in parts if part.info.get("cpu_share")]
    return {
        "seeds": len(parts),
        "cpu_share": min(shares, default=None),
        **{name: mean("test", name) for name in parts[0].info["result"]["test"]},
        f"dev_{head.metric}": mean("dev", head.metric),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
    }


def _name(tuning: Tuning, folder: Path) -> str:
    """A readable name: what was tuned on what."""
    source = folder.parent if folder.name == "model" else folder
    suffix = f"-{tuning.method.partition(':')[0]}" if tuning.method else ""
    return f"{source.name}-{Path(tuning.train or tuning.task).stem}" + "-scratch" * tuning.scratch + suffix


def _keep_only(best: Run, parts: list[Run], run: Run) -> None:
    """The best model on dev becomes the run's; the others' predictions stay, their weights go."""
    if (best.folder / "model").exists():
        shutil.rmtree(run.folder / "model", ignore_errors=True)
        (best.folder / "model").rename(run.folder / "model")
    for part in parts:
        shutil.rmtree(part.folder / "model", ignore_errors=True)
