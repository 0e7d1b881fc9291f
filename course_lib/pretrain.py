"""Pretraining under a budget: corpus → tokens → model → loop → record."""

import re
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from course_lib import (
    checkpoint,
    device,
    distributed,
    loggers,
    models,
    optim,
    plan,
    progress,
    recipes,
    schedule,
    tokenizer,
    training,
)
from course_lib.budget import Budget, Clock, ReplayClock, WallClock, WorkClock, format_duration, parse_duration
from course_lib.config import Config, restore, within
from course_lib.data import corpora, pack, prepare
from course_lib.errors import CourseError, unknown
from course_lib.record import Run, Timer, now
from course_lib.recorder import Log, drive
from course_lib.storage import new_folder
from course_lib.training import Training

BYTES_PER_SECOND = 300_000  # of the budget: keeps tokenizing (3 MB/s or more) below a tenth of it
OVERHEAD = 0.15  # what a whole command may take beyond its budget, downloads apart
EMBEDDINGS = ("auto", "random", "cooccurrence")
MAX_FACTORISED = 384  # hidden size up to which `auto` takes embeddings in closed form
COMPILE = ("auto", "on", "off")
COMPILE_FROM = 300  # seconds of budget; compiling takes a minute


def pretrain(
    config: Config,
    runs: Path = Path("runs"),
    run_id: str | None = None,
    fresh: bool = False,
    log: Log = print,
    started: float | None = None,
    checkpoint_every: str = "2m",
    micro_rows: int = 0,
    shard: bool = False,
) -> Run:
    """Train a model within the budget and store it in `runs/<id>/`; an unfinished run of the same config goes on.

    `started` (monotonic seconds): when the command began. `micro_rows`: at most so many rows at once on a device
    (0: what fits). Under `torchrun` all processes call this and share the run, with `shard` also the weights. Raises
    `Interrupted`, after saving, when Ctrl-C or SIGTERM asked the run to stop.
    """
    started = time.monotonic() if started is None else started
    progress.hush_transformers()
    where, fetching = device.pick(config.device), Timer()
    distributed.start(where.kind)  # first: it says which card is this process's
    settings = resolve(config, where)
    training.step_rows(settings)  # an error before anything is made
    log = log if distributed.rank() == 0 else _silent
    with fetching("fetch"):
        corpus = corpora.load(settings.corpus, settings.encoding)
    started += fetching.seconds["fetch"]  # downloads are the one thing outside the budget
    run = _shared_run(config, settings, where, runs, run_id, fresh)
    timer = Timer(fetching.seconds | run.info.get("timings", {}))
    earlier = run.info.get("seconds", 0.0)  # sessions before this one
    try:
        data, state = _set_up(run, corpus, where, started, timer, log, micro_rows, shard)
        with timer("train"):
            _train(run, state, data, timer, log, parse_duration(checkpoint_every))
        with timer("evaluate"):
            _finish(run, state, data, where)
    finally:
        run.end(timings=timer.seconds, seconds=round(earlier + time.monotonic() - started, 3))
    log(f"On held-out text: {_scores(run.info['result'])}. Stored in {run.folder}")
    return run


def _silent(message: str) -> None:
    """For every process but the first."""


def _shared_run(
    config: Config, settings: Config, where: device.Device, runs: Path, run_id: str | None, fresh: bool
) -> Run:
    """The run to continue or a new one, chosen by the first process; the others follow and do not write."""
    run = None
    if distributed.rank() == 0:
        run = Run.begin(config, runs, run_name(settings), run_id, fresh)
        if "settings" not in run.info:
            run.update(settings=asdict(settings), device=where.describe(), processes=distributed.world_size())
    folder, info = distributed.share((run.folder, run.info) if run else None)
    if run is None:
        run = Run(folder, info)
        run.writes = False
    return run


