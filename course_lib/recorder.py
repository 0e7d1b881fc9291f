"""What happens between two steps of a run, of whatever kind: metrics, evaluation, the progress bar, checkpoints."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from course_lib import checkpoint, distributed, loggers, progress, training
from course_lib.errors import CourseError
from course_lib.loop import Step, train
from course_lib.objectives import Batch
from course_lib.record import Run, Timer
from course_lib.schedule import Schedule
from course_lib.training import Training

LOG_EVERY = 20  # steps between writes to metrics.jsonl

Log = Callable[[str], None]
Score = Callable[[], dict[str, float]]


class Interrupted(Exception):  # noqa: N818 (it is no error)
    """The run stopped on request, is saved, and can go on."""


def drive(
    run: Run,
    state: Training,
    micro_batches: Iterable[Sequence[Batch]],
    schedule: Schedule,
    score: Score,
    timer: Timer,
    log: Log,
    save_every: float,
) -> None:
    """Run the loop to its end: show, log, evaluate, save every `save_every` seconds and when asked to stop.

    `score` evaluates on held-out data; how often, and what to stop on, is in the run's settings.
    """
    assert state.budget
    device = next(state.model.parameters()).device
    loop = train(state.model, micro_batches, state.objective, state.optimizers, schedule, state.precision, state.budget)
    with checkpoint.stoppable() as stop, progress.bar(run.folder.name) as shown:
        recorder = Recorder(run, state, timer, shown, log, save_every)
        for step in loop:
            row = recorder.after(step)
            go_on = _evaluate_if_due(row, run, state, score, timer)
            recorder.write(row)
            # All processes save and stop after the same step, whoever was asked.
            asked = {"stop": float(stop.requested), "save": float(recorder.due())}
            asked = distributed.total(asked, device)
            if asked["stop"] or asked["save"]:
                recorder.save()
            if asked["stop"] and go_on:  # at its early end a run has its average still to take
                run.update(status="stopped")
                at = f"Stopped at {state.budget.progress:.0%}; saved in {run.folder}."
                raise Interrupted(f"{at} Run the same command again to continue.")
            if not go_on:
                break
        if state.average:
            state.average.swap_in()
        recorder.save()  # so that an interrupted evaluation costs no training


def _evaluate_if_due(row: dict[str, Any], run: Run, state: Training, score: Score, timer: Timer) -> bool:
    """Evaluate when another share of the budget is used up; False when it is time to stop early."""
    assert state.budget
    every, metric, patience = (run.info["settings"][name] for name in ("evaluate_every", "metric", "patience"))
    # Rank 0's clock: if the processes disagreed here, one would stop early and the others wait for it.
    now_at = distributed.from_rank_0(state.budget.progress, next(state.model.parameters()).device)
    reached = lambda progress: int(progress / every + 1e-9)  # 0.3 / 0.1 is 2.9999…
    if not every or reached(now_at) == reached(row["progress"]):
        return True
    with timer("evaluate"), state.budget.paused():
        row["valid"] = distributed.share(score())  # cards round differently, and all must stop together
    if metric not in row["valid"]:
        raise CourseError(f"There is no metric '{metric}', only {', '.join(row['valid'])}.")
    return training.improved(state, metric, row["valid"][metric], patience)


class Recorder:
    """Keeps the books of one run while it trains."""

    def __init__(self, run: Run, state: Training, timer: Timer, shown: Any, log: Log, save_every: float):
        self.run, self.state, self.timer, self.shown, self.log = run, state, timer, shown, log
        self.save_every, settings = save_every, run.info["settings"]
        self.loggers = loggers.open_all(settings["log"], run.folder, settings) if run.writes else []
        self.rows: list[dict[str, Any]] = []
        self.last_step = self.last_save = time.perf_counter()
        self.last_cpu = time.process_time()

    def after(self, step: Step) -> dict[str, Any]:
        """The row of a step that has just ended; says so if it had to be repeated in smaller parts.

        `worked`: processor seconds of a thread; on a CPU, less than `seconds` when others used it too.
        """
        self.state.step += 1
        took, self.last_step = time.perf_counter() - self.last_step, time.perf_counter()
        worked = (time.process_time() - self.last_cpu) / torch.get_num_threads()
        assert self.state.budget
        if self.state.average:
            device = next(self.state.model.parameters()).device
            self.state.average.update(distributed.from_rank_0(self.state.budget.progress, device))
        if step.shrunk:
            self.run.update(plan=self.run.info["plan"] | {"micro_rows": step.shrunk})
            self.log(f"Memory ran out in step {self.state.step}: repeated, and going on, {step.shrunk} rows at once.")
        losses = {term: f"{loss:.3f}" for term, loss in step.losses.items()}
        progress.move(self.shown, self.state.budget.progress, **losses, speed=f"{step.tokens / took:,.0f} tok/s")
        return {**asdict(step), "step": self.state.step, "seconds": round(took, 4), "worked": round(worked, 4)}

    def write(self, row: dict[str, Any]) -> None:
        """Keep the row; what this costs is not the next step's."""
        self.rows.append(row)
        for logger in self.loggers:
            logger(row)
        if len(self.rows) >= LOG_EVERY:
            self.run.log(self.rows)
            self.rows.clear()
        self._restart()

    def due(self) -> bool:
        """Whether it is time to save; the first process's clock counts."""
        return self.run.writes and time.perf_counter() - self.last_save > self.save_every

    def save(self) -> None:
        """Write the rows, then a checkpoint; the first process only, but all must ask."""
        assert self.state.budget
        with self.timer("checkpoint"), self.state.budget.paused():
            self.run.log(self.rows)
            self.rows.clear()
            state = self.state.state_dict()
            if self.run.writes:
                checkpoint.save(self.run.folder / "checkpoints", self.state.step, state)
        self._restart()
        self.last_save = self.last_step

    def _restart(self) -> None:
        """The next step begins now."""
        self.last_step, self.last_cpu = time.perf_counter(), time.process_time()
