"""What named entities cost without a network: a gazetteer, and a conditional random field over characters.

    python tools/ner_baselines.py --out runs/ner-baselines [--labels 1000]

Both learn from the training sentences alone and are judged on the same test block by entity F1.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from course_lib import metrics
from course_lib.config import Tuning
from course_lib.data import labelled, tags
from course_lib.data.annotated import Words
from course_lib.heads import registry
from course_lib.record import invocation, now, provenance

Tags = list[list[str]]
Find = Callable[[Sequence[str]], list[str]]
STRENGTHS = (0.01, 0.1, 1.0)  # L2 of the field, chosen on dev; the gazetteer has as many trials
SHARES = (0.3, 0.5, 0.7)  # how often a string must be a name to be looked up
LONGEST = 12  # words of an entry
ITERATIONS = 60


class Gazetteer:
    """Names seen in training, found again as the longest match from the left; each with its most frequent type.

    An entry is kept if at least `share` of the places where its words stand in the training text are names.
    """

    def __init__(self, sentences: Sequence[Sequence[str]], labels: Sequence[Sequence[str]], share: float):
        kinds: dict[tuple[str, ...], Counter[str]] = {}
        for words, found in zip(sentences, labels, strict=True):
            for span in tags.spans(found):
                kinds.setdefault(tuple(words[span.start : span.end]), Counter())[span.kind] += 1
        sizes = {len(name) for name in kinds if len(name) <= LONGEST}
        seen = Counter(
            name
            for words in sentences
            for size in sizes
            for at in range(len(words) - size + 1)
            if (name := tuple(words[at : at + size])) in kinds
        )
        self.names = {
            name: found.most_common(1)[0][0]
            for name, found in kinds.items()
            if len(name) in sizes and found.total() >= share * seen[name]
        }
        self.sizes = sorted(sizes, reverse=True)

    def find(self, words: Sequence[str]) -> list[str]:
        """One IOB2 tag a word."""
        spans, at = list[tags.Span](), 0
        while at < len(words):
            found = (tuple(words[at : at + n]) for n in self.sizes if at + n <= len(words))
            name = next((name for name in found if name in self.names), ())
            size = len(name)
            if size:
                spans.append(tags.Span(at, at + size, self.names[name]))
            at += size or 1
        return tags.of_spans(spans, len(words))


def features(words: Sequence[str], at: int) -> list[str]:
    """A word, its neighbours up to two away, pairs of them, and its shape."""
    near = {d: words[at + d] if 0 <= at + d < len(words) else "^" for d in (-2, -1, 0, 1, 2)}
    single = [f"{d}={word}" for d, word in near.items()]
    pairs = [f"{d},{d + 1}={near[d]} {near[d + 1]}" for d in (-2, -1, 0, 1)]
    word = near[0]
    return [*single, *pairs, f"skip={near[-1]} {near[1]}", f"title={word.istitle()}", f"digit={word.isdigit()}", "bias"]


def field(sentences: Sequence[Sequence[str]], labels: Sequence[Sequence[str]], strength: float, path: Path) -> Any:
    """A linear-chain CRF (Lafferty et al. 2001) by L-BFGS, stored in `path`."""
    import pycrfsuite

    trainer = pycrfsuite.Trainer(verbose=False)
    for words, found in zip(sentences, labels, strict=True):
        trainer.append([features(words, at) for at in range(len(words))], found)
    trainer.set_params({"c1": 0.0, "c2": strength, "max_iterations": ITERATIONS})
    trainer.train(str(path))
    tagger = pycrfsuite.Tagger()
    tagger.open(str(path))
    return tagger


def main() -> None:
    """Choose each on dev, score it once on test, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", default="peoples_daily")
    parser.add_argument("--labels", type=int, default=0, help="training sentences; 0: all")
    options = parser.parse_args()
    task = registry.get("ner").task(Tuning(task=options.task, head="ner", labels=options.labels))
    result = {name: chosen(name, task) for name in ("gazetteer", "crf")}
    options.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"id": options.out.name, "kind": "baselines", "command": invocation()}
    record |= {"finished": now(), **provenance(), "task": options.task, "train": len(task.train)}
    record |= {"test": len(task.test), "test_hash": task.test.identity(), "result": result}
    (options.out / "run.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def chosen(name: str, task: labelled.Task) -> dict[str, Any]:
    """The best of three strengths or shares by dev F1, and what it scores on test."""
    (train, gold), dev, test = (_columns(side, task.classes) for side in (task.train, task.dev, task.test))
    started, trials = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for value in SHARES if name == "gazetteer" else STRENGTHS:
            find: Find
            if name == "gazetteer":
                find = Gazetteer(train, gold, value).find
            else:
                tagger = field(train, gold, value, Path(folder) / f"{value}.crf")
                find = partial(_tag, tagger)
            trials.append((score(find, dev)["f1"], value, find))
        best, value, find = max(trials, key=lambda trial: trial[0])
        found = {"setting": value, "trials": len(trials), "dev_f1": round(best, 4)}
        found |= {key: round(number, 4) for key, number in score(find, test, tags.names(train, gold)).items()}
    return found | {"seconds": round(time.monotonic() - started, 1)}


def _tag(tagger: Any, words: Sequence[str]) -> list[str]:
    return list(tagger.tag([features(words, at) for at in range(len(words))]))


def score(
    find: Find, side: tuple[list[list[str]], Tags], known: set[tuple[str, ...]] | None = None
) -> dict[str, float]:
    """Entity precision, recall and F1 of a function from words to tags; also of names that are `known` and not."""
    sentences, gold = side
    said = [find(words) for words in sentences]
    apart = {} if known is None else metrics.by_familiarity(sentences, gold, said, known)
    return metrics.entities(gold, said) | apart


def _columns(side: labelled.Labelled, classes: list[str]) -> tuple[list[list[str]], Tags]:
    texts: list[Words] = side.texts
    words = [[text.text[s:e] for s, e in text.places] for text in texts]
    return words, [[classes[i] for i in found] for found in side.labels]


if __name__ == "__main__":
    main()
