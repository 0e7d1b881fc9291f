import json

import datasets
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
    assert list(files.documents(path)) == TEXTS


def test_a_text_file_is_cut_at_blank_lines_and_loses_nothing(tmp_path):
    path = tmp_path / "book.txt"
    paragraphs = [f"Paragraph {i}. " + "word " * 100 + "\n\n" for i in range(100)]
    path.write_text("".join(paragraphs), encoding="utf-8")
    pieces = list(files.documents(path))
    assert "".join(pieces) == "".join(paragraphs)
    assert len(pieces) > 5
    assert all(len(p) <= 2 * files.PIECE + 600 for p in pieces)
    assert all(p.startswith("Paragraph") or p.startswith("\n") for p in pieces)


def test_one_line_of_50_megabytes_is_cut(tmp_path):
    path = tmp_path / "line.txt"
    path.write_text("x" * 50_000_000)
    pieces = list(files.documents(path))
    assert sum(map(len, pieces)) == 50_000_000
    assert max(map(len, pieces)) <= 4 * files.PIECE


def test_windows_line_ends_a_byte_order_mark_and_x85(tmp_path):
    path = tmp_path / "windows.txt"
    path.write_bytes("\ufeffone\r\ntwo\x85still two\r\n".encode())
    assert list(files.documents(path)) == ["one\ntwo\x85still two\n"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\x00\x01\x02" * 50, "binary"),
        ("a.txt", "naïve café, déjà vu à l'été".encode("latin-1"), "is not utf-8"),
        ("a.pdf", b"%PDF", "not one of txt"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"id,title\n1,x\n", "no text column: it has id, title"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", b'{"text": 3}\n', "row 1: the text is a int"),
        ("a.jsonl", b"[1, 2]\n", "line 1: not an object"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\\ud83d"}\n', "line 2: half of a character"),
        ("a.csv", b"id,text\n1,x\n2\n", "line 3: not 2 columns"),
        ("a.csv", b"id,text\n1,x,y\n", "line 2: not 2 columns"),
        ("a.csv", b'id,text\n1,"x\n', "unexpected end of data"),
        (
            "a.csv",
            b"text;label\ngood film;1\n",
            "seems to have ; between its columns, 'text;label'. Save it with commas",
        ),
        ("a.csv", b"text;label\ngood, film;1\n", "seems to have ; between its columns"),
        ("a.parquet", b"PAR1 not really", "not a valid parquet"),
    ],
)
def test_bad_files_are_named_with_the_reason(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CourseError) as error:
        list(files.documents(path))
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


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        ("hf:C:\\data\\some", ("C:\\data\\some", None)),
        ("hf:C:/data:english", ("C:/data", "english")),
        ("hf:owner/name:english", ("owner/name", "english")),
        ("hf:owner/name", ("owner/name", None)),
    ],
)
def test_the_colon_of_a_drive_names_no_configuration(spec, asked, monkeypatch):
    loaded = []

    def load(path, config, split):
        loaded.append((path, config))
        return datasets.Dataset.from_list([{"text": "x"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(corpora.load(spec).documents()) == ["x"]
    assert loaded == [asked]


def test_other_encodings_are_named_by_the_user_and_guessed_only_in_the_advice(tmp_path):
    path = tmp_path / "old.txt"
    text = "这部电影很好看，演员的表演也不错。\n" * 50
    path.write_bytes(text.encode("gb18030"))
    assert "".join(files.documents(path, "gb18030")) == text
    with pytest.raises(CourseError, match=r"is not utf-8.*It looks like \w+: if so, add --encoding"):
        list(files.documents(path))
    with pytest.raises(CourseError, match="no encoding called 'klingon'"):
        list(files.documents(path, "klingon"))
    path.write_bytes(text.encode("utf-16-le"))
    with pytest.raises(CourseError, match="is not utf-16"):
        list(files.documents(path, "utf-16"))
    path.write_bytes(text.encode("utf-16"))  # has a byte order mark, so nothing is guessed
    assert "".join(files.documents(path)) == text


def test_nul_bytes_beyond_the_probe_are_cleaned_away(tmp_path):
    from course_lib.data.clean import clean

    path = tmp_path / "late.txt"
    path.write_bytes(b"word " * 20_000 + b"be\x00fore")
    assert clean("".join(files.documents(path))).endswith("word before")


def test_a_folder_or_an_unreadable_file_instead_of_a_file(tmp_path, monkeypatch):
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(CourseError, match="Is a directory"):
        list(files.documents(tmp_path / "folder.txt"))
    locked = tmp_path / "locked.csv"
    locked.write_text("text\nx\n")

    def refuse(*arguments, **keywords):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.Path, "open", refuse)  # tests may run as root, whom no mode stops
    with pytest.raises(CourseError, match=r"Cannot read .*locked.csv: Permission denied"):
        list(files.documents(locked))


def test_a_table_keeps_its_columns_and_refuses_repeated_ids(tmp_path):
    for kind in ("jsonl", "csv", "tsv", "parquet"):
        write(tmp_path / f"some.{kind}", kind)
        table = files.table(str(tmp_path / f"some.{kind}"))
        assert table["text"][:] == TEXTS
        assert [str(i) for i in table["id"]] == ["0", "1", "2"]
    with pytest.raises(CourseError, match=r"some.tsv, row 1: the id '0' was used before, in .*some.csv, row 1"):
        files.table(str(tmp_path / "some.*sv"))
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(CourseError, match="has no rows"):
        files.table(str(tmp_path / "none.jsonl"))


def test_conll_columns(tmp_path):
    path = tmp_path / "some.conll"
    path.write_bytes(
        "\ufeff-DOCSTART- O\r\n\r\n# a comment\r\nAnna\tNNP\tB-PER\r\nvan\x85Dyk\tNNP\tI-PER\r\n\r\n\r\n"
        "in\tIN\tO\r\nNew\u00a0York\tNNP\tB-LOC".encode()
    )
    assert list(files.conll(path)) == [
        {"tokens": ["Anna", "van\x85Dyk"], "tags": ["B-PER", "I-PER"]},
        {"tokens": ["in", "New\u00a0York"], "tags": ["O", "B-LOC"]},
    ]
    path.write_text("# O B-X\nAnna NNP B-PER\n# # O\n\n# four more columns\n# # B-X\n1 CD I-X\n")
    assert list(files.conll(path)) == [
        {"tokens": ["#", "Anna", "#"], "tags": ["B-X", "B-PER", "O"]},
        {"tokens": ["#", "1"], "tags": ["B-X", "I-X"]},
    ], "a # among columns is a token"
    path.write_text("# a comment\n#\nAnna\tB-PER\n\n# another one\nDyk\tO\n")
    assert [row["tokens"] for row in files.conll(path)] == [["Anna"], ["Dyk"]]
    path.write_text("Anna NNP B-PER\nDyk I-PER\n")
    with pytest.raises(CourseError, match="line 2: 2 columns, expected 3"):
        files.conll(path)
    path.write_text("Anna\n")
    with pytest.raises(CourseError, match="line 1: 1 columns, expected 2"):
        files.conll(path)
    path.write_text("\n\n")
    with pytest.raises(CourseError, match="is empty"):
        files.conll(path)
