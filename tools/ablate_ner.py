"""Named entities, every way to fine-tune: which layers learn, what pretraining is worth, how many labels.

    python -m tools.ablate_ner --out runs/ablate-ner --model runs/encoder-zh-1h [--single | --tables]

Which layers should learn is asked with `LABELS` sentences and `CLAIM` seeds; every setting gets four learning rates
(`RATES`) on seed 0, and the one that is best on the validation block is kept. The curve over labels takes the rates of
its arms at `LABELS`, and so does the target: all labels, with `CURE`, `CLAIM` seeds. Epochs are counted, not seconds,
so a run may share its core, and runs of several machines may stand in one record; each says where it ran. Stopped, the
same command goes on, and a second one on another core takes its share.
"""

import json
import tempfile
from collections.abc import Iterator
from functools import cache, partial
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
CLAIM, POINT = 5, 3  # seeds: of what is compared, of a point of the curve over labels
LABELS, EVERY = 1000, 0  # sentences to learn from: where ways are compared, and all there are
EPOCHS = {250: 20.0, LABELS: 5.0, 4000: 2.0, EVERY: 3.0}  # by number of labels
STEP_ROWS = 8  # many small steps: few large ones learn less
USUAL = (5e-4, 1e-3, 2e-3, 4e-3)
FEWER, OUTPUT = (1e-3, 2e-3, 4e-3, 8e-3), (8e-3, 1.6e-2, 3.2e-2, 6.4e-2)  # for fewer layers, for the output layer alone
ALL, SCRATCH = "full", "random weights"
CURE = "fgm:epsilon=0.12"  # the adversarial step of chapter 9, for the target: see the lab log
LAYERS: dict[str, Setting] = {
    ALL: {},
    SCRATCH: {"scratch": True},
    "body frozen": {"freeze": "body"},
    "lower half frozen": {"freeze": "bottom-K"},
    "gradual": {"freeze": "gradual"},
}
RATES = {
    ALL: USUAL, SCRATCH: USUAL, "body frozen": OUTPUT, "lower half frozen": FEWER, "gradual": FEWER
}  # fmt: skip


def settings(half: int) -> dict[str, Setting]:
    """Name → options of `finetune`; `half` is half the number of the model's layers."""
    arms = (ALL, SCRATCH)
    found = {}
    for name, change in LAYERS.items():
        depth = {"freeze": f"bottom-{half}"} if change.get("freeze") == "bottom-K" else {}
        found[name] = change | depth | {"labels": LABELS}
    target = {goal(arm): LAYERS[arm] | {"labels": EVERY, "regularize": CURE} for arm in arms}
    return found | target | {point(arm, n): LAYERS[arm] | {"labels": n} for n in EPOCHS if n != LABELS for arm in arms}


def point(arm: str, labels: int) -> str:
    """The name of an arm's point on the curve over labels."""
    return arm if labels == LABELS else f"{arm}, {labels or 'all'} labels"


def goal(arm: str) -> str:
    """The name of an arm's runs for the target."""
    return f"{point(arm, EVERY)}, {CURE}"


def command(model: str, runs: str, setting: Setting, lr: float, seed: int, task: str) -> list[str]:
    """The fine-tuning command of one run."""
    choice = setting | {"lr": lr, "seed": seed, "epochs": EPOCHS[setting["labels"]], "step_rows": STEP_ROWS}
    scratch = ["--scratch"] if choice.pop("scratch", False) else []
    choice |= {"task": task, "model": model, "runs": runs, "run_id": "run"}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in choice.items()]
    return ["-m", "course_lib", "finetune", "ner", *flags, *scratch, "--json"]


def seeds(setting: Setting) -> int:
    """How many a setting gets."""
    return CLAIM if setting["labels"] == LABELS or "regularize" in setting else POINT


