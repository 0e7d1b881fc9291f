"""Words that can stand in each other's place: a user's own list, or neighbours in co-occurrence vectors.

Neighbours keep the same company, which is not the same meaning: `good` and `bad` are neighbours.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from course_lib import assets, cooccurrence
from course_lib.data import corpora
from course_lib.data.clean import document_hash, split_of
from course_lib.errors import CourseError
from course_lib.storage import new_folder

WORD = re.compile(r"[^\W\d_]+")
CORPUS, VOCABULARY, TOKENS = "movie_reviews", 6000, 1_500_000
SIZE, WINDOW, NEAREST = 64, 2, 6  # a narrow window finds words of the same kind rather than of the same topic
BOS, RARE = 0, 1

Thesaurus = dict[str, list[str]]


def load(path: str = "") -> Thesaurus:
    """`{word: [words that can replace it]}` from a JSON file; empty: the neighbours in film reviews, made once.

    Held-out texts take no part. Raises CourseError for a file that is none.
    """
    if path:
        return _read(Path(path))
    folder = assets.cache_dir() / "thesaurus" / f"{CORPUS}-{VOCABULARY}-{TOKENS}-{SIZE}-{WINDOW}-{NEAREST}"
    if not folder.exists():
        documents = (text for text in corpora.load(CORPUS).documents() if split_of(document_hash(text)) == "train")
        found = neighbours(documents)
        with new_folder(folder) as scratch:
            (scratch / "words.json").write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    return _read(folder / "words.json")


def neighbours(texts: Iterable[str], vocabulary: int = VOCABULARY, size: int = SIZE, seed: int = 0) -> Thesaurus:
    """The `NEAREST` words by cosine of their co-occurrence vectors, for each of the most frequent words."""
    stream: list[str] = []
    for text in texts:
        stream += ["", *WORD.findall(text.lower())]
        if len(stream) >= TOKENS:
            break
    frequent = [word for word, _ in Counter(stream).most_common(vocabulary + 1) if word]
    index = {"": BOS} | {word: i for i, word in enumerate(frequent, RARE + 1)}
    tokens = np.array([index.get(word, RARE) for word in stream])
    vectors = cooccurrence.embeddings(tokens, len(frequent) + 2, size, BOS, seed, WINDOW)[RARE + 1 :].numpy()
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)  # (words, size)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :NEAREST]
    return {word: [frequent[j] for j in row] for word, row in zip(frequent, nearest, strict=True)}


def _read(path: Path) -> Thesaurus:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CourseError(f"{path} is no thesaurus: {error}. It should be JSON, {{word: [synonyms]}}.") from error
    if not isinstance(found, dict) or not all(isinstance(words, list) for words in found.values()):
        raise CourseError(f"{path} is no thesaurus. It should be JSON, {{word: [synonyms]}}.")
    return found
