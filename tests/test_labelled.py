"""Labelled tasks and the batches made of them."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import examples
from course_lib.data import labelled
from course_lib.data.clean import document_hash, split_of
from course_lib.errors import CourseError
from course_lib.objectives import Classification
from tests.conftest import make_text


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "mood.jsonl"
    rows = [{"text": make_text(i, 2), "label": "good" if i % 3 else "bad"} for i in range(600)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_sides_follow_the_hash_and_do_not_meet(table):
    task = labelled.load(str(table))
    assert task.classes == ["bad", "good"]
    sides = [set(s.texts) for s in (task.train, task.dev, task.test)]
    assert len(set.union(*sides)) == sum(map(len, sides))
    assert sum(map(len, sides)) == 600
    assert {split_of(document_hash(t)) for t in sides[0] | sides[1]} == {"train"}
    assert "train" not in {split_of(document_hash(t)) for t in sides[2]}
    assert 30 < len(task.test) < 95
    few = task.with_labels(20)
    assert few.train.texts == task.train.texts[:20]
    assert few.test == task.test
    with pytest.raises(CourseError, match="fewer than 601"):
        task.with_labels(601)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a", "mood": 1}], "no column label"),
        ([{"text": "a", "label": 1}, {"text": "b", "label": 1}], "only the class '1'"),
        ([{"text": "a", "label": 1}, {"text": "b", "label": 2}], "too few texts"),
    ],
)
def test_tables_that_are_no_task(tmp_path, rows, message):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(CourseError, match=message):
        labelled.load(str(path))


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("a.csv", "text,label\nx,good\ny,bad\nmore,\n"),
        ("a.csv", "review,label\nx,good\ny,bad\n"),
        ("a.jsonl", '{"text": "one more", "label": null}\n'),
        ("a.jsonl", '{"text": "one more"}\n'),
        ("a.jsonl", '{"text": null, "label": "good"}\n'),
    ],
)
def test_a_corpus_that_is_not_labelled_throughout_has_no_task(name, extra, table, tmp_path):
    path = tmp_path / name
    path.write_text(extra if name.endswith("csv") else table.read_text(encoding="utf-8") + extra, encoding="utf-8")
    assert labelled.of_corpus(str(path)) is None
    assert labelled.of_corpus(str(table)).classes == ["bad", "good"]


def test_an_unknown_task_is_named():
    with pytest.raises(CourseError, match="no task called 'imbd'.*imdb"):
        labelled.load("imbd")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=80), st.integers(1, 9), st.integers(0, 3))
def test_every_epoch_visits_each_example_once(lengths, step_rows, seed):
    rows = [[number + 10] * length for number, length in enumerate(lengths)]
    loader = examples.Examples(examples.Rows(rows, list(range(len(rows)))), step_rows, 0, seed)
    steps = iter(loader)
    for _ in range(2):
        seen = []
        for _ in range(loader.steps_per_epoch):
            batch = next(steps)
            seen += batch["labels"].tolist()
            for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
                assert ids[mask.bool()].tolist() == rows[label]
                assert ids[~mask.bool()].eq(0).all()
        assert sorted(seen) == list(range(len(rows)))


def test_buckets_leave_little_padding_and_a_new_order_every_epoch():
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 100, (2000,), generator=draw).tolist()
    loader = examples.Examples(examples.Rows([[1] * n for n in lengths], list(range(2000))), 16, 0, 0)
    steps = iter(loader)
    epoch = [next(steps) for _ in range(loader.steps_per_epoch)]
    padded = sum(batch["input_ids"].numel() for batch in epoch)
    assert padded < 1.05 * sum(lengths)
    again = next(steps)
    assert again["labels"].tolist() != epoch[0]["labels"].tolist()


def test_resuming_costs_nothing_and_changes_nothing():
    make = lambda: examples.Examples(examples.Rows([[i] * (i % 7 + 1) for i in range(50)], list(range(50))), 4, 0, 3)
    whole, steps = make(), []
    for number, batch in enumerate(whole):
        steps.append(batch["labels"].tolist())
        if number == 14:
            state = whole.state_dict()
        if number == 20:
            break
    resumed = make()
    resumed.load_state_dict(state)
    assert [batch["labels"].tolist() for batch, _ in zip(resumed, range(6), strict=False)] == steps[15:21]


@given(st.integers(0, 60), st.integers(1, 40))
def test_long_texts_keep_head_and_tail(count, length):
    ids = list(range(count))
    found = examples.fit(ids, length)
    assert len(found) == min(count, length)
    assert found[:1] == ids[:1]
    if length > 2:
        assert found[-1:] == ids[-1:]
    assert found == sorted(found)


def test_classification_counts_rows_and_sums(tiny_model):
    from transformers import Qwen3ForSequenceClassification

    config = tiny_model.config
    config.num_labels, config.pad_token_id = 3, 2
    torch.manual_seed(0)
    model = Qwen3ForSequenceClassification(config).double()
    batch = examples.pad([[5, 6, 7], [8], [9, 10]], [0, 2, 1], 2)
    objective = Classification()
    assert objective.counts(batch) == {"classification": 3}
    whole = objective(model, batch)["classification"]
    parts = [
        objective(model, examples.pad([row], [label], 2)) for row, label in (([5, 6, 7], 0), ([8], 2), ([9, 10], 1))
    ]
    torch.testing.assert_close(whole, torch.stack([part["classification"] for part in parts]).sum())