def main() -> None:
    """Run what is missing, then write and print the tables."""
    parser = record_parser(__doc__)
    parser.add_argument("--model", required=True, help="the pretrained run, or any folder with a model")
    parser.add_argument("--task", default="peoples_daily")
    parser.add_argument("--tables", action="store_true", help="run nothing: write the tables of what is there")
    options = parser.parse_args()
    about = {"model": options.model, "task": options.task}
    about |= {"labels": LABELS, "epochs": EPOCHS, "rates": RATES, "cure": CURE}
    trials = Trials(options.out, "ablate-ner", options.single, "auto", **about)
    plan = settings(half_of(options.model))
    for name, lr, seed in [] if options.tables else asked(trials, plan):
        with tempfile.TemporaryDirectory() as runs:
            line = command(options.model, runs, plan[name], lr, seed, options.task)
            trials.run({"name": name, "lr": lr, "seed": seed}, line, partial(observe, Path(runs) / "run"))
    rows = summary(trials.record["runs"], plan)
    # `about` once more: the plan may have grown since the record began.
    trials.store(**about, summary=rows, verdicts=verdicts(trials.record["runs"]))
    for row in rows:
        print("{name:<32} rate {lr}  F1 {mean:.3f} ({least:.3f} to {most:.3f}), {seeds} seeds".format(**row))


def asked(trials: Trials, plan: dict[str, Setting]) -> Iterator[tuple[str, float, int]]:
    """(name, rate, seed) of all runs, in the plan's order; what lacks its rate is left for the next time."""
    for name, setting in plan.items():
        yield from ((name, lr, 0) for lr in RATES.get(name, ()))
        for seed in range(seeds(setting)):
            if lr := best(trials.record["runs"], name):
                yield name, lr, seed


def observe(folder: Path, printed: str) -> dict[str, Any]:
    """The row of a finished run: scores, by familiarity too, and what `compare` wants to know of each sentence."""
    run, result = Run.open(folder), json.loads(printed)["result"]
    (path,) = folder.glob(f"seed-*/{PREDICTIONS}")
    said = json.loads(path.read_text(encoding="utf-8"))
    known = learned(run.info["config"]["task"], run.info["config"]["labels"])
    apart = metrics.by_familiarity(said["words"], said["labels"], said["tags"], known)
    kept = ("f1", "strict_f1", "precision", "recall", "dev_f1", "ece_raw", "ece")
    about = {"test_hash": run.info["task"]["test_hash"], "device": run.info["device"]["name"]}
    hits = " ".join(f"{right:g}/{all_:g}" for right, all_ in finetune.correct(run)[0])
    rounded = {name: round(score, 4) for name, score in apart.items()}
    return {key: result[key] for key in kept} | rounded | about | {"hits": hits}


@cache
def learned(name: str, labels: int) -> set[tuple[str, ...]]:
    """The names in the sentences that a fine-tuning learns from."""
    task = registry.get("ner").task(Tuning(task=name, head="ner", labels=labels))
    words = [[text.text[s:e] for s, e in text.places] for text in task.train.texts]
    return tags.names(words, [[task.classes[i] for i in labels] for labels in task.train.labels])


def half_of(model: str) -> int:
    """Half the layers of a model, at least one."""
    from transformers import AutoConfig

    from course_lib.data import pretrained

    return max(1, AutoConfig.from_pretrained(pretrained.locate(model)).num_hidden_layers // 2)


def best(runs: list[dict[str, Any]], name: str) -> float | None:
    """The rate of seed 0 with the highest dev F1, the lowest of equals; None until all are there."""
    arm = name.partition(",")[0]  # a point of the curve takes its arm's
    tried = {run["lr"]: run["dev_f1"] for run in runs if run["name"] == arm and run["seed"] == 0}
    return max(RATES[arm], key=lambda lr: tried[lr]) if tried.keys() >= set(RATES[arm]) else None


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
            mean = lambda key, found=found: round(float(np.mean([run[key] for run in found])), 6)
            about = {"name": name, "labels": setting["labels"], "lr": found[0]["lr"]}
            others = {"dev": mean("dev_f1"), "seen_f1": mean("seen_f1"), "unseen_f1": mean("unseen_f1")}
            rows.append(about | spread([run["f1"] for run in found]) | others)
    return rows


def verdicts(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Each way to fine-tune against the full one, paired over test sentences: gain of the full one."""

    def hits(name: str) -> np.ndarray:
        rows = [[pair.split("/") for pair in run["hits"].split()] for run in chosen(runs, name)]
        return np.array(rows, dtype=float)  # (seeds, sentences, 2)

    found = {}
    for whole, name in [*((ALL, arm) for arm in LAYERS if arm != ALL), (goal(ALL), goal(SCRATCH))]:
        if len(chosen(runs, whole)) == len(chosen(runs, name)) == CLAIM:
            found[f"{whole} against {name}"] = compare(hits(whole), hits(name)).describe()
    return found


if __name__ == "__main__":
    main()
