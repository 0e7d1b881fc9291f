"""Pretraining under a budget: corpus → tokens → model → loop → record."""

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from course_lib import checkpoint, device, evaluate, models, optim, plan, progress
from course_lib.budget import Budget, ReplayClock, WallClock, WorkClock, format_duration, parse_duration
from course_lib.config import Config
from course_lib.data import corpora, pack, prepare
from course_lib.errors import CourseError
from course_lib.loop import train
from course_lib.objectives import CausalLM
from course_lib.precision import Precision
from course_lib.record import Run, Timer, now
from course_lib.schedule import trapezoid
from course_lib.storage import new_folder

BYTES_PER_SECOND = 300_000  # of the budget: keeps tokenizing (3 MB/s or more) below a tenth of it
OVERHEAD = 0.15  # what a whole command may take beyond its budget, downloads apart
LOG_EVERY = 20  # steps between writes to metrics.jsonl

Log = Callable[[str], None]


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """The run stopped on request, is saved, and can go on."""


@dataclass
class Training:
    """Everything that changes while a run trains; saved and restored as one."""

    model: Any
    optimizers: list[torch.optim.Optimizer]
    loader: pack.Loader
    precision: Precision
    budget: Budget
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        """A tree for `checkpoint.save`."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "loader": self.loader.state_dict(),
            "precision": self.precision.state_dict(),
            "budget": self.budget.state_dict(),
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.loader.load_state_dict(state["loader"])
        self.precision.load_state_dict(state["precision"])
        self.budget.load_state_dict(state["budget"])
        torch.set_rng_state(state["rng"])


def pretrain(
    config: Config,
    runs: Path = Path("runs"),
    run_id: str | None = None,
    fresh: bool = False,
    log: Log = print,
    started: float | None = None,
    checkpoint_every: str = "2m",
) -> Run:
    """Train a decoder within the budget and store it in `runs/<id>/`; an unfinished run of the same config goes on.

    `started` (monotonic seconds) is when the command began, if earlier than now. Raises `Interrupted`, after
    saving, when Ctrl-C or SIGTERM asked the run to stop.
    """
    started = time.monotonic() if started is None else started
    progress.hush_transformers()
    where, fetching = device.pick(config.device), Timer()
    settings = _resolve(config, where)
    with fetching("fetch"):
        corpus = corpora.load(settings.corpus, settings.encoding)
    started += fetching.seconds["fetch"]  # downloads are the one thing outside the budget
    run = None if fresh else _unfinished(config, runs, run_id)
    run = run or _new_run(config, settings, where, runs, run_id)
    timer = Timer(fetching.seconds | run.info.get("timings", {}))
    earlier = run.info.get("seconds", 0.0)  # sessions before this one
    try:
        data, training = _set_up(run, corpus, where, started, timer, log)
        with timer("train"):
            _train(run, training, timer, parse_duration(checkpoint_every))
        with timer("evaluate"):
            _finish(run, training, data)
        run.update(status="finished", finished=now(), peak_memory=where.peak_memory())
    finally:
        run.update(timings=timer.seconds, seconds=round(earlier + time.monotonic() - started, 3))
        run.release()
    checkpoint.remove(run.folder / "checkpoints")
    log(f"{run.info['result']['bits_per_byte']:.3f} bits per byte on held-out text. Stored in {run.folder}")
    return run


def _set_up(
    run: Run, corpus: corpora.Corpus, where: device.Device, started: float, timer: Timer, log: Log
) -> tuple[prepare.Prepared, Training]:
    """Data, and a training at its beginning or at its last checkpoint."""
    settings = Config(**run.info["settings"])
    with timer("prepare"):
        data = _prepare(run, settings, corpus, log)
    with timer("plan"):
        training = _build(run, settings, data, where, started)
    state = checkpoint.load(run.folder / "checkpoints", log)
    if state:
        training.load_state_dict(state)
        log(f"Continuing {run.folder} at {training.budget.progress:.0%} of its budget.")
    run.rewind(training.step)
    run.update(status="running")
    log(_intention(run))
    return data, training


def _unfinished(config: Config, runs: Path, run_id: str | None) -> Run | None:
    """The run that this config began and did not end, if any."""
    for path in sorted(runs.glob("*/run.json")):
        run = Run.open(path.parent)
        ours = run.info.get("config") == asdict(config) and run_id in (None, run.folder.name)
        if ours and run.info["status"] != "finished" and run.acquire():
            return run
    return None


def _resolve(config: Config, where: device.Device) -> Config:
    """The config with every default filled in; refuses names that do not exist before anything is made or fetched."""
    if config.replay:
        recorded = Run.open(Path(config.replay)).info["settings"]
        return Config(**{**recorded, "replay": config.replay, "device": config.device})
    optim.check(config.optimizer)
    seconds = parse_duration(config.budget)
    size = plan.choose_size(where, seconds) if config.size == "auto" else config.size
    shape = models.size(size)
    return replace(
        config, size=size, vocab_size=config.vocab_size or shape.vocab, context=config.context or shape.context
    )


def _new_run(config: Config, settings: Config, where: device.Device, runs: Path, run_id: str | None) -> Run:
    """A run with a readable, unused name."""
    length = f"{settings.tokens}tokens" if settings.tokens else format_duration(parse_duration(settings.budget))
    stem = re.sub(r"[^\w.-]+", "-", Path(settings.corpus).stem).strip("-") or "text"
    name, number = run_id or f"{stem}-{length}", 1
    while run_id is None and (runs / name).exists():
        number += 1
        name = f"{stem}-{length}-{number}"
    run = Run.create(runs / name, asdict(config))
    run.acquire()
    run.update(settings=asdict(settings), device=where.describe())
    return run


def _prepare(run: Run, settings: Config, corpus: corpora.Corpus, log: Log) -> prepare.Prepared:
    """Packed data for this run; refuses to continue on other data than it began with."""
    limit = settings.tokens * 8 if settings.tokens else parse_duration(settings.budget) * BYTES_PER_SECOND
    exact = run.info["config"]["vocab_size"] > 0  # a size that was asked for by number is meant
    data = prepare.prepare(corpus, settings.vocab_size, settings.context, int(limit), log, exact)
    if run.info.get("data", {}).get("prepared", data.folder.name) != data.folder.name:
        raise CourseError(f"The corpus has changed since {run.folder} began. Start over with --fresh.")
    run.update(
        data={"corpus": corpus.name, "licence": corpus.licence, "prepared": data.folder.name, **asdict(data.counts)}
    )
    return data


def _build(run: Run, settings: Config, data: prepare.Prepared, where: device.Device, started: float) -> Training:
    """Model, optimizers, loader and budget at step 0; makes the plan when the run has none yet."""
    torch.manual_seed(settings.seed)
    tokenizer, precision = data.tokenizer, Precision.for_device(where)
    shape = replace(models.size(settings.size), context=settings.context)
    model = models.decoder(shape, len(tokenizer), tokenizer.bos_token_id, tokenizer.pad_token_id).to(where.torch)
    step_rows = max(1, settings.step_tokens // settings.context)

    def optimizers(trained: Any) -> list[torch.optim.Optimizer]:
        return optim.build(trained, settings.optimizer, settings.matrix_lr, settings.lr, settings.weight_decay)

    if "plan" not in run.info:
        intended = plan.make(settings.size, model, optimizers, settings.context, step_rows, precision)
        seconds = _training_seconds(settings, intended, data, started)
        tokens = settings.tokens or round(intended.tokens_per_second * seconds)
        run.update(plan={**asdict(intended), "seconds": round(seconds, 3), "tokens": tokens})
    clock: WallClock | WorkClock | ReplayClock = WallClock(run.info["plan"]["seconds"])
    if settings.tokens:
        clock = WorkClock(settings.tokens)
    if settings.replay:
        clock = ReplayClock([row["progress"] for row in Run.open(Path(settings.replay)).metrics()])
    loader = pack.Loader(data.train, settings.context, step_rows, run.info["plan"]["micro_rows"], settings.seed)
    return Training(model, optimizers(model), loader, precision, Budget(clock))


def _training_seconds(settings: Config, intended: plan.Plan, data: prepare.Prepared, started: float) -> float:
    """The budget, less what would push the whole command beyond budget × (1 + OVERHEAD), but at least a quarter of it.

    When tokens are counted: the time they should take.
    """
    if settings.tokens:
        return settings.tokens / intended.tokens_per_second
    budget = parse_duration(settings.budget)
    # Windows overlap by half, a forward costs a third of a step; saving and samples take a few seconds.
    scoring = 2 * len(data.valid.tokens) / (3 * intended.tokens_per_second) + 4
    left = budget * (1 + OVERHEAD) - (time.monotonic() - started) - scoring
    return min(budget, max(left, budget / 4))


def _train(run: Run, training: Training, timer: Timer, save_every: float) -> None:
    """Drive the loop: show, log, save every `save_every` seconds and when asked to stop."""
    schedule = trapezoid(run.info["settings"]["warmup"], run.info["settings"]["cooldown"])
    rows: list[dict[str, Any]] = []
    last_step = last_save = time.monotonic()

    def save() -> None:
        with timer("checkpoint"), training.budget.paused():
            run.log(rows)
            rows.clear()
            checkpoint.save(run.folder / "checkpoints", training.step, training.state_dict())

    with checkpoint.stoppable() as stop, progress.bar(run.folder.name) as shown:
        steps = train(
            training.model,
            training.loader,
            CausalLM(),
            training.optimizers,
            schedule,
            training.precision,
            training.budget,
        )
        for step in steps:
            training.step += 1
            took, last_step = time.monotonic() - last_step, time.monotonic()
            rows.append({**asdict(step), "step": training.step, "seconds": round(took, 4)})
            rate = f"{step.tokens / took:,.0f} tok/s"
            progress.move(shown, training.budget.progress, loss=f"{step.losses['clm']:.3f}", speed=rate)
            if stop.requested or last_step - last_save > save_every:
                save()
                last_step = last_save = time.monotonic()
            elif len(rows) >= LOG_EVERY:
                run.log(rows)
                rows.clear()
            if stop.requested:
                run.update(status="stopped")
                raise Interrupted(_how_to_continue(run, training))
        save()  # so that an interrupted evaluation costs no training


def _finish(run: Run, training: Training, data: prepare.Prepared) -> None:
    """Save weights and tokenizer as stock files, and score the held-out text."""
    model, tokenizer = training.model, data.tokenizer
    context = run.info["settings"]["context"]
    score = evaluate.bits_per_byte(model, data.valid, context, training.precision, tokenizer.bos_token_id)
    seconds = round(sum(row["seconds"] for row in run.metrics()), 3)
    result = {
        "bits_per_byte": round(score, 4),
        "steps": training.step,
        "tokens": (tokens := sum(row["tokens"] for row in run.metrics())),
        "epochs": round(tokens / len(data.train.tokens), 2),
        "seconds": seconds,
        "tokens_per_second": round(tokens / seconds),
        "skipped_steps": sum(not row["taken"] for row in run.metrics()),
    }
    with new_folder(run.folder / "model") as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        (scratch / "README.md").write_text(_card(run, result), encoding="utf-8")
    run.update(result=result)


def _intention(run: Run) -> str:
    p = run.info["plan"]
    return (
        f"Plan: {p['size']}, {p['parameters'] / 1e6:.2f} M weights, on {run.info['device']['name']}: about "
        f"{p['tokens_per_second']:,} tokens/s, {p['tokens'] / 1e6:.1f} M tokens in {format_duration(p['seconds'])}."
    )


def _how_to_continue(run: Run, training: Training) -> str:
    return f"Stopped at {training.budget.progress:.0%}; saved in {run.folder}. Run the same command again to continue."


def _card(run: Run, result: dict[str, Any]) -> str:
    data, info = run.info["data"], run.info
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n# {info['id']}\n\n"
        f"Trained from random weights by *One GPU, One Day* on the corpus `{data['corpus']}` "
        f"({data['train_bytes'] / 1e6:.1f} MB; licence of the text: {data['licence']}).\n\n"
        f"{result['bits_per_byte']} bits per byte on {data['valid_bytes'] / 1e6:.2f} MB held out, "
        f"after {result['tokens']:,} tokens in {format_duration(result['seconds'])} on {info['device']['name']}.\n\n"
        f"Too small and too briefly trained for anything but learning.\n"
    )
