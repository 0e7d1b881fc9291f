"""Packed tokens on disk, and the loader that turns them into batches.

Documents are joined end to end, each after a BOS token, so that no token is padding; a row of a batch is a
stretch of that stream. The file is a plain memory-mapped array, so a corpus need not fit into memory.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from course_lib.errors import CourseError


@dataclass(frozen=True)
class Packed:
    """`tokens`: (count,) memory map. `bytes`: UTF-8 bytes of the documents, what bits per byte divides by."""

    tokens: np.ndarray
    documents: int
    bytes: int

    @classmethod
    def write(
        cls, path: Path, batches: Iterable[list[list[int]]], vocab_size: int, n_bytes: int, origin: dict[str, str]
    ) -> None:
        """Write lists of documents' token ids as they come, and a header beside them.

        `origin` says what the tokens mean and where they are from: the hashes of the tokenizer and of the source.
        """
        dtype = np.dtype("uint16" if vocab_size <= 2**16 else "uint32")
        tokens = documents = 0
        with path.open("wb") as file:
            for ids in batches:
                np.concatenate([np.asarray(document, dtype) for document in ids]).tofile(file)
                documents += len(ids)
                tokens += sum(map(len, ids))
        header = {"dtype": dtype.name, "tokens": tokens, "documents": documents, "bytes": n_bytes, **origin}
        path.with_suffix(".json").write_text(json.dumps(header), encoding="utf-8")

    @classmethod
    def open(cls, path: Path) -> "Packed":
        """Map a file that `write` made; an error if it is not as long as its header says."""
        header = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if path.stat().st_size != header["tokens"] * np.dtype(header["dtype"]).itemsize:
            raise CourseError(f"{path} is damaged: it does not hold {header['tokens']:,} tokens. Delete its folder.")
        return cls(np.memmap(path, dtype=header["dtype"], mode="r"), header["documents"], header["bytes"])

    def rows(self, length: int) -> int:
        """How many rows of `length` + 1 tokens there are (neighbours share one token: a target, then an input)."""
        return (len(self.tokens) - 1) // length

    def row(self, index: int, length: int) -> torch.Tensor:
        """Row `index`: (length + 1,) int64."""
        return torch.from_numpy(self.tokens[index * length : (index + 1) * length + 1].astype(np.int64))


@dataclass
class Position:
    """Where a loader stands; all that a resumed run needs, since each epoch's order follows from the seed."""

    epoch: int = 0
    row: int = 0


class Loader:
    """Endless optimizer steps, each `step_rows` rows of consecutive tokens: (step_rows, length + 1) int64.

    Every epoch visits every row at most once, in an order given by (seed, epoch); the last rows of that order, fewer
    than a step, are left out.
    """

    def __init__(self, packed: Packed, length: int, step_rows: int, seed: int):
        self.packed, self.length, self.step_rows = packed, length, step_rows
        self.seed, self.position = seed, Position()
        if packed.rows(length) < step_rows:
            raise CourseError(
                f"The training text has {len(packed.tokens):,} tokens, less than one step of {step_rows} rows "
                f"of {length}. Use more text or a smaller --step-tokens."
            )

    def __iter__(self) -> Iterator[torch.Tensor]:
        while True:
            order = self._order()
            while self.position.row + self.step_rows <= len(order):
                chosen = order[self.position.row : self.position.row + self.step_rows].tolist()
                self.position.row += self.step_rows
                yield torch.stack([self.packed.row(index, self.length) for index in chosen])
            self.position = Position(self.position.epoch + 1, 0)

    def _order(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.position.epoch)
        return torch.randperm(self.packed.rows(self.length), generator=generator)

    def state_dict(self) -> dict[str, Any]:
        """Position as plain numbers."""
        return asdict(self.position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last batch that was handed out; costs the same wherever that was."""
        self.position = Position(**state)
