"""Text that is installed wherever this library is: Python's own topics, and the docstrings of a few large packages."""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from course_lib.data import files

PACKAGES = ("numpy", "pandas", "datasets", "huggingface_hub")
SKIPPED = {"site-packages", "dist-packages", "test", "tests"}  # other people's packages, and code without prose
LICENCE = "PSF (Python's topics and library); BSD and Apache-2.0 (the packages' docstrings)"


def identity() -> str:
    """Changes when an installed package does."""
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    return hashlib.sha256(f"{versions} {sys.version}".encode()).hexdigest()


def documents() -> Iterator[tuple[str, str]]:
    """(where from, text), each text about `files.PIECE` characters or less long."""
    from pydoc_data.topics import topics

    yield from ((f"topic {name}", text) for name, text in topics.items())
    standard = Path(sysconfig.get_path("stdlib"))
    folders = [standard]
    folders += [Path(spec.origin).parent for name in PACKAGES if (spec := find_spec(name)) and spec.origin]
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            if not SKIPPED & set(path.relative_to(folder).parts):
                for text in _docstrings(path):
                    yield str(path.relative_to(folder.parent)), text


def _docstrings(path: Path) -> Iterator[str]:
    """A module's docstrings (outermost first) as one text; the source is parsed, nothing is imported."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a few test files are broken on purpose
        return
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, owners)]
    text = "\n\n".join(doc for doc in found if doc)
    if text:
        yield from files.pieces(iter(text.splitlines(keepends=True)))
