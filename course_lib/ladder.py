"""What chapter 7 measures: the rungs of the ladder, and the budgets of the curve with their controls."""

from typing import Any

Setting = dict[str, Any]
START: Setting = {
    "optimizer": "adamw", "schedule": "cosine", "cooldown": 1.0, "embeddings": "random", "vocab_size": 8192,
    "context": 256, "step_tokens": 8192, "size": "nano",
}  # fmt: skip
# With 8,192 tokens an encoder reads a million of them before it does better than their frequencies: a ladder of two
# minutes would rank its rungs by how fast they get there.
DENSE: Setting = {"objective": "mlm-dense", "mask_start": 0.15, "mask_end": 0.15, "vocab_size": 2048}
# (side → rungs); a rung is its name and what it changes, and keeps the changes below it.
RUNGS: dict[str, list[tuple[str, Setting]]] = {
    "decoder": [
        ("GPT-2, AdamW, cosine", START | {"architecture": "gpt2", "lr": 6e-4}),
        ("learning rate five times higher", {"lr": 3e-3}),
        ("flat, then down to zero with the budget", {"schedule": "trapezoid", "cooldown": 0.6}),
        ("2,048 tokens a step", {"step_tokens": 2048}),
        ("rows of 128 tokens", {"context": 128}),
        ("2,048 tokens in the vocabulary", {"vocab_size": 2048}),
        ("rotary positions", {"architecture": "neox"}),
        ("RMSNorm, no biases, gated, untied", {"architecture": "llama"}),
        ("QK-norm", {"architecture": "qwen3-plain"}),
        ("outputs of blocks start at zero", {"architecture": "qwen3"}),
        ("embeddings learn faster", {"lr": 0.01}),
        ("Muon for matrices", {"optimizer": "muon"}),
        ("embeddings from co-occurrence", {"embeddings": "cooccurrence"}),
    ],
    "encoder": [
        ("BERT, AdamW, cosine", START | DENSE | {"architecture": "bert", "lr": 5e-4}),
        ("output layer on masked positions only", {"objective": "mlm"}),
        ("learning rate four times higher", {"lr": 2e-3}),
        ("flat, then down to zero with the budget", {"schedule": "trapezoid", "cooldown": 0.6}),
        ("2,048 tokens a step", {"step_tokens": 2048}),
        ("rows of 128 tokens", {"context": 128}),
        ("masks fall from 30 to 15 %", {"mask_start": 0.3}),
        ("ModernBERT's blocks", {"architecture": "modernbert-tied"}),
        ("Muon for matrices", {"optimizer": "muon", "lr": 0.01}),
        ("untied head", {"architecture": "modernbert"}),
        ("embeddings from co-occurrence", {"embeddings": "cooccurrence"}),
    ],
}
# Machines differ in speed, so what is tried beside the ladder stands beside the top rung as run on the same one.
# Its own gain over the top rung should be nothing, and shows how much of any other gain is chance.
AGAIN = "the top rung once more"
# An average of weights costs its run nothing, so each such run is also scored without it: no machine's speed comes in.
UNAVERAGED = "the last step's weights"
# Tried on the top rung, one at a time.
ASIDE: dict[str, list[tuple[str, Setting]]] = {
    "decoder": [
        ("smaller: pico", {"size": "pico"}),
        ("larger: tiny", {"size": "tiny"}),
        ("ReLU² and norms without weights (NanoChat)", {"architecture": "nanochat"}),
        ("hybrid objective", {"objective": "hybrid"}),
        ("4,096 tokens a step", {"step_tokens": 4096}),
        ("rows of 64 tokens", {"context": 64}),
        ("4,096 tokens in the vocabulary", {"vocab_size": 4096}),
        ("warm-up over a tenth", {"warmup": 0.1}),
        ("cooldown over a fifth", {"cooldown": 0.2}),
        ("mean of the last tenth's weights", {"tail_average": 0.1}),
    ],
    "encoder": [
        ("smaller: pico", {"size": "pico"}),
        ("larger: tiny", {"size": "tiny"}),
        ("masks stay at 30 %", {"mask_end": 0.3}),
        ("masks fall from 60 to 15 %", {"mask_start": 0.6}),
        ("mean of the last tenth's weights", {"tail_average": 0.1}),
        ("weight decay", {"weight_decay": 0.1}),
    ],
}


def compared(side: str) -> dict[str, str]:
    """Every name of a side but the first, and the name that it is measured against."""
    steps = [name for name, _ in RUNGS[side]]
    rungs = dict(zip(steps[1:], steps, strict=False))
    asides = {name: UNAVERAGED if "tail_average" in change else AGAIN for name, change in ASIDE[side]}
    return rungs | {AGAIN: steps[-1]} | asides


def scores(runs: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Name → seed → score of a record's runs; `last`, where there is one, stands under `UNAVERAGED`."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        found.setdefault(run["name"], {})[run["seed"]] = run["score"]
        if "last" in run:
            found.setdefault(UNAVERAGED, {})[run["seed"]] = run["last"]
    return found


def settings(side: str) -> dict[str, Setting]:
    """Every name and its whole setting: the rungs, each with the changes below it, then what is tried on the top."""
    found: dict[str, Setting] = {}
    setting: Setting = {}
    for name, change in RUNGS[side]:
        found[name] = setting = setting | change
    return found | {name: setting | change for name, change in [(AGAIN, {}), *ASIDE[side]]}


BUDGETS = {"30s": 3, "1m": 3, "2m": 3, "5m": 3, "15m": 3, "60m": 1}  # budget → seeds
# What of the gain is the embeddings' closed form, and what is training: one step alone, and training without it.
CONTROLS = {
    "embeddings alone": ["--tokens=2048"],
    "2m, embeddings random": ["--budget=2m", "--embeddings=random"],
}
