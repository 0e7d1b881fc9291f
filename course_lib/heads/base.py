"""What `finetune` asks of a head, and what all heads share: encoding a word, running a model over rows."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.special import log_softmax
from transformers import AutoTokenizer

from course_lib import examples, metrics, models
from course_lib.config import Tuning
from course_lib.data import labelled
from course_lib.errors import CourseError, unknown
from course_lib.examples import Rows
from course_lib.objectives import Objective
from course_lib.precision import Precision

Answers = Any  # what a head says about the items of a side, in their order: an array or a list with an entry an item


class Head(ABC):
    """A kind of task. Adding one: a subclass in a file here, a line in `registry.HEADS`, a test.

    The model is a stock `auto` class. `metric` is the score that picks the best seed and is reported; higher is better.
    What turns raw outputs into answers (a temperature, a scale) is `calibration`, plain numbers in the model's config.
    """

    auto: ClassVar[Any]
    metric: ClassVar[str]
    unit: ClassVar[str] = "texts"
    knows: ClassVar[tuple[str, ...]] = ("class_weights", "smoothing")  # of the settings about classes

    # Data: what a file holds, and what of it the model learns.

    @abstractmethod
    def read(self, path: Path, encoding: str) -> tuple[list[labelled.Item], list[str]]:
        """The items of a user's file, and what a person should know about it."""

    def registered(self, name: str) -> labelled.Sides | None:
        """The sides of a task that comes with the course, if there is one of this name."""
        return None

    @abstractmethod
    def classes(self, sides: labelled.Sides) -> list[str]:
        """What can be answered; raises CourseError where there is nothing to learn."""

    @abstractmethod
    def target(self, label: Any, classes: list[str]) -> Any:
        """A label as rows hold it."""

    def task(self, tuning: Tuning) -> labelled.Task:
        """The task that the settings name: registered, one file split by hash, or files that are split already."""
        notes: list[str] = []

        def read(path: str) -> list[labelled.Item]:
            items, said = self.read(Path(path), tuning.encoding)
            notes.extend(said)
            return items

        if tuning.train or tuning.valid or tuning.test:
            sides, shared = labelled.of_files(read, tuning.train, tuning.valid, tuning.test)
            name, notes = Path(tuning.train).stem, [*notes, *shared]
        elif found := self.registered(tuning.task):
            name, sides = tuning.task, found
        elif not Path(tuning.task).suffix:
            raise unknown(f"{tuning.head} task", tuning.task, self.names())
        else:
            name = Path(tuning.task).stem
            sides = labelled.by_hash(name, read(tuning.task))
        classes = self.classes(sides)
        make = lambda side: labelled.Labelled([t for t, _ in side], [self.target(y, classes) for _, y in side])
        train, dev, test = (make(sides[side]) for side in labelled.SIDES)
        task = labelled.Task(name, classes, train, dev, test).with_labels(tuning.labels)
        sides = sides | {"train": sides["train"][: len(task.train)]}
        self.classes(sides)  # what `--labels` has left must still teach something
        return replace(task, notes=(*notes, *self.unseen(sides)))

    def names(self) -> list[str]:
        """The registered tasks of this kind."""
        return []

    def kinds(self, label: Any) -> set[str]:
        """The classes in one label."""
        return set()

    def unseen(self, sides: labelled.Sides) -> list[str]:
        """Notes on classes of the held-out sides that train does not have: they can only be missed."""
        known = {kind for _, label in sides["train"] for kind in self.kinds(label)}
        notes = []
        for side in ("dev", "test"):
            found = Counter(kind for _, label in sides[side] for kind in self.kinds(label) if kind not in known)
            notes += [
                f"{count:,} {side} {self.unit} have '{kind}', which train never shows: all will be missed."
                for kind, count in sorted(found.items())
            ]
        return notes

    # Model and training.

    def outputs(self, classes: list[str]) -> dict[str, Any]:
        """What the config says about the output layer, so that nothing is left of another task."""
        return {
            "problem_type": None,
            "num_labels": len(classes),
            "id2label": dict(enumerate(classes)),
            "label2id": {c: i for i, c in enumerate(classes)},
        }

    @abstractmethod
    def rows(self, tokenizer: Any, side: labelled.Labelled, length: int, stride: int) -> Rows:
        """A side as examples of at most `length` tokens; what is longer is shortened, or becomes several."""

    def lesson(self, task: labelled.Task) -> labelled.Labelled:
        """The train side with labels as the objective wants them."""
        return task.train

    @abstractmethod
    def objective(self, tuning: Tuning, task: labelled.Task) -> Objective:
        """What is minimised."""

    def calibration(self, task: labelled.Task) -> dict[str, float]:
        """How outputs are read before anything is fitted."""
        return {"temperature": 1.0}

    # Answers and their worth.

    def merge(self, outputs: list[np.ndarray], rows: Rows, side: labelled.Labelled) -> Any:
        """Rows' outputs (classes,) or (length, classes) → logits of the items."""
        return np.stack(outputs)

    def fit(self, logits: Any, side: labelled.Labelled, calibration: dict[str, float]) -> dict[str, float]:
        """The calibration that suits the dev side."""
        return calibration

    @abstractmethod
    def answers(self, logits: Any, side: labelled.Labelled, calibration: dict[str, float]) -> Answers:
        """What the model says."""

    @abstractmethod
    def losses(self, side: labelled.Labelled, answers: Answers, classes: list[str]) -> dict[str, float]:
        """What early stopping can look at, lower is better; `error` among them."""

    @abstractmethod
    def scores(self, side: labelled.Labelled, answers: Answers, classes: list[str]) -> dict[str, float]:
        """What is reported, `metric` among them."""

    def trust(self, logits: Any, side: labelled.Labelled, calibration: dict[str, float]) -> dict[str, float]:
        """How far confidence is from truth, before and after calibration; nothing for a head without probabilities."""
        return {}

    @abstractmethod
    def stored(
        self, side: labelled.Labelled, logits: Any, classes: list[str], calibration: dict[str, float]
    ) -> dict[str, Any]:
        """What the predictions' file keeps, JSON."""

    @abstractmethod
    def hits(self, stored: dict[str, Any]) -> np.ndarray:
        """What each item scored, from the predictions' file: (items,), or (items, 2) for a ratio of sums."""

    def report(self, stored: dict[str, Any]) -> str:
        """More than one line about the test side, if there is more to say."""
        return ""

    def export(self, stored: dict[str, Any]) -> dict[str, str]:
        """Predictions in formats that other tools read: file name → content."""
        return {}

    def shown(self, value: float) -> str:
        """The metric for a person."""
        return f"{self.metric} {value:.3f}"


