"""`cram`: one command from nothing to a trained model, its score, and three samples of what it writes."""

import textwrap
import time
from typing import Any

from course_lib import assets, device, evaluate, recipes, sample
from course_lib.budget import format_duration, parse_duration
from course_lib.config import Config
from course_lib.data.prepare import Prepared
from course_lib.errors import CourseError
from course_lib.pretrain import OVERHEAD, Log, pretrain
from course_lib.record import Run

PROMPTS, PROMPT_TOKENS, SAMPLE_TOKENS = 3, 8, 60


def cram(config: Config, log: Log = print, **how: Any) -> Run:
    """Pretrain, score, sample, report; `how` as for `pretrain`. Everything it prints is in run.json afterwards."""
    if not recipes.get(config.objective).causal:
        raise CourseError(f"cram trains a model that can write; for the objective '{config.objective}' use pretrain.")
    run = pretrain(config, log=log, **how)
    pretrained = time.monotonic()
    data = Prepared.open(assets.cache_dir() / "prepared" / run.info["data"]["prepared"])
    model, tokenizer = sample.load(run.folder, device.pick(config.device))
    prompts = data.openings(PROMPTS, PROMPT_TOKENS)
    texts = sample.generate(model, tokenizer, prompts, min(SAMPLE_TOKENS, model.config.max_position_embeddings // 2))
    run.update(
        samples=[{"prompt": p, "text": t} for p, t in zip(prompts, texts, strict=True)],
        result=run.info["result"] | {"xz_bits_per_byte": round(evaluate.xz_bits_per_byte(data.held_out_text()), 2)},
        seconds=round(run.info["seconds"] + time.monotonic() - pretrained, 3),
    )
    log(report(run))
    return run


MANY_EPOCHS = 6  # beyond about this, repeating a text teaches little (Muennighoff et al. 2023: four are nearly free)


def _advice(epochs: float) -> list[str]:
    """What to change next time, if anything is plain."""
    if epochs <= MANY_EPOCHS:
        return []
    return [f"The text was read {epochs:.0f} times: more text, or a shorter budget, would serve as well."]


def report(run: Run) -> str:
    """The closing lines for a terminal."""
    info, result, plan = run.info, run.info["result"], run.info["plan"]
    allowed = (1 + OVERHEAD) * parse_duration(info["config"]["budget"])
    rows = [
        ("", "planned", "actual"),
        ("training time", format_duration(plan["seconds"]), format_duration(result["seconds"])),
        ("tokens", f"{plan['tokens'] / 1e6:.1f} M", f"{result['tokens'] / 1e6:.1f} M"),
        ("tokens/s", f"{plan['tokens_per_second']:,}", f"{result['tokens_per_second']:,}"),
        ("whole command", f"≤ {format_duration(allowed)}", format_duration(info["seconds"])),
    ]
    lines = ["", *(f"  {name:<14}{a:>12}{b:>12}" for name, a, b in rows), ""]
    for shown in info["samples"]:
        text = f"{shown['prompt']} ▸{shown['text']}".replace("\n", " ")
        lines += [*textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="  "), ""]
    lines += [
        f"{result['scores']['bits_per_byte']:.3f} bits per byte on held-out text (the file compressor xz -9 needs "
        f"{result['xz_bits_per_byte']:.2f}).",
        *_advice(result["epochs"]),
        f"Model, tokenizer and record: {run.folder}",
        f'Write more:  python -m course_lib sample --run {run.folder} --prompt "…"',
    ]
    return "\n".join(lines)
