"""Scaling and transfer: held-out bits, and accuracy after fine-tuning, against the budget of pretraining.

    python -m tools.scaling --out runs/scaling

Trains two sizes for each budget and seed by the ordinary command, fine-tunes the first seed's models three times each
beside the same network from random weights and TF-IDF, and fits bits = E + A·C^−α to what no cheaper run beats (C: FLOP
of training). Stopped, the same command goes on, and a second one on another core takes its share.
The models stay in OUT/models and are not committed.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import curve_fit

from course_lib import finetune
from course_lib.ladder import BUDGETS, CONTROLS
from course_lib.record import Run
from tools.trials import Trials, record_parser

SIZES = ("nano", "tiny")
TASK, TUNING_SEEDS = "rotten_tomatoes", 3
DAY = 86_400


def main() -> None:
    """Run what is missing, fit, store, print."""
    parser = record_parser(__doc__)
    parser.add_argument("--sizes", nargs="*", default=SIZES)
    parser.add_argument("--budgets", nargs="*", default=list(BUDGETS))
    parser.add_argument("--seeds", type=int, default=3, help="at most so many (default: %(default)s)")
    options = parser.parse_args()
    trials = Trials(options.out, "scaling", options.single, corpus="movie_reviews", task=TASK)
    for budget in options.budgets:
        for seed in range(min(options.seeds, BUDGETS[budget])):
            for size in options.sizes:
                train(trials, options.out / "models", size, budget, seed)
    for budget in options.budgets:  # last: the law does not need it
        for size in options.sizes:
            judge(trials, options.out / "models", size, budget)
    if SIZES[-1] in options.sizes:
        controls(trials, options.out / "models", SIZES[-1])
    runs = trials.record["runs"]
    trials.store(law=law([run for run in runs if run["step"] == "pretrained" and run["budget"] in BUDGETS]))
    for run in runs:
        if run["step"] == "fine-tuned":
            print(
                "{size} {budget:>5}  {mean:.1%} [{least:.1%}, {most:.1%}]  scratch {scratch}  tfidf {tfidf}".format(
                    **run
                )
            )
    print(json.dumps(trials.record["law"]))


def train(trials: Trials, models: Path, size: str, budget: str, seed: int, *more: str) -> None:
    """One pretraining; `budget` names it, and is its budget unless `more` says something else."""
    what = {"step": "pretrained", "size": size, "budget": budget, "seed": seed}
    asked = [f"--size={size}", *(more or [f"--budget={budget}"]), f"--seed={seed}", f"--runs={models}"]
    place = models / f"{folder(size, budget)}-{seed}"

    def read(printed: str) -> dict[str, Any]:
        info = json.loads(printed)
        result = info["result"]
        kept = {name: result.get(name) for name in ("tokens", "seconds", "cpu_share")}
        return kept | result["scores"] | {"flops": info["plan"]["flops_per_token"] * result["tokens"]}

    command = ["-m", "course_lib", "pretrain", "--json", *asked, f"--run-id={place.name}"]
    trials.run(what, command, read, place)


def folder(size: str, budget: str) -> str:
    """The name of a run's folder."""
    return f"{size}-{budget}".replace(",", "").replace(" ", "-")


def judge(trials: Trials, models: Path, size: str, budget: str) -> None:
    """Fine-tune the first seed's model, and once a size the same network from random weights; compare."""
    tune = lambda name, *more: [
        "-m", "course_lib", "finetune", "--json", f"--task={TASK}", f"--seeds={TUNING_SEEDS}", f"--runs={models}",
        f"--run-id={name}", *more,
    ]  # fmt: skip
    scratch = f"{size}-scratch"
    source = f"--model={models / folder(size, budget)}-0"
    if not trials.done({"step": "pretrained", "size": size, "budget": budget, "seed": 0}):
        return  # another process is at it
    trials.run({"step": "scratch", "size": size}, tune(scratch, source, "--scratch"), scores, models / scratch)
    if not trials.done({"step": "scratch", "size": size}):
        return
    tuned = f"{folder(size, budget)}-tuned"

    def read(printed: str) -> dict[str, Any]:
        run = Run.open(models / tuned)
        over = {"scratch": Run.open(models / scratch), "tfidf": None}
        return scores(printed) | {name: difference(run, other) for name, other in over.items()}

    trials.run({"step": "fine-tuned", "size": size, "budget": budget}, tune(tuned, source), read, models / tuned)


def controls(trials: Trials, models: Path, size: str) -> None:
    """Pretrain and judge what `CONTROLS` names."""
    for name, more in CONTROLS.items():
        train(trials, models, size, name, 0, *more)
        judge(trials, models, size, name)


def scores(printed: str) -> dict[str, Any]:
    """Test accuracy of every seed."""
    result = json.loads(printed)["result"]
    return {name: result[name] for name in ("seeds", "least", "most")} | {"mean": result["accuracy"]}


def difference(run: Run, other: Run | None) -> dict[str, Any]:
    """Points over another run, or over TF-IDF: mean and 95 % interval."""
    found = finetune.compare(run, other)
    return {"mean": round(found.mean, 4), "low": round(found.low, 4), "high": round(found.high, 4)}


def law(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """E, A, α of the runs on the front, and a day's bits, with 95 % intervals of the least-squares fit.

    A day is far outside of what was measured: the interval is the fit's, and says nothing of whether the law holds.
    """
    chosen = front(runs)
    if len({(run["size"], run["budget"]) for run in chosen}) < 5:
        return {}
    found, covariance = fit(chosen)
    last = max(chosen, key=lambda run: run["flops"])
    day = last["flops"] / last["seconds"] * DAY / 1e12  # teraFLOP
    draws = np.random.default_rng(0).multivariate_normal(found, covariance, size=10_000)
    columns = dict(zip(("E", "A", "alpha"), zip(found, draws.T, strict=True), strict=True))
    columns["day"] = (bits(day, *found), bits(day, *draws.T))
    interval = lambda drawn: np.percentile(drawn, [2.5, 97.5]).round(4).tolist()
    return {name: {"fit": round(float(at), 4), "interval": interval(drawn)} for name, (at, drawn) in columns.items()}


def front(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of every size and budget that no other size and budget beats, in the mean, with fewer FLOP.

    Seconds would not do: two machines read different amounts in the same budget.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["size"], run["budget"]), []).append(run)
    place = {key: np.mean([(r["flops"], r["bits_per_byte"]) for r in group], axis=0) for key, group in groups.items()}
    beaten = {key for key, spot in place.items() if any((other < spot).all() for other in place.values())}
    return [run for key, group in groups.items() if key not in beaten for run in group]


def bits(teraflops: Any, floor: float, scale: float, power: float) -> Any:
    """E + A·C^−α."""
    return floor + scale * teraflops**-power


def fit(runs: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Least squares over the runs: (E, A, α) and their covariance."""
    x = np.array([run["flops"] / 1e12 for run in runs])
    y = np.array([run["bits_per_byte"] for run in runs])
    return curve_fit(bits, x, y, p0=(1.0, 2.0, 0.2), bounds=([0, 0, 0.01], [y.min(), 20, 2]), maxfev=20_000)


if __name__ == "__main__":
    main()
