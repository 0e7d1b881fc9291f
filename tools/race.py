"""Race against the peers: equal wall clock on this machine, the same held-out bytes, equally many tuning trials.

    python tools/race.py --out runs/race-300s --budget 300 --seeds 3
    NANOGPT=path/to/nanoGPT python tools/race.py …          (with nanoGPT, if you have a copy)

First every contestant tries four settings for a fifth of the budget, then the best of each runs with every seed. They
take turns (A B A B), each in a process of its own. Stopped, the same command goes on. `ours` also runs with a third of
the budget.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from course_lib.data import corpora, prepare
from course_lib.device import pick
from course_lib.record import now, provenance

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY, CONTEXT = 2048, 128

# Four settings each, by what their authors or common practice would try first.
TRIALS: dict[str, list[dict[str, Any]]] = {
    "ours": [{}, {"matrix_lr": 0.03}, {"lr": 0.006}, {"embeddings": "random"}],
    "adamw": [{"optimizer": "adamw", "lr": lr} for lr in (0.002, 0.004, 0.006, 0.01)],
    "gpt2-trainer": [{"lr": 1e-3}, {"lr": 3e-3}, {"lr": 6e-3}, {"lr": 3e-3, "rows": 8}],
    "nanogpt": [
        {"block_size": 64, "batch_size": 12, "lr": 1e-3},  # its README's CPU command
        {"block_size": 64, "batch_size": 12, "lr": 3e-3},
        {"block_size": 128, "batch_size": 16, "lr": 3e-3},
        {"block_size": 128, "batch_size": 8, "lr": 3e-3},
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
            race.run("trial", name, options.budget / 5, 0, TRIALS[name][trial])
    for seed in range(options.seeds):
        for name in names:
            race.run("final", name, options.budget, seed, race.best(name))
            if name == "ours":
                race.run("final", name, options.budget / 3, seed, race.best(name))
    race.record["summary"] = race.summary()
    race.write()
    for group, title in ((CAUSAL, "bits per byte"), (MASKED, "masked loss")):
        print(f"\n{title:<16}{'seconds':>8}{'mean':>9}{'least':>9}{'most':>9}{'tokens/s':>10}")
        for row in race.record["summary"]:
            if row["name"] in group:
                print(
                    "{name:<16}{budget:>8.0f}{mean:>9.3f}{least:>9.3f}{most:>9.3f}{tokens_per_second:>10,}".format(
                        **row
                    )
                )


class Race:
    """The record of a race, which remembers what has already run."""

    def __init__(self, out: Path, budget: float):
        self.path = out / "run.json"
        corpus = corpora.load("movie_reviews")
        self.data = prepare.prepare(corpus, VOCABULARY, CONTEXT, 10**9, print).folder
        if self.path.exists():
            self.record = json.loads(self.path.read_text(encoding="utf-8"))
            return
        self.record = {
            "id": out.name, "kind": "race", "command": ["python", *sys.argv], "started": now(), **provenance(),
            "device": pick("cpu").describe(), "threads": torch.get_num_threads(), "budget": budget,
            "data": {"corpus": corpus.name, "vocabulary": VOCABULARY}, "runs": [],
        }  # fmt: skip

    def run(self, stage: str, name: str, seconds: float, seed: int, setting: dict[str, Any]) -> None:
        """One contestant in a process of its own, unless the record has it."""
        what = {"stage": stage, "name": name, "budget": seconds, "seed": seed, "setting": setting}
        if any(what.items() <= done.items() for done in self.record["runs"]):
            return
        command = [
            sys.executable, str(ROOT / "tools" / "contestants.py"), name, f"--data={self.data}", f"--budget={seconds}",
            f"--seed={seed}", f"--setting={json.dumps(setting)}",
        ]  # fmt: skip
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(self.record["threads"])}
        out = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        found = json.loads(out.splitlines()[-1])
        print(f"{stage} {name} {seconds:.0f} s, seed {seed}, {setting}: {found}", flush=True)
        self.record["runs"].append(what | found)
        self.write()

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
            scores = [run["score"] for run in group]
            rate = statistics.median(run["tokens"] / run["seconds"] for run in group)
            rows.append(
                {"name": name, "budget": budget, "setting": group[0]["setting"], "seeds": len(group),
                 "mean": round(statistics.mean(scores), 4), "least": min(scores), "most": max(scores),
                 "tokens_per_second": round(rate)}
            )  # fmt: skip
        return rows

    def write(self) -> None:
        """Store the record; a half-written one never replaces it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".part")
        scratch.write_text(json.dumps(self.record | {"finished": now()}, indent=1) + "\n", encoding="utf-8")
        scratch.replace(self.path)


if __name__ == "__main__":
    main()
