"""Where the numbers of a run can be watched besides metrics.jsonl. Adding one: a function and a line in `LOGGERS`."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from course_lib.errors import CourseError, unknown

Logger = Callable[[dict[str, Any]], None]


def _tensorboard(folder: Path, config: dict[str, Any]) -> Logger:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def log(row: dict[str, Any]) -> None:
        for name, value in numbers(row).items():
            writer.add_scalar(name, value, row["step"])
        writer.flush()

    return log


def _wandb(folder: Path, config: dict[str, Any]) -> Logger:
    import wandb

    run = wandb.init(project="one-gpu-one-day", name=folder.name, dir=str(folder), mode="offline", config=config)
    return lambda row: run.log(numbers(row), step=row["step"])


LOGGERS: dict[str, Callable[[Path, dict[str, Any]], Logger]] = {"tensorboard": _tensorboard, "wandb": _wandb}


def check(names: str) -> list[str]:
    """The loggers in a comma-separated list; an error for one that does not exist or is not installed."""
    chosen = [name for name in names.split(",") if name]
    for name in chosen:
        if name not in LOGGERS:
            raise unknown("logger", name, LOGGERS)
        if find_spec(name) is None:
            raise CourseError(f"{name} is not installed: `pip install {name}`.")
    return chosen


def open_all(names: str, folder: Path, config: dict[str, Any]) -> list[Logger]:
    """Loggers that take one row of metrics at a time. W&B writes offline; `wandb sync` uploads."""
    return [LOGGERS[name](folder, config) for name in check(names)]


def numbers(row: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of a row, nested ones as `losses/clm`."""
    flat: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            flat[prefix + name] = float(value)
    return flat
