"""One class a word: named entities."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForTokenClassification

from course_lib import metrics, objectives
from course_lib.config import Tuning
from course_lib.data import annotated, labelled, tags
from course_lib.data.annotated import Words
from course_lib.device import Device
from course_lib.errors import CourseError
from course_lib.examples import Rows
from course_lib.heads import base, windows
from course_lib.objectives import IGNORE
from course_lib.precision import Precision
from course_lib.storage import model_folder


class Entity(NamedTuple):
    """`text[start:end]` is a `label`; `score` is the (calibrated) chance that all its words' tags are right."""

    start: int
    end: int
    label: str
    score: float


class TokenHead(base.Head):
    """Named entities. Files: CoNLL columns, or jsonl with `text` and `entities` or `tokens` and `tags`.

    A word's label stands on its first piece; its other pieces and the special tokens have none. Labels are IOB2.
    """

    auto = AutoModelForTokenClassification
    metric = "f1"
    unit = "sentences"

    def read(self, path: Path, encoding: str) -> tuple[list[labelled.Item], list[str]]:  # noqa: D102
        items, notes = annotated.read(path, encoding)
        return list(items), notes

    def registered(self, name: str) -> labelled.Sides | None:  # noqa: D102
        return {side: list(items) for side, items in annotated.TASKS[name]().items()} if name in self.names() else None

    def names(self) -> list[str]:  # noqa: D102
        return list(annotated.TASKS)

    def kinds(self, label: Any) -> set[str]:  # noqa: D102
        return {tags.parts(tag)[1] for tag in set(label)} - {""}

    def classes(self, sides: labelled.Sides) -> list[str]:
        """O, then B and I of every type."""
        if not any(self.kinds(label) for _, label in sides["train"]):
            raise CourseError("Train has only the class 'O', no entity; there is nothing to learn.")
        kinds = sorted({kind for side in sides.values() for _, label in side for kind in self.kinds(label)})
        return ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]

    def target(self, label: Any, classes: list[str]) -> Any:  # noqa: D102
        index = {tag: i for i, tag in enumerate(classes)}
        return [index[tag] for tag in label]

    def rows(self, tokenizer: Any, side: labelled.Labelled, length: int, stride: int) -> Rows:
        """`places`: (item, [(word, position in the row)]) for the words that this row answers for."""
        first, last = base.around(tokenizer)
        room = length - len(first) - len(last)
        if room < 1 or not 0 <= stride < room:
            raise CourseError(f"Windows of {room} tokens cannot share {stride}. Choose --max-length and --stride anew.")
        known = pieces(tokenizer, side.texts, room)
        rows = Rows([], [])
        for item, (text, labels) in enumerate(zip(side.texts, side.labels, strict=True)):
            words = [known[word] for word in text.words()]
            ranges = windows.cut(sizes := list(map(len, words)), room, stride)
            owner = windows.owners(sizes, ranges)
            for number, (start, end) in enumerate(ranges):
                ids, answered = list(first), list[tuple[int, int]]()
                for word in range(start, end):
                    if words[word] and owner[word] == number:
                        answered.append((word, len(ids)))
                    ids += words[word]
                ids += last
                targets = [IGNORE] * len(ids)
                for word, at in answered:
                    targets[at] = labels[word]
                rows.ids.append(ids)
                rows.labels.append(targets)
                rows.places.append((item, answered))
        return rows

    def objective(self, tuning: Tuning, task: labelled.Task) -> objectives.Objective:  # noqa: D102
        labels = [tag for sentence in task.train.labels for tag in sentence]
        return objectives.Classification(tuning.smoothing, base.class_weights(tuning, labels, task.classes))

    def merge(self, outputs: list[np.ndarray], rows: Rows, side: labelled.Labelled) -> list[np.ndarray]:
        """(words, classes) of every item; NaN for a word without pieces, which nothing was asked about."""
        found = [np.full((len(text.places), outputs[0].shape[-1]), np.nan, np.float32) for text in side.texts]
        for output, (item, answered) in zip(outputs, rows.places, strict=True):
            for word, at in answered:
                found[item][word] = output[at]
        return found

    def fit(self, logits: Any, side: labelled.Labelled, calibration: dict[str, float]) -> dict[str, float]:  # noqa: D102
        return {"temperature": metrics.temperature(*_flat(logits, side))}

    def answers(self, logits: Any, side: labelled.Labelled, calibration: dict[str, float]) -> list[np.ndarray]:
        """Probabilities, (words, classes) of every item; a word without pieces is O."""
        found = [base.softmax(item, calibration["temperature"]) for item in logits]
        for item in found:
            item[np.isnan(item[:, 0])] = np.eye(item.shape[1])[0]
        return found

    def losses(self, side: labelled.Labelled, answers: Any, classes: list[str]) -> dict[str, float]:  # noqa: D102
        right = np.concatenate([item[np.arange(len(y)), y] for item, y in zip(answers, side.labels, strict=True)])
        error = 1 - metrics.entities(*_tags(side, answers, classes))["f1"]
        return {"error": round(error, 4), "log_loss": round(float(-np.log(np.maximum(right, 1e-12)).mean()), 4)}

    def scores(self, side: labelled.Labelled, answers: Any, classes: list[str]) -> dict[str, float]:
        """Of whole entities, by seqeval: its default mode, and `strict_f1`."""
        gold, found = _tags(side, answers, classes)
        return metrics.entities(gold, found) | {"strict_f1": metrics.entities(gold, found, strict=True)["f1"]}

    def trust(self, logits: Any, side: labelled.Labelled, calibration: dict[str, float]) -> dict[str, float]:
        """Of words' classes."""
        return base.trust(*_flat(logits, side), calibration["temperature"])

    def stored(
        self, side: labelled.Labelled, logits: Any, classes: list[str], calibration: dict[str, float]
    ) -> dict[str, Any]:
        """Tags beside the true ones, and the entities with their places and calibrated scores."""
        answers = self.answers(logits, side, calibration)
        gold, found = _tags(side, answers, classes)
        entities = [located(text, item, classes) for text, item in zip(side.texts, answers, strict=True)]
        return {
            "classes": classes,
            "words": [[text.text[s:e] for s, e in text.places] for text in side.texts],
            "labels": gold,
            "tags": found,
            "entities": [[entity._asdict() for entity in item] for item in entities],
        }

    def hits(self, stored: dict[str, Any]) -> np.ndarray:
        """Twice the entities that are right, and those found and those true: their sums' ratio is entity F1."""
        rows = []
        for gold, found in zip(stored["labels"], stored["tags"], strict=True):
            true, said = set(tags.spans(gold)), set(tags.spans(found))
            rows.append((2 * len(true & said), len(true) + len(said)))
        return np.array(rows, dtype=float)

    def report(self, stored: dict[str, Any]) -> str:  # noqa: D102
        if not self.hits(stored).any():
            return "There are no entities, neither true nor predicted."  # seqeval makes no table of nothing
        return metrics.entity_report(stored["labels"], stored["tags"])

    def export(self, stored: dict[str, Any]) -> dict[str, str]:
        """`predictions.conll`: word, true tag, predicted tag."""
        columns = zip(stored["words"], stored["labels"], stored["tags"], strict=True)
        sentences = (zip(*item, strict=True) for item in columns)
        lines = ("".join("\t".join(row) + "\n" for row in sentence) for sentence in sentences)
        return {"predictions.conll": "\n".join(lines)}


