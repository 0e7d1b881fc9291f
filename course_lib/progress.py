"""One progress bar for everything. Silent unless somebody is looking."""

import os
import sys
from typing import Any

from tqdm import tqdm
from tqdm.auto import tqdm as notebook_tqdm


def interactive() -> bool:
    """A terminal, or a notebook that a person runs.

    `COURSE_PROGRESS=on|off` decides; test runs and the script that executes the notebooks set it to off.
    """
    setting = os.environ.get("COURSE_PROGRESS", "auto")
    return setting == "on" or (setting == "auto" and (sys.stderr.isatty() or "ipykernel" in sys.modules))


def hush_transformers() -> None:
    """No bars and no advice from transformers while it saves and loads files: ours are enough."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def bar(title: str) -> Any:
    """A bar over the budget from 0 to 100 %, with elapsed and remaining time; call `move(bar, progress, …)`."""
    kind = notebook_tqdm if "ipykernel" in sys.modules else tqdm
    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    return kind(total=1.0, desc=title, bar_format=layout, disable=not interactive(), dynamic_ncols=True)


def move(shown: Any, progress: float, **values: str) -> None:
    """Show `progress` (0 to 1) and a few values."""
    shown.set_postfix(values, refresh=False)
    shown.update(progress - shown.n)