def balanced(counts: Sequence[int]) -> torch.Tensor:
    """Weights that let every class count the same, 1 on average over the items; 1 for a class without any."""
    seen = [count for count in counts if count]
    return torch.tensor([sum(seen) / (len(seen) * count) if count else 1.0 for count in counts])


def check(tuning: Tuning, head: Head) -> None:
    """Raise CourseError for values that no training has, and for settings that would have no effect."""
    least = {"step_rows": 1, "seeds": 1, "max_length": 0, "stride": 0, "epochs": 0, "evaluate_every": 0, "patience": 0}
    for name, low in least.items():
        if not getattr(tuning, name) >= low:
            raise CourseError(f"--{name.replace('_', '-')} is at least {low}, not {getattr(tuning, name)}.")
    for name in {"class_weights", "smoothing"} - set(head.knows):
        if getattr(tuning, name) != getattr(Tuning, name):
            raise CourseError(f"--{name.replace('_', '-')} means nothing to the head '{tuning.head}'. Leave it out.")
    if tuning.keep not in ("best", "last", "average"):
        raise CourseError(f"--keep is best, last or average, not '{tuning.keep}'.")
    if tuning.evaluate_every > 1:
        raise CourseError(f"--evaluate-every is a share of the training, at most 1, not {tuning.evaluate_every}.")
    if not 0 <= tuning.smoothing < 1:
        raise CourseError(f"--smoothing is at least 0 and below 1, not {tuning.smoothing}.")
    if tuning.scratch and tuning.method:
        raise CourseError(
            "--method with --scratch would store what was added, not the random model below. Leave one out."
        )
    if not tuning.evaluate_every and (tuning.patience or tuning.metric != "error"):
        raise CourseError("--patience and --metric are for evaluations while it trains: add --evaluate-every 0.1.")


