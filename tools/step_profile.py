"""Where a step of ours spends its time, by torch's profiler: parts of the step, and the operators under them.

`tools/race.py` stores it with a race.
"""

from collections import defaultdict
from itertools import islice
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from course_lib import device, schedule, training
from course_lib.budget import Budget, WorkClock
from course_lib.config import Config
from course_lib.data.prepare import Prepared
from course_lib.loop import train

WARM, STEPS = 5, 20
BACKWARD, OPTIMIZER = "autograd::engine::evaluate_function", "Optimizer.step#"


def parts(data: Prepared, settings: Config) -> dict[str, Any]:
    """Milliseconds a step, shares of its parts, and shares of the operators' own time inside each part."""
    state = training.build(settings, data, device.pick("cpu"))
    state.budget = Budget(WorkClock(float("inf")))
    rows = training.steps(state, settings, data.tokenizer, training.step_rows(settings))
    shape = schedule.build(settings.schedule, settings.warmup, settings.cooldown)
    loop = train(state.model, rows, state.objective, state.optimizers, shape, state.precision, state.budget)
    for _ in islice(loop, WARM):
        pass
    with profile(activities=[ProfilerActivity.CPU]) as found, record_function("all steps"):
        for _ in islice(loop, STEPS):
            pass
    (whole,) = (event.cpu_time_total for event in found.events() if event.name == "all steps")
    shares: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for event in found.events():
        shares[_part(event)][_operator(event.name)] += event.self_cpu_time_total / whole
    return {
        "tokens": settings.step_tokens,
        "milliseconds": round(whole / 1000 / STEPS, 2),
        "parts": {part: round(sum(names.values()), 4) for part, names in shares.items()},
        "operators": {part: _largest(names) for part, names in shares.items()},
    }


def _part(event: Any) -> str:
    """The part of the step that an event belongs to, by the outermost range above it."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    if any(name.startswith(BACKWARD) for name in names):
        return "backward"
    muon = [name.removeprefix(OPTIMIZER).split(".")[0] for name in names if name.startswith(OPTIMIZER)]
    return muon[0] if muon else "forward"


def _operator(name: str) -> str:
    """Without what tells one call from another."""
    return "the loop itself" if name == "all steps" else name.removeprefix("aten::").split(": ")[-1].split("#")[0]


def _largest(names: dict[str, float], count: int = 5) -> dict[str, float]:
    ordered = sorted(names.items(), key=lambda pair: -pair[1])
    return {name: round(share, 4) for name, share in ordered[:count] if share >= 0.005}
