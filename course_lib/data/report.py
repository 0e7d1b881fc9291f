"""What a corpus is like before anything is trained on it: what the filters would remove, and hidden test items."""

from collections.abc import Callable

from course_lib.data import corpora, filters, library
from course_lib.data.clean import clean, document_hash, split_of
from course_lib.errors import CourseError

SAMPLE = 20_000  # documents; near-duplicate search costs about a millisecond each


def report(spec: str, log: Callable[[str], None], encoding: str = "utf-8", near: float = 0.8) -> dict[str, str]:
    """Run every filter over (the first `SAMPLE` documents of) a corpus, print what each removes, return the lines.

    Then look for every dataset's held-out texts in the corpus's training side.
    """
    corpus = corpora.load(spec, encoding)
    texts = [clean(text) for _, text in zip(range(SAMPLE), corpus.documents(), strict=False)]
    if not texts:
        raise CourseError(f"The corpus '{corpus.name}' is empty.")
    found: dict[str, str] = {}

    def say(name: str, line: str) -> None:
        found[name] = line
        log(line)

    for name, step in (
        ("length", lambda t: filters.length(t, low=20)),
        ("exact", filters.exact_duplicates),
        ("near", lambda t: filters.near_duplicates(t, near)),
    ):
        texts, done = step(texts)
        say(name, done.describe())
    training = (text for text in texts if split_of(document_hash(text)) == "train")
    for name, overlap in filters.contamination(training, _evaluation_texts()).items():
        say(f"overlap {name}", f"held out in {name}: {overlap.describe()}")
    return found


def _evaluation_texts() -> dict[str, list[str]]:
    """The test side of every dataset that has text and sides."""
    entries = library.DATASETS.items()
    return {n: list(library.load(n, "test")["text"]) for n, e in entries if "text" in e.features and e.splits != "all"}
