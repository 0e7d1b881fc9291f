"""What to leave out of a training corpus, and whether an evaluation set is hiding in it.

Each step is a pure function from texts to (texts that stay, report); the report says what was removed.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from course_lib.data.clean import CJK, clean, document_hash

_WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+")


@dataclass(frozen=True)
class Report:
    """What one step did to a list of texts."""

    step: str
    before: int
    after: int

    def describe(self) -> str:
        """One line for a person."""
        removed = self.before - self.after
        return f"{self.step}: {removed:,} of {self.before:,} removed ({removed / max(self.before, 1):.1%})"


Step = tuple[list[str], Report]


def _kept(step: str, texts: Sequence[str], stays: Iterable[bool]) -> Step:
    kept = [text for text, stay in zip(texts, stays, strict=True) if stay]
    return kept, Report(step, len(texts), len(kept))


def exact_duplicates(texts: Sequence[str]) -> Step:
    """Keep the first of texts that are equal after cleaning."""
    seen: set[int] = set()
    stays = []
    for text in texts:
        digest = document_hash(clean(text))
        stays.append(digest not in seen)
        seen.add(digest)
    return _kept("exact duplicates", texts, stays)


def near_duplicates(texts: Sequence[str], threshold: float = 0.8, words: int = 5, permutations: int = 64) -> Step:
    """Keep the first of texts whose sets of word `words`-grams have an (estimated) Jaccard similarity ≥ `threshold`.

    MinHash with locality-sensitive hashing (Broder 1997; Leskovec et al. 2014, chapter 3), by `datasketch`.
    """
    from datasketch import MinHash, MinHashLSH

    index, stays = MinHashLSH(threshold=threshold, num_perm=permutations), []
    sketches: dict[int, MinHash] = {}
    for number, text in enumerate(texts):
        sketch = MinHash(num_perm=permutations, seed=0)
        sketch.update_batch([" ".join(gram).encode() for gram in ngrams(text, words)] or [text.encode()])
        # The index proposes, the sketches decide.
        stays.append(not any(sketch.jaccard(sketches[key]) >= threshold for key in index.query(sketch)))
        if stays[-1]:
            sketches[number] = sketch
            index.insert(number, sketch)
    return _kept(f"near duplicates (≥ {threshold:.0%} of {words}-word sequences)", texts, stays)


def length(texts: Sequence[str], low: int = 0, high: int = 10**9) -> Step:
    """Keep texts of `low` to `high` characters."""
    return _kept(f"length outside {low:,} to {high:,} characters", texts, (low <= len(text) <= high for text in texts))


def language(texts: Sequence[str], wanted: Sequence[str]) -> Step:
    """Keep texts that py3langid takes for one of `wanted` (ISO 639-1 codes). Unreliable below about 20 characters."""
    import py3langid

    return _kept(f"language not {', '.join(wanted)}", texts, (py3langid.classify(text)[0] in wanted for text in texts))


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Word n-grams, lower case, punctuation ignored."""
    found = _WORD.findall(text.lower())
    return list(zip(*(found[i:] for i in range(n)), strict=False))


@dataclass(frozen=True)
class Overlap:
    """How much of an evaluation set stands in the training text.

    `touched`: texts that share at least one n-gram; `contained`: texts with at least half of their n-grams;
    `too_short`: texts without any n-gram, on which nothing can be said.
    """

    texts: int
    touched: int
    contained: int
    too_short: int

    def describe(self) -> str:
        """One line for a person."""
        return (
            f"{self.contained:,} of {self.texts:,} texts at least half contained, {self.touched:,} touched, "
            f"{self.too_short:,} too short to say"
        )


def contamination(training: Iterable[str], evaluation: Mapping[str, Sequence[str]], n: int = 8) -> dict[str, Overlap]:
    """n-gram overlap of each evaluation set with the training text; one pass, memory of the evaluation sets' size."""
    grams = {name: [[hash(g) for g in ngrams(text, n)] for text in texts] for name, texts in evaluation.items()}
    asked = {g for texts in grams.values() for text in texts for g in text}
    found: set[int] = set()
    for text in training:
        found.update(asked.intersection(map(hash, ngrams(text, n))))
    return {name: _overlap(texts, found) for name, texts in grams.items()}


def _overlap(texts: list[list[int]], found: set[int]) -> Overlap:
    shares = np.array([np.mean([g in found for g in text]) if text else np.nan for text in texts])
    return Overlap(len(texts), int((shares > 0).sum()), int((shares >= 0.5).sum()), int(np.isnan(shares).sum()))
