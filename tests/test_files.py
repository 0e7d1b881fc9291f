import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from course_lib.data import corpora, files
from course_lib.errors import CourseError

TEXTS = ["First, with a comma.", 'Second "quoted"\nover two lines.', "Drittes — ünïcödé 影评."]


def write(path, kind):
    if kind == "jsonl":
        path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(TEXTS)), encoding="utf-8")
    elif kind in ("csv", "tsv"):
        import csv

        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            writer.writerows([["id", "text"], *([i, t] for i, t in enumerate(TEXTS))])
    else:
        pq.write_table(pa.table({"id": range(len(TEXTS)), "text": TEXTS}), path)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_documents(tmp_path, kind):
    path = tmp_path / f"some.{kind}"
    write(path, kind)
    assert list(files.read(path)) == TEXTS


def test_a_text_file_is_cut_at_blank_lines_and_loses_nothing(tmp_path):
    path = tmp_path / "book.txt"
    paragraphs = [f"Paragraph {i}. " + "word " * 100 + "\n\n" for i in range(100)]
    path.write_text("".join(paragraphs), encoding="utf-8")
    pieces = list(files.read(path))
    assert "".join(pieces) == "".join(paragraphs)
    assert len(pieces) > 5
    assert all(len(p) <= 2 * files.PIECE + 600 for p in pieces)
    assert all(p.startswith("Paragraph") or p.startswith("\n") for p in pieces)


def test_one_line_of_five_megabytes_is_cut(tmp_path):
    path = tmp_path / "line.txt"
    path.write_text("x" * 5_000_000)
    pieces = list(files.read(path))
    assert sum(map(len, pieces)) == 5_000_000
    assert max(map(len, pieces)) <= 4 * files.PIECE


def test_windows_line_ends_a_byte_order_mark_and_x85(tmp_path):
    path = tmp_path / "windows.txt"
    path.write_bytes("\ufeffone\r\ntwo\x85still two\r\n".encode())
    assert list(files.read(path)) == ["one\ntwo\x85still two\n"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\x00\x01\x02" * 50, "binary"),
        ("a.txt", "naïve".encode("latin-1"), "not UTF-8 (byte 2)"),
        ("a.pdf", b"%PDF", "not one of txt"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"id,title\n1,x\n", "no text column: it has id, title"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: no text"),
        ("a.jsonl", b"[1, 2]\n", "line 1: no text"),
        ("a.parquet", b"PAR1 not really", "not a valid parquet"),
    ],
)
def test_bad_files_are_named_with_the_reason(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CourseError) as error:
        list(files.read(path))
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_files_folders_and_globs(tmp_path):
    for name in ("b.txt", "a.txt", "skip.png"):
        (tmp_path / name).write_text("x")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.jsonl").write_text("{}")
    assert [p.name for p in files.find(str(tmp_path))] == ["a.txt", "b.txt", "c.jsonl"]
    assert [p.name for p in files.find(str(tmp_path / "*.txt"))] == ["a.txt", "b.txt"]
    assert [p.name for p in files.find(str(tmp_path / "**" / "*.jsonl"))] == ["c.jsonl"]
    with pytest.raises(CourseError, match="No file matches"):
        files.find(str(tmp_path / "*.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CourseError, match="holds no txt"):
        files.find(str(tmp_path / "empty"))


def test_the_docs_corpus_needs_no_download():
    documents = corpora.load("docs").documents()
    first = [next(documents) for _ in range(200)]
    assert sum(map(len, first)) > 200_000
    assert len({d[:200] for d in first}) > 190


def test_unknown_corpora_name_the_nearest():
    with pytest.raises(CourseError, match="Did you mean movie_reviews"):
        corpora.load("movie-reviews")
