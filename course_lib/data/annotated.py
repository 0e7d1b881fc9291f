"""Text with entities, to fine-tune on: CoNLL columns, or jsonl with spans or with tokens and tags.

Whatever the format, a sentence becomes a text with the places of its words and one IOB2 tag a word. The scheme of a
file is detected, converted and said; what cannot be is refused with its line.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from course_lib.data import files, library, tags
from course_lib.data.clean import CJK
from course_lib.errors import CourseError

WORD = re.compile(rf"[{CJK}]|[^\W_{CJK}]+|[^\w\s]|_")  # one CJK character, one run of letters and digits, or one sign


class Words(NamedTuple):
    """A text and where its words stand: `text[start:end]`. A word may be empty."""

    text: str
    places: list[tuple[int, int]]

    def words(self) -> list[str]:
        """The words themselves, each with the blank before it if there is one, as in running text."""
        return [self.text[s - self._spaced(s) : e] if s < e else "" for s, e in self.places]

    def _spaced(self, start: int) -> bool:
        return start > 0 and self.text[start - 1].isspace()


Item = tuple[Words, list[str]]  # one IOB2 tag a word
Found = tuple[list[Item], list[str]]  # and what a person should know about the file


def cut(text: str) -> Words:
    """The words of running text, each CJK character one."""
    return Words(text, [match.span() for match in WORD.finditer(text)])


def join(tokens: Sequence[str]) -> Words:
    """Tokens as running text: a blank between them, except between two CJK characters."""
    text, places = "", list[tuple[int, int]]()
    for token in tokens:
        if text and token and not (_wide(text[-1]) and _wide(token[:1])):
            text += " "
        places.append((len(text), len(text) + len(token)))
        text += token
    return Words(text, places)


def read(path: Path, encoding: str = "utf-8") -> Found:
    """Sentences of a file, and notes on it: jsonl with `text` and `entities` or `tokens` and `tags`, else CoNLL."""
    if path.suffix.lower() == ".jsonl":
        rows = list(files.rows(path, encoding))
        if rows and "text" in rows[0] and not {"tokens", "tags"} <= rows[0].keys():
            return _with_spans(path, rows)
        tokens, found, where = _with_tags(path, rows)
    else:
        tokens, found, where = [], [], []
        for line, sentence in files.columns(path, encoding):
            tokens.append([columns[0] for columns in sentence])
            found.append([columns[-1] for columns in sentence])
            where.append(f"{path}, the sentence from line {line}")
    if not tokens:
        raise CourseError(f"{path} is empty.")
    return _converted(path, tokens, found, where)


def _converted(path: Path, tokens: list[list[str]], found: list[list[str]], where: list[str]) -> Found:
    scheme = tags.detect(found, where)
    notes = [f"{path}: the tags are {scheme}" + ("." if scheme == "IOB2" else ", converted to IOB2.")]
    pairs = list(zip(tokens, found, strict=True))
    named = [token for sentence, labels in pairs for token, tag in zip(sentence, labels, strict=True) if tag != "O"]
    # Not cut here: predictions stand beside the file's own tokens.
    if several := [token for token in named if token and not WORD.fullmatch(token)]:
        notes.append(
            f"{path}: {len(several):,} tokens of entities, such as '{several[0]}', are several words in running text, "
            "of which `extract` may find a part only."
        )
    return [(join(sentence), tags.convert(labels, scheme)) for sentence, labels in pairs], notes


def _with_tags(path: Path, rows: list[dict[str, Any]]) -> tuple[list[list[str]], list[list[str]], list[str]]:
    where = [f"{path}, row {number}" for number in range(1, len(rows) + 1)]
    for row, place in zip(rows, where, strict=True):
        if not all(isinstance(row.get(key), list) for key in ("tokens", "tags")):
            raise CourseError(f"{place}: neither `text` and `entities` nor the lists `tokens` and `tags`.")
        if len(row["tokens"]) != len(row["tags"]):
            raise CourseError(f"{place}: {len(row['tokens'])} tokens but {len(row['tags'])} tags.")
    return [list(map(str, row["tokens"])) for row in rows], [list(map(str, row["tags"])) for row in rows], where


def _with_spans(path: Path, rows: list[dict[str, Any]]) -> Found:
    """`entities`: objects with `start`, `end` (characters, exclusive) and `label`."""
    items, widened = list[Item](), 0
    for number, row in enumerate(rows, 1):
        place = f"{path}, row {number}"
        if not isinstance(files.filled(path, number, row, "text"), str):
            raise CourseError(f"{place}: the text is {row['text']}, not a string.")
        if not isinstance(row.get("entities"), list):
            raise CourseError(f"{place}: there is no list `entities`; give a text that has none an empty one, [].")
        words = cut(row["text"])
        marked: list[tags.Span] = []
        for start, end, label in sorted(_span(entity, place) for entity in row["entities"]):
            inside = [i for i, (s, e) in enumerate(words.places) if s < end and e > start]
            if not (0 <= start < end <= len(row["text"])) or not inside:
                raise CourseError(f"{place}: there is no word at characters {start} to {end}.")
            if marked and inside[0] < marked[-1].end:
                raise CourseError(f"{place}: the entity at {start} overlaps the one before it, or shares a word.")
            widened += (words.places[inside[0]][0], words.places[inside[-1]][1]) != (start, end)
            marked.append(tags.Span(inside[0], inside[-1] + 1, label))
        items.append((words, tags.of_spans(marked, len(words.places))))
    notes = [f"{path}: {widened} entities end inside a word and were widened to whole words."] if widened else []
    return items, notes


def _span(entity: Any, place: str) -> tuple[int, int, str]:
    found: list[Any] = [entity.get(key) for key in ("start", "end", "label")] if isinstance(entity, dict) else []
    if list(map(type, found)) != [int, int, str] or not found[2].strip():
        raise CourseError(
            f"{place}: an entity needs start, end and label, two whole numbers and a name, but is {entity}."
        )
    return found[0], found[1], found[2]


def _wide(character: str) -> bool:
    return bool(character) and unicodedata.east_asian_width(character) in "WF"


def peoples_daily() -> dict[str, list[Item]]:
    """Its own split; every character is a word."""
    sides = library.load("peoples_daily")
    names = next(iter(sides.values())).features["tags"].feature.names
    place = lambda text: Words(text, [(i, i + 1) for i in range(len(text))])
    found = {}
    for ours, theirs in (("train", "train"), ("dev", "valid"), ("test", "test")):
        columns = sides[theirs].select_columns(["text", "tags"])[:]  # at once; row by row takes seconds
        pairs = zip(columns["text"], columns["tags"], strict=True)
        found[ours] = [(place(text), [names[i] for i in labels]) for text, labels in pairs]
    return found


NAMES = Path(__file__).with_name("wiki_names.conll")
NAMES_SIDES = (("train", 0, 90), ("dev", 90, 105), ("test", 105, 150))


def wiki_names() -> dict[str, list[Item]]:
    """150 English sentences labelled by hand (book/annotation_guide.md), in the file's order."""
    items, _ = read(NAMES)
    return {side: items[low:high] for side, low, high in NAMES_SIDES}


# Registered tasks. Adding one: a function that gives the sides, and a line here.
TASKS: dict[str, Callable[[], dict[str, list[Item]]]] = {"peoples_daily": peoples_daily, "wiki_names": wiki_names}
