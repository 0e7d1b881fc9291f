"""One answer a text: a class, a class of a pair of texts, several classes, a number."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from course_lib import metrics, objectives
from course_lib.config import Tuning
from course_lib.data import labelled
from course_lib.data.clean import clean
from course_lib.errors import CourseError
from course_lib.examples import Rows
from course_lib.heads import base


class SequenceHead(base.Head):
    """One class a text. Files: tables with `text` and `label`."""

    auto = AutoModelForSequenceClassification
    metric = "accuracy"

    def read(self, path: Path, encoding: str) -> tuple[list[labelled.Item], list[str]]:  # noqa: D102
        return labelled.labelled_column(path, encoding), []

    def registered(self, name: str) -> labelled.Sides | None:  # noqa: D102
        return labelled.registered(name) if name in self.names() else None

    def names(self) -> list[str]:  # noqa: D102
        return list(labelled.TASKS)

    def classes(self, sides: labelled.Sides) -> list[str]:  # noqa: D102
        found = sorted({kind for side in sides.values() for _, label in side for kind in self.kinds(label)})
        if len({label for _, label in sides["train"]}) < 2:
            same = ", ".join(sorted(self.kinds(sides["train"][0][1])))
            raise CourseError(f"All texts in train have the same label, '{same}'; there is nothing to learn.")
        texts = sum(map(len, sides.values()))
        if len(found) > labelled.MAX_CLASSES and len(found) > texts / 2:
            raise CourseError(f"{len(found):,} classes for {texts:,} texts are no classes. Are they numbers?")
        return found

    def kinds(self, label: Any) -> set[str]:  # noqa: D102
        return {label}

    def target(self, label: Any, classes: list[str]) -> Any:  # noqa: D102
        return classes.index(label)

    def outputs(self, classes: list[str]) -> dict[str, Any]:  # noqa: D102
        return super().outputs(classes) | {"problem_type": "single_label_classification"}

    def rows(self, tokenizer: Any, side: labelled.Labelled, length: int, stride: int) -> Rows:  # noqa: D102
        return Rows(base.encode(tokenizer, side.texts, length), side.labels)

    def objective(self, tuning: Tuning, task: labelled.Task) -> objectives.Objective:  # noqa: D102
        return objectives.Classification(tuning.smoothing, base.class_weights(tuning, task.train.labels, task.classes))

    def fit(self, logits: Any, side: labelled.Labelled, calibration: dict[str, float]) -> dict[str, float]:  # noqa: D102
        return {"temperature": metrics.temperature(logits, np.array(side.labels))}

    def answers(self, logits: Any, side: labelled.Labelled, calibration: dict[str, float]) -> np.ndarray:
        """Probabilities, (texts, classes)."""
        return base.softmax(logits, calibration["temperature"])

    def losses(self, side: labelled.Labelled, answers: np.ndarray, classes: list[str]) -> dict[str, float]:  # noqa: D102
        right = answers[np.arange(len(side)), side.labels]
        return {
            "error": round(float((answers.argmax(1) != side.labels).mean()), 4),
            "log_loss": round(float(-np.log(np.maximum(right, 1e-12)).mean()), 4),
        }

    def scores(self, side: labelled.Labelled, answers: np.ndarray, classes: list[str]) -> dict[str, float]:  # noqa: D102
        return metrics.classification(side.labels, answers.argmax(1).tolist())

    def trust(self, logits: Any, side: labelled.Labelled, calibration: dict[str, float]) -> dict[str, float]:  # noqa: D102
        return base.trust(logits, np.array(side.labels), calibration["temperature"])

    def stored(
        self, side: labelled.Labelled, logits: Any, classes: list[str], calibration: dict[str, float]
    ) -> dict[str, Any]:
        """Probabilities as the model gives them; the temperature is in its config."""
        rows = [[round(float(p), 5) for p in row] for row in self.answers(logits, side, {"temperature": 1.0})]
        return {"classes": classes, "labels": side.labels, "probabilities": rows}

    def hits(self, stored: dict[str, Any]) -> np.ndarray:  # noqa: D102
        return (np.array(stored["probabilities"]).argmax(1) == np.array(stored["labels"])).astype(float)

    def shown(self, value: float) -> str:  # noqa: D102
        return f"{value:.1%} right"


class PairHead(SequenceHead):
    """One class for two texts together (entailment, paraphrase). Files: tables with `text`, `text_pair`, `label`."""

    unit = "pairs"

    def names(self) -> list[str]:  # noqa: D102
        return []

    def read(self, path: Path, encoding: str) -> tuple[list[labelled.Item], list[str]]:  # noqa: D102
        table = labelled.columns(path, encoding, "text", "text_pair", "label")
        texts = lambda row: (clean(str(row["text"])), clean(str(row["text_pair"])))
        return list(dict.fromkeys((texts(row), str(row["label"])) for row in table)), []

    def rows(self, tokenizer: Any, side: labelled.Labelled, length: int, stride: int) -> Rows:
        """Both texts in one row, the longer one shortened first."""
        first, second = (list(column) for column in zip(*side.texts, strict=True))
        options = {"truncation": "longest_first", "max_length": length, "split_special_tokens": True}
        found = tokenizer(first, second, return_token_type_ids=True, **options)
        return Rows(found["input_ids"], side.labels, found["token_type_ids"])


class MultiLabelHead(SequenceHead):
    """Any number of classes a text. Files: tables with `text` and `labels`, a list or names between `|`."""

    metric = "micro_f1"
    knows = ("class_weights",)

    def names(self) -> list[str]:  # noqa: D102
        return []

    def read(self, path: Path, encoding: str) -> tuple[list[labelled.Item], list[str]]:  # noqa: D102
        items = []
        for number, row in enumerate(labelled.columns(path, encoding, "text", "labels", optional=("labels",)), 1):
            names = [] if row["labels"] is None else row["labels"]
            names = names.split("|") if isinstance(names, str) else names
            if not isinstance(names, list) or None in names:
                raise CourseError(
                    f"{path}, row {number}: the labels are a list of names, or names between |, not {row['labels']}."
                )
            items.append((clean(str(row["text"])), tuple(sorted({str(name).strip() for name in names} - {""}))))
        return list(dict.fromkeys(items)), []

    def kinds(self, label: Any) -> set[str]:  # noqa: D102
        return set(label)

    def target(self, label: Any, classes: list[str]) -> Any:  # noqa: D102
        return [int(name in label) for name in classes]

    def outputs(self, classes: list[str]) -> dict[str, Any]:  # noqa: D102
        return super().outputs(classes) | {"problem_type": "multi_label_classification"}

    def objective(self, tuning: Tuning, task: labelled.Task) -> objectives.Objective:  # noqa: D102
        if base.class_weights(tuning, [0], ["yes"]) is None:
            return objectives.MultiLabel()
        yes = np.array(task.train.labels).sum(0)
        return objectives.MultiLabel(torch.tensor(np.maximum(len(task.train) - yes, 1) / np.maximum(yes, 1)))

    def fit(self, logits: Any, side: labelled.Labelled, calibration: dict[str, float]) -> dict[str, float]:
        """A yes or no is a choice between the logit and zero."""
        return {"temperature": metrics.temperature(_yes_or_no(logits), np.array(side.labels).ravel())}

    def answers(self, logits: Any, side: labelled.Labelled, calibration: dict[str, float]) -> np.ndarray:
        """The probability of each class, (texts, classes)."""
        return base.softmax(_yes_or_no(logits), calibration["temperature"])[:, 1].reshape(logits.shape)

    def losses(self, side: labelled.Labelled, answers: np.ndarray, classes: list[str]) -> dict[str, float]:  # noqa: D102
        right = np.where(np.array(side.labels) == 1, answers, 1 - answers)
        error = 1 - self.scores(side, answers, classes)["micro_f1"]
        loss = float(-np.log(np.maximum(right, 1e-12)).mean())
        return {"error": round(error, 4), "log_loss": round(loss, 4)}

    def scores(self, side: labelled.Labelled, answers: np.ndarray, classes: list[str]) -> dict[str, float]:  # noqa: D102
        from sklearn.metrics import accuracy_score, f1_score

        gold, found = np.array(side.labels), (answers > 0.5).astype(int)
        if gold.shape[1] == 1:  # scikit-learn would take a single column for two classes, yes and no
            gold, found = gold.ravel(), found.ravel()
        score = lambda how: float(f1_score(gold, found, average=how if gold.ndim > 1 else "binary", zero_division=0))
        return {
            "micro_f1": score("micro"),
            "macro_f1": score("macro"),
            "exact": float(accuracy_score(gold, found)),
        }

    def trust(self, logits: Any, side: labelled.Labelled, calibration: dict[str, float]) -> dict[str, float]:  # noqa: D102
        return base.trust(_yes_or_no(logits), np.array(side.labels).ravel(), calibration["temperature"])

    def hits(self, stored: dict[str, Any]) -> np.ndarray:
        """Twice the right ones, and those found and those true: their sums' ratio is micro F1."""
        gold, found = np.array(stored["labels"]), np.array(stored["probabilities"]) > 0.5
        return np.stack([2 * (gold * found).sum(1), gold.sum(1) + found.sum(1)], -1).astype(float)

    def shown(self, value: float) -> str:  # noqa: D102
        return base.Head.shown(self, value)


