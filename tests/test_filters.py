import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_lib.data import filters
from tests.conftest import make_text

LONG = [make_text(i, sentences=30) for i in range(20)]


def jaccard(a, b, n=5):
    a, b = set(filters.ngrams(a, n)), set(filters.ngrams(b, n))
    return len(a & b) / len(a | b)


def test_exact_duplicates_are_equal_after_cleaning():
    kept, report = filters.exact_duplicates(["a b", "c", "a b<br/>", " a b", "c "])
    assert kept == ["a b", "c"]
    assert report.describe() == "exact duplicates: 3 of 5 removed (60.0%)"


def test_near_duplicates_go_and_others_stay():
    """Against exact Jaccard similarity: nearly everything above the threshold is found, nothing far below is."""
    edited = [text.replace("film", "picture", 1) for text in LONG[:10]]
    half = [" ".join(text.split()[: len(text.split()) // 2]) for text in LONG[10:]]
    assert all(jaccard(a, b) > 0.9 for a, b in zip(LONG[:10], edited, strict=True))
    assert all(jaccard(a, b) < 0.6 for a, b in zip(LONG[10:], half, strict=True))
    kept, report = filters.near_duplicates([*LONG, *edited, *half])
    assert kept == [*LONG, *half]
    assert report.before - report.after == 10


def test_near_deduplication_is_pure_and_repeatable():
    texts = [*LONG, LONG[3]]
    first, _ = filters.near_duplicates(texts)
    assert first == filters.near_duplicates(texts)[0] == filters.near_duplicates(first)[0] == LONG
    assert len(texts) == 21


def test_length_and_language():
    texts = ["The committee will meet again next week to discuss it.", "这部电影非常好看，我很喜欢。",
             "Le comité se réunira de nouveau la semaine prochaine."]  # fmt: skip
    assert filters.language(texts, ["en"])[0] == texts[:1]
    assert filters.language(texts, ["zh", "fr"])[0] == texts[1:]
    assert filters.length(texts, low=20)[0] == [texts[0], texts[2]]
    assert filters.length(texts, high=20)[0] == [texts[1]]


@given(st.lists(st.text()), st.integers(0, 10), st.integers(0, 20))
def test_every_step_keeps_a_subsequence(texts, low, high):
    for step in (filters.exact_duplicates(texts), filters.length(texts, low, high)):
        kept, report = step
        remaining = iter(texts)
        assert all(any(text == other for other in remaining) for text in kept)
        assert (report.before, report.after) == (len(texts), len(kept))


def test_words_are_words_and_chinese_characters():
    assert filters.ngrams("It's 1998, 北京!", 1) == [("it",), ("s",), ("1998",), ("北",), ("京",)]
    assert filters.ngrams("2023年GDP增 长3%", 1) == [(w,) for w in ("2023", "年", "gdp", "增", "长", "3")]
    assert filters.ngrams("snake_case naïve", 1) == [("snake_case",), ("naïve",)]
    assert filters.ngrams("a b c", 2) == [("a", "b"), ("b", "c")]
    assert filters.ngrams("a", 2) == []


def test_planted_contamination_is_counted_exactly():
    draw = random.Random(3)
    words = [f"word{i}" for i in range(5000)]
    fresh = [" ".join(draw.sample(words, 40)) for _ in range(30)]
    training = [" ".join(draw.sample(words, 200)) for _ in range(20)]
    whole = [f"before {fresh[i].upper()}, after" for i in range(3)]  # case and punctuation do not hide it
    part = [" ".join(fresh[i].split()[:10]) for i in range(3, 8)]  # 3 of 33 n-grams
    found = filters.contamination([*training, *whole, *part], {"test": [*fresh, "too short"], "clean": fresh[10:]})
    assert found["test"] == filters.Overlap(texts=31, touched=8, contained=3, too_short=1)
    assert found["clean"] == filters.Overlap(20, 0, 0, 0)
    assert "3 of 31 texts at least half contained" in found["test"].describe()


def test_contamination_of_nothing():
    assert filters.contamination([], {"none": []})["none"] == filters.Overlap(0, 0, 0, 0)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_a_text_contains_itself(n):
    assert filters.contamination(LONG, {"same": LONG}, n)["same"].contained == len(LONG)
