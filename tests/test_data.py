"""Cleaning, preparation, packing and the loader."""

import dataclasses
import hashlib
import json
import unicodedata
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.data import clean, corpora, prepare
from course_lib.data.pack import Loader, Packed
from course_lib.errors import CourseError
from course_lib.tokenizer import BOS
from tests.conftest import make_text


def quiet(message):
    pass


def test_cleaning():
    assert clean.clean("a<br /><br/>b <BR> c") == "a\nb\nc"
    assert clean.clean("\ufeff one\x00\x07two\r\nthree\t ") == "onetwo\nthree"
    assert clean.clean("e\u0301") == "\u00e9"


@given(st.text())
def test_cleaning_twice_is_cleaning_once_and_nothing_forbidden_stays(text):
    once = clean.clean(text)
    assert clean.clean(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not set(once) & set(map(chr, [*range(9), *range(11, 32), 127]))


def test_a_document_keeps_its_side_and_the_shares_are_right():
    sides = Counter(clean.split_of(clean.document_hash(str(i))) for i in range(20_000))
    assert sides["valid"] / 20_000 == pytest.approx(0.05, abs=0.006)
    assert sides["test"] / 20_000 == pytest.approx(0.05, abs=0.006)
    assert clean.split_of(clean.document_hash("one and the same")) == "train"


def test_preparation_drops_duplicates_and_never_mixes_sides(tmp_path):
    texts = [make_text(i) for i in range(400)]
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in [*texts, *texts[:50], "", "  "]), encoding="utf-8")
    data = prepare.prepare(corpora.load(str(path)), 300, 64, 10**8, quiet)
    counts = data.counts
    assert (counts.read, counts.empty, counts.duplicate) == (452, 2, 50)
    assert counts.train + counts.valid + counts.left_out == 400
    held_out = data.held_out_text().decode()
    assert len(held_out.encode()) == counts.valid_bytes == data.valid.bytes
    kept = data.tokenizer.decode(data.train.tokens.tolist()).split(BOS)[1:]
    expected = {t for t in texts if clean.split_of(clean.document_hash(t)) == "train"}
    assert set(kept) == expected
    assert not any(t in held_out for t in kept)


def test_preparation_is_cached_by_content(tmp_path, corpus_file):
    first = prepare.prepare(corpora.load(str(corpus_file)), 300, 64, 10**8, quiet)
    said = []
    again = prepare.prepare(corpora.load(str(corpus_file)), 300, 64, 10**8, said.append)
    assert again.folder == first.folder
    assert not any("Preparing" in s for s in said)
    with corpus_file.open("a") as file:
        file.write(json.dumps({"text": "One more document."}) + "\n")
    assert prepare.prepare(corpora.load(str(corpus_file)), 300, 64, 10**8, quiet).folder != first.folder


def test_a_budget_bounds_the_training_text(corpus_file):
    data = prepare.prepare(corpora.load(str(corpus_file)), 300, 64, 50_000, quiet)
    assert 45_000 < data.counts.train_bytes <= 50_000


def test_openings_end_with_their_documents(tmp_path, corpus_file):
    """A short document is shown whole, an empty one not at all; of a longer one the last word may be cut."""
    folder = prepare.prepare(corpora.load(str(corpus_file)), 300, 64, 10**8, quiet).folder
    data = prepare.Prepared.open(folder)
    ids = lambda text: [data.tokenizer.bos_token_id, *data.tokenizer(text, add_special_tokens=False)["input_ids"]]
    documents = ["Two words", "", "A film that is much longer than what was asked", "", "End."]
    Packed.write(tmp_path / "valid.bin", [[ids(text) for text in documents]], 300, 1, {})
    data = dataclasses.replace(data, valid=Packed.open(tmp_path / "valid.bin"))
    first, second, third = data.openings(3, len(ids(documents[0])) + 2)
    assert (first, third) == ("Two words", "End.")
    assert documents[2].startswith(f"{second} ")
    assert data.openings(1, 40) == ["Two words"]