def pieces(tokenizer: Any, texts: Sequence[Words], room: int) -> dict[str, list[int]]:
    """The tokens of every distinct word, at most `room`; none for a word that the tokenizer does not see."""
    words = list(dict.fromkeys(word for text in texts for word in text.words()))
    alone = tokenizer.convert_ids_to_tokens(base.encode(tokenizer, ["a"], 99, specials=False)[0])
    marked = "".join(alone).startswith(("▁", "Ġ"))  # the tokenizer puts a blank before a text itself; two are too many
    asked = [word.lstrip() or word for word in words] if marked else words
    return dict(zip(words, (ids[:room] for ids in base.encode(tokenizer, asked, 10**9, specials=False)), strict=True))


def located(text: Words, chances: np.ndarray, classes: list[str]) -> list[Entity]:
    """The entities that `chances` (words, classes) name in a text."""
    found, said = [], decode(chances, classes)
    for span in tags.spans([classes[i] for i in said]):
        start, end = text.places[span.start][0], text.places[span.end - 1][1]
        score = float(np.prod([chances[word, said[word]] for word in range(span.start, span.end)]))
        found.append(Entity(start, end, span.kind, round(score, 5)))
    return found


def decode(chances: np.ndarray, classes: list[str]) -> list[int]:
    """The likeliest row of tags that is sound IOB2, of all rows (Viterbi 1967): (words, classes) → class of every word.

    Equation eq-sound-path. Taken one by one, the likeliest tags may not fit together: an I after O is half of an entity
    that was never begun.
    """
    fits, nothing = fitting(tuple(classes)), classes.index("O")
    alone = chances.argmax(1)
    if fits[np.concatenate([[nothing], alone])[:-1], alone].all():  # most rows, and no row is likelier
        return alone.tolist()
    best, came = np.where(fits[nothing], 0.0, -np.inf), []  # of the rows that end in each tag
    for number, word in enumerate(np.log(np.maximum(chances, 1e-12))):
        ways = np.where(fits, best[:, None], -np.inf) if number else np.tile(best, (len(best), 1))  # (tag before, tag)
        came.append(ways.argmax(0))
        best = ways.max(0) + word
    found = [int(best.argmax())]
    for before in reversed(came[1:]):
        found.append(int(before[found[-1]]))
    return found[::-1]