def _yes_or_no(logits: np.ndarray) -> np.ndarray:
    """(texts, classes) → (texts · classes, 2), the same chances as a sigmoid."""
    return np.stack([np.zeros(logits.size, dtype=logits.dtype), logits.ravel()], -1)


class RegressionHead(SequenceHead):
    """A number a text. Files: tables with `text` and a number as `label`."""

    metric = "r2"
    knows = ()

    def names(self) -> list[str]:  # noqa: D102
        return []

    def read(self, path: Path, encoding: str) -> tuple[list[labelled.Item], list[str]]:  # noqa: D102
        items = []
        for number, row in enumerate(labelled.columns(path, encoding, "text", "label"), 1):
            try:
                items.append((clean(str(row["text"])), float(row["label"])))
            except (TypeError, ValueError):
                raise CourseError(f"{path}, row {number}: '{row['label']}' is not a number.") from None
            if not np.isfinite(items[-1][1]):
                raise CourseError(f"{path}, row {number}: the label is not finite.")
        return list(dict.fromkeys(items)), []

    def classes(self, sides: labelled.Sides) -> list[str]:  # noqa: D102
        if len({label for _, label in sides["train"]}) < 2:
            raise CourseError(f"All {len(sides['train']):,} numbers in train are the same; there is nothing to learn.")
        if alone := [side for side in ("dev", "test") if len(sides[side]) < 2]:
            raise CourseError(
                f"There is one number in {alone[0]}, of which no variance can be explained. Give more texts."
            )
        return ["value"]

    def kinds(self, label: Any) -> set[str]:  # noqa: D102
        return set()

    def target(self, label: Any, classes: list[str]) -> Any:  # noqa: D102
        return label

    def outputs(self, classes: list[str]) -> dict[str, Any]:  # noqa: D102
        return super().outputs(classes) | {"problem_type": "regression"}

    def calibration(self, task: labelled.Task) -> dict[str, float]:
        """The model answers in these units."""
        return {"mean": float(np.mean(task.train.labels)), "std": float(np.std(task.train.labels))}

    def lesson(self, task: labelled.Task) -> labelled.Labelled:
        """In units of `std` from the mean, so that every scale is as easy; float32 comes later, or loses an offset."""
        units = self.calibration(task)
        scaled = (np.array(task.train.labels) - units["mean"]) / units["std"]
        return labelled.Labelled(task.train.texts, scaled.tolist())

    def objective(self, tuning: Tuning, task: labelled.Task) -> objectives.Objective:  # noqa: D102
        return objectives.Regression()

    def fit(self, logits: Any, side: labelled.Labelled, calibration: dict[str, float]) -> dict[str, float]:  # noqa: D102
        return calibration

    def answers(self, logits: Any, side: labelled.Labelled, calibration: dict[str, float]) -> np.ndarray:
        """Numbers in the labels' units, (texts,)."""
        return logits[:, 0].astype(np.float64) * calibration["std"] + calibration["mean"]

    def losses(self, side: labelled.Labelled, answers: np.ndarray, classes: list[str]) -> dict[str, float]:  # noqa: D102
        return {"error": float(((answers - np.array(side.labels)) ** 2).mean())}

    def scores(self, side: labelled.Labelled, answers: np.ndarray, classes: list[str]) -> dict[str, float]:  # noqa: D102
        from sklearn.metrics import r2_score, root_mean_squared_error

        found = {"rmse": float(root_mean_squared_error(side.labels, answers))}
        return {"r2": float(r2_score(side.labels, answers)), **found} if len(side) > 1 else found

    def trust(self, logits: Any, side: labelled.Labelled, calibration: dict[str, float]) -> dict[str, float]:  # noqa: D102
        return {}

    def stored(
        self, side: labelled.Labelled, logits: Any, classes: list[str], calibration: dict[str, float]
    ) -> dict[str, Any]:
        """Numbers beside the true ones."""
        return {"labels": side.labels, "values": self.answers(logits, side, calibration).tolist()}

    def hits(self, stored: dict[str, Any]) -> np.ndarray:
        """Minus the squared errors: higher is better."""
        return -((np.array(stored["values"]) - np.array(stored["labels"])) ** 2)