def _set_up(
    run: Run,
    corpus: corpora.Corpus,
    where: device.Device,
    started: float,
    timer: Timer,
    log: Log,
    micro_rows: int,
    shard: bool,
) -> tuple[prepare.Prepared, Training]:
    """Data, and a training at its beginning or at its last checkpoint."""
    settings = restore(Config, run.info["settings"])
    with timer("prepare"):
        if distributed.rank() == 0:
            _prepare(run, settings, corpus, log)
        distributed.barrier()  # the others find it in the cache
        data = _prepare(run, settings, corpus, _silent)
        if not data.valid.rows(settings.context):
            held_out = f"{len(data.valid.tokens)} tokens held out, less than a row of {settings.context}"
            raise CourseError(f"There are only {held_out}. Use more text, or a smaller --context.")
    with timer("plan"):
        state = training.build(settings, data, where)
        if "plan" not in run.info:
            run.update(plan=_plan(state, settings, data, started, micro_rows))
        elif micro_rows:
            run.update(plan=run.info["plan"] | {"micro_rows": micro_rows})
        training.distribute(state, settings, shard)
    state.budget = Budget(_clock(run, settings))
    saved = checkpoint.load(run.folder / "checkpoints", log)
    if saved:
        state.load_state_dict(saved)
        log(f"Continuing {run.folder} at {state.budget.progress:.0%} of its budget.")
    run.rewind(state.step)
    run.update(status="running")
    log(_intention(run))
    return data, state


def resolve(config: Config, where: device.Device) -> Config:
    """The config with every default filled in; refuses names that do not exist before anything is made or fetched."""
    if config.replay:
        return _recorded(config)
    optim.check(config.optimizer)
    schedule.build(config.schedule, config.warmup, config.cooldown)
    loggers.check(config.log)
    if config.compile not in COMPILE:
        raise unknown("compile setting", config.compile, COMPILE)
    if config.tokenizer not in tokenizer.KINDS:
        raise unknown("tokenizer", config.tokenizer, tokenizer.KINDS)
    if config.embeddings not in EMBEDDINGS:
        raise unknown("kind of embeddings", config.embeddings, EMBEDDINGS)
    recipe = recipes.get(config.objective)
    if recipe.causal and config.tokenizer != "byte-bpe":
        raise CourseError(
            f"A {config.tokenizer} vocabulary loses part of the text, so bits per byte cannot be measured. "
            f"Use it with an encoder (--objective=mlm), or --tokenizer=byte-bpe."
        )
    _numbers(config)
    metric = _metric(config, recipe)
    architecture = _architecture(config, recipe)
    seconds = parse_duration(config.budget)
    size = plan.choose_size(where, seconds) if config.size == "auto" else config.size
    shape = models.size(size)
    # Measured for small models with an untied head and byte-level tokens only; the factorization would take minutes for
    # large ones, and a vocabulary of characters may have fewer tokens than a vector has dimensions.
    small = shape.hidden <= MAX_FACTORISED and config.tokenizer == "byte-bpe"
    suits = architecture not in models.BASELINES and small
    return replace(
        config,
        size=size,
        embeddings={True: "cooccurrence", False: "random"}[suits] if config.embeddings == "auto" else config.embeddings,
        architecture=architecture,
        vocab_size=config.vocab_size or shape.vocab,
        context=config.context or shape.context,
        step_tokens=config.step_tokens or (models.STEP_TOKENS[size] if where.kind == "cuda" else models.SMALL_STEP),
        metric=metric,
    )


def _numbers(config: Config) -> None:
    """Refuse what no training has, and what would have no effect."""
    share, any_size = (0.0, 1.0), (0.0, float("inf"))
    within(config, evaluate_every=share, tail_average=share, mask_start=share, mask_end=share)
    within(config, lr=any_size, matrix_lr=any_size, weight_decay=any_size, patience=any_size, tokens=any_size)
    if not config.evaluate_every and (config.patience or config.metric):
        raise CourseError("--patience and --metric are for evaluations while it trains: add --evaluate-every 0.1.")


def _metric(config: Config, recipe: recipes.Recipe) -> str:
    """What to stop on; refuses what this objective does not report."""
    names = [*(["bits_per_byte"] if recipe.causal else []), *(f"{term}_loss" for term in recipe.objective.weights)]
    if config.metric and config.metric not in names:
        raise CourseError(f"There is no metric '{config.metric}' with {config.objective}, only {', '.join(names)}.")
    return config.metric or names[0]


