"""What pretraining can be pointed at: a registered dataset with text, several joined by `+`, or a user's files."""

import hashlib
import ntpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from course_lib import assets
from course_lib.data import files, library
from course_lib.errors import CourseError, unknown


@dataclass(frozen=True)
class Corpus:
    """Documents to train on. `documents()` starts a fresh pass; `identity` changes when the content does."""

    name: str
    documents: Callable[[], Iterator[str]]
    identity: str
    licence: str


def names() -> list[str]:
    """The registered datasets that have text to train on."""
    return [name for name, entry in library.DATASETS.items() if "text" in entry.features]


def load(spec: str, encoding: str = "utf-8") -> Corpus:
    """A corpus by name (`movie_reviews+wiki_leads` joins two), or a file, folder or glob. Fetches what is missing.

    `encoding` is that of the files.
    """
    parts = spec.split("+")
    if all(part in names() for part in parts):
        return _registered(parts)
    if spec.startswith("hf:"):
        return _hub(spec.removeprefix("hf:"))
    if not any(mark in spec for mark in "/\\.*?[") and not Path(spec).exists():
        raise unknown("corpus", next(part for part in parts if part not in names()), names())
    paths = files.find(spec)
    state = "\n".join(f"{p.resolve()} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in paths)
    state += f"\n{encoding}"
    stem = paths[0].stem if len(paths) == 1 else paths[0].parent.resolve().name

    def documents() -> Iterator[str]:
        for path in paths:
            yield from files.documents(path, encoding)

    return Corpus(stem, documents, hashlib.sha256(state.encode()).hexdigest(), "the user's own")


def _hub(name: str) -> Corpus:
    """The train split of `hf:OWNER/NAME[:CONFIG]`, or of `hf:FOLDER`, a local folder in the hub's layout."""
    import datasets

    drive, rest = ntpath.splitdrive(name)  # the colon of C:\data is no configuration's, on whatever system
    path, _, config = rest.partition(":")
    path = drive + path
    try:
        table = datasets.load_dataset(path, config or None, split="train")
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CourseError(f"Could not load '{path}' from the Hugging Face hub: {reason}") from error
    column = files.text_column(path, table.column_names)

    def documents() -> Iterator[str]:
        yield from (row[column] or "" for row in table.select_columns([column]))

    return Corpus(Path(path).name, documents, table._fingerprint, "see its page on the hub")


def _registered(parts: list[str]) -> Corpus:
    entries = [library.DATASETS[part] for part in parts]
    needed = [name for entry in entries for name in entry.assets]
    for name in needed:
        assets.fetch(name)

    def documents() -> Iterator[str]:
        for part, entry in zip(parts, entries, strict=True):
            # Sides that follow from a row's text are found again by `prepare`; others are kept out here.
            by_text = entry.splits == "hash" and entry.key == ("text",)
            rows = entry.read() if by_text else library.load(part, "train")
            yield from (row["text"] for row in rows)

    identity = hashlib.sha256("\n".join(entry.identity() for entry in entries).encode()).hexdigest()
    return Corpus("+".join(parts), documents, identity, "; ".join(dict.fromkeys(entry.licence() for entry in entries)))