def class_weights(tuning: Tuning, labels: Sequence[int], classes: list[str]) -> torch.Tensor | None:
    """What `--class-weights` asks for."""
    if tuning.class_weights not in ("none", "balanced"):
        raise CourseError(f"--class-weights is none or balanced, not '{tuning.class_weights}'.")
    if tuning.class_weights == "none":
        return None
    return balanced(np.bincount([y for y in labels if y >= 0], minlength=len(classes)).tolist())


@torch.no_grad()
def run(model: Any, rows: Rows, padding: int, precision: Precision, batch_rows: int = 64) -> list[np.ndarray]:
    """Outputs of every row, in order, float32: (classes,), (its length, classes), or (its length, 2) for spans."""
    model.eval()
    where = next(model.parameters()).device
    order = sorted(range(len(rows.ids)), key=lambda i: len(rows.ids[i]))  # neighbours in length share a batch
    found: list[Any] = [None] * len(order)
    for at in range(0, len(order), batch_rows):
        chosen = order[at : at + batch_rows]
        batch = rows.batch(chosen, padding)
        batch.pop("labels")
        with precision.autocast():
            out = model(**{key: value.to(where) for key, value in batch.items()})
        spans = "start_logits" in out
        values = torch.stack([out.start_logits, out.end_logits], -1) if spans else out.logits
        for i, value in zip(chosen, values.float().cpu().numpy(), strict=True):
            found[i] = value[: len(rows.ids[i])] if value.ndim == 2 else value
    return found


def predict(model: Any, rows: list[list[int]], padding: int, precision: Precision, batch_rows: int = 64) -> np.ndarray:
    """Class probabilities, (rows, classes) float32, in the order of `rows`; the same for every `batch_rows`."""
    return softmax(np.stack(run(model, Rows(rows, [0] * len(rows)), padding, precision, batch_rows)))


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities over the last axis."""
    return np.exp(log_softmax(logits / temperature, axis=-1))


def load_tokenizer(folder: Path) -> Any:
    """A model's tokenizer. One that never learnt to pad does so with its end of text, which is masked anyway."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def context(model: Any, tokenizer: Any) -> int:
    """The most tokens that a model reads at once."""
    places = getattr(model.config, "max_position_embeddings", 512)
    return min(tokenizer.model_max_length, places, models.positions(model) or places)


def encode(tokenizer: Any, texts: list[str], length: int, specials: bool = True) -> list[list[int]]:
    """Token ids of every text, head and tail where it is longer than `length`. `<|bos|>` in a text is plain text."""
    if not texts:
        return []
    options = {"split_special_tokens": True, "verbose": False, "add_special_tokens": specials}
    return [examples.fit(row, length) for row in tokenizer(texts, **options)["input_ids"]]


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that this tokenizer puts before and after a text."""
    bare, whole = (encode(tokenizer, ["a"], 99, specials)[0] for specials in (False, True))
    at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:at], whole[at + len(bare) :]


def trust(logits: np.ndarray, labels: np.ndarray, temperature: float) -> dict[str, float]:
    """Expected calibration error before and after."""
    found = {}
    for name, t in (("ece_raw", 1.0), ("ece", temperature)):
        chances = softmax(logits, t)
        found[name] = metrics.ece(chances.max(-1), chances.argmax(-1) == labels)
    return found
