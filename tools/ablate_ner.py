"""Named entities, every way to fine-tune: which layers learn, what pretraining is worth, how many labels.

    python -m tools.ablate_ner --out runs/ablate-ner --model runs/encoder-zh-1h [--single | --tables]

Every setting gets the same learning rates (`RATES`) on seed 0; the one that is best on the validation block is repeated
with the other seeds. Only then is a test score looked at. A run is a process of at most `BUDGET` of training, so this
says what a way to fine-tune is worth in that time; what hours are worth is in the records of whole fine-tunings.
Stopped, the same command goes on, and a second one on another core takes its share.
"""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from course_lib import finetune, metrics
from course_lib.config import Tuning
from course_lib.data import tags
from course_lib.finetune import PREDICTIONS
from course_lib.heads import registry
from course_lib.metrics import compare
from course_lib.record import Run
from tools.trials import Trials, record_parser, spread

Setting = dict[str, Any]
BUDGET = "1m"
CLAIM, POINT = 5, 3  # seeds: of what is compared, of a point of the curve over labels
EPOCHS = {250: 20.0, 1000: 5.0, 4000: 3.0, 0: 3.0}  # by number of labels; 0: all. The budget ends most before that
STEP_ROWS = 8  # many small steps: few large ones learn less in a minute
RATES = (5e-4, 1e-3, 2e-3)
ALL = "full"
LAYERS: dict[str, Setting] = {
    ALL: {},
    "embeddings frozen": {"freeze": "embeddings"},
    "lower half frozen": {"freeze": "bottom-K"},
    "body frozen": {"freeze": "body"},
    "gradual": {"freeze": "gradual"},
    "random weights": {"scratch": True},
}


def settings(half: int) -> dict[str, Setting]:
    """Name → options of `finetune`; `half` is half the number of the model's layers."""
    found = {}
    for name, change in LAYERS.items():
        depth = {"freeze": f"bottom-{half}"} if change.get("freeze") == "bottom-K" else {}
        found[name] = change | depth | {"labels": 0}
    for labels in (count for count in EPOCHS if count):
        for name in (ALL, "random weights"):
            found[f"{name}, {labels} labels"] = LAYERS[name] | {"labels": labels}
    return found


def command(model: str, runs: Path, name: str, setting: Setting, lr: float, seed: int, task: str) -> list[str]:
    """The fine-tuning command of one run."""
    choice = setting | {"lr": lr, "seed": seed, "epochs": EPOCHS[setting["labels"]], "step_rows": STEP_ROWS}
    scratch = ["--scratch"] if choice.pop("scratch", False) else []
    choice |= {"task": task, "model": model, "budget": BUDGET, "runs": runs, "run_id": run_name(name, lr, seed)}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in choice.items()]
    return ["-m", "course_lib", "finetune", "ner", *flags, *scratch, "--device=cpu", "--json"]


def seeds(setting: Setting) -> int:
    """How many a setting gets."""
    return POINT if setting["labels"] else CLAIM


def run_name(name: str, lr: float, seed: int) -> str:
    """A folder's name."""
    return f"{name.replace(', ', '-').replace(' ', '-')}-{lr}-{seed}"


def read(folder: Path, printed: str) -> dict[str, Any]:
    """The scores that a run printed. Its weights are dropped, its predictions stay for the comparison."""
    info = json.loads(printed)
    shutil.rmtree(folder / "model", ignore_errors=True)
    kept = ("f1", "strict_f1", "precision", "recall", "dev_f1", "ece_raw", "ece", "cpu_share")
    return {key: info["result"][key] for key in kept} | {"seconds": info["seconds"]}


