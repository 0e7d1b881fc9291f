"""What happens between two steps of a run: rows of metrics, the progress bar, checkpoints."""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from course_lib import checkpoint, loggers, progress
from course_lib.loop import Step
from course_lib.record import Run, Timer
from course_lib.training import Training

LOG_EVERY = 20  # steps between writes to metrics.jsonl

Log = Callable[[str], None]


class Recorder:
    """Keeps the books of one run while it trains."""

    def __init__(self, run: Run, state: Training, timer: Timer, shown: Any, log: Log, save_every: float):
        self.run, self.state, self.timer, self.shown, self.log, self.save_every = (
            run,
            state,
            timer,
            shown,
            log,
            save_every,
        )
        settings = run.info["settings"]
        self.loggers = loggers.open_all(settings["log"], run.folder, settings) if run.writes else []
        self.rows: list[dict[str, Any]] = []
        self.last_step = self.last_save = time.monotonic()

    def after(self, step: Step) -> dict[str, Any]:
        """The row of a step that has just ended; says so if it had to be repeated in smaller parts."""
        self.state.step += 1
        took, self.last_step = time.monotonic() - self.last_step, time.monotonic()
        assert self.state.budget
        if self.state.average:
            self.state.average.update(self.state.budget.progress)
        if step.micro_rows < self.run.info["plan"]["micro_rows"]:
            self.run.update(plan=self.run.info["plan"] | {"micro_rows": step.micro_rows})
            self.log(
                f"Memory ran out in step {self.state.step}: repeated, and going on, {step.micro_rows} rows at once."
            )
        losses = {term: f"{loss:.3f}" for term, loss in step.losses.items()}
        progress.move(self.shown, self.state.budget.progress, **losses, speed=f"{step.tokens / took:,.0f} tok/s")
        return {**asdict(step), "step": self.state.step, "seconds": round(took, 4)}

    def write(self, row: dict[str, Any]) -> None:
        """Keep the row; what this costs is not the next step's."""
        self.rows.append(row)
        for logger in self.loggers:
            logger(row)
        if len(self.rows) >= LOG_EVERY:
            self.run.log(self.rows)
            self.rows.clear()
        self.last_step = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save; the first process's clock counts."""
        return self.run.writes and time.monotonic() - self.last_save > self.save_every

    def save(self) -> None:
        """Write the rows, then a checkpoint; the first process only, but all must ask."""
        assert self.state.budget
        with self.timer("checkpoint"), self.state.budget.paused():
            self.run.log(self.rows)
            self.rows.clear()
            state = self.state.state_dict()
            if self.run.writes:
                checkpoint.save(self.run.folder / "checkpoints", self.state.step, state)
        self.last_save = self.last_step = time.monotonic()
