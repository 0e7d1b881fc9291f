"""What is hidden and what is asked: fixed counts, right labels, the same masks whoever asks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.batches import Alternate, Mask, SentencePairs, Steps, next_tokens, split
from course_lib.data.pack import Loader, Packed
from course_lib.objectives import IGNORE

VOCAB, MASK_ID, SPECIALS = 500, 3, 4


def rows_of(count=6, length=32, seed=0, low=SPECIALS):
    return torch.randint(low, VOCAB, (count, length + 1), generator=torch.Generator().manual_seed(seed))


def mask(rate=0.25, seed=0):
    return Mask(MASK_ID, VOCAB, SPECIALS, torch.Generator().manual_seed(seed), lambda progress: rate)


def test_labels_are_the_next_tokens():
    rows = torch.arange(10).repeat(2, 1)
    batch = next_tokens(rows, 0.5)
    assert torch.equal(batch["input_ids"] + 1, batch["labels"])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(4, 64), st.floats(0.01, 0.6), st.integers(0, 99))
def test_every_row_hides_the_same_number_and_keeps_the_rest(count, length, rate, seed):
    rows = rows_of(count, length, seed)
    batch = mask(rate, seed)(rows, 0.0)
    k = max(1, round(rate * length))
    assert batch["positions"].shape == batch["labels"].shape == (count, k)
    assert all(len(set(row.tolist())) == k for row in batch["positions"])
    assert torch.equal(batch["labels"], rows[:, :-1].gather(1, batch["positions"]))
    restored = batch["input_ids"].scatter(1, batch["positions"], batch["labels"])
    assert torch.equal(restored, rows[:, :-1])
    assert 0 not in batch["positions"] or k == length  # the hybrid predicts from the position before


def test_80_10_10():
    rows = rows_of(200, 100)
    batch = mask(0.5)(rows, 0.0)
    shown, labels = batch["input_ids"].gather(1, batch["positions"]), batch["labels"]
    assert (shown == MASK_ID).float().mean().item() == pytest.approx(0.8, abs=0.01)
    assert (shown == labels).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert shown[shown != MASK_ID].min() >= SPECIALS


def test_special_tokens_are_never_hidden():
    rows = rows_of(50, 20, low=0)
    rows[0] = 0  # nothing else in this row
    batch = mask(0.5)(rows, 0.0)
    assert not ((batch["labels"] >= 0) & (batch["labels"] < SPECIALS)).any()
    assert (batch["labels"][0] == IGNORE).all()
    assert (batch["input_ids"][0] == 0).all(), "nor replaced, where a row has nothing else"


def test_the_only_row_of_a_step_is_followed_by_its_own_half():
    rows, made = rows_of(1), SentencePairs(mask(0.01), bos=0, sep=1)
    assert all(made(rows, 0.0)["is_next"].all() for _ in range(20))


def test_the_rate_follows_progress():
    falling = Mask(MASK_ID, VOCAB, SPECIALS, torch.Generator(), lambda progress: 0.3 - 0.15 * progress)
    rows = rows_of(2, 100)
    assert [falling(rows, x)["labels"].size(1) for x in (0.0, 0.5, 1.0)] == [30, 22, 15]


def test_pairs_follow_or_come_from_another_row():
    rows = torch.stack([torch.arange(100 * r + 10, 100 * r + 10 + 33) for r in range(4)])
    made = SentencePairs(mask(0.05, seed=5), bos=0, sep=1)
    seen = set()
    for _ in range(10):
        batch = made(rows, 0.0)
        ids = batch["input_ids"].scatter(1, batch["positions"], batch["labels"])
        assert ids.shape == (4, 32)
        assert (ids[:, 0] == 0).all()
        assert ((ids == 1).sum(1) == 2).all()
        for row, types, follows in zip(ids, batch["token_type_ids"], batch["is_next"], strict=True):
            first, second = row[(types == 0)][1:-1], row[(types == 1)][:-1]
            assert bool(follows) == bool(second[0] == first[-1] + 1)
            assert torch.equal(second, torch.arange(second[0], second[0] + len(second)))
            seen.add(bool(follows))
    assert seen == {True, False}


def test_a_false_pair_comes_from_anywhere_also_where_rows_come_in_order():
    rows = torch.stack([torch.arange(100 * r + 10, 100 * r + 10 + 33) for r in range(60)])
    batch = SentencePairs(mask(0.05), bos=0, sep=1)(rows, 0.0)
    ids = batch["input_ids"].scatter(1, batch["positions"], batch["labels"])
    steps = (ids[:, 20] // 100 - ids[:, 5] // 100)[~batch["is_next"]] % 60  # from the row of A to that of B
    assert (steps != 0).all()
    assert len(set(steps.tolist())) > 15  # not always the row before, which is often the same document


def test_the_hybrid_alternates_whole_steps():
    made = Alternate(mask(), share=0.3)
    kinds = ["positions" in made(rows_of(2), 0.0) for _ in range(400)]
    assert sum(kinds) / 400 == pytest.approx(0.3, abs=0.07)


def packed(tmp_path):
    Packed.write(tmp_path / "x.bin", [[rows_of(60).flatten().tolist()]], VOCAB, 1, {})
    return Packed.open(tmp_path / "x.bin")


@pytest.mark.parametrize("world", [1, 2, 4])
def test_all_processes_together_do_what_one_does(tmp_path, world):
    data = packed(tmp_path)

    def first_steps(rank, processes):
        steps = Steps(Loader(data, 32, 8, 0), mask(seed=9), lambda: 0.0, 3, rank, processes)
        return [step for step, _ in zip(steps, range(3), strict=False)]

    alone = first_steps(0, 1)
    ranks = [first_steps(rank, world) for rank in range(world)]
    for number, step in enumerate(alone):
        whole = torch.cat([micro["labels"] for micro in step])
        shared = torch.empty_like(whole)
        for rank, steps in enumerate(ranks):
            shared[rank::world] = torch.cat([micro["labels"] for micro in steps[number]])
        assert torch.equal(whole, shared)
        assert all(len(micro["labels"]) <= 3 for micro in step)


def test_split_keeps_rows_together():
    batch = {"a": torch.arange(7), "b": torch.arange(14).reshape(7, 2)}
    parts = split(batch, 3)
    assert [len(p["a"]) for p in parts] == [len(p["b"]) for p in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([p["b"] for p in parts]), batch["b"])
