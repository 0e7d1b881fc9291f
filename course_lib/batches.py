"""From rows of packed tokens to the micro-batches of a step: what is hidden, what is asked, who gets which rows.

A transform turns rows (rows, length + 1) of consecutive tokens into a batch for its objective, given the run's
progress. It sees the rows of *all* processes and draws from one generator, so that two processes together do exactly
what one does. Adding one: a class below and a line in `pretrain.RECIPES`.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from course_lib.data.pack import Loader
from course_lib.objectives import IGNORE, Batch


class Transform(Protocol):
    """Rows of tokens and progress in [0, 1] → a batch."""

    def __call__(self, rows: torch.Tensor, progress: float) -> Batch:
        """Make the batch of a whole step."""
        ...


def next_tokens(rows: torch.Tensor, progress: float) -> Batch:
    """Inputs, and the same one token later as labels."""
    return {"input_ids": rows[:, :-1], "labels": rows[:, 1:]}


class Mask:
    """Hide a fixed number of tokens in every row: 80 % become MASK, 10 % a random token, 10 % stay.

    `rate(progress)` gives the share; falling from 30 to 15 % suits short budgets (Wettig et al. 2023; Ankner et al.
    2024). Special tokens (ids below `specials`) are never chosen.
    """

    def __init__(
        self, mask: int, vocab_size: int, specials: int, generator: torch.Generator, rate: Callable[[float], float]
    ):
        self.mask, self.vocab_size, self.specials = mask, vocab_size, specials
        self.generator, self.rate = generator, rate

    def __call__(self, rows: torch.Tensor, progress: float) -> Batch:
        """Uses the first `length` tokens of each row."""
        ids = rows[:, :-1].clone()
        k = max(1, round(self.rate(progress) * ids.size(1)))
        order = torch.rand(ids.shape, generator=self.generator)
        order[ids < self.specials] = -1.0  # chosen last
        order[:, 0] = -2.0  # the hybrid predicts from the position before
        positions = order.topk(k, dim=1).indices  # (rows, k)
        true = ids.gather(1, positions)
        special = true < self.specials  # in a row of little else
        fate = torch.rand(positions.shape, generator=self.generator)
        random = torch.randint(self.specials, self.vocab_size, positions.shape, generator=self.generator)
        shown = torch.where(fate < 0.8, self.mask, torch.where(fate < 0.9, random, true)).where(~special, true)
        labels = true.masked_fill(special, IGNORE)
        return {"input_ids": ids.scatter(1, positions, shown), "positions": positions, "labels": labels}


class SentencePairs:
    """Two segments a row, BOS A SEP B SEP; in half of the rows B comes from another row (next-sentence prediction)."""

    def __init__(self, mask: Mask, bos: int, sep: int):
        self.inner, self.bos, self.sep = mask, bos, sep

    def __call__(self, rows: torch.Tensor, progress: float) -> Batch:
        """The row's halves, shortened by the three special tokens, then masked."""
        length = rows.size(1) - 1
        first, second = (length - 3) // 2, length - 3 - (length - 3) // 2
        is_next = torch.rand(len(rows), generator=self.inner.generator) < 0.5
        is_next |= len(rows) == 1  # there is no other row
        follows = rows[:, first : first + second]
        # Any other row, each its own draw: the row before is often the same document, wherever rows come in order.
        steps = torch.randint(1, max(2, len(rows)), (len(rows),), generator=self.inner.generator)
        b = torch.where(is_next[:, None], follows, follows[(torch.arange(len(rows)) + steps) % len(rows)])
        bos, sep = (torch.full((len(rows), 1), token) for token in (self.bos, self.sep))
        pair = torch.cat([bos, rows[:, :first], sep, b, sep, sep], dim=1)  # the last one is cut off again
        types = (torch.arange(length) >= first + 2).long().expand(len(rows), -1)
        return {**self.inner(pair, progress), "token_type_ids": types, "is_next": is_next}


class Alternate:
    """Whole steps of one kind or the other, in random order: `share` of them masked (the hybrid objective)."""

    def __init__(self, mask: Mask, share: float = 0.5):
        self.inner, self.share = mask, share

    def __call__(self, rows: torch.Tensor, progress: float) -> Batch:
        """One draw decides for all rows of the step."""
        masked = torch.rand((), generator=self.inner.generator) < self.share
        return self.inner(rows, progress) if masked else next_tokens(rows, progress)


def split(batch: Batch, rows: int) -> list[Batch]:
    """Micro-batches of at most `rows` rows."""
    parts = zip(*(value.split(rows) for value in batch.values()), strict=True)
    return [dict(zip(batch, part, strict=True)) for part in parts]


class Steps:
    """The micro-batches of every step, for one of `world` processes; `micro_rows` rows fit on a device at once."""

    def __init__(
        self,
        loader: Loader,
        transform: Transform,
        progress: Callable[[], float],
        micro_rows: int,
        rank: int,
        world: int,
    ):
        self.loader, self.transform, self.progress = loader, transform, progress
        self.micro_rows, self.rank, self.world = micro_rows, rank, world

    def __iter__(self) -> Iterator[list[Batch]]:
        for rows in self.loader:
            batch = self.transform(rows, self.progress())
            yield split({key: value[self.rank :: self.world] for key, value in batch.items()}, self.micro_rows)