def _architecture(config: Config, recipe: recipes.Recipe) -> str:
    """The one that was asked for, or the recipe's; refuses one that would see what it is to predict."""
    found = models.check(config.architecture or recipe.architecture)
    if recipe.causal and found in models.ENCODERS:
        raise CourseError(
            f"A {found} model reads in both directions, so it would see what {config.objective} is to predict. "
            f"Use --architecture={recipe.architecture}, or --objective=mlm."
        )
    if recipe.fixed and found != recipe.architecture:
        raise CourseError(f"--objective {config.objective} trains {recipe.architecture} models only, not {found}.")
    return found


def _recorded(config: Config) -> Config:
    """The config of the run that is to be repeated."""
    if not (recorded := Run.open(Path(config.replay)).info.get("settings")):
        raise CourseError(f"{config.replay} is no pretraining; those of a cram are inside it: runs/ID/decoder.")
    return restore(Config, recorded | {"replay": config.replay, "device": config.device})


def run_name(settings: Config) -> str:
    """A readable name for a run."""
    length = f"{settings.tokens}tokens" if settings.tokens else format_duration(parse_duration(settings.budget))
    stem = re.sub(r"[^\w.-]+", "-", Path(settings.corpus).stem).strip("-") or "text"
    return f"{stem}-{length}"


def _prepare(run: Run, settings: Config, corpus: corpora.Corpus, log: Log) -> prepare.Prepared:
    """Packed data for this run; refuses to continue on other data than it began with."""
    limit = settings.tokens * 8 if settings.tokens else parse_duration(settings.budget) * BYTES_PER_SECOND
    exact = run.info["config"]["vocab_size"] > 0  # a size that was asked for by number is meant
    data = prepare.prepare(corpus, settings.vocab_size, settings.context, int(limit), log, exact, settings.tokenizer)
    if run.info.get("data", {}).get("prepared", data.folder.name) != data.folder.name:
        raise CourseError(f"The corpus has changed since {run.folder} began. Start over with --fresh.")
    source = {"corpus": corpus.name, "licence": corpus.licence, "prepared": data.folder.name}
    run.update(data=source | asdict(data.counts))
    return data


def _plan(state: Training, settings: Config, data: prepare.Prepared, started: float, micro_rows: int) -> dict[str, Any]:
    """Probe the model on a step of its own batches, and say what the budget will buy."""
    rows = next(iter(cast(pack.Loader, state.loader)))
    state.loader.position.row = 0  # the probe does not count
    recipe = recipes.get(settings.objective)
    transform, *_ = recipes.evaluation_transforms(recipe, data.tokenizer)  # a hybrid's larger step
    batch = transform(rows[distributed.rank() :: distributed.world_size()], 0.0)
    # A masked objective applies the head to the hidden tokens only.
    head_share = 1.0 if recipe.causal else (settings.mask_start + settings.mask_end) / 2
    micro_rows, rate = plan.probe(
        state.model, state.objective, lambda m: training.optimizers(m, settings), batch, state.precision, micro_rows
    )
    micro_rows = distributed.least(micro_rows, next(state.model.parameters()).device)
    rate *= distributed.world_size()
    seconds = settings.tokens / rate if settings.tokens else _training_seconds(settings, rate, data, started)
    shared: dict[str, Any] = distributed.share(
        {
            "size": settings.size,
            "parameters": models.count_parameters(state.model),
            "memory": models.training_bytes(state.model, state.optimizers),
            "flops_per_token": models.flops_per_token(recipes.to_keep(state.model), settings.context, head_share),
            "micro_rows": micro_rows,
            "tokens_per_second": round(rate),
            "seconds": round(seconds, 3),
            "tokens": settings.tokens or round(rate * seconds),
        }
    )
    return shared


