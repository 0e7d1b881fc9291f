"""What predictions are worth, and whether one system is better than another."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from course_lib.data.tags import only

SEEDS_FOR_A_CLAIM = 5


def classification(labels: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
    """Accuracy, and the F1 of the classes averaged (macro), by scikit-learn."""
    from sklearn.metrics import accuracy_score, f1_score

    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "macro_f1": float(f1_score(labels, predictions, average="macro", zero_division=0)),
    }


def entities(tags: list[list[str]], predictions: list[list[str]], strict: bool = False) -> dict[str, float]:
    """Precision, recall and F1 of whole entities (equation eq-entity-f1), by seqeval; `strict` wants sound IOB2.

    `tags`, `predictions`: one list a sentence, the same lengths. A token counts for nothing unless its entity is right.
    """
    from seqeval import scheme
    from seqeval.metrics import sequence_labeling, v1

    # What seqeval's three `…_score` functions call, once instead of three times: it takes seconds on a real test side.
    how: dict[str, Any] = {"average": "micro", "zero_division": 0}
    if strict:
        *scores, _ = v1.precision_recall_fscore_support(tags, predictions, scheme=scheme.IOB2, **how)
    else:
        *scores, _ = sequence_labeling.precision_recall_fscore_support(tags, predictions, **how)
    return dict(zip(("precision", "recall", "f1"), map(float, scores), strict=True))


def by_familiarity(
    words: list[list[str]], tags: list[list[str]], predictions: list[list[str]], known: set[tuple[str, ...]]
) -> dict[str, float]:
    """Entity F1 of names in `known` (those of the training sentences) and of all others: looked up, and understood.

    What is found counts by its own words, so that an invented name lowers the precision of the unknown ones.
    """
    found = {}
    for name, wanted in (("seen_f1", True), ("unseen_f1", False)):
        keep = lambda entity, wanted=wanted: (entity in known) == wanted
        gold, said = ([only(t, w, keep) for w, t in zip(words, side, strict=True)] for side in (tags, predictions))
        found[name] = entities(gold, said)["f1"]
    return found


def entity_report(tags: list[list[str]], predictions: list[list[str]]) -> str:
    """The table of every entity type by seqeval, in its default and its strict mode."""
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    loose = classification_report(tags, predictions, digits=3, zero_division=0)
    strict = classification_report(tags, predictions, digits=3, zero_division=0, mode="strict", scheme=IOB2)
    return f"seqeval, default\n{loose}\nseqeval, strict (IOB2)\n{strict}"


def ece(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error, eq-ece, both (items,): mean |share right − confidence| over bins of equal width.

    Weighted by the items in them. Source: Guo et al. (2017), equation 3.
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=bins)  # sums, hence already weighted
    return float(np.abs(gap).sum() / len(confidence))


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T in [0.05, 20] for which softmax(logits / T) gives the labels the least log loss (Guo et al. 2017).

    `logits`: (items, classes), `labels`: (items,). It changes no decision, only how sure it sounds.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    at = np.arange(len(labels))
    loss = lambda t: -log_softmax(logits / np.exp(t), axis=-1)[at, labels].mean()
    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


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
        return {**{k: round(v, 6) for k, v in asdict(self).items()}, "verdict": self.verdict}


def compare(a: np.ndarray, b: np.ndarray, resamples: int = 10_000, seed: int = 0, trained: bool = True) -> Difference:
    """Paired bootstrap over items and seeds (Efron and Tibshirani 1993, ch. 13): is a better than b?

    `a`, `b`: (seeds, items), what each item scored in each run (1 or 0 for accuracy), the items in the same order; or
    (seeds, items, 2), numerator and denominator of a ratio of sums, such as F1 = Σ 2·hits / Σ (found + true). Items are
    drawn together for both, since a hard item is hard for both; seeds apart, since nothing pairs them. `trained` False:
    b has no seeds, as a list of words has none, and one row.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} items against {b.shape[1]}")
    draw, items = np.random.default_rng(seed), a.shape[1]
    differences = []
    for _ in range(-(-resamples // 500)):
        weights = draw.multinomial(items, np.full(items, 1 / items), size=500) / items  # (500, items)
        mean_a, mean_b = (
            (_means(weights, x) * draw.multinomial(len(x), np.full(len(x), 1 / len(x)), size=500) / len(x)).sum(1)
            for x in (a, b)
        )
        differences.append(mean_a - mean_b)
    ends = np.percentile(np.concatenate(differences)[:resamples], [2.5, 97.5])
    low, high = ends.round(12) + 0.0  # a sum of hits that should be zero may be 1e-17 to either side
    once = np.full((1, items), 1 / items)
    mean = float(_means(once, a).mean() - _means(once, b).mean())
    return Difference(mean, float(low), float(high), min(len(a), len(b)) if trained else len(a))


def _means(weights: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(draws, items) × (seeds, items[, 2]) → the score of each draw and seed, (draws, seeds)."""
    if scores.ndim == 2:
        return weights @ scores.T
    below = weights @ scores[..., 1].T
    return np.divide(weights @ scores[..., 0].T, below, out=np.zeros_like(below), where=below > 0)
