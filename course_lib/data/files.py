"""A user's own text: txt, jsonl, csv, tsv and parquet files, a folder or a glob."""

import csv
import glob
import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from course_lib.errors import CourseError

PIECE = 4_000  # characters; a longer text file is cut into documents of about this size at line ends
FORMATS = ("txt", "md", "jsonl", "csv", "tsv", "parquet")
TEXT_COLUMNS = ("text", "content", "document", "body", "review", "sentence")


def find(spec: str) -> list[Path]:
    """The files that a path, a folder or a glob stands for, sorted; an error when there are none."""
    path = Path(spec).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in sorted(path.rglob("*")) if p.is_file() and p.suffix.lstrip(".").lower() in FORMATS]
        if not found:
            raise CourseError(f"The folder {path} holds no {', '.join(FORMATS)} file.")
        return found
    found = [p for p in map(Path, sorted(glob.glob(str(path), recursive=True))) if p.is_file()]
    if not found:
        raise CourseError(f"No file matches '{spec}'. Give a file, a folder, or a quoted glob like 'texts/*.txt'.")
    return found


def read(path: Path) -> Iterator[str]:
    """The documents of one file."""
    kind = path.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise CourseError(f"{path} is not one of {', '.join(FORMATS)}. Convert it, or rename it if it is plain text.")
    try:
        if kind == "parquet":
            yield from _parquet(path)
        elif kind in ("csv", "tsv"):
            yield from _table(path, "\t" if kind == "tsv" else ",")
        elif kind == "jsonl":
            yield from _jsonl(path)
        else:
            yield from pieces(_lines(path))
    except OSError as error:
        raise CourseError(f"Cannot read {path}: {error.strerror or error}.") from error


def pieces(lines: Iterator[str]) -> Iterator[str]:
    """Join lines into documents of about `PIECE` characters, ending at a blank line if one comes in time."""
    held: list[str] = []
    size = 0
    for line in chain.from_iterable(_short(line) for line in lines):
        if size >= 2 * PIECE or (size >= PIECE and not line.strip()):
            yield "".join(held)
            held, size = [], 0
        held.append(line)
        size += len(line)
    if held:
        yield "".join(held)


def _short(line: str) -> Iterator[str]:
    for start in range(0, len(line), 2 * PIECE):
        yield line[start : start + 2 * PIECE]


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as probe:
        if b"\x00" in probe.read(65_536):
            raise CourseError(f"{path} is a binary file, not text.")
    try:
        # newline=None would not split at \x85 or U+2028 either; csv and jsonl rely on that
        with path.open(encoding="utf-8-sig", newline=None) as file:
            yield from file
    except UnicodeDecodeError as error:
        raise CourseError(
            f"{path} is not UTF-8 (byte {error.start}). Convert it first: `iconv -f ENCODING -t UTF-8`."
        ) from error


def text_column(path: Path | str, names: list[str]) -> str:
    """The column to train on: the first of `TEXT_COLUMNS` that is there, or the only one."""
    for name in TEXT_COLUMNS:
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    raise CourseError(f"{path} has no text column: it has {', '.join(names)}; name one of them 'text'.")


def _table(path: Path, delimiter: str) -> Iterator[str]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    rows = csv.DictReader(_lines(path), delimiter=delimiter)
    if not rows.fieldnames:
        raise CourseError(f"{path} is empty.")
    column = text_column(path, list(rows.fieldnames))
    for row in rows:
        yield row[column] or ""


def _jsonl(path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CourseError(f"{path}, line {number}: not JSON ({error.msg}).") from error
        text = row if isinstance(row, str) else row.get(text_column(path, list(row))) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise CourseError(f'{path}, line {number}: no text; expected {{"text": "…"}}.')
        yield text


def _parquet(path: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise CourseError(f"{path} is not a valid parquet file.") from error
    column = text_column(path, file.schema_arrow.names)
    for batch in file.iter_batches(columns=[column]):
        yield from (text or "" for text in batch.column(0).to_pylist())
