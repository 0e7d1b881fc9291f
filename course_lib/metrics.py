"""What predictions are worth, and whether one system is better than another."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

SEEDS_FOR_A_CLAIM = 5


def classification(labels: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Accuracy, and the F1 of the classes averaged (macro), by scikit-learn."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "macro_f1": float(f1_score(labels, predictions, average="macro", zero_division=0)),
    }


def entities(tags: list[list[str]], predictions: list[list[str]], strict: bool = False) -> dict[str, float]:
    """Precision, recall and F1 of whole entities, by seqeval; `strict` wants well-formed IOB2.

    `tags`, `predictions`: one list a sentence, the same lengths. A token counts for nothing unless its entity is right.
    """
    from seqeval import metrics, scheme

    how: dict[str, Any] = {"mode": "strict", "scheme": scheme.IOB2} if strict else {}
    names = ("precision", "recall", "f1")
    scores = (getattr(metrics, f"{name}_score")(tags, predictions, zero_division=0, **how) for name in names)
    return dict(zip(names, map(float, scores), strict=True))


@dataclass(frozen=True)
class Difference:
    """`mean` of a − b with its 95 % interval; `seeds`: the fewer of the two that were trained."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """`helps` or `hurts` if the interval leaves out zero and there were seeds enough, else `undecided`."""
        if self.seeds < SEEDS_FOR_A_CLAIM or self.low <= 0 <= self.high:
            return "undecided"
        return "helps" if self.low > 0 else "hurts"

    def describe(self) -> dict[str, Any]:
        """Rounded, for a record."""
        return {**{k: round(v, 4) for k, v in asdict(self).items()}, "verdict": self.verdict}


def compare(a: np.ndarray, b: np.ndarray, resamples: int = 10_000, seed: int = 0) -> Difference:
    """Paired bootstrap over items and seeds (Efron and Tibshirani 1993, ch. 13): is a better than b?

    `a`, `b`: (seeds, items), what each item scored in each run (1 or 0 for accuracy), the items in the same order. A
    system without randomness has one row, and is not counted in `seeds`. Items are drawn together for both, since a
    hard item is hard for both; seeds apart, since nothing pairs them.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} items against {b.shape[1]}")
    draw, items = np.random.default_rng(seed), a.shape[1]
    differences = []
    for _ in range(-(-resamples // 500)):
        weights = draw.multinomial(items, np.full(items, 1 / items), size=500) / items  # (500, items)
        mean_a, mean_b = (
            (weights @ x.T * draw.multinomial(len(x), np.full(len(x), 1 / len(x)), size=500) / len(x)).sum(1)
            for x in (a, b)
        )
        differences.append(mean_a - mean_b)
    low, high = np.percentile(np.concatenate(differences)[:resamples], [2.5, 97.5])
    trained = [len(x) for x in (a, b) if len(x) > 1] or [1]
    return Difference(float(a.mean() - b.mean()), float(low), float(high), min(trained))