def test_the_bos_text_in_a_document_is_not_the_token(tmp_path):
    path = tmp_path / "sly.jsonl"
    path.write_text("".join(json.dumps({"text": f"{make_text(i)} {BOS} {i}"}) + "\n" for i in range(100)))
    data = prepare.prepare(corpora.load(str(path)), 400, 64, 10**8, quiet)
    assert int((data.train.tokens == data.tokenizer.bos_token_id).sum()) == data.counts.train


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "has 0 bytes"),
        (["short"], "has 5 bytes of text; at least 20,000"),
        (["same " * 5000] * 10, "only 1 different documents"),
    ],
)
def test_tiny_corpora_are_refused(tmp_path, texts, message):
    path = tmp_path / "tiny.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    with pytest.raises(CourseError, match=message):
        prepare.prepare(corpora.load(str(path)), 300, 64, 10**8, quiet)
    assert list((prepare.assets.cache_dir() / "prepared").iterdir()) == []


def packed_of(tmp_path, count):
    Packed.write(tmp_path / "x.bin", [[list(range(count))]], 2**16, count, {})
    return Packed.open(tmp_path / "x.bin")


@pytest.mark.parametrize(("vocab", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_packing_uses_the_smallest_type_that_holds_the_vocabulary(tmp_path, vocab, dtype):
    Packed.write(tmp_path / "x.bin", [[[1, vocab - 1], [5]], [[2]]], vocab, 10, {})
    packed = Packed.open(tmp_path / "x.bin")
    assert packed.tokens.dtype == dtype
    assert packed.tokens.tolist() == [1, vocab - 1, 5, 2]
    assert (packed.documents, packed.bytes) == (3, 10)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(40, 400),
    st.integers(2, 16),
    st.integers(1, 4),
    st.integers(0, 5),
    st.integers(0, 20),
)
def test_an_epoch_visits_every_row_once_and_a_restart_changes_nothing(
    tmp_path_factory, count, length, step_rows, seed, stop_at
):
    packed = packed_of(tmp_path_factory.mktemp("pack"), count)
    if packed.rows(length) < step_rows:
        return
    steps_per_epoch = packed.rows(length) // step_rows
    loader = Loader(packed, length, step_rows, seed)
    steps = [step for step, _ in zip(loader, range(2 * steps_per_epoch), strict=False)]
    firsts = [
        [int(row[0]) for step in steps[e * steps_per_epoch : (e + 1) * steps_per_epoch] for row in step] for e in (0, 1)
    ]
    for seen in firsts:
        assert len(seen) == len(set(seen)) == steps_per_epoch * step_rows
        assert all(first % length == 0 for first in seen)
        assert seen != sorted(seen) or len(seen) < 10
    assert firsts[0] != firsts[1] or len(firsts[0]) < 10, "a new order every epoch"

    before, after = (
        Loader(packed, length, step_rows, seed),
        Loader(packed, length, step_rows, seed),
    )
    stop_at = min(stop_at, 2 * steps_per_epoch - 1)
    for _ in zip(range(stop_at), before, strict=False):
        pass
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert torch.equal(next(iter(after)), steps[stop_at])


def test_a_truncated_pack_is_refused(tmp_path):
    packed_of(tmp_path, 100)
    (tmp_path / "x.bin").write_bytes((tmp_path / "x.bin").read_bytes()[:-3])
    with pytest.raises(CourseError, match="damaged"):
        Packed.open(tmp_path / "x.bin")


def test_a_pack_says_what_it_was_made_from(corpus_file):
    corpus = corpora.load(str(corpus_file))
    folder = prepare.prepare(corpus, 300, 64, 10**8, quiet).folder
    header = json.loads((folder / "train.json").read_text())
    assert header["source"] == corpus.identity
    assert header["tokenizer"] == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()


def test_a_vocabulary_named_by_number_is_exact(corpus_file):
    corpus = corpora.load(str(corpus_file))
    with pytest.raises(CourseError, match="at most"):
        prepare.prepare(corpus, 5000, 64, 10**8, quiet, exact_vocab=True)
    assert len(prepare.prepare(corpus, 5000, 64, 10**8, quiet).tokenizer) < 5000


def test_too_little_text_for_one_step_is_an_error(tmp_path):
    with pytest.raises(CourseError, match="less than one step"):
        Loader(packed_of(tmp_path, 50), 32, 4, 0)


def test_a_memory_map_is_not_read_into_memory(tmp_path):
    assert isinstance(packed_of(tmp_path, 100).tokens, np.memmap)
