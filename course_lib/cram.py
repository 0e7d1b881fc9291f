"""`cram`: one command from nothing to a decoder, an encoder, what the better one is worth on a task, and a report.

Half of the budget trains the decoder, half the encoder. If the corpus has labels, both are fine-tuned, and the better
one on dev is compared with the same network from random weights and with TF-IDF; this and the report take up to five
minutes more. Everything shown is in `run.json` first.
"""

import os
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from course_lib import assets, baselines, device, evaluate, finetune, recipes, report, sample
from course_lib.budget import format_duration, parse_duration
from course_lib.config import Config, Tuning
from course_lib.data import corpora, labelled
from course_lib.data.prepare import Prepared
from course_lib.errors import CourseError
from course_lib.metrics import SEEDS_FOR_A_CLAIM
from course_lib.pretrain import pretrain, resolve, run_name
from course_lib.record import Run, Timer, now
from course_lib.recorder import Log

PROMPTS, PROMPT_TOKENS, SAMPLE_TOKENS, BLANKS = 3, 8, 60, 6
TUNING_SECONDS = 25  # for each of the seven fine-tuning runs
SEEDS = 3
VERDICTS = ("better than", "worse than", "not clearly better or worse than")
MANY_EPOCHS = 6  # beyond about this, repeating a text teaches little (Muennighoff et al. 2023: four are nearly free)


def cram(
    config: Config,
    runs: Path = Path("runs"),
    run_id: str | None = None,
    fresh: bool = False,
    log: Log = print,
    started: float | None = None,
    **how: Any,
) -> Run:
    """Train both, tune, compare, report. Stopped at any point, the same command goes on; `how` as for `pretrain`."""
    started = time.monotonic() if started is None else started
    _refuse(config)
    where = device.pick(config.device)
    # What is wrong is said before anything is made.
    task = labelled.of_corpus(config.corpus, config.encoding)
    resolve(half(config, "mlm"), where)
    size = resolve(config, where).size  # for both, what the whole budget can feed
    corpora.load(config.corpus, config.encoding)
    run = Run.begin(config, runs, run_name(config), run_id, fresh, "cram")
    run.update(device=where.describe(), size=run.info.get("size", size))
    halves = [replace(half(config, name), size=run.info["size"]) for name in (config.objective, "mlm")]
    timer = Timer(run.info.get("timings", {}))
    try:
        for name, part in zip(("decoder", "encoder"), halves, strict=True):
            log(f"\n— {name}")
            with timer(name):
                _once(run.folder / name, pretrain, part, runs=run.folder, run_id=name, log=log, started=started, **how)
            started = time.monotonic()
        with timer("samples"):
            run.update(**written(run))
        with timer("task"):
            run.update(**({"task": _judge(run, task, config, log, how)} if task else {}))
        run.update(finished=now(), timings=timer.seconds, seconds=timer.total)
        (run.folder / "report.html").write_text(report.render(run, verdicts(run)), encoding="utf-8")
        run.update(status="finished")
    finally:
        run.end(timings=timer.seconds)
    log(closing(run))
    return run


def _refuse(config: Config) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CourseError("cram is one process. Use torchrun with pretrain, then finetune.")
    if config.replay:
        raise CourseError("cram trains two models. Replay one of them: pretrain --replay runs/ID/decoder.")
    if not recipes.get(config.objective).causal:
        raise CourseError(f"cram trains a model that can write; for the objective '{config.objective}' use pretrain.")


def half(config: Config, objective: str) -> Config:
    """The config of one of the two: half of the budget, and what suits its objective where nothing was asked for."""
    shared = replace(
        config, budget=f"{parse_duration(config.budget) / 2}s", tokens=config.tokens // 2, objective=objective
    )
    if recipes.get(objective).causal:
        return shared
    plain = Config()
    # Muon lowers an encoder's loss more, but what it leaves fine-tunes worse (book/lab-log.md).
    asked = config.optimizer != plain.optimizer or config.lr != plain.lr
    encoder = replace(shared, architecture="", teacher="", metric="")  # which are a decoder's
    return encoder if asked else replace(encoder, optimizer="adamw", lr=0.002)


