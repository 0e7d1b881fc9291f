"""One process against two on the same work: tokens a second of the ordinary command, for small steps and large ones.

    python -m tools.bench_processes --out runs/bench-processes

A process has one thread and a core to itself, and sends gradients through gloo; one and two take turns. The measured
speed is the training's, without start and preparation. Stopped, the same command goes on. Needs two idle cores.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tools.trials import Trials, record_parser

SIZE, TOKENS, REPEATS = "nano", 400_000, 3
STEPS = (1024, 16_384)  # tokens per step


def main() -> None:
    """Measure what is missing, then write and print the ratios."""
    parser = record_parser(__doc__)
    options = parser.parse_args()
    trials = Trials(options.out, "bench", options.single, size=SIZE, run_tokens=TOKENS)
    for repeat in range(REPEATS):
        for step in STEPS:
            for processes in (1, 2):
                measure(trials, {"processes": processes, "step_tokens": step, "repeat": repeat})
    trials.store(summary=[summary(trials.record["runs"], step) for step in STEPS])
    for row in trials.record["summary"]:
        print("{step_tokens:>7,} tokens a step: two processes {median:.2f}× [{min:.2f}, {max:.2f}]".format(**row))


def measure(trials: Trials, what: dict[str, Any]) -> None:
    """One training; of what it leaves only the speed is kept."""
    with tempfile.TemporaryDirectory() as runs:
        many = ["-m", "torch.distributed.run", f"--nproc-per-node={what['processes']}"]
        train = ["-m", "course_lib", "pretrain", f"--runs={runs}", "--run-id=it", f"--size={SIZE}"]
        amount = [f"--tokens={TOKENS}", f"--step-tokens={what['step_tokens']}"]

        def read(printed: str) -> dict[str, Any]:
            result = json.loads((Path(runs) / "it" / "run.json").read_text(encoding="utf-8"))["result"]
            return {name: result[name] for name in ("tokens_per_second", "seconds", "cpu_share")}

        trials.run(what, [*many, *train, *amount], read, Path(runs) / "it")


def summary(runs: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """How many times the speed of one process two have: median, least and most of the ratio within a repeat."""
    speed = {(run["processes"], run["repeat"]): run["tokens_per_second"] for run in runs if run["step_tokens"] == step}
    ratios = [round(speed[2, repeat] / speed[1, repeat], 3) for repeat in range(REPEATS)]
    return {"step_tokens": step, "median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


if __name__ == "__main__":
    main()
