"""Named entities, every way to fine-tune: which layers learn, what pretraining is worth, how many labels.

    python -m tools.ablate_ner --out runs/ablate-ner --model runs/encoder-zh-1h [--single | --tables]

Every setting gets the same trials (`TRIALS`) on seed 0; the one that is best on the validation block is repeated with
the other seeds. Only then is a test score looked at. A run is a process of at most `BUDGET` of training. Stopped, the
same command goes on, and a second one on another core takes its share.
"""

import argparse
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
from tools.trials import Trials, spread

Setting = dict[str, Any]
BUDGET = "2m"
EPOCHS = {250: 20.0, 1000: 10.0, 4000: 5.0, 0: 3.0}  # by number of labels; 0: all
SMALL = {"step_rows": 8}  # in two minutes, a trial of many small steps did better than one of few large ones
TRIALS: tuple[Setting, ...] = tuple(
    trial | SMALL for trial in ({"lr": 5e-4}, {"lr": 1e-3}, {"lr": 2e-3}, {"lr": 1e-3, "longer": 2})
)
SEEDS, CLAIM = 3, 5  # of a curve's point, of a claim
ALL = "full"
LAYERS: dict[str, Setting] = {
    ALL: {},
    "embeddings frozen": {"freeze": "embeddings"},
    "lower half frozen": {"freeze": "bottom-K"},
    "body frozen": {"freeze": "body"},
    "gradual": {"freeze": "gradual"},
    "random weights": {"scratch": True},
}


def settings(half: int) -> dict[str, tuple[Setting, int]]:
    """Name → (options of `finetune`, seeds); `half` is half the number of the model's layers."""
    found: dict[str, tuple[Setting, int]] = {}
    for name, change in LAYERS.items():
        depth = {"freeze": f"bottom-{half}"} if change.get("freeze") == "bottom-K" else {}
        found[name] = (change | depth | {"labels": 0}, CLAIM)
    for labels in (count for count in EPOCHS if count):
        for name in (ALL, "random weights"):
            found[f"{name}, {labels} labels"] = (LAYERS[name] | {"labels": labels}, SEEDS)
    return found


def command(model: str, runs: Path, name: str, setting: Setting, trial: int, seed: int, task: str) -> list[str]:
    """The fine-tuning command of one run."""
    choice = {**setting, **TRIALS[trial]}
    epochs = EPOCHS[choice["labels"]] * choice.pop("longer", 1)
    scratch = ["--scratch"] if choice.pop("scratch", False) else []
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in choice.items()]
    fixed = [f"--task={task}", f"--model={model}", f"--epochs={epochs}", f"--budget={BUDGET}", f"--seed={seed}"]
    where = [f"--runs={runs}", f"--run-id={run_name(name, trial, seed)}", "--device=cpu", "--json"]
    return ["-m", "course_lib", "finetune", "ner", *fixed, *flags, *scratch, *where]


def run_name(name: str, trial: int, seed: int) -> str:
    """A folder's name."""
    return f"{name.replace(', ', '-').replace(' ', '-')}-t{trial}-s{seed}"


def read(folder: Path, printed: str) -> dict[str, Any]:
    """The scores that a run printed. Its weights are dropped, its predictions stay for the comparison."""
    info = json.loads(printed)
    shutil.rmtree(folder / "model", ignore_errors=True)
    kept = ("f1", "strict_f1", "precision", "recall", "dev_f1", "ece_raw", "ece", "cpu_share")
    return {key: info["result"][key] for key in kept} | {"seconds": info["seconds"]}


