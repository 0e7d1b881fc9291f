"""Graders of chapter 8, fine-tuning for named entities."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from course_lib.checks.grading import Properties, close, equal, grader, written

IGNORE = -100


@grader
def ex08_1(align: Callable[[list[int], list[int]], list[int]], holds: Properties) -> None:
    """Labels of words → labels of tokens, between two special tokens."""

    def solve(sizes: list[int], labels: list[int]) -> list[int]:
        found = align(list(sizes), list(labels))
        written(found)
        return list(found)

    with holds("there is a label for every token and for the two special tokens"):
        equal(len(solve([1, 3, 2], [0, 1, 2])), 8, "labels")
        equal(len(solve([], [])), 2, "labels of an empty sentence")
    with holds("the special tokens have none"):
        found = solve([1, 1], [3, 4])
        equal([found[0], found[-1]], [IGNORE, IGNORE])
    with holds("a word's label stands on its first piece"):
        found = solve([1, 3, 2], [5, 1, 2])
        equal([found[1], found[2], found[5]], [5, 1, 2])
    with holds("its other pieces have none"):
        found = solve([1, 3, 2], [5, 1, 2])
        equal([found[3], found[4], found[6]], [IGNORE] * 3)
    with holds("a word without pieces takes its label away with it"):
        equal(solve([1, 0, 2], [5, 1, 2]), [IGNORE, 5, 2, IGNORE, IGNORE])


@grader
def ex08_2(entity_f1: Callable[[list[list[str]], list[list[str]]], float], holds: Properties) -> None:
    """F1 of whole entities over all sentences."""

    def solve(gold: Sequence[str], found: Sequence[str]) -> float:
        value = entity_f1([line.split() for line in gold], [line.split() for line in found])
        written(value)
        return value

    person = ["B-PER I-PER O B-LOC"]
    with holds("everything right is 1"):
        close(solve(person, person), 1.0)
    with holds("half of an entity is no entity"):
        close(solve(person, ["B-PER O O B-LOC"]), 0.5)
        close(solve(["B-PER I-PER O O"], ["O B-PER O O"]), 0.0)
    with holds("the right words with the wrong type are wrong"):
        close(solve(person, ["B-ORG I-ORG O B-LOC"]), 0.5)
    with holds("B begins a new entity right after another one"):
        close(solve(["B-PER B-PER"], ["B-PER I-PER"]), 0.0)
    with holds("precision and recall both count"):
        close(solve(["B-PER O O O"], ["B-PER O B-LOC B-LOC"]), 0.5)
        close(solve(["B-PER O B-LOC B-LOC"], ["B-PER O O O"]), 0.5)
    with holds("entities are counted over all sentences, not a mean of sentences' scores"):
        close(solve(["B-PER", "B-LOC B-LOC B-LOC"], ["O", "B-LOC B-LOC B-LOC"]), 6 / 7)
    with holds("an entity counts in its own sentence alone"):
        close(solve(["B-PER O", "O O"], ["O O", "B-PER O"]), 0.0)
    with holds("an O that is right earns nothing, and no entities at all give 0"):
        close(solve(["B-PER O O O O O"], ["O O O O O O"]), 0.0)
        close(solve(["O O"], ["O O"]), 0.0)


@grader
def ex08_3(mend: Callable[[list[str]], list[str]], holds: Properties) -> None:
    """Any row of B, I and O → sound IOB2 with the same entities as seqeval reads."""

    def solve(tags: str) -> str:
        given = tags.split()
        found = mend(given)
        written(found)
        equal(given, tags.split(), "what you were given has changed")
        return " ".join(found)

    with holds("sound tags stay as they are"):
        equal(solve("B-PER I-PER O B-LOC B-LOC I-LOC"), "B-PER I-PER O B-LOC B-LOC I-LOC")
    with holds("an I at the very beginning becomes B"):
        equal(solve("I-PER I-PER O"), "B-PER I-PER O")
    with holds("an I after O becomes B"):
        equal(solve("O I-LOC I-LOC"), "O B-LOC I-LOC")
    with holds("an I after another type becomes B"):
        equal(solve("B-PER I-LOC I-LOC"), "B-PER B-LOC I-LOC")
        equal(solve("I-ORG I-PER I-ORG"), "B-ORG B-PER B-ORG")
    with holds("types with a hyphen are whole"):
        equal(solve("B-WORK-ART I-WORK-LAW"), "B-WORK-ART B-WORK-LAW")


@grader
def ex08_4(locate: Callable[[list[tuple[int, int]], list[str]], list[tuple[int, int, str]]], holds: Properties) -> None:
    """Tags of words → entities as characters of the text."""
    text = "Ada King of New  York, Ohio."
    places = [(0, 3), (4, 8), (9, 11), (12, 15), (17, 21), (21, 22), (23, 27), (27, 28)]

    def solve(tags: str, at: list[tuple[int, int]] = places) -> list[tuple[Any, ...]]:
        found = locate(list(at), tags.split())
        written(found)
        return [tuple(entity) for entity in found]

    def named(tags: str) -> list[str]:
        return [text[start:end] for start, end, _ in solve(tags)]

    with holds("an entity of one word is that word"):
        equal(named("O O O O O O B-LOC O"), ["Ohio"])
    with holds("an entity of several words holds what stands between them, two blanks included"):
        equal(named("O O O B-LOC I-LOC O O O"), ["New  York"])
    with holds("the type comes third, without its B"):
        equal(solve("B-PER I-PER O O O O O O"), [(0, 8, "PER")])
    with holds("neighbours stay apart"):
        equal(named("B-PER B-PER O O O O O O"), ["Ada", "King"])
    with holds("one that the text's end cuts off is not lost"):
        equal(solve("O O O O O O O B-LOC"), [(27, 28, "LOC")])
    with holds("without blanks, as in Chinese, nothing is added"):
        equal(solve("B-PER I-PER O B-LOC I-LOC", [(i, i + 1) for i in range(5)]), [(0, 2, "PER"), (3, 5, "LOC")])
    with holds("no entity, no answer"):
        equal(solve("O O O O O O O O"), [])


@grader
def ex08_5(windows: Callable[[int, int, int], list[tuple[int, int]]], holds: Properties) -> None:
    """Ranges of at most `room` tokens that cover `length` tokens, neighbours sharing `shared`."""

    def solve(length: int, room: int, shared: int) -> list[tuple[int, ...]]:
        found = windows(length, room, shared)
        written(found)
        return [tuple(window) for window in found]

    with holds("what fits is one window"):
        equal(solve(7, 10, 4), [(0, 7)])
        equal(solve(10, 10, 4), [(0, 10)])
    with holds("no window holds more than `room` tokens, and all but the last are full"):
        sizes = [end - start for start, end in solve(25, 10, 4)]
        equal(max(sizes), 10, "the longest")
        equal(set(sizes[:-1]), {10}, "all but the last")
    with holds("neighbours share `shared` tokens"):
        found = solve(25, 10, 4)
        equal({a[1] - b[0] for a, b in itertools.pairwise(found)}, {4}, "shared")
        equal(solve(20, 10, 0), [(0, 10), (10, 20)])
    with holds("every token is in a window"):
        for length in range(11, 40):
            covered = {at for start, end in solve(length, 10, 4) for at in range(start, end)}
            equal(covered, set(range(length)), f"of {length}")
    with holds("none is without a token of its own"):
        equal(solve(16, 10, 4), [(0, 10), (6, 16)])
        equal(len(solve(22, 10, 4)), 3, "windows")
