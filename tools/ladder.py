"""The ladder: from what everyone writes to our recipe, one change a rung, and what did not help on the top one.

    python -m tools.ladder --out runs/ladder-decoder --side decoder --budget 120 --seeds 3
    python -m tools.ladder --out runs/ladder-encoder --side encoder --budget 120 --seeds 3

Every run trains for the same wall-clock time and is scored on the same held-out bytes. The rungs take turns within a
seed; measure a whole seed on one machine, since at equal time a slower one makes every change look bad. Stopped, the
same command goes on, and a second one on another core takes its share. The table gives each change's gain with its
interval over the seeds.
"""

import argparse
import json
import statistics
from dataclasses import replace
from typing import Any

import torch
from scipy import stats
from torch.nn import functional
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertForMaskedLM,
    PreTrainedModel,
)

from course_lib import models, objectives, progress, recipes
from course_lib.data import corpora, prepare
from course_lib.ladder import RUNGS, Setting, compared, scores, settings
from course_lib.objectives import Batch
from tools.contestants import ours
from tools.trials import Trials, record_parser, spread


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = record_parser(__doc__)
    parser.add_argument("--side", choices=RUNGS, default="decoder")
    parser.add_argument("--budget", type=float, default=120, help="seconds of training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # a single run, as a process of its own
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.side, options.budget, **options.one)))
        return
    if options.seeds < 2:
        parser.error("an interval needs two --seeds at least")
    rungs = settings(options.side)
    trials = Trials(options.out, "ladder", options.single, side=options.side, budget=options.budget)
    shared = [f"--out={options.out}", f"--side={options.side}", f"--budget={options.budget}"]
    for seed in range(options.seeds):
        for name, setting in rungs.items():
            asked = {"setting": setting, "seed": seed}
            what = {"name": name, "budget": options.budget} | asked
            trials.run(what, ["-m", "tools.ladder", *shared, f"--one={json.dumps(asked)}"])
    done = scores(trials.record["runs"])
    left = sum(seed not in done.get(name, {}) for name in rungs for seed in range(options.seeds))
    if left > 0:
        print(f"{left} runs are another process's; the same command writes the table when they have ended.")
        return
    trials.store(summary=summary(options.side, trials.record["runs"]))
    for row in trials.record["summary"]:
        print("{name:<46}{mean:>8.3f}{gain:>8.3f}  [{low:.3f}, {high:.3f}]".format(**row))


def summary(side: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Scores of each, and its gain over what it is measured against: mean and 95 % t-interval of the differences."""
    found, below, rows = scores(runs), compared(side), []
    for name in settings(side):
        mine, other = found[name], found[below.get(name, name)]
        gains = [other[seed] - mine[seed] for seed in sorted(mine)]
        mean = statistics.mean(gains)
        half = stats.t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / len(gains) ** 0.5
        interval = {"gain": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}
        rows.append({"name": name, "over": below.get(name)} | spread(list(mine.values())) | interval)
    return rows


def one(side: str, budget: float, setting: Setting, seed: int) -> dict[str, Any]:
    """Train and score one rung. Encoders keep one vocabulary, so that their losses can be compared."""
    progress.hush_transformers()
    models.ARCHITECTURES.update(VARIANTS)
    models.BASELINES = (*models.BASELINES, *VARIANTS)
    recipes.RECIPES["mlm-dense"] = replace(recipes.RECIPES["mlm"], objective=DenseMaskedLM())
    data = prepare.prepare(
        corpora.load("movie_reviews"), setting["vocab_size"], setting["context"], 10**9, lambda line: None, True
    )
    return ours(data, budget, seed, setting, setting.get("objective", "clm"))


class DenseMaskedLM(objectives.MaskedLM):
    """The same loss as most code computes it: logits of every position, of which most are thrown away."""

    def __call__(self, model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
        """Sum of −log p(hidden token | what is visible), nats."""
        logits = model(input_ids=batch["input_ids"])[0].float()  # (rows, length, vocabulary)
        chosen = objectives.at(logits, batch["positions"])  # (rows · k, vocabulary)
        loss = functional.cross_entropy(
            chosen, batch["labels"].flatten(), ignore_index=objectives.IGNORE, reduction="sum"
        )
        return {"mlm": loss}


def _neox(shape: models.Size, tokens: models.Tokens) -> Any:
    """GPT-2's block with rotary positions."""
    common = models._common(shape, tokens) | {"intermediate_size": 4 * shape.hidden, "tie_word_embeddings": True}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**common, use_parallel_residual=False))


def _llama(shape: models.Size, tokens: models.Tokens) -> Any:
    """RMSNorm, no biases, SwiGLU, rotary positions, untied head."""
    common = models._common(shape, tokens) | {"intermediate_size": shape.intermediate}
    return LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=shape.heads, tie_word_embeddings=False))


def _modernbert_tied(shape: models.Size, tokens: models.Tokens) -> Any:
    """Our encoder with its embeddings as its output head."""
    config = models.ARCHITECTURES["modernbert"](shape, tokens).config
    config.tie_word_embeddings = True
    model = ModernBertForMaskedLM(config)
    models.initialize(model)
    return model


# Steps between the classics and our models; they are built as they are to be, the first three with stock weights.
VARIANTS = {
    "neox": _neox, "llama": _llama, "qwen3-plain": models.ARCHITECTURES["qwen3"], "modernbert-tied": _modernbert_tied
}  # fmt: skip

if __name__ == "__main__":
    main()
