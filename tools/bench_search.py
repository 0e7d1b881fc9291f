"""Random search against Optuna, with and without pruning, each with the same epochs of training; write a record.

    python -m tools.bench_search --out runs/bench-search

A run is one search with one seed. Stopped, the same command goes on.
"""

import itertools
import json
from typing import Any

from course_lib.data import labelled
from course_lib.robust import search
from course_lib.robust.search import Problem
from tools.trials import Trials, record_parser

TASK, LABELS, BUDGET, SEEDS = "wiki_topics", 1000, 360, 10


def main() -> None:
    """Run what is missing, or one search."""
    parser = record_parser(__doc__)
    parser.add_argument("--asked", type=json.loads, help="one search, in this process; prints a line of JSON")
    options = parser.parse_args()
    if options.asked:
        print(json.dumps(one(**options.asked)))
        return
    trials = Trials(
        options.out, "benchmark", options.single, task=TASK, labels=LABELS, budget=BUDGET, epochs=search.EPOCHS
    )
    for seed in range(SEEDS):
        for method in search.METHODS:
            asked = {"method": method, "seed": seed}
            command = ["-m", "tools.bench_search", "--out", str(options.out), "--asked", json.dumps(asked)]
            trials.run(asked, command)


def one(method: str, seed: int) -> dict[str, Any]:
    """A search: its trace, its best setting, and which test texts that one has right."""
    problem = Problem.of(labelled.load(TASK).with_labels(LABELS))
    study = search.study(method, seed)
    search.run(study, problem, BUDGET)
    *_, (_, net) = epochs_to_the_best(problem, study.best_trial)
    return {
        "trials": len(study.trials),
        "pruned": sum(trial.state.name == "PRUNED" for trial in study.trials),
        "best": round(study.best_value, 4),
        "setting": study.best_params,
        "correct": "".join(str(int(hit)) for hit in problem.correct(net)),
        "trace": " ".join(f"{epochs}:{loss:.4f}" for epochs, loss in search.trace(study)),
    }


def epochs_to_the_best(problem: Problem, trial: Any) -> list[Any]:
    """The trial again, up to the epoch that was its best on dev."""
    values = trial.intermediate_values
    return list(itertools.islice(problem.train(trial.params), min(values, key=values.get)))  # the net is the last's


if __name__ == "__main__":
    main()
