"""What makes a masked language model transfer: its head, its embeddings, and where the class is read.

    python -m tools.ablate_encoder --out runs/ablate-encoder

Every run pretrains the size `tiny` for the same wall-clock time, then fine-tunes it on Rotten Tomatoes for each
way of reading the class: at a mask in front of the text, from the mean of all positions, or (decoders) at the last
token. The arms take turns within a seed. Stopped, the same command goes on, and a second one on another core takes its
share.
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
from tools.trials import Trials, spread

SETTINGS = {"corpus": "movie_reviews+wiki_leads", "size": "tiny", "step_tokens": 4096}
TIED, UNTIED = "modernbert-tied", "modernbert"
ARMS: dict[str, dict[str, Any]] = {
    "tied, random": {"objective": "mlm", "architecture": TIED, "embeddings": "random"},
    "tied, co-occurrence": {"objective": "mlm", "architecture": TIED, "embeddings": "cooccurrence"},
    "untied, random": {"objective": "mlm", "architecture": UNTIED, "embeddings": "random"},
    "untied, co-occurrence": {"objective": "mlm", "architecture": UNTIED, "embeddings": "cooccurrence"},
    "untied, co-occurrence, decay": {
        "objective": "mlm",
        "architecture": UNTIED,
        "embeddings": "cooccurrence",
        "weight_decay": 0.1,
    },
    "untied, co-occurrence, AdamW": {
        "objective": "mlm",
        "architecture": UNTIED,
        "embeddings": "cooccurrence",
        "optimizer": "adamw",
    },
    "replaced tokens": {"objective": "rtd", "embeddings": "cooccurrence"},
    "hybrid": {"objective": "hybrid", "embeddings": "cooccurrence"},
    "causal": {"objective": "clm", "embeddings": "cooccurrence"},
}
READS = {"mlm": ("mask", "mean"), "rtd": ("mean",), "hybrid": ("last",), "clm": ("last",)}
LABELS = 2000


def reads(arm: str) -> tuple[str, ...]:
    """Where the class can be read."""
    return READS[ARMS[arm]["objective"]]


def main() -> None:
    """Run what is missing, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", default="90s", help="of each pretraining (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--single", action="store_true", help="end after one run: to fill a pause")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # a single run, as a process of its own
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.budget, **options.one)))
        return
    trials = Trials(options.out, "ablation", settings=SETTINGS, arms=ARMS, budget=options.budget, labels=LABELS)
    for seed in range(options.seeds):
        for arm in ARMS:
            asked = {"arm": arm, "seed": seed}
            script = ["-m", "tools.ablate_encoder", f"--out={options.out}", f"--budget={options.budget}"]
            if trials.run(asked, [*script, f"--one={json.dumps(asked)}"]) and options.single:
                return
    runs = trials.record["runs"]
    trials.store(summary=[summary(runs, arm, read) for arm in ARMS for read in reads(arm)])
    for row in trials.record["summary"]:
        print("{arm:<30}{read:<6}{mean:.1%}  [{least:.1%}, {most:.1%}]".format(**row))


def one(budget: str, arm: str, seed: int) -> dict[str, Any]:
    """Pretrain one arm, fine-tune it in both ways."""
    progress.hush_transformers()
    models.ARCHITECTURES.update(VARIANTS)
    quiet = lambda message: None
    with tempfile.TemporaryDirectory() as scratch:
        runs = Path(scratch)
        run = pretrain(Config(**SETTINGS, **ARMS[arm], budget=budget, seed=seed), runs=runs, run_id="model", log=quiet)
        result = run.info["result"]
        found = result["scores"] | {"tokens": result["tokens"], "cpu_share": result["cpu_share"]}
        for read in reads(arm):
            if read == "mean":
                declare_class_token(run.folder / "model" / "config.json")
            tuning = Tuning(task="rotten_tomatoes", model=str(run.folder), labels=LABELS, seed=seed)
            tuned = finetune.finetune(tuning, runs=runs, run_id=read, log=quiet)
            found[read] = tuned.info["result"]["accuracy"]
            found[f"{read}_right"] = hits(tuned)
    return found


def declare_class_token(config: Path) -> None:
    """Let the library believe that rows had a class token: it then takes the mean of all positions."""
    about = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(about | {"cls_token_id": about["sep_token_id"]}), encoding="utf-8")


def hits(run: Run) -> str:
    """Which test texts were right, a character each, so that arms can be compared text by text."""
    return "".join(str(int(right)) for right in finetune.correct(run)[0])


def summary(runs: list[dict[str, Any]], arm: str, read: str) -> dict[str, Any]:
    """Accuracy of an arm, and its difference to the first arm read from the mean, as it was before."""
    ordered = sorted(runs, key=lambda run: run["seed"])
    rows = lambda arm, read: np.array([[int(c) for c in run[f"{read}_right"]] for run in ordered if run["arm"] == arm])
    base = next(iter(ARMS))
    change = metrics.compare(rows(arm, read), rows(base, "mean"))
    scores = [run[read] for run in runs if run["arm"] == arm]
    points = {"gain": round(change.mean, 4), "low": round(change.low, 4), "high": round(change.high, 4)}
    return {"arm": arm, "read": read} | spread(scores) | points


if __name__ == "__main__":
    main()
