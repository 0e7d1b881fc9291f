"""Settings that both the tests and the notebooks' kernels need."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent

# Kernels start in notebooks/ and know nothing of pytest's `pythonpath`.
os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
# Two workers share two cores, and printed numbers must not depend on the count: `make stability` tries another.
os.environ["OMP_NUM_THREADS"] = os.environ.get("COURSE_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["COURSE_PROGRESS"] = "off"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "nbval", False) and not config.option.nbval_sanitize_with:
        config.option.nbval_sanitize_with = str(ROOT / "tests" / "nbval_sanitize.cfg")