@cache
def fitting(classes: tuple[str, ...]) -> np.ndarray:
    """(classes, classes): whether the second tag may stand after the first."""
    return np.array([[tags.sound(after, before, "IOB2") for after in classes] for before in classes])


def extract(folder: Path, texts: Sequence[str], where: Device, stride: int = 32) -> list[list[Entity]]:
    """The entities of running texts, by a fine-tuned run or any stock token classifier with IOB2 labels."""
    folder, head = model_folder(folder), TokenHead()
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).to(where.torch)
    tokenizer = base.load_tokenizer(folder)
    classes = [model.config.id2label[i] for i in range(model.config.num_labels)]
    if classes[0] != "O" or {tags.parts(tag)[0] for tag in classes[1:]} - {"B", "I"}:
        raise CourseError(f"{folder} finds no entities: its classes are {', '.join(classes[:5])}.")
    cut = [annotated.cut(text) for text in texts]
    side = labelled.Labelled(cut, [[0] * len(words.places) for words in cut])
    length = base.context(model, tokenizer)
    rows = head.rows(tokenizer, side, length, min(stride, length // 4))
    outputs = base.run(model, rows, tokenizer.pad_token_id, Precision.for_device(where))
    calibration = getattr(model.config, "calibration", {"temperature": 1.0})
    answers = head.answers(head.merge(outputs, rows, side), side, calibration) if cut else []
    return [located(words, item, classes) for words, item in zip(cut, answers, strict=True)]


def _flat(logits: list[np.ndarray], side: labelled.Labelled) -> tuple[np.ndarray, np.ndarray]:
    """All words that have pieces, and their labels."""
    values, labels = np.concatenate(logits), np.concatenate([np.array(y, dtype=int) for y in side.labels])
    asked = ~np.isnan(values[:, 0])
    return values[asked], labels[asked]


def _tags(side: labelled.Labelled, answers: Any, classes: list[str]) -> tuple[list[list[str]], list[list[str]]]:
    gold = [[classes[i] for i in item] for item in side.labels]
    return gold, [[classes[i] for i in decode(item, classes)] for item in answers]
