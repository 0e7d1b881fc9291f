"""What of a pretraining helps a task: the objective, and for masked models their head, embeddings and decay.

    python -m tools.ablate_encoder --out runs/ablate-encoder

Every run pretrains the size `nano` for the same wall-clock time and fine-tunes it on Rotten Tomatoes. The arms take
turns within a seed. Stopped, the same command goes on, and a second one on another core takes its share.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from course_lib import finetune, metrics, models, progress
from course_lib.config import Config, Tuning
from course_lib.pretrain import pretrain
from course_lib.record import Run
from tools.ladder import VARIANTS
from tools.trials import Trials, record_parser, spread

SETTINGS: dict[str, Any] = {"corpus": "movie_reviews+wiki_leads", "size": "nano"}
TIED: dict[str, Any] = {"objective": "mlm", "architecture": "modernbert-tied"}
COUNTED = {"embeddings": "cooccurrence"}
ARMS: dict[str, dict[str, Any]] = {
    "masked, tied, random": TIED | {"embeddings": "random"},
    "masked, tied": TIED | COUNTED,
    "masked": {"objective": "mlm"} | COUNTED,
    "masked, decay": {"objective": "mlm", "weight_decay": 0.1} | COUNTED,
    "masked, smaller": {"objective": "mlm", "size": "pico"} | COUNTED,
    "replaced tokens": {"objective": "rtd"} | COUNTED,
    "hybrid": {"objective": "hybrid"} | COUNTED,
    "causal": {"objective": "clm"} | COUNTED,
}
BASE = "masked, tied, random"  # what an encoder was until this was measured


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = record_parser(__doc__)
    parser.add_argument("--budget", default="5m", help="of each pretraining (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # a single run, as a process of its own
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.budget, **options.one)))
        return
    trials = Trials(options.out, "ablation", settings=SETTINGS, arms=ARMS, budget=options.budget, single=options.single)
    for seed in range(options.seeds):
        for arm in ARMS:
            asked = {"arm": arm, "seed": seed}
            script = ["-m", "tools.ablate_encoder", f"--out={options.out}", f"--budget={options.budget}"]
            trials.run(asked, [*script, f"--one={json.dumps(asked)}"])
    runs = trials.record["runs"]
    trials.store(summary=[summary(runs, arm) for arm in ARMS])
    for row in trials.record["summary"]:
        print("{arm:<24}{mean:.1%} [{least:.1%}, {most:.1%}], gain {gain:+.1%} [{low:+.1%}, {high:+.1%}]".format(**row))


def one(budget: str, arm: str, seed: int) -> dict[str, Any]:
    """Pretrain one arm and fine-tune it."""
    progress.hush_transformers()
    models.ARCHITECTURES.update(VARIANTS)
    quiet = lambda message: None
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch)
        run = pretrain(Config(**(SETTINGS | ARMS[arm]), budget=budget, seed=seed), runs=runs, run_id="model", log=quiet)
        result = run.info["result"]
        tuned = finetune.finetune(Tuning(model=str(run.folder), seed=seed), runs=runs, run_id="tuned", log=quiet)
        kept = {name: result[name] for name in ("tokens", "seconds", "cpu_share")}
        return result["scores"] | kept | {"accuracy": tuned.info["result"]["accuracy"], "right": hits(tuned)}


def hits(run: Run) -> str:
    """Which test texts were right, a character each, so that arms can be compared text by text."""
    return "".join(str(int(right)) for right in finetune.correct(run)[0])


def summary(runs: list[dict[str, Any]], arm: str) -> dict[str, Any]:
    """Accuracy of an arm, and its difference to the base: mean and 95 % interval over texts and seeds."""
    ordered = sorted(runs, key=lambda run: run["seed"])
    rows = lambda arm: np.array([[int(c) for c in run["right"]] for run in ordered if run["arm"] == arm], dtype=float)
    change = metrics.compare(rows(arm), rows(BASE))
    points = {"gain": round(change.mean, 4), "low": round(change.low, 4), "high": round(change.high, 4)}
    return {"arm": arm} | spread([run["accuracy"] for run in runs if run["arm"] == arm]) | points


if __name__ == "__main__":
    main()