def _training_seconds(settings: Config, rate: float, data: prepare.Prepared, started: float) -> float:
    """The budget, less what would push the whole command beyond budget × (1 + OVERHEAD); at least a quarter of it."""
    budget = parse_duration(settings.budget)
    # Windows overlap by half, a forward costs a third of a step; saving and samples take a few seconds.
    scoring = 2 * len(data.valid.tokens) / (3 * rate) + 4
    left = budget * (1 + OVERHEAD) - (time.monotonic() - started) - scoring
    return min(budget, max(left, budget / 4))


def _clock(run: Run, settings: Config) -> Clock:
    if settings.replay:
        return ReplayClock([row["progress"] for row in Run.open(Path(settings.replay)).metrics()])
    return WorkClock(settings.tokens) if settings.tokens else WallClock(run.info["plan"]["seconds"])


def _train(run: Run, state: Training, data: prepare.Prepared, timer: Timer, log: Log, save_every: float) -> None:
    """Compile if that pays, and run the loop."""
    settings, plan_made = restore(Config, run.info["settings"]), run.info["plan"]
    if settings.compile == "on" or (
        settings.compile == "auto" and run.info["device"]["kind"] == "cuda" and plan_made["seconds"] >= COMPILE_FROM
    ):
        training.compile_body(state.model)
    micro_batches = training.steps(state, settings, data.tokenizer, plan_made["micro_rows"])
    shape = schedule.build(settings.schedule, settings.warmup, settings.cooldown)
    if not training.stopped(state, settings.patience):
        drive(run, state, micro_batches, shape, lambda: training.score(state, settings, data), timer, log, save_every)


def _finish(run: Run, state: Training, data: prepare.Prepared, where: device.Device) -> None:
    """Score the held-out text, save weights and tokenizer as stock files, and drop the checkpoints."""
    settings = restore(Config, run.info["settings"])
    scores = training.score(state, settings, data)
    kept = recipes.to_keep(state.model)
    weights = distributed.collect(kept.state_dict(keep_vars=True))
    if not run.writes:
        run.update(result={"scores": scores}, status="finished")
        return
    rows = list(run.metrics())
    tokens, seconds = (sum(row[name] for row in rows) for name in ("tokens", "seconds"))
    rate = run.info["plan"]["flops_per_token"] * tokens / seconds
    result = {
        "scores": scores,
        "steps": state.step,
        "tokens": tokens,
        "epochs": round(tokens / len(data.train.tokens), 2),
        "seconds": round(seconds, 3),
        "cpu_share": run.cpu_share() if where.kind == "cpu" else None,
        "tokens_per_second": round(tokens / seconds),
        "flops_per_second": round(rate),
        "mfu": round(rate / where.peak_flops, 4) if where.peak_flops else None,  # None: the peak is not known
        "skipped_steps": sum(not row["taken"] for row in rows),
    }
    with new_folder(run.folder / "model") as scratch:
        kept.save_pretrained(scratch, state_dict=weights)
        data.tokenizer.save_pretrained(scratch)
        (scratch / "README.md").write_text(_card(run, result), encoding="utf-8")
    run.update(result=result, status="finished", finished=now(), peak_memory=where.peak_memory())
    checkpoint.remove(run.folder / "checkpoints")


def _intention(run: Run) -> str:
    p = run.info["plan"]
    return (
        f"Plan: {p['size']}, {p['parameters'] / 1e6:.2f} M weights, on {run.info['device']['name']}: about "
        f"{p['tokens_per_second']:,} tokens/s, {p['tokens'] / 1e6:.1f} M tokens in {format_duration(p['seconds'])}."
    )


def _scores(result: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result["scores"].items())


def _card(run: Run, result: dict[str, Any]) -> str:
    data, info = run.info["data"], run.info
    return (
        f"---\nlibrary_name: transformers\n---\n# {info['id']}\n\n"
        f"Trained from scratch by *One GPU, One Day* on the corpus `{data['corpus']}` "
        f"({data['train_bytes'] / 1e6:.1f} MB; licence of the text: {data['licence']}).\n\n"
        f"On {data['valid_bytes'] / 1e6:.2f} MB held out: {_scores(result)}; "
        f"after {result['tokens']:,} tokens in {format_duration(result['seconds'])} on {info['device']['name']}.\n\n"
        f"Too small and too briefly trained for anything but learning.\n"
    )
