"""Graders of the exercises: `checks.ex03_2(your_function)` says which properties hold.

`checks/chNN.py` holds the graders of chapter NN; asking for one imports that file and nothing else.
"""

import importlib
import re
from pathlib import Path
from typing import Any

CHAPTERS = sorted(path.stem for path in Path(__file__).parent.glob("ch[0-9][0-9].py"))


def __getattr__(name: str) -> Any:
    found = re.fullmatch(r"ex(\d\d)_\d+", name)
    if found and f"ch{found[1]}" in CHAPTERS:
        return getattr(importlib.import_module(f"{__name__}.ch{found[1]}"), name)
    raise AttributeError(f"There is no exercise called '{name}'. dir(checks) lists those that are there.")


def __dir__() -> list[str]:
    """Every grader of every chapter, in order."""
    modules = [importlib.import_module(f"{__name__}.{chapter}") for chapter in CHAPTERS]
    return [name for module in modules for name in vars(module) if re.fullmatch(r"ex\d\d_\d+", name)]
