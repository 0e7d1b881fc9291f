"""Corpus → cleaned, deduplicated, split, tokenized, packed; done once and cached.

Every pass reads front to back, so memory stays flat however large the corpus is (16 bytes a document are kept).
"""

import array
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow
from transformers import PreTrainedTokenizerFast

from course_lib import assets, tokenizer
from course_lib.data.clean import clean, document_hash, split_of
from course_lib.data.corpora import Corpus
from course_lib.data.pack import Packed
from course_lib.errors import CourseError
from course_lib.storage import new_folder

RECIPE = 2  # raise it when the preparation below changes, so that old caches are not used
MIN_BYTES = 20_000
TOKENIZER_BYTES = 8_000_000  # more text does not change the merges of a small vocabulary
VALID_BYTES = 300_000  # enough for two stable decimals of bits per byte
BATCH = 500  # documents handed on at once
SCHEMA = pyarrow.schema([("text", "string")])


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
        """The first words of a few held-out documents, spread over all of them; a document may have fewer tokens."""
        starts = np.flatnonzero(self.valid.tokens == self.tokenizer.bos_token_id) + 1
        ends = np.append(starts[1:] - 1, len(self.valid.tokens))
        places = np.stack([starts, ends], 1)[ends > starts]  # a tokenizer may find nothing in a document
        texts = []
        for start, end in places[np.linspace(0, len(places) - 1, documents, dtype=int)]:
            text = self.tokenizer.decode(self.valid.tokens[start : min(end, start + tokens)].tolist())
            is_cut = start + tokens < end and " " in text
            texts.append(text.rsplit(" ", 1)[0] if is_cut else text)  # the last word may be cut
        return texts

    def held_out_documents(self) -> list[str]:
        """The held-out documents; byte-level BPE gives them back exactly."""
        starts = np.flatnonzero(self.valid.tokens == self.tokenizer.bos_token_id)
        parts = np.split(self.valid.tokens, starts[1:])
        return self.tokenizer.batch_decode([part.tolist() for part in parts], skip_special_tokens=True)

    def held_out_text(self) -> bytes:
        """The same, one after the other."""
        return "".join(self.held_out_documents()).encode()


def prepare(
    corpus: Corpus,
    vocab_size: int,
    context: int,
    max_bytes: int,
    log: Callable[[str], None],
    exact_vocab: bool = False,
    kind: str = "byte-bpe",
) -> Prepared:
    """Everything between a corpus and a loader, from the cache if it was done before.

    `kind`: the tokenizer's, see `tokenizer.KINDS`.
    `max_bytes` bounds the training text, so that a short budget is not spent on tokenizing a library. `exact_vocab`: a
    corpus too small for `vocab_size` is an error instead of a smaller vocabulary.
    """
    key = f"{RECIPE} {corpus.identity} {vocab_size} {context} {max_bytes} {exact_vocab}"
    key += "" if kind == "byte-bpe" else f" {kind}"
    folder = assets.cache_dir() / "prepared" / f"{corpus.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not (folder / "counts.json").exists():
        log(f"Preparing {corpus.name} …")
        with new_folder(folder) as scratch:
            _build(scratch, corpus, kind, vocab_size, context, max_bytes, exact_vocab)
    data = Prepared.open(folder)
    log(data.counts.describe())
    return data


def _build(
    folder: Path, corpus: Corpus, kind: str, vocab_size: int, context: int, max_bytes: int, exact_vocab: bool
) -> None:
    spool = folder / "documents.arrow"
    digests, sizes, read = _spool(corpus, spool)
    if sizes.sum() < MIN_BYTES:
        raise CourseError(
            f"The corpus '{corpus.name}' has {sizes.sum():,} bytes of text; at least {MIN_BYTES:,} are needed "
            f"to train on some and hold some out."
        )
    # Sorted by hash, so that "the first few MB" is a random sample that depends on nothing but the documents.
    _, unique = np.unique(digests, return_index=True)
    sides = np.array([split_of(int(digest)) for digest in digests[unique]])
    train, valid = unique[sides == "train"], unique[sides == "valid"]
    if not len(valid) or not len(train):
        raise CourseError(
            f"The corpus '{corpus.name}' has only {len(unique)} different documents; none could be held out."
        )
    train, valid = _first(train, sizes, max_bytes), _first(valid, sizes, VALID_BYTES)

    sample = _texts(spool, _first(train, sizes, TOKENIZER_BYTES))
    learned = tokenizer.train(kind, sample, vocab_size, context, exact=exact_vocab)
    learned.save_pretrained(folder)
    origin = {"tokenizer": _sha256(folder / "tokenizer.json"), "source": corpus.identity}
    for name, side in (("train", train), ("valid", valid)):
        ids = (tokenizer.encode(learned, texts) for texts in _texts(spool, side))
        Packed.write(folder / f"{name}.bin", ids, len(learned), int(sizes[side].sum()), origin)
    counts = Counts(
        read=read,
        empty=read - len(digests),
        duplicate=len(digests) - len(unique),
        train=len(train),
        valid=len(valid),
        left_out=len(unique) - len(train) - len(valid),
        train_bytes=int(sizes[train].sum()),
        valid_bytes=int(sizes[valid].sum()),
    )
    spool.unlink()  # the text is only needed while preparing
    (folder / "counts.json").write_text(json.dumps(asdict(counts)), encoding="utf-8")


def _spool(corpus: Corpus, path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Write the cleaned documents to `path`; returns their hashes, their sizes in bytes, and how many were read."""
    digests, sizes, read = array.array("Q"), array.array("q"), 0
    held: list[str] = []
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, SCHEMA) as stream:
        for raw in corpus.documents():
            read += 1
            if not (text := clean(raw)):
                continue
            digests.append(document_hash(text))
            sizes.append(len(text.encode()))
            held.append(text)
            if len(held) == BATCH:
                stream.write_batch(pyarrow.record_batch([held], schema=SCHEMA))
                held = []
        stream.write_batch(pyarrow.record_batch([held], schema=SCHEMA))
    return np.array(digests, dtype=np.uint64), np.array(sizes, dtype=np.int64), read


def _texts(path: Path, rows: np.ndarray) -> Iterator[list[str]]:
    """The documents with these row numbers, batch by batch in the order of the file."""
    wanted = np.sort(rows)
    at = 0
    with pyarrow.OSFile(str(path), "rb") as file, pyarrow.ipc.open_stream(file) as stream:
        for batch in stream:
            low, high = np.searchsorted(wanted, [at, at + batch.num_rows])
            if high > low:
                yield batch.take(pyarrow.array(wanted[low:high] - at)).column("text").to_pylist()
            at += batch.num_rows


def _first(indices: np.ndarray, sizes: np.ndarray, limit: int) -> np.ndarray:
    """The longest prefix with at most `limit` bytes (but at least one document)."""
    return indices[: max(1, int(np.searchsorted(np.cumsum(sizes[indices]), limit, side="right")))]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
