"""A user's own files: txt, md, jsonl, csv, tsv, parquet and CoNLL columns; one file, a folder or a glob.

Text is UTF-8 unless another encoding is named; nothing is ever decoded by guessing. Lines end at LF, CRLF or CR and
nowhere else (not at U+0085 or U+2028, where `str.splitlines` would cut).
"""

import codecs
import csv
import glob
import json
import re
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from course_lib.errors import CourseError

PIECE = 4_000  # characters; a longer text file is cut into documents of about this size at line ends
TABLES = ("jsonl", "csv", "tsv", "parquet")
FORMATS = ("txt", "md", *TABLES)
TEXT_COLUMNS = ("text", "content", "document", "body", "review", "sentence")


def find(spec: str) -> list[Path]:
    """The files that a path, a folder or a glob stands for, sorted; an error when there are none."""
    path = Path(spec).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in sorted(path.rglob("*")) if p.is_file() and _kind(p) in FORMATS]
        if not found:
            raise CourseError(f"The folder {path} holds no {', '.join(FORMATS)} file.")
        return found
    found = [p for p in map(Path, sorted(glob.glob(str(path), recursive=True))) if p.is_file()]
    if not found:
        raise CourseError(f"No file matches '{spec}'. Give a file, a folder, or a quoted glob like 'texts/*.txt'.")
    return found


def documents(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """The texts of one file: pieces of a text file, or the text column of a table."""
    if _kind(path) in TABLES:
        for number, row in enumerate(rows(path, encoding), 1):
            text = row[text_column(path, list(row))]
            if not isinstance(text, str | None):
                raise CourseError(f"{path}, row {number}: the text is a {type(text).__name__}, not a string.")
            yield text or ""
    elif _kind(path) in FORMATS:
        yield from pieces(lines(path, encoding))
    else:
        raise CourseError(f"{path} is not one of {', '.join(FORMATS)}. Convert it, or rename it if it is plain text.")


def rows(path: Path, encoding: str = "utf-8") -> Iterator[dict[str, Any]]:
    """The rows of a table with all their columns."""
    kind = _kind(path)
    if kind == "parquet":
        yield from _parquet(path)
    elif kind == "jsonl":
        yield from _jsonl(path, encoding)
    elif kind in ("csv", "tsv"):
        yield from _csv(path, "\t" if kind == "tsv" else ",", encoding)
    else:
        raise CourseError(f"{path} is not a table ({', '.join(TABLES)}).")


def table(spec: str, encoding: str = "utf-8") -> Any:
    """All rows of a file, folder or glob as a `datasets.Dataset`. An `id` column must not repeat a value."""
    from datasets import Dataset

    seen: dict[Any, str] = {}
    found = []
    for path in find(spec):
        for number, row in enumerate(rows(path, encoding), 1):
            where = f"{path}, row {number}"
            if "id" in row and seen.setdefault(row["id"], where) != where:
                raise CourseError(f"{where}: the id '{row['id']}' was used before, in {seen[row['id']]}.")
            found.append(row)
    if not found:
        raise CourseError(f"'{spec}' has no rows.")
    return Dataset.from_list(found)


def conll(path: Path, encoding: str = "utf-8") -> Any:
    """Sentences of a CoNLL file as a Dataset of `tokens` and `tags` (first and last column), both lists of strings."""
    from datasets import Dataset

    sentences = [
        {"tokens": [row[0] for row in sentence], "tags": [row[-1] for row in sentence]}
        for _, sentence in columns(path, encoding)
    ]
    if not sentences:
        raise CourseError(f"{path} is empty.")
    return Dataset.from_list(sentences)


def columns(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, list[list[str]]]]:
    """(line, rows of columns) of every sentence of a CoNLL file.

    Columns are separated by tabs or blanks, sentences by empty lines; `-DOCSTART-` lines and `# comments` are left out.
    A comment stands between sentences and has other columns than the rest; else it is the token `#`.
    """
    sentence: list[list[str]] = []
    first = 0
    shape = lambda line: (len(_cut(line)), "\t" in line)
    tokens = (line for line in lines(path, encoding) if _cut(line)[0] not in ("", "#", "-DOCSTART-"))
    width, _ = usual = next(map(shape, tokens), (0, False))
    for number, line in enumerate(chain(lines(path, encoding), [""]), 1):
        found = _cut(line)
        if found == [""]:
            if sentence:
                yield first, sentence
                sentence = []
        elif found[0] != "-DOCSTART-" and (found[0] != "#" or sentence or shape(line) == usual):
            if len(found) != width or width < 2 or not found[0]:
                raise CourseError(f"{path}, line {number}: {len(found)} columns, expected {max(width, 2)}.")
            first = first if sentence else number
            sentence.append(found)


