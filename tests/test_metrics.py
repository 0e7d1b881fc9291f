"""Scores and comparisons, against closed forms and other libraries."""

import copy
import json

import numpy as np
import pytest
import seqeval.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import IOB2

from course_lib import baselines, metrics, pairs, tokenizer
from course_lib.data import tags
from course_lib.data.labelled import Labelled, Task
from course_lib.errors import CourseError
from tests.conftest import make_text


def test_the_interval_of_one_pair_is_the_normal_one():
    draw = np.random.default_rng(0)
    a = (draw.random(4000) < 0.8).astype(float)[None]
    b = (draw.random(4000) < 0.75).astype(float)[None]
    found = metrics.compare(a, b)
    spread = (a - b).std() / np.sqrt(4000)
    assert found.mean == pytest.approx((a - b).mean())
    assert (found.low, found.high) == pytest.approx((found.mean - 1.96 * spread, found.mean + 1.96 * spread), abs=0.001)
    assert (found.seeds, found.verdict) == (1, "undecided"), "one seed decides nothing"


def test_one_seed_is_one_seed_unless_nothing_was_trained():
    five, one = np.ones((5, 40)), np.zeros((1, 40))
    assert (metrics.compare(five, one).seeds, metrics.compare(five, one).verdict) == (1, "undecided")
    assert (metrics.compare(one, five).seeds, metrics.compare(one, five).verdict) == (1, "undecided")
    words = metrics.compare(five, one, trained=False)
    assert (words.seeds, words.verdict) == (5, "helps")


def test_pairing_items_narrows_and_seeds_widen_the_interval():
    draw = np.random.default_rng(1)
    hard = draw.random(1000) < 0.5  # both systems fail on the same items
    a = np.stack([(~hard).astype(float)] * 5)
    b = a.copy()
    b[:, :10] = 0
    width = lambda d: d.high - d.low
    paired = metrics.compare(a, b)
    assert width(paired) < width(metrics.compare(a, b[:, draw.permutation(1000)])) / 3
    unsteady = a.copy()
    unsteady[::2] *= draw.random((3, 1000)) < 0.9
    assert width(metrics.compare(unsteady, a)) > 2 * width(paired)


def test_verdicts():
    ones, most = np.ones((5, 500)), np.ones((5, 500))
    most[:, ::10] = 0
    assert metrics.compare(ones, most).verdict == "helps"
    assert metrics.compare(most, ones).verdict == "hurts"
    assert metrics.compare(ones, ones).verdict == "undecided"
    assert metrics.compare(ones[:4], most).verdict == "undecided", "four seeds are too few"
    with pytest.raises(ValueError, match="500 items against 499"):
        metrics.compare(ones, most[:, 1:])


def test_entities_are_whole_or_wrong():
    """Equation eq-entity-f1 on cases counted by hand."""
    gold = [["B-PER", "I-PER", "O", "B-LOC"]]
    half = [["B-PER", "O", "O", "B-LOC"]]
    assert metrics.entities(gold, half)["f1"] == 0.5
    loose = [["I-PER", "I-PER", "O", "B-LOC"]]  # seqeval's default forgives a missing B
    assert metrics.entities(gold, loose)["f1"] == 1.0
    assert metrics.entities(gold, loose, strict=True)["recall"] == 0.5
    assert metrics.classification([0, 0, 1, 1], [0, 0, 1, 0]) == pytest.approx(
        {"accuracy": 0.75, "macro_f1": 0.7333}, abs=1e-4
    )


TAGS = st.lists(st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]), min_size=1, max_size=8)


@given(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=6))
def test_entities_are_what_seqevals_own_functions_say(pairs):
    both = [(gold[: len(said)], said[: len(gold)]) for gold, said in pairs]
    gold, said = [list(side) for side in zip(*both, strict=True)]
    for strict, how in ((False, {}), (True, {"mode": "strict", "scheme": IOB2})):
        found = metrics.entities(gold, said, strict=strict)
        for name, value in found.items():
            assert value == getattr(seqeval.metrics, f"{name}_score")(gold, said, zero_division=0, **how)


def test_tfidf_learns_what_words_give_away():
    words = (["good", "fine", "great"], ["bad", "poor", "awful"])
    texts = [f"{make_text(i, 2)} {words[i % 2][i % 3]}" for i in range(300)]
    side = lambda low, high: Labelled(texts[low:high], [i % 2 for i in range(low, high)])
    task = Task("toy", ["good", "bad"], side(0, 200), side(200, 250), side(250, 300))
    found = baselines.tfidf(task)
    assert found.shape == (50, 2)
    assert metrics.classification(task.test.labels, found.argmax(1))["accuracy"] == 1.0


def test_a_class_that_train_lacks_keeps_its_column():
    texts = [f"it is {('good', 'awful')[i % 2]}" for i in range(120)]
    side = lambda low, high: Labelled(texts[low:high], [2 * (i % 2) for i in range(low, high)])
    found = baselines.tfidf(Task("toy", ["good", "so so", "bad"], side(0, 80), side(80, 100), side(100, 120)))
    assert found.shape == (20, 3)
    assert found.argmax(1).tolist() == [0, 2] * 10
    assert found[:, 1].max() == 0