def written(run: Run) -> dict[str, Any]:
    """What the decoder writes and the encoder guesses, and what a file compressor makes of the same text."""
    where = device.pick(run.info["config"]["device"])
    data = Prepared.open(assets.cache_dir() / "prepared" / part(run, "decoder").info["data"]["prepared"])
    model, tokenizer = sample.load(run.folder / "decoder", where)
    prompts = data.openings(PROMPTS, PROMPT_TOKENS)
    texts = sample.generate(model, tokenizer, prompts, min(SAMPLE_TOKENS, model.config.max_position_embeddings // 2))
    blanks = sample.blanks(run.folder / "encoder", data.openings(BLANKS, 24), where)
    return {
        "samples": [{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)],
        "blanks": blanks,
        "xz_bits_per_byte": round(evaluate.xz_bits_per_byte(data.held_out_text()), 2),
    }


def part(run: Run, name: str) -> Run:
    """A run inside this one: `decoder`, `encoder`, or a fine-tuning run."""
    return Run.open(run.folder / name)


def _once(folder: Path, command: Any, config: Any, **how: Any) -> Run:
    """The run in `folder` if it is finished, else the command that makes it."""
    if (folder / "run.json").exists() and Run.open(folder).info["status"] == "finished":
        return Run.open(folder)
    return command(config, **how)


def _judge(run: Run, task: labelled.Task, config: Config, log: Log, how: dict[str, Any]) -> dict[str, Any]:
    """Fine-tune both once; the better one on dev again, beside random weights and TF-IDF."""
    log(f"\n— what they are worth on {task.name}: {len(task.train):,} texts to learn from, {len(task.test):,} to test")
    base = Tuning(task=task.name, encoding=config.encoding, device=config.device, budget=f"{TUNING_SECONDS}s")
    if config.corpus not in {source.dataset for source in labelled.TASKS.values()}:  # a table may be called like a task
        base = replace(base, task=config.corpus)

    def tune(name: str, model: str, **more: Any) -> Run:
        settings = replace(base, model=str(run.folder / model), **more)
        rest = {"checkpoint_every": how["checkpoint_every"]} if "checkpoint_every" in how else {}
        return _once(run.folder / name, finetune.finetune, settings, runs=run.folder, run_id=name, log=log, **rest)

    first = {model: tune(f"{model}-tuned", model) for model in ("decoder", "encoder")}
    better = max(first, key=lambda model: first[model].info["result"]["dev_accuracy"])
    tuned = tune("tuned", better, seeds=SEEDS)
    scratch = tune("scratch", better, seeds=SEEDS, scratch=True)
    simple = (baselines.tfidf(task).argmax(1) == task.test.labels).mean()
    return {
        "name": task.name,
        "better": better,
        "dev": {model: first[model].info["result"]["dev_accuracy"] for model in first},
        "accuracy": {
            "tuned": tuned.info["result"],
            "scratch": scratch.info["result"],
            "tfidf": {"accuracy": round(float(simple), 4)},
        },
        "differences": {
            "scratch": finetune.compare(tuned, scratch).describe(),
            "tfidf": finetune.compare(tuned, None).describe(),
        },
    }


def advice(run: Run) -> list[str]:
    """What to change next time, if anything is plain."""
    epochs = part(run, "decoder").info["result"]["epochs"]
    if epochs <= MANY_EPOCHS:
        return []
    return [f"The text was read {epochs:.0f} times: more text, or a shorter budget, would serve as well."]


def verdicts(run: Run) -> list[str]:
    """One plain sentence a comparison."""
    if "task" not in run.info:
        return ["The corpus has no labels, so nothing was fine-tuned."]
    task = run.info["task"]
    names = {"scratch": "the same network from random weights", "tfidf": "TF-IDF with logistic regression"}
    lines = []
    for key, name in names.items():
        d = task["differences"][key]
        few = d["seeds"] < SEEDS_FOR_A_CLAIM
        said = ("ahead of", "behind", "not clearly ahead of or behind") if few else VERDICTS
        side = said[0] if d["low"] > 0 else said[1] if d["high"] < 0 else said[2]
        lines.append(
            f"On {task['name']}, the {task['better']} is {side} {name}: {100 * d['mean']:+.1f} points "
            f"(95 % interval {100 * d['low']:+.1f} to {100 * d['high']:+.1f}, {d['seeds']} seeds"
            f"{', too few for a verdict' if few else ''})."
        )
    return lines


def closing(run: Run) -> str:
    """The closing lines for a terminal."""
    decoder, encoder = part(run, "decoder").info, part(run, "encoder").info
    rows = [("", "decoder", "encoder")]
    for name, show in (
        ("weights", lambda info: f"{info['plan']['parameters'] / 1e6:.2f} M"),
        ("training time", lambda info: format_duration(info["result"]["seconds"])),
        ("tokens", lambda info: f"{info['result']['tokens'] / 1e6:.1f} M"),
        ("tokens/s", lambda info: f"{info['result']['tokens_per_second']:,}"),
    ):
        rows.append((name, show(decoder), show(encoder)))
    lines = ["", *(f"  {name:<14}{a:>12}{b:>12}" for name, a, b in rows), ""]
    for shown in run.info["samples"]:
        text = f"{shown['prompt']} ▸{shown['text']}".replace("\n", " ")
        lines += [*textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="  "), ""]
    lines += [
        f"{decoder['result']['scores']['bits_per_byte']:.3f} bits per byte on held-out text (the file compressor xz -9 "
        f"needs {run.info['xz_bits_per_byte']:.2f}); masked loss of the encoder "
        f"{encoder['result']['scores']['mlm_loss']:.2f} nats.",
        *verdicts(run),
        *advice(run),
        f"The whole command took {format_duration(run.info['seconds'])}.",
        f"Report:      {run.folder}/report.html (models and records beside it)",
        f'Write more:  python -m course_lib sample --run {run.folder}/decoder --prompt "…"',
    ]
    return "\n".join(lines)