def _cut(line: str) -> list[str]:
    return re.split(r"\t" if "\t" in line else r" +", line.strip(" \t\n"))


def pieces(parts: Iterable[str]) -> Iterator[str]:
    """Join lines into documents of about `PIECE` characters, ending at a blank line if one comes in time."""
    held: list[str] = []
    size = 0
    for line in chain.from_iterable(_short(line) for line in parts):
        if size >= 2 * PIECE or (size >= PIECE and not line.strip()):
            yield "".join(held)
            held, size = [], 0
        held.append(line)
        size += len(line)
    if held:
        yield "".join(held)


def lines(path: Path, encoding: str = "utf-8") -> Generator[str, None, None]:
    """Lines with their ends normalised to LF and no byte order mark; refuses binary files and wrong encodings."""
    try:
        with path.open("rb") as probe:
            start = probe.read(65_536)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            encoding = "utf-16"
        elif b"\x00" in start and not encoding.lower().startswith(("utf-16", "utf16", "utf-32", "utf32")):
            raise CourseError(f"{path} is a binary file, not text.")
        with path.open(encoding="utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding) as file:
            yield from file
    except LookupError:
        raise CourseError(f"There is no encoding called '{encoding}'; try utf-8, cp1252 or gb18030.") from None
    except UnicodeError as error:  # UTF-16 without its first mark has no place in it
        where = (
            f"near byte {error.start} of a block: {error.reason}"
            if isinstance(error, UnicodeDecodeError)
            else str(error)
        )
        raise CourseError(f"{path} is not {encoding} ({where}). {_guess(path)}") from error
    except OSError as error:
        raise CourseError(f"Cannot read {path}: {error.strerror or error}.") from error


def text_column(path: Path | str, names: list[str]) -> str:
    """The column to train on: the first of `TEXT_COLUMNS` that is there, or the only one."""
    for name in TEXT_COLUMNS:
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    raise CourseError(f"{path} has no text column: it has {', '.join(names)}; name one of them 'text'.")


def _kind(path: Path) -> str:
    return path.suffix.lstrip(".").lower()


def _guess(path: Path) -> str:
    """Advice on the encoding, for the user to decide: detection is often wrong on short texts."""
    from charset_normalizer import from_bytes

    with path.open("rb") as file:
        best = from_bytes(file.read(200_000)).best()
    return (
        f"It looks like {best.encoding}: if so, add --encoding {best.encoding}." if best else "Name it with --encoding."
    )


def _short(line: str) -> Iterator[str]:
    for start in range(0, len(line), 2 * PIECE):
        yield line[start : start + 2 * PIECE]


def _csv(path: Path, delimiter: str, encoding: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    opened = lines(path, encoding)
    reader = csv.DictReader(opened, delimiter=delimiter, strict=True)
    try:
        if not reader.fieldnames:
            raise CourseError(f"{path} is empty.")
        if len(reader.fieldnames) == 1 and ";" in reader.fieldnames[0]:  # Excel's way where the comma is for decimals
            raise CourseError(
                f"{path} seems to have ; between its columns, '{reader.fieldnames[0]}'. Save it with commas, or as tsv."
            )
        for row in reader:
            if None in row or None in row.values():
                raise CourseError(
                    f"{path}, line {reader.line_num}: not {len(reader.fieldnames)} columns as in its first line."
                )
            yield row
    except csv.Error as error:
        raise CourseError(f"{path}, line {reader.line_num}: {error}.") from error
    finally:
        opened.close()  # an error is kept longer than its file should be


def _jsonl(path: Path, encoding: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines(path, encoding), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CourseError(f"{path}, line {number}: not JSON ({error.msg}).") from error
        if "\\ud" in line.lower():
            _refuse_halves(path, number, row)
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict) or not row:
            raise CourseError(f'{path}, line {number}: not an object like {{"text": "…"}}.')
        yield row


def _refuse_halves(path: Path, number: int, row: Any) -> None:
    """An emoji cut in two escapes is no text that can be stored."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise CourseError(
            f"{path}, line {number}: half of a character, an escape like \\ud83d without its pair."
        ) from None


def filled(path: Path, number: int, row: dict[str, Any], name: str) -> Any:
    """What a row has under `name`; CourseError where it has nothing."""
    if row.get(name) is None:
        raise CourseError(f"{path}, row {number}: there is no '{name}'.")
    return row[name]


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise CourseError(f"{path} is not a valid parquet file.") from error
    except OSError as error:
        raise CourseError(f"Cannot read {path}: {error.strerror or error}.") from error