def main() -> None:
    """Run what is missing, then write and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", required=True, help="the pretrained run, or any folder with a model")
    parser.add_argument("--task", default="peoples_daily")
    parser.add_argument("--single", action="store_true", help="end after one run: to fill a pause")
    parser.add_argument("--tables", action="store_true", help="run nothing: write the tables of what is there")
    options = parser.parse_args()
    trials = Trials(options.out, "ablate-ner", model=options.model, task=options.task, budget=BUDGET, trials=TRIALS)
    if json.loads(json.dumps(TRIALS)) != trials.record["trials"] and trials.record["runs"]:
        raise SystemExit(f"The runs in {options.out} had other trials. Choose another --out.")
    runs, plan = options.out / "models", settings(half_of(options.model))
    for name, (setting, seeds) in ({} if options.tables else plan).items():
        asked: list[tuple[int | None, int]] = [(trial, 0) for trial in range(len(TRIALS))]
        for fixed, seed in [*asked, *((None, seed) for seed in range(1, seeds))]:
            trial = best(trials.record["runs"], name) if fixed is None else fixed
            if trial is None:  # another process is still choosing
                continue
            line = command(options.model, runs, name, setting, trial, seed, options.task)
            done = partial(read, runs / run_name(name, trial, seed))
            if trials.run({"name": name, "trial": trial, "seed": seed}, line, done) and options.single:
                return
    rows = summary(trials.record["runs"], plan)
    apart = familiarity(trials.record["runs"], rows, runs, options.task)
    trials.store(summary=rows, verdicts=verdicts(trials.record["runs"], plan, runs), familiarity=apart)
    for row in rows:
        print("{name:<32} trial {trial}  F1 {mean:.3f} ({least:.3f} to {most:.3f}), {seeds} seeds".format(**row))


def half_of(model: str) -> int:
    """Half the layers of a model, at least one."""
    from transformers import AutoConfig

    from course_lib.data import pretrained

    return max(1, AutoConfig.from_pretrained(pretrained.locate(model)).num_hidden_layers // 2)


def best(runs: list[dict[str, Any]], name: str) -> int | None:
    """The trial of seed 0 with the highest dev F1, the first of equals; None until all are there."""
    tried = {run["trial"]: run["dev_f1"] for run in runs if run["name"] == name and run["seed"] == 0}
    return max(sorted(tried), key=lambda trial: tried[trial]) if len(tried) == len(TRIALS) else None


def chosen(runs: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The runs of the chosen trial, by seed."""
    trial = best(runs, name)
    return sorted((r for r in runs if r["name"] == name and r["trial"] == trial), key=lambda r: r["seed"])


def summary(runs: list[dict[str, Any]], plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Test F1 of every setting's chosen trial over its seeds; a setting without all of them is left out."""
    rows = []
    for name, (setting, seeds) in plan.items():
        found = chosen(runs, name)
        if len(found) == seeds:
            scores = [run["f1"] for run in found]
            about = {"name": name, "labels": setting["labels"], "trial": found[0]["trial"]}
            rows.append(about | spread(scores) | {"dev": round(float(np.mean([r["dev_f1"] for r in found])), 4)})
    return rows


def familiarity(runs: list[dict[str, Any]], rows: list[dict[str, Any]], folder: Path, task: str) -> dict[str, Any]:
    """Mean F1 over the seeds of names that the training sentences have, and of all others, for every row."""
    found = {}
    for row in rows:
        learned = registry.get("ner").task(Tuning(task=task, head="ner", labels=row["labels"]))
        words = [[text.text[s:e] for s, e in text.places] for text in learned.train.texts]
        known = tags.names(words, [[learned.classes[i] for i in labels] for labels in learned.train.labels])
        places = [folder / run_name(row["name"], run["trial"], run["seed"]) for run in chosen(runs, row["name"])]
        said = [json.loads(path.read_text("utf-8")) for place in places for path in place.glob(f"seed-*/{PREDICTIONS}")]
        scores = [metrics.by_familiarity(one["words"], one["labels"], one["tags"], known) for one in said]
        found[row["name"]] = {key: round(float(np.mean([one[key] for one in scores])), 4) for key in scores[0]}
    return found


def verdicts(runs: list[dict[str, Any]], plan: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Each way to fine-tune against the full one, paired over test sentences: gain of the full one."""

    def hits(name: str) -> np.ndarray:
        folders = [folder / run_name(name, run["trial"], run["seed"]) for run in chosen(runs, name)]
        return np.concatenate([finetune.correct(Run.open(path)) for path in folders])

    whole = {name for name, (_, seeds) in plan.items() if seeds == CLAIM and len(chosen(runs, name)) == seeds}
    if ALL not in whole:
        return {}
    return {f"{ALL} against {name}": compare(hits(ALL), hits(name)).describe() for name in sorted(whole - {ALL})}


if __name__ == "__main__":
    main()
