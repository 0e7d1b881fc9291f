"""What compression costs and gains: recipes on fine-tuned models of several seeds; write a record.

    python tools/bench_compress.py --models runs/a runs/b … --out runs/bench-compress [--recipes int8 int4]

Give one fine-tuning run a seed. Each recipe on each model is a process of its own, which measures the model before and
after in turn, in the same runtime, on the same batch and threads, so the ratios are within one run. Stopped, the same
command goes on. Accuracy: paired bootstrap over texts and seeds.
"""

import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from course_lib import finetune, metrics
from course_lib.record import Run
from tools.trials import Trials, record_parser

RECIPES = ("int8", "int8:scheme=static", "int4", "heads:ratio=0.4+neurons:ratio=0.4+int8", "distill:layers=1+int8")
SHARE = {"bytes": "smaller", "p50_ms": "faster"}


def main() -> None:
    """Measure what is missing, then write the table."""
    parser = record_parser(__doc__)
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="finished fine-tuning runs, one a seed")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--length", type=int, default=32)
    options = parser.parse_args()
    shape = {"rows": options.rows, "length": options.length}
    trials = Trials(
        options.out, "bench-compress", options.single, models=[path.name for path in options.models], **shape
    )
    for recipe in options.recipes:
        for model in options.models:
            measure(trials, model, {"recipe": recipe, "model": model.name, **shape})
        kept = [run for run in trials.record["runs"] if (shape | {"recipe": recipe}).items() <= run.items()]
        trials.store(summary=trials.record.get("summary", {}) | {recipe: summed(kept)})
    print(json.dumps(trials.record["summary"], indent=1))


def measure(trials: Trials, model: Path, what: dict[str, Any]) -> None:
    """One recipe on one model; of what it leaves only the numbers are kept."""
    scratch = Path(tempfile.mkdtemp(prefix="bench-compress-"))
    seed = finetune.Tuning(**Run.open(model).info["config"]).seed
    fixed = ["-m", "course_lib", "compress", "--json", "--run-id", "it", "--runs", str(scratch), "--seed", str(seed)]
    shape = ["--rows", str(what["rows"]), "--length", str(what["length"])]
    arguments = [*fixed, *shape, "--model", str(model), "--recipe", what["recipe"]]
    try:
        trials.run(what, arguments, lambda printed: found(json.loads(printed), model, scratch))
    finally:
        shutil.rmtree(scratch)


def found(info: dict[str, Any], model: Path, scratch: Path) -> dict[str, Any]:
    """What a run says, and for every test text whether compression made it right (1), wrong (−1) or neither."""
    change = finetune.correct(Run.open(scratch / "it"))[0] - finetune.correct(Run.open(model))[0]
    return {"result": info["result"], "change": change.astype(int).tolist(), "seconds": info["seconds"]}


def summed(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and ranges of the ratios, and the change of what is right, in points with its 95 % interval."""
    ratio = lambda name: [run["result"][name] for run in runs]
    change = np.array([run["change"] for run in runs], dtype=float)
    difference = metrics.compare(change, np.zeros_like(change)).describe()
    spread = lambda values: {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: spread(ratio(name)) for name in SHARE.values()} | {"seeds": len(runs), "change": difference}


if __name__ == "__main__":
    main()
