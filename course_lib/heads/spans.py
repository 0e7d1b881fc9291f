"""An answer that stands in a text: extractive question answering."""

import re
import string
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForQuestionAnswering

from course_lib import objectives
from course_lib.config import Tuning
from course_lib.data import labelled
from course_lib.errors import CourseError
from course_lib.examples import Rows
from course_lib.heads import base

LONGEST = 30  # tokens of an answer
NOWHERE = [-1, -1]
LEAST = 16  # tokens of a row: half for the question, then marks, and windows of the context


class SpanHead(base.Head):
    """Where the answer to a question stands. Files: tables with `question`, `context`, `answer`, `start` (characters).

    An empty `answer` says that the context has none; the model then points at its first token (Rajpurkar et al. 2018).
    A long context becomes windows, each with the question; the window that is surest against "nowhere" answers.
    """

    auto = AutoModelForQuestionAnswering
    metric = "f1"
    knows = ()
    unit = "questions"

    def read(self, path: Path, encoding: str) -> tuple[list[labelled.Item], list[str]]:  # noqa: D102
        items: list[labelled.Item] = []
        table = labelled.columns(path, encoding, "question", "context", "answer", "start", optional=("answer", "start"))
        for number, row in enumerate(table, 1):
            context, answer = str(row["context"]), str(row["answer"] or "")
            try:
                start = int(row["start"]) if answer else -1
            except (TypeError, ValueError):
                raise CourseError(f"{path}, row {number}: the start '{row['start']}' is no whole number.") from None
            if answer and (start < 0 or context[start : start + len(answer)] != answer):
                raise CourseError(f"{path}, row {number}: '{answer[:50]}' does not stand at character {start}.")
            start, answer = start + len(answer) - len(answer.lstrip()), answer.strip()  # blanks may be in no token
            items.append(((str(row["question"]), context), (start, start + len(answer)) if answer else tuple(NOWHERE)))
        return list(dict.fromkeys(items)), []

    def classes(self, sides: labelled.Sides) -> list[str]:  # noqa: D102
        if not any(label[0] >= 0 for _, label in sides["train"]):
            raise CourseError("No question in train has an answer; there is nothing to learn.")
        return ["start", "end"]

    def target(self, label: Any, classes: list[str]) -> Any:  # noqa: D102
        return list(label)

    def rows(self, tokenizer: Any, side: labelled.Labelled, length: int, stride: int) -> Rows:
        """`places`: (item, {position in the row: characters of the context})."""
        if length < LEAST:
            raise CourseError(f"--max-length {length} has no room for question and context. Give it {LEAST} or more.")
        questions = [_shortened(tokenizer, question, length // 2) for question, _ in side.texts]
        found = tokenizer(
            questions,
            [context for _, context in side.texts],
            truncation="only_second",
            max_length=length,
            stride=min(stride, length // 4),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_token_type_ids=True,
            split_special_tokens=True,
        )
        rows = Rows(found["input_ids"], [], found["token_type_ids"])
        for number, item in enumerate(found["overflow_to_sample_mapping"]):
            offsets, belongs = found["offset_mapping"][number], found.sequence_ids(number)
            place = {
                at: offsets[at] for at, which in enumerate(belongs) if which == 1 and offsets[at][0] < offsets[at][1]
            }
            rows.places.append((item, place))
            rows.labels.append(_ends(place, side.labels[item]))
        return rows

    def objective(self, tuning: Tuning, task: labelled.Task) -> objectives.Objective:  # noqa: D102
        return objectives.SpanEnds()

    def calibration(self, task: labelled.Task) -> dict[str, float]:
        """Whether "nowhere" is an answer at all."""
        return {"nowhere": float(NOWHERE in task.train.labels)}

    def merge(self, outputs: list[np.ndarray], rows: Rows, side: labelled.Labelled) -> list[tuple[float, list[int]]]:
        """(logit above "nowhere", characters) of every item's best span."""
        best: list[tuple[float, list[int]]] = [(-np.inf, NOWHERE)] * len(side)
        for output, (item, place) in zip(outputs, rows.places, strict=True):
            if not place:
                continue
            at = np.array(list(place))
            sums = output[at, 0][:, None] + output[at, 1][None] - output[0].sum()  # (start, end)
            allowed = np.tri(len(at), k=0, dtype=bool).T & np.tri(len(at), k=LONGEST - 1, dtype=bool)
            start, end = np.unravel_index(np.where(allowed, sums, -np.inf).argmax(), sums.shape)
            characters = [place[at[start]][0], place[at[end]][1]]
            best[item] = max(best[item], (float(sums[start, end]), characters), key=lambda pair: pair[0])
        return best

    def answers(self, logits: Any, side: labelled.Labelled, calibration: dict[str, float]) -> list[list[int]]:
        """Characters from and to of every answer, `NOWHERE` if there is none."""
        return [NOWHERE if calibration["nowhere"] and score < 0 else place for score, place in logits]

    def losses(self, side: labelled.Labelled, answers: Any, classes: list[str]) -> dict[str, float]:  # noqa: D102
        return {"error": round(1 - self.scores(side, answers, classes)["f1"], 4)}

    def scores(self, side: labelled.Labelled, answers: Any, classes: list[str]) -> dict[str, float]:
        """SQuAD's exact match and F1 of words."""
        pairs = [
            (context[max(0, true[0]) : max(0, true[1])], context[max(0, said[0]) : max(0, said[1])])
            for (_, context), true, said in zip(side.texts, side.labels, answers, strict=True)
        ]
        exact = np.mean([normal(true) == normal(said) for true, said in pairs])
        return {"f1": float(np.mean([overlap(*pair) for pair in pairs])), "exact": float(exact)}

    def stored(
        self, side: labelled.Labelled, logits: Any, classes: list[str], calibration: dict[str, float]
    ) -> dict[str, Any]:
        """Answers beside the true ones."""
        cut = lambda context, place: context[max(0, place[0]) : max(0, place[1])]
        places = self.answers(logits, side, calibration)
        contexts = [context for _, context in side.texts]
        return {
            "labels": [cut(context, place) for context, place in zip(contexts, side.labels, strict=True)],
            "answers": [cut(context, place) for context, place in zip(contexts, places, strict=True)],
            "places": places,
        }

    def hits(self, stored: dict[str, Any]) -> np.ndarray:  # noqa: D102
        return np.array([overlap(*pair) for pair in zip(stored["labels"], stored["answers"], strict=True)])


def normal(answer: str) -> list[str]:
    """SQuAD's normal form: lower case, no punctuation, no articles; each CJK character is a word."""
    plain = "".join(c for c in answer.lower() if c not in string.punctuation)
    plain = re.sub(r"([\u3040-\u30ff\u3400-\u9fff])", r" \1 ", plain)
    return [word for word in plain.split() if word not in ("a", "an", "the")]


def overlap(true: str, said: str) -> float:
    """F1 of the words that two answers share; 1 if both are empty."""
    a, b = normal(true), normal(said)
    shared = sum((Counter(a) & Counter(b)).values())
    return 2 * shared / (len(a) + len(b)) if a or b else 1.0


def _ends(place: dict[int, tuple[int, int]], label: list[int]) -> list[int]:
    """The first and the last position of the answer, or twice the first of the row if it is not wholly in it."""
    start, end = label
    if start < 0 or not place or min(s for s, _ in place.values()) > start or max(e for _, e in place.values()) < end:
        return [0, 0]
    inside = [at for at, (s, e) in place.items() if s < end and e > start]
    return [inside[0], inside[-1]] if inside else [0, 0]


def _shortened(tokenizer: Any, text: str, tokens: int) -> str:
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return text if len(offsets) <= tokens else text[: offsets[tokens - 1][1]]
