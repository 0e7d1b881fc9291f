"""Examples of unequal length as batches with little padding: bucketed by length, in a new order every epoch."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from course_lib.data.pack import Position
from course_lib.objectives import IGNORE, Batch

POOL = 50  # steps whose examples are sorted by length together: little padding, and still a random order


def pad(
    rows: Sequence[Sequence[int]],
    labels: Sequence[Any],
    padding: int,
    types: Sequence[Sequence[int]] | None = None,
) -> Batch:
    """`input_ids` and `attention_mask` (rows, longest), padded on the right; `token_type_ids` if there are `types`.

    A row without tokens (an empty text, no special tokens) gets one of padding to look at: a model needs something.
    `labels`: (rows,), or (rows, most) where a row has several; shorter ones are filled with `IGNORE`.
    """
    batch = {
        "input_ids": _filled(rows, padding),
        "attention_mask": _filled([[1] * max(1, len(row)) for row in rows], 0),
        "labels": _filled(labels, IGNORE) if isinstance(labels[0], Sequence) else torch.tensor(labels),
    }
    return batch | ({"token_type_ids": _filled(types, 0)} if types else {})


def _filled(rows: Sequence[Sequence[Any]], padding: int) -> torch.Tensor:
    width = max(1, *map(len, rows))
    return torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows])


@dataclass
class Rows:
    """Encoded examples. `places`: what a head needs to bring a row's output back to its text."""

    ids: list[list[int]]
    labels: list[Any]
    types: list[list[int]] | None = None
    places: list[Any] = field(default_factory=list)

    def batch(self, chosen: Sequence[int], padding: int) -> Batch:
        """Some of them, padded."""
        pick = lambda column: [column[i] for i in chosen]
        return pad(pick(self.ids), pick(self.labels), padding, pick(self.types) if self.types else None)


def fit(ids: list[int], length: int) -> list[int]:
    """At most `length` tokens: the head and the tail, which say most in a long review (Sun et al. 2019)."""
    if len(ids) <= length:
        return ids
    tail = (length - 1) // 2
    return ids[: length - tail] + ids[len(ids) - tail :]


class Examples:
    """Endless steps of `step_rows` examples. Every epoch visits each example once, in an order given by the seed."""

    def __init__(self, rows: Rows, step_rows: int, padding: int, seed: int):
        self.rows, self.step_rows, self.padding, self.seed = rows, step_rows, padding, seed
        self.position = Position()  # `row` counts steps

    @property
    def steps_per_epoch(self) -> int:
        """The last step of an epoch may be smaller."""
        return -(-len(self.rows.ids) // self.step_rows)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            steps = self._steps()
            while self.position.row < len(steps):
                chosen = steps[self.position.row]
                self.position.row += 1
                yield self.rows.batch(chosen, self.padding)
            self.position = Position(self.position.epoch + 1, 0)

    def _steps(self) -> list[list[int]]:
        """The examples of every step of this epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.position.epoch)
        order = torch.randperm(len(self.rows.ids), generator=generator).tolist()
        size = POOL * self.step_rows
        pools = [
            sorted(order[at : at + size], key=lambda i: len(self.rows.ids[i])) for at in range(0, len(order), size)
        ]
        steps = [pool[at : at + self.step_rows] for pool in pools for at in range(0, len(pool), self.step_rows)]
        return [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]

    def state_dict(self) -> dict[str, Any]:
        """Position as plain numbers."""
        return asdict(self.position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last step that was handed out."""
        self.position = Position(**state)
