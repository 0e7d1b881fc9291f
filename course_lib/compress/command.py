"""`python -m course_lib compress`: a fine-tuned model, a recipe, and what both models cost and know, side by side."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from course_lib import finetune, models, progress
from course_lib.compress import export, files, measure, recipes, work
from course_lib.config import Compression
from course_lib.errors import CourseError
from course_lib.heads import registry
from course_lib.record import Run, now
from course_lib.recorder import Log
from course_lib.storage import new_folder

SIDES = ("before", "after")


def compress(
    settings: Compression,
    runs: Path = Path("runs"),
    run_id: str | None = None,
    fresh: bool = False,
    log: Log = print,
    started: float | None = None,
    checkpoint_every: str = "2m",
) -> Run:
    """Apply a recipe, store the model and its ONNX form in `runs/<id>/`, and measure it against what it was made of.

    The same command goes on where it was stopped. Both models are measured in the same runtime, in turn, on the same
    batch. Raises CourseError for a model that is not fine-tuned and, before anything learns, for recipes that fail.
    """
    started = time.monotonic() if started is None else started
    progress.hush_transformers()
    steps = _steps(settings)
    source, tuning = work.tuned(Path(settings.model))
    tuning = replace(tuning, device=settings.device, seed=settings.seed, lr=settings.lr or tuning.lr, log=settings.log)
    task = registry.get(tuning.head).task(tuning)
    model = work.teacher(source, tuning)
    tokenizer = finetune.load_tokenizer(source.folder / "model")
    _rehearse(settings, steps, work.Rehearsal(model, tuning, task, tokenizer))
    run = Run.begin(settings, runs, _name(settings, source), run_id, fresh, "compress")
    try:
        run.update(task=task.describe(), tuning=asdict(tuning))
        tokenizer.save_pretrained(run.folder / "tokenizer")
        shop = work.Workshop(run, model, tuning, task, log, checkpoint_every)
        made = recipes.apply(steps, model.to(shop.where.torch), shop)
        with new_folder(run.folder / "model") as scratch:
            files.save(made.cpu(), scratch)
            shop.tokenizer.save_pretrained(scratch)
        run.update(device=shop.where.describe(), result=_measured(settings, shop, model.cpu(), made))
        shop.finish()
        run.update(status="finished", finished=now())
    finally:
        run.end(seconds=round(run.info.get("seconds", 0.0) + time.monotonic() - started, 3))
    log(table(run))
    return run


def _steps(settings: Compression) -> list[Any]:
    """The recipe; what cannot be measured in the end is refused before anything is learnt."""
    for name, least in {"rows": 1, "length": 1, "repeats": 1, "threads": 0}.items():
        if getattr(settings, name) < least:
            raise CourseError(f"--{name} is at least {least}, not {getattr(settings, name)}.")
    export.optimisation(settings.level)
    steps = recipes.parse(settings.recipe)
    for layout in filter(None, (getattr(step, "layout", None) for step in steps)):
        export.check(layout)
    return steps


def _rehearse(settings: Compression, steps: list[Any], stage: work.Rehearsal) -> None:
    """Raise CourseError for steps that fail, and for texts to time that are longer than a model has positions."""
    if 0 < (known := models.positions(stage.teacher)) < settings.length:
        raise CourseError(
            f"The model has learnt {known} positions: choose a --length up to that, not {settings.length}."
        )
    recipes.apply(steps, stage.teacher, stage)


def _name(settings: Compression, source: Run) -> str:
    """What was made smaller, and how."""
    return "-".join([source.folder.name, *(part.partition(":")[0] for part in settings.recipe.split("+"))])


def _measured(settings: Compression, shop: work.Workshop, before: Any, after: Any) -> dict[str, Any]:
    """Size, time, memory and scores of both in onnxruntime, the scores of our own integers beside them, and ratios."""
    paths = {side: shop.run.folder / "onnx" / f"{side}.onnx" for side in SIDES}
    batches = shop.batches(128)
    for (side, path), model in zip(paths.items(), (before, after), strict=True):
        export.to_onnx(model, path, batches)
        shop.log(f"{side}: exported, {path.stat().st_size / 1e6:.2f} MB")
    sessions = {side: export.session(path, settings.threads, settings.level) for side, path in paths.items()}
    ids = np.random.default_rng(0).integers(3, before.config.vocab_size, (settings.rows, settings.length))
    feed = {name: np.ones_like(ids) for name in export.feed(batches[0])} | {"input_ids": ids}
    if "token_type_ids" in feed:
        feed["token_type_ids"] = np.zeros_like(ids)
    times = measure.latency(sessions, feed, settings.repeats)
    result: dict[str, Any] = {}
    for side, model in zip(SIDES, (before, after), strict=True):
        scores, stored = shop.judge(export.Runtime(sessions[side], model.config))
        result[side] = {
            "bytes": paths[side].stat().st_size,
            "memory": measure.peak_memory(paths[side], feed, settings.threads, shop.run.folder, settings.level),
            **times[side],
            **scores,
        }
    (shop.run.folder / "feeds.npz").unlink()
    result["after"]["file_bytes"] = files.size(shop.run.folder / "model")
    result["torch"] = shop.judge(after)[0]
    place = shop.run.folder / f"seed-{settings.seed}"
    place.mkdir(exist_ok=True)
    (place / finetune.PREDICTIONS).write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")
    result["smaller"] = round(result["before"]["bytes"] / result["after"]["bytes"], 3)
    result["faster"] = round(result["before"]["p50_ms"] / result["after"]["p50_ms"], 3)
    return result


def table(run: Run) -> str:
    """What a terminal shows."""
    result, metric = run.info["result"], registry.get(run.info["tuning"]["head"]).metric
    rows = [
        ("size, MB", "bytes", 1e-6, 2), ("p50, ms", "p50_ms", 1, 2), ("p95, ms", "p95_ms", 1, 2),
        ("tokens/s", "tokens_per_second", 1, 0), ("peak memory, MB", "memory", 1e-6, 1), (metric, metric, 1, 4),
    ]  # fmt: skip
    lines = [f"{'':<18}{'before':>12}{'after':>12}"]
    for name, field, factor, digits in rows:
        found = (result[side][field] for side in SIDES)
        shown = ("not measured" if value is None else f"{factor * value:,.{digits}f}" for value in found)
        lines.append(f"{name:<18}" + "".join(f" {text:>11}" for text in shown))
    return "\n".join(
        [*lines, f"{result['smaller']:.2f}× smaller, {result['faster']:.2f}× faster. Stored in {run.folder}"]
    )
