"""Corpus → cleaned, deduplicated, split, tokenized, packed; done once and cached."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
from transformers import PreTrainedTokenizerFast

from course_lib import assets
from course_lib.data.clean import clean, document_hash, split_of
from course_lib.data.corpora import Corpus
from course_lib.data.pack import Packed
from course_lib.errors import CourseError
from course_lib.storage import new_folder
from course_lib.tokenizer import train_bpe

RECIPE = 1  # raise it when the preparation below changes, so that old caches are not used
MIN_BYTES = 20_000
TOKENIZER_BYTES = 8_000_000  # more text does not change the merges of a small vocabulary
VALID_BYTES = 300_000  # enough for two stable decimals of bits per byte
BATCH = 500  # documents handed to the tokenizer at once

SCHEMA = pyarrow.schema([("text", "string"), ("digest", "uint64"), ("bytes", "int64")])

datasets.disable_progress_bars()


@dataclass(frozen=True)
class Counts:
    """What preparation saw and dropped, in documents, and the bytes that were kept."""

    read: int
    empty: int
    duplicate: int
    train: int
    valid: int
    left_out: int  # the test side, and what the budget could not use
    train_bytes: int
    valid_bytes: int

    def describe(self) -> str:
        """One line for a person."""
        return (
            f"{self.read:,} documents read, {self.empty} empty and {self.duplicate} duplicate dropped; "
            f"{self.train:,} to train on ({self.train_bytes / 1e6:.1f} MB), {self.valid:,} held out "
            f"({self.valid_bytes / 1e6:.2f} MB)"
        )


@dataclass(frozen=True)
class Prepared:
    """Packed training and held-out text; `folder` also loads as a tokenizer."""

    folder: Path
    train: Packed
    valid: Packed
    counts: Counts

    @classmethod
    def open(cls, folder: Path) -> "Prepared":
        """What `prepare` left in its cache."""
        counts = Counts(**json.loads((folder / "counts.json").read_text(encoding="utf-8")))
        return cls(folder, Packed.open(folder / "train.bin"), Packed.open(folder / "valid.bin"), counts)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that both sides were encoded with."""
        return PreTrainedTokenizerFast.from_pretrained(self.folder)

    def openings(self, documents: int, tokens: int) -> list[str]:
        """The first words of the first held-out documents."""
        bos = self.tokenizer.bos_token_id
        starts = np.flatnonzero(self.valid.tokens == bos)[:documents] + 1
        return [self.tokenizer.decode(self.valid.tokens[s : s + tokens].tolist()) for s in starts]

    def held_out_text(self) -> bytes:
        """The held-out documents, one after the other; byte-level BPE gives them back exactly."""
        return self.tokenizer.decode(self.valid.tokens.tolist(), skip_special_tokens=True).encode()


def prepare(corpus: Corpus, vocab_size: int, context: int, max_bytes: int, log: Callable[[str], None]) -> Prepared:
    """Everything between a corpus and a loader, from the cache if it was done before.

    `max_bytes` bounds the training text, so that a short budget is not spent on tokenizing a library.
    """
    key = f"{RECIPE} {corpus.identity} {vocab_size} {context} {max_bytes}"
    folder = assets.cache_dir() / "prepared" / f"{corpus.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not (folder / "counts.json").exists():
        log(f"Preparing {corpus.name} …")
        with new_folder(folder) as scratch:
            _build(scratch, corpus, vocab_size, context, max_bytes)
    data = Prepared.open(folder)
    log(data.counts.describe())
    return data


def _build(folder: Path, corpus: Corpus, vocab_size: int, context: int, max_bytes: int) -> None:
    table, read, empty = _documents(corpus, folder / "documents.arrow")
    digests, sizes = np.array(table["digest"], dtype=np.uint64), np.array(table["bytes"], dtype=np.int64)
    if sizes.sum() < MIN_BYTES:
        raise CourseError(
            f"The corpus '{corpus.name}' has {sizes.sum():,} bytes of text; at least {MIN_BYTES:,} are needed "
            f"to train on some and hold some out."
        )
    # In the order of their hashes: a shuffle that depends on nothing but the documents.
    _, unique = np.unique(digests, return_index=True)
    sides = np.array([split_of(int(d)) for d in digests[unique]])
    train, valid = unique[sides == "train"], unique[sides == "valid"]
    if not len(valid) or not len(train):
        raise CourseError(
            f"The corpus '{corpus.name}' has only {len(unique)} different documents; none could be held out."
        )
    train, valid = _first(train, sizes, max_bytes), _first(valid, sizes, VALID_BYTES)

    sample = table.select(_first(train, sizes, TOKENIZER_BYTES))
    tokenizer = train_bpe((batch["text"] for batch in sample.iter(BATCH)), vocab_size, context)
    tokenizer.save_pretrained(folder)
    for name, side in (("train", train), ("valid", valid)):
        Packed.write(folder / f"{name}.bin", _encode(tokenizer, table.select(side)), len(tokenizer))
    counts = Counts(
        read=read,
        empty=empty,
        duplicate=len(digests) - len(unique),
        train=len(train),
        valid=len(valid),
        left_out=len(unique) - len(train) - len(valid),
        train_bytes=int(sizes[train].sum()),
        valid_bytes=int(sizes[valid].sum()),
    )
    (folder / "documents.arrow").unlink()  # the text is only needed while preparing
    (folder / "counts.json").write_text(json.dumps(asdict(counts)), encoding="utf-8")


def _documents(corpus: Corpus, path: Path) -> tuple[datasets.Dataset, int, int]:
    """Cleaned documents in a memory-mapped table, and how many were read and found empty."""
    read = empty = 0
    rows: list[dict[str, Any]] = []
    with pyarrow.ipc.new_stream(str(path), SCHEMA) as stream:
        for raw in corpus.documents():
            read += 1
            if text := clean(raw):
                rows.append({"text": text, "digest": document_hash(text), "bytes": len(text.encode())})
            else:
                empty += 1
            if len(rows) == BATCH:
                stream.write_batch(pyarrow.RecordBatch.from_pylist(rows, SCHEMA))
                rows = []
        stream.write_batch(pyarrow.RecordBatch.from_pylist(rows, SCHEMA))
    return datasets.Dataset.from_file(str(path)), read, empty


def _first(indices: np.ndarray, sizes: np.ndarray, limit: int) -> np.ndarray:
    """The longest prefix with at most `limit` bytes (but at least one document)."""
    return indices[: max(1, int(np.searchsorted(np.cumsum(sizes[indices]), limit, side="right")))]


def _encode(tokenizer: PreTrainedTokenizerFast, table: datasets.Dataset) -> Iterator[tuple[list[list[int]], int]]:
    # "<|bos|>" typed in a text is seven characters, not the token
    tokenizer.backend_tokenizer.encode_special_tokens = True
    for batch in table.iter(BATCH):
        encoded = tokenizer.backend_tokenizer.encode_batch_fast(batch["text"])
        yield [e.ids for e in encoded], sum(batch["bytes"])
