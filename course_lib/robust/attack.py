"""Attacks on a classifier of texts that a reader would hardly notice: misspelt or exchanged words, chosen against it.

They ask the model for probabilities and need no gradients, so they attack anything (Gao et al. 2018; Jin et al. 2020).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from course_lib.robust.thesaurus import Thesaurus

Score = Callable[[list[str]], np.ndarray]  # texts → probabilities (texts, classes)
Candidates = Callable[[str], list[str]]  # what a word may become


def letters(word: str) -> list[str]:
    """Two inner letters change places, or one is lost; first and last stay, so that a person still reads the word."""
    swaps = [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(1, len(word) - 2)]
    losses = [word[:i] + word[i + 1 :] for i in range(1, len(word) - 1)] if len(word) > 3 else []
    return [new for new in dict.fromkeys(swaps + losses) if new != word] if word.isalpha() else []


def exchanged(near: Thesaurus) -> Candidates:
    """Words of a thesaurus. Unless a person wrote it, it may turn a meaning round: a flip proves less."""
    return lambda word: near.get(word, [])


@dataclass(frozen=True)
class Attacked:
    """`texts` after the attack; `right`: 1 where the model still gives the label; `queries`: what it was asked."""

    texts: list[str]
    right: np.ndarray
    queries: int

    @property
    def accuracy(self) -> float:
        """Robust accuracy: right before and after."""
        return float(self.right.mean())


def attack(
    score: Score, texts: Sequence[str], labels: Sequence[int], candidates: Candidates, most: int = 3
) -> Attacked:
    """Change at most `most` words of each text so that the model gives another class than the label.

    Words whose loss hurts the label most come first; each becomes the candidate that hurts most. Texts that are wrong
    already are left alone.
    """
    asked = 0

    def ask(variants: list[str]) -> np.ndarray:
        nonlocal asked
        asked += len(variants)
        return score(variants)

    found = [_one(ask, text, label, candidates, most) for text, label in zip(texts, labels, strict=True)]
    return Attacked([text for text, _ in found], np.array([right for _, right in found], dtype=float), asked)


def _one(ask: Score, text: str, label: int, candidates: Candidates, most: int) -> tuple[str, bool]:
    """(the text as it ends, whether the model still gives its label)."""
    words = text.split()
    before = ask([" ".join(words)])[0]
    if before.argmax() != label or not words:
        return text, bool(before.argmax() == label)
    without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    order = np.argsort(ask(without)[:, label], kind="stable")
    lowest, changed = before[label], 0
    for i in order:
        variants = [[*words[:i], new, *words[i + 1 :]] for new in candidates(words[i])]
        if not variants or changed == most:
            continue
        chances = ask([" ".join(variant) for variant in variants])  # (variants, classes)
        worst = int(chances[:, label].argmin())
        if chances[worst, label] >= lowest:
            continue
        words, lowest, changed = variants[worst], chances[worst, label], changed + 1
        if chances[worst].argmax() != label:
            return " ".join(words), False
    return " ".join(words), True
