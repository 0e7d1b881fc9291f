"""Long texts as overlapping windows: every word is read in the one where it stands furthest from an edge."""

from collections.abc import Sequence
from itertools import accumulate


def cut(sizes: Sequence[int], room: int, stride: int) -> list[tuple[int, int]]:
    """Ranges of words that cover all of them, each of at most `room` tokens, neighbours sharing at most `stride`.

    `sizes`: tokens of each word; none may exceed `room`. One range if everything fits.
    """
    before = [0, *accumulate(sizes)]
    ranges: list[tuple[int, int]] = []
    start, end = 0, 0
    while True:
        while end < len(sizes) and before[end + 1] - before[start] <= room:
            end += 1
        ranges.append((start, end))
        if end == len(sizes):
            return ranges
        start = end
        while start > 0 and before[end] - before[start - 1] <= stride and before[end + 1] - before[start - 1] <= room:
            start -= 1


def owners(sizes: Sequence[int], ranges: Sequence[tuple[int, int]]) -> list[int]:
    """For every word, the range that sees most on both sides of it; a text's own ends are no edges."""
    if len(ranges) == 1:
        return [0] * len(sizes)
    before = [0, *accumulate(sizes)]
    best = [(-1, 0)] * len(sizes)
    for number, (start, end) in enumerate(ranges):
        for word in range(start, end):
            left = before[word] - before[start] if start else before[-1]
            right = before[end] - before[word + 1] if end < len(sizes) else before[-1]
            best[word] = max(best[word], (min(left, right), -number))
    return [-number for _, number in best]