def main() -> None:
    """Run what is missing, then write and print the tables."""
    parser = record_parser(__doc__)
    parser.add_argument("--model", required=True, help="the pretrained run, or any folder with a model")
    parser.add_argument("--task", default="peoples_daily")
    parser.add_argument("--tables", action="store_true", help="run nothing: write the tables of what is there")
    options = parser.parse_args()
    about = {"model": options.model, "task": options.task, "budget": BUDGET, "rates": RATES}
    trials = Trials(options.out, "ablate-ner", options.single, **about)
    runs, plan = options.out / "models", settings(half_of(options.model))
    for name, setting in ({} if options.tables else plan).items():
        for lr, seed in [*((lr, 0) for lr in RATES), *((None, seed) for seed in range(1, seeds(setting)))]:
            lr = lr or best(trials.record["runs"], name)
            if lr is None:  # another process is still choosing
                continue
            line = command(options.model, runs, name, setting, lr, seed, options.task)
            folder = runs / run_name(name, lr, seed)
            what = {"name": name, "lr": lr, "seed": seed}
            trials.run(what, line, partial(read, folder), folder)
    rows = summary(trials.record["runs"], plan)
    apart = familiarity(trials.record["runs"], rows, runs, options.task)
    trials.store(summary=rows, verdicts=verdicts(trials.record["runs"], runs), familiarity=apart)
    for row in rows:
        print("{name:<32} rate {lr}  F1 {mean:.3f} ({least:.3f} to {most:.3f}), {seeds} seeds".format(**row))


def half_of(model: str) -> int:
    """Half the layers of a model, at least one."""
    from transformers import AutoConfig

    from course_lib.data import pretrained

    return max(1, AutoConfig.from_pretrained(pretrained.locate(model)).num_hidden_layers // 2)


def best(runs: list[dict[str, Any]], name: str) -> float | None:
    """The rate of seed 0 with the highest dev F1, the lowest of equals; None until all are there."""
    tried = {run["lr"]: run["dev_f1"] for run in runs if run["name"] == name and run["seed"] == 0}
    return max(sorted(tried), key=lambda lr: tried[lr]) if len(tried) == len(RATES) else None


def chosen(runs: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The runs at the chosen rate, by seed."""
    rate = best(runs, name)
    return sorted((r for r in runs if r["name"] == name and r["lr"] == rate), key=lambda r: r["seed"])


def summary(runs: list[dict[str, Any]], plan: dict[str, Setting]) -> list[dict[str, Any]]:
    """Test F1 of every setting at its chosen rate over its seeds; a setting without all of them is left out."""
    rows = []
    for name, setting in plan.items():
        found = chosen(runs, name)
        if len(found) == seeds(setting):
            about = {"name": name, "labels": setting["labels"], "lr": found[0]["lr"]}
            dev = {"dev": round(float(np.mean([run["dev_f1"] for run in found])), 4)}
            rows.append(about | spread([run["f1"] for run in found]) | dev)
    return rows


def familiarity(runs: list[dict[str, Any]], rows: list[dict[str, Any]], folder: Path, task: str) -> dict[str, Any]:
    """Mean F1 over the seeds of names that the training sentences have, and of all others, for every row."""
    found = {}
    for row in rows:
        learned = registry.get("ner").task(Tuning(task=task, head="ner", labels=row["labels"]))
        words = [[text.text[s:e] for s, e in text.places] for text in learned.train.texts]
        known = tags.names(words, [[learned.classes[i] for i in labels] for labels in learned.train.labels])
        places = [folder / run_name(row["name"], run["lr"], run["seed"]) for run in chosen(runs, row["name"])]
        said = [json.loads(path.read_text("utf-8")) for place in places for path in place.glob(f"seed-*/{PREDICTIONS}")]
        scores = [metrics.by_familiarity(one["words"], one["labels"], one["tags"], known) for one in said]
        found[row["name"]] = {key: round(float(np.mean([one[key] for one in scores])), 4) for key in scores[0]}
    return found


def verdicts(runs: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Each way to fine-tune against the full one, paired over test sentences: gain of the full one."""

    def hits(name: str) -> np.ndarray:
        folders = [folder / run_name(name, run["lr"], run["seed"]) for run in chosen(runs, name)]
        return np.concatenate([finetune.correct(Run.open(path)) for path in folders])

    whole = [name for name in LAYERS if len(chosen(runs, name)) == CLAIM]
    if ALL not in whole:
        return {}
    return {f"{ALL} against {name}": compare(hits(ALL), hits(name)).describe() for name in whole if name != ALL}


if __name__ == "__main__":
    main()
