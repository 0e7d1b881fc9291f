"""Entity tags: which scheme a file uses, and tags ↔ spans, so that everything above knows IOB2 only.

IOB2 begins every entity with B; IOB1 (CoNLL-2003 as published) uses B only where an entity touches another of its type,
so read as IOB2 it is full of broken entities; BIOES also marks the last token (E) and a single one (S). Source: Ramshaw
and Marcus (1995); Tjong Kim Sang and Veenstra (1999).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from course_lib.errors import CourseError

SCHEMES = ("IOB2", "IOB1", "BIOES")
ADVICE = "Convert it to IOB2, IOB1 or BIOES."


@dataclass(frozen=True, order=True)
class Span:
    """Items `start` to `end` (exclusive) are one entity of this type. What an item is (token, character): its owner."""

    start: int
    end: int
    kind: str


def parts(tag: str) -> tuple[str, str]:
    """`B-PER` → (B, PER); the type may hold hyphens. `O` → (O, '')."""
    prefix, _, kind = tag.partition("-")
    return prefix, kind


def begins(tag: str, before: str, scheme: str) -> bool:
    """Whether an entity starts at `tag`, after the tag `before`, in a sound sequence."""
    (prefix, kind), (previous, same) = parts(tag), parts(before)
    if prefix == "O":
        return False
    if scheme == "IOB1":
        return prefix == "B" or previous == "O" or kind != same
    return prefix in ("B", "S")


def sound(tag: str, before: str, scheme: str) -> bool:
    """Whether `tag` may stand after `before`; the end of a sentence counts as O."""
    (prefix, kind), (previous, same) = parts(tag), parts(before)
    inside = previous != "O" and kind == same
    if scheme == "IOB2":
        return inside if prefix == "I" else True
    if scheme == "IOB1":
        return inside if prefix == "B" else True
    if previous in ("B", "I"):  # BIOES: an entity is open, and must go on
        return prefix in ("I", "E") and inside
    return prefix in ("O", "B", "S")


def spans(tags: Sequence[str], scheme: str = "IOB2") -> list[Span]:
    """The entities of one sentence. A broken start (I after O) begins an entity, as seqeval's default has it."""
    found: list[Span] = []
    start = -1
    for at, tag in enumerate([*tags, "O"]):
        before = tags[at - 1] if at else "O"
        fresh = parts(tag)[0] != "O" and (
            begins(tag, before, scheme) or parts(before)[0] in ("O", "E", "S") or parts(tag)[1] != parts(before)[1]
        )
        if start >= 0 and (fresh or tag == "O"):
            found.append(Span(start, at, parts(tags[start])[1]))
            start = -1
        if fresh:
            start = at
    return found


def of_spans(found: Sequence[Span], length: int, scheme: str = "IOB2") -> list[str]:
    """The tags of a sentence of `length` items; spans must not overlap."""
    tags = ["O"] * length
    for span in found:
        for at in range(span.start, span.end):
            first, last = at == span.start, at == span.end - 1
            if scheme == "BIOES":
                prefix = "S" if first and last else "B" if first else "E" if last else "I"
            elif scheme == "IOB1":
                touching = at > 0 and parts(tags[at - 1])[1] == span.kind
                prefix = "B" if first and touching else "I"
            else:
                prefix = "B" if first else "I"
            tags[at] = f"{prefix}-{span.kind}"
    return tags


def only(tags: Sequence[str], words: Sequence[str], keep: Callable[[tuple[str, ...]], bool]) -> list[str]:
    """The tags of a sentence with those entities alone whose words `keep` accepts."""
    return of_spans([span for span in spans(tags) if keep(tuple(words[span.start : span.end]))], len(tags))


def names(sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> set[tuple[str, ...]]:
    """The words of every entity of these sentences."""
    pairs = zip(sentences, tags, strict=True)
    return {tuple(words[span.start : span.end]) for words, found in pairs for span in spans(found)}


def convert(tags: Sequence[str], scheme: str) -> list[str]:
    """From `scheme` to IOB2."""
    return list(tags) if scheme == "IOB2" else of_spans(spans(tags, scheme), len(tags))


def detect(sentences: Sequence[Sequence[str]], where: Sequence[str]) -> str:
    """The scheme that all sentences follow; IOB2 when nothing tells. `where` names each sentence in error messages."""
    prefixes = {parts(tag)[0] for tags in sentences for tag in tags}
    _refuse(prefixes, sentences, where)
    candidates = ("BIOES",) if prefixes & {"E", "S"} else ("IOB2", "IOB1")
    broken = {scheme: _first_broken(sentences, where, scheme) for scheme in candidates}
    for scheme, at in broken.items():
        if not at:
            return scheme
    places = " and ".join(f"{scheme} at {at}" for scheme, at in broken.items())
    raise CourseError(f"The tags follow no scheme throughout: they break {places}. Is it two schemes in one file?")


def _refuse(prefixes: set[str], sentences: Sequence[Sequence[str]], where: Sequence[str]) -> None:
    """Schemes that are not read, and what is no scheme at all."""
    for unread, marks in (("BILOU", {"L", "U"}), ("BMEWO", {"M", "W"})):
        if prefixes & marks:
            raise CourseError(f"{_locate(marks, sentences, where)}: the tags look like {unread}. {ADVICE}")
    if "E" in prefixes and not prefixes & {"B", "S"}:
        raise CourseError(f"{_locate({'E'}, sentences, where)}: the tags look like IOE (E ends an entity). {ADVICE}")
    for tags, place in zip(sentences, where, strict=True):
        for tag in tags:
            prefix, kind = parts(tag)
            if prefix not in "OBIES" or len(prefix) != 1 or (prefix == "O") != (not kind):
                raise CourseError(f"{place}: '{tag}' is no entity tag like O, B-PER or I-PER.")


def _locate(marks: set[str], sentences: Sequence[Sequence[str]], where: Sequence[str]) -> str:
    return next(w for tags, w in zip(sentences, where, strict=True) if any(parts(t)[0] in marks for t in tags))


def _first_broken(sentences: Sequence[Sequence[str]], where: Sequence[str], scheme: str) -> str:
    for tags, place in zip(sentences, where, strict=True):
        for tag, before in zip([*tags, "O"], ["O", *tags], strict=True):
            if not sound(tag, before, scheme):
                return f"{place} ({tag} after {before})"
    return ""
