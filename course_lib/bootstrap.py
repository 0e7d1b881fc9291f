"""Make a hosted notebook (Colab, Kaggle) ready: install what is missing, and leave its torch and numpy alone.

Every notebook's first cell calls this after cloning; it runs before any dependency is there, so it needs none.
"""

import importlib.metadata
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from course_lib.errors import CourseError

ROOT = Path(__file__).resolve().parent.parent
KEEP = ("torch", "numpy")  # a hosted machine's builds fit its driver; another one may not


def install_missing() -> None:
    """Run pip for the requirements of the library and the chapters that are not met, with torch and numpy held.

    Raises:
        CourseError: the installed torch or numpy is too old, or pip failed.

    """
    needed = missing(requirements())
    blocked = [line for line in needed if name_of(line) in KEEP and installed(name_of(line))]
    if blocked:
        raise CourseError(
            f"This machine's {', '.join(blocked)} is not met; choose a newer runtime, or update it by hand."
        )
    if needed:
        command = [sys.executable, "-m", "pip", "install", "--quiet", *held(), *needed]
        if subprocess.run(command, check=False).returncode:
            raise CourseError(f"pip could not install {', '.join(needed)}; its message above says why.")


def requirements() -> list[str]:
    """What the library and the notebooks import, with lower bounds, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["chapters"]]


def missing(lines: list[str]) -> list[str]:
    """The requirements that no installed distribution meets."""
    from packaging.requirements import Requirement

    wanted = [(line, Requirement(line)) for line in lines]
    return [
        line
        for line, need in wanted
        if not (version := installed(need.name)) or not need.specifier.contains(version, prereleases=True)
    ]


def held() -> list[str]:
    """Pip's options that pin the installed torch and numpy, so that no dependency of another package moves them."""
    lines = [f"{name}=={version}" for name in KEEP if (version := installed(name))]
    path = Path(tempfile.mkdtemp()) / "constraints.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return ["--constraint", str(path)]


def installed(name: str) -> str:
    """The installed version, or an empty string."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def name_of(requirement: str) -> str:
    """`torch` of `torch>=2.6`."""
    from packaging.requirements import Requirement

    return Requirement(requirement).name