@pytest.fixture
def words():
    return tokenizer.train("byte-bpe", [make_text(i) for i in range(50)], 320, 32)


def scored(model, ids):
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double()
    return logits.log_softmax(-1)


@pytest.mark.parametrize("causal", [True, False])
def test_log_likelihoods_are_sums_over_tokens_whatever_the_batch(words, causal):
    from course_lib import models

    torch.manual_seed(0)
    shape = models.Size(hidden=32, layers=2, heads=2, vocab=320, context=32)
    ids = models.Tokens(len(words), words.bos_token_id, words.sep_token_id, words.pad_token_id)
    model = models.build("qwen3" if causal else "modernbert", shape, ids).eval().double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    sentences = ["The film moves.", "The story rarely follows the actor.", "The plot"]
    found = pairs.log_likelihoods(model, words, sentences, causal, batch_rows=2)
    for sentence, score in zip(sentences, found, strict=True):
        row = words(sentence)["input_ids"]
        by_hand = 0.0
        for at in range(1, len(row)):
            if causal:
                by_hand += scored(model, row[:at])[-1, row[at]].item()
            else:
                by_hand += scored(model, [*row[:at], words.mask_token_id, *row[at + 1 :]])[at, row[at]].item()
        assert score.item() == pytest.approx(by_hand, rel=1e-9)
    for rows in (1, 3, 64):
        again = pairs.log_likelihoods(model, words, sentences, causal, batch_rows=rows)
        torch.testing.assert_close(again, found, rtol=1e-9, atol=0)


def test_a_models_own_logits_count_and_a_sentence_begins_where_its_tokenizer_says(words):
    """Granite scales its logits; a tokenizer as GPT-2's adds no mark and has no padding."""
    from tokenizers import processors
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GraniteConfig(vocab_size=len(words), num_key_value_heads=2, logits_scaling=8.0, **shape)
    model = GraniteForCausalLM(config).eval().double()
    bare = copy.deepcopy(words)
    bare._tokenizer.post_processor = processors.Sequence([])
    bare.pad_token = None
    sentences = ["The film moves.", "The plot"]
    row = lambda text: words(text)["input_ids"]
    by_hand = [
        sum(scored(model, row(text)[:at])[-1, row(text)[at]].item() for at in range(1, len(row(text))))
        for text in sentences
    ]
    assert pairs.log_likelihoods(model, bare, sentences, causal=True).tolist() == pytest.approx(by_hand, rel=1e-9)


def test_minimal_pairs_by_file(words, tiny_model, tmp_path, monkeypatch):
    for name, count in (("agreement", 3), ("order", 1)):
        lines = [json.dumps({"sentence_good": "a" * (i + 1), "sentence_bad": "b"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    # A made-up model that prefers short sentences of a to b, and b to long ones.
    likes = {"b": -1.5, "a": -1.0, "aa": -2.0, "aaa": -3.0}
    monkeypatch.setattr(
        pairs, "log_likelihoods", lambda m, t, sentences, *_: torch.tensor([likes[s] for s in sentences])
    )
    found = pairs.minimal_pairs(tiny_model, words, tmp_path, causal=True)
    assert found == pytest.approx({"all": 2 / 4, "agreement": 1 / 3, "order": 1.0})
    (tmp_path / "order.jsonl").write_text('{"text": "x"}\n', encoding="utf-8")
    with pytest.raises(CourseError, match=r"order\.jsonl is not a file of minimal pairs"):
        pairs.minimal_pairs(tiny_model, words, tmp_path, causal=True)


def test_a_sentence_beyond_the_context_is_named(words, tiny_model):
    with pytest.raises(CourseError, match="has .* tokens, the model's context only 32"):
        pairs.log_likelihoods(tiny_model, words, [make_text(1, 20)], causal=True)


def test_names_of_the_training_sentences_are_scored_apart():
    words = [list("王明在京"), list("李四")]
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-PER", "I-PER"]]
    known = tags.names(words[:1], gold[:1])
    assert known == {("王", "明"), ("京",)}
    looked_up = [gold[0], ["O", "O"]]
    assert metrics.by_familiarity(words, gold, looked_up, known) == {"seen_f1": 1.0, "unseen_f1": 0.0}
    invented = [[*gold[0][:2], "B-LOC", "O"], gold[1]]  # 在 invented, 京 missed
    assert metrics.by_familiarity(words, gold, invented, known) == pytest.approx({"seen_f1": 2 / 3, "unseen_f1": 2 / 3})


def test_calibration_error_by_hand():
    """Equation eq-ece: four answers in two bins."""
    confidence, right = np.array([0.9, 0.8, 0.3, 0.4]), np.array([1, 0, 0, 1])
    assert metrics.ece(confidence, right, bins=2) == pytest.approx(0.5 * abs(0.5 - 0.85) + 0.5 * abs(0.5 - 0.35))
