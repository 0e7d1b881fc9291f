"""Graders of notebook 00, a first run."""

import math
from collections.abc import Callable

from course_lib.checks.grading import Properties, close, grader


@grader
def ex00_1(bits_per_byte: Callable[[float, int, int], float], holds: Properties) -> None:
    """Bits per byte from a mean loss in nats per token, a number of tokens and their number of bytes."""
    with holds("nats become bits: a loss of ln 2 on tokens of one byte is 1 bit per byte"):
        close(bits_per_byte(math.log(2), 10, 10), 1.0)
    with holds("longer tokens spread their bits over more bytes: 10 tokens in 40 bytes are 4 times cheaper"):
        close(bits_per_byte(math.log(2), 10, 40), 0.25)
    with holds("a perfect model needs no bits"):
        close(bits_per_byte(0.0, 7, 21), 0.0)
    with holds("a uniform guess over 256 one-byte tokens needs 8 bits"):
        close(bits_per_byte(math.log(256), 100, 100), 8.0)
