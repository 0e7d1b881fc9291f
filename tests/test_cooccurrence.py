"""Closed-form embeddings, against counting by hand and a dense singular value decomposition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import cooccurrence
from course_lib.errors import CourseError


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.integers(1, 4))
def test_counts_are_what_counting_by_hand_gives(stream, window):
    by_hand = np.zeros((7, 7))
    for i, left in enumerate(stream):
        for j in range(i + 1, min(i + window, len(stream) - 1) + 1):
            if 0 in stream[i : j + 1]:
                break  # a document ends there
            by_hand[left, stream[j]] += 1 / (j - i)
            by_hand[stream[j], left] += 1 / (j - i)
    found = cooccurrence.counts(np.array(stream, dtype=np.uint16), 7, 0, window)
    np.testing.assert_allclose(found.toarray(), by_hand, rtol=1e-6)


def test_embeddings_factorise_ppmi():
    draw = np.random.default_rng(0)
    stream = draw.integers(1, 30, 5000).astype(np.uint16)
    counted = cooccurrence.counts(stream, 30, 0).toarray().astype(np.float64)
    rows = counted.sum(1)
    context = rows**0.75 / (rows**0.75).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        ppmi = np.maximum(np.nan_to_num(np.log(counted / (rows[:, None] * context)), neginf=0), 0)
    u, s, _ = np.linalg.svd(ppmi)
    expected = torch.from_numpy(u[:, :8] * np.sqrt(s[:8])).float()
    found = cooccurrence.embeddings(stream, 30, 8, 0)
    assert found.std() == pytest.approx(1, abs=1e-5)
    gram = lambda x: x @ x.T / x.std() ** 2  # signs and rotations within equal values are free
    torch.testing.assert_close(gram(found), gram(expected), rtol=0.05, atol=0.05)


def test_tokens_with_the_same_company_are_alike():
    draw = np.random.default_rng(1)
    groups = {1: (10, 11), 2: (12, 13)}  # 1 and 3 among tens and elevens, 2 and 4 among twelves and thirteens
    stream = []
    for _ in range(3000):
        token = int(draw.integers(1, 5))
        stream += [0, int(draw.choice(groups[token % 2 or 2])), token, int(draw.choice(groups[token % 2 or 2]))]
    e = torch.nn.functional.normalize(cooccurrence.embeddings(np.array(stream), 14, 4, 0), dim=1)
    assert e[1] @ e[3] > 0.9 > e[1] @ e[2] + 0.5


def test_more_dimensions_than_tokens_are_refused():
    with pytest.raises(CourseError, match="at most 6 dimensions for 7 tokens"):
        cooccurrence.embeddings(np.array([1, 2, 3]), 7, 7, 0)
