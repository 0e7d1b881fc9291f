"""Every head on tiny models: alignment, windows, learning, calibration, freezing, restoring the best."""

import itertools
import json
import os
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from tokenizers import Tokenizer, normalizers
from tokenizers.models import Unigram
from transformers import AutoTokenizer, GPT2Config, GPT2ForTokenClassification, PreTrainedTokenizerFast

from course_lib import cli, device, examples, finetune, freezing, metrics, models, optim, recipes, recorder
from course_lib import tokenizer as tokenizers
from course_lib.config import Tuning
from course_lib.data import annotated, labelled, tags
from course_lib.errors import CourseError
from course_lib.heads import base, registry, spans, tokens, windows
from course_lib.objectives import IGNORE, Classification
from course_lib.precision import Precision
from course_lib.record import Run
from tests.conftest import make_text

quiet = lambda message: None
NAMES, PLACES = ["Ann", "Bob Lee", "Cleo", "Dan Wu"], ["Oslo", "New York", "Rome"]


def pretrained(folder, architecture="bert", kind="wordpiece", context=48, layers=2):
    torch.manual_seed(0)
    texts = [f"{make_text(i)} {' '.join(NAMES + PLACES)} wonderful terrible saw in who" for i in range(50)]
    tokenizer = tokenizers.train(kind, texts, 320, context, exact=False)
    shape = models.Size(hidden=32, layers=layers, heads=2, vocab=len(tokenizer), context=context)
    model = models.build(architecture, shape, recipes.token_ids(tokenizer))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def sentence(draw):
    """Words and IOB2 tags."""
    words, labels = [], []
    parts = (("", ["🙂", "In"]), ("PER", NAMES), ("", ["saw", "left", "found"]), ("LOC", PLACES), ("", ["!", "."]))
    for kind, names in parts:
        chosen = draw.choice(names).split()
        words += chosen
        labels += [f"{'B' if not i else 'I'}-{kind}" if kind else "O" for i in range(len(chosen))]
    return words, labels


@pytest.fixture
def conll(tmp_path):
    """Three files that share few sentences."""
    draw, paths = random.Random(0), []
    for name, count in (("a", 200), ("b", 40), ("c", 40)):
        paths.append(tmp_path / f"{name}.conll")
        blocks = (zip(*sentence(draw), strict=True) for _ in range(count))
        paths[-1].write_text("\n".join("".join(f"{w} {t}\n" for w, t in b) for b in blocks), encoding="utf-8")
    return [str(path) for path in paths]


def ner(conll, folder, **more):
    sides = dict(zip(("train", "valid", "test"), conll, strict=True))
    more = {"epochs": 4, "step_rows": 16, "lr": 0.003, "stride": 8} | more
    return Tuning(head="ner", model=str(folder), device="cpu", **sides, **more)


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe"])
def test_labels_stand_where_transformers_puts_the_words(tmp_path, kind):
    tokenizer = AutoTokenizer.from_pretrained(pretrained(tmp_path / "m", kind=kind) / "model")
    text = annotated.join(["Ann", "unbelievably", "saw", "🙂", "", "New", "York", "."])
    labels = [1, 0, 0, 0, 0, 3, 4, 0]
    rows = registry.get("ner").rows(tokenizer, labelled.Labelled([text], [labels]), 48, 8)
    theirs = tokenizer(text.words(), is_split_into_words=True)
    expected, before = [], None
    for word in theirs.word_ids():
        expected.append(IGNORE if word is None or word == before else labels[word])
        before = word
    assert rows.ids == [theirs["input_ids"]]
    assert rows.labels == [expected]
    assert rows.labels[0].count(IGNORE) > 2, "the long word has more pieces than one"


def test_two_thousand_tokens_are_all_answered_once(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(pretrained(tmp_path / "m") / "model")
    words = [random.Random(i).choice([*NAMES[:1], "unbelievably", "saw"]) for i in range(900)]
    text = annotated.join(words)
    labels = [i % 5 for i in range(900)]
    rows = registry.get("ner").rows(tokenizer, labelled.Labelled([text], [labels]), 48, 16)
    assert sum(map(len, rows.ids)) > 2000
    assert max(map(len, rows.ids)) <= 48
    assert sorted(word for _, answered in rows.places for word, _ in answered) == list(range(900))
    assert [label for row in rows.labels for label in row if label != IGNORE] == labels
    # An oracle that outputs its own label comes back in order.
    outputs = [np.eye(5)[[label if label != IGNORE else 0 for label in row]] for row in rows.labels]
    (merged,) = registry.get("ner").merge(outputs, rows, labelled.Labelled([text], [labels]))
    assert merged.argmax(1).tolist() == labels


@given(st.lists(st.integers(0, 6), max_size=60), st.integers(6, 20), st.integers(0, 5))
def test_windows_cover_fit_overlap_and_are_owned(sizes, room, stride):
    ranges = windows.cut(sizes, room, stride)
    owner = windows.owners(sizes, ranges)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == len(sizes)
    for start, end in ranges:
        assert sum(sizes[start:end]) <= room
        assert end == len(sizes) or sum(sizes[start : end + 1]) > room, "one word more does not fit"
    for (a, b), (c, d) in itertools.pairwise(ranges):
        assert a < c <= b < d
        assert sum(sizes[c:b]) <= stride
        assert sum(sizes[c - 1 : b]) > stride or sum(sizes[c - 1 : b + 1]) > room, "nor can neighbours share one more"

    def sight(word, start, end):
        """Tokens between the word and the nearer edge; the text's own ends are none."""
        left, right = sum(sizes[start:word]), sum(sizes[word + 1 : end])
        return min(left if start else np.inf, right if end < len(sizes) else np.inf)

    for word, number in enumerate(owner):
        assert ranges[number][0] <= word < ranges[number][1]
        assert sight(word, *ranges[number]) == max(sight(word, *r) for r in ranges if r[0] <= word < r[1])
    assert owner == sorted(owner), "going right, the window changes to the right only"


def test_a_word_that_no_piece_stands_for_is_o(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(pretrained(tmp_path / "m") / "model")
    head, side = (
        registry.get("ner"),
        labelled.Labelled([annotated.join(["a", "", "\u200b"]), annotated.cut("")], [[1] * 3, []]),
    )
    rows = head.rows(tokenizer, side, 48, 8)
    assert len(rows.ids) == 2, "an empty sentence is a row of special tokens"
    logits = head.merge([np.tile([0.0, 9.0, 0.0], (len(row), 1)) for row in rows.ids], rows, side)
    found = head.answers(logits, side, {"temperature": 1.0})
    assert found[0].argmax(1).tolist() == [1, 0, 0]
    assert found[1].shape == (0, 3)
    assert head.scores(side, found, ["O", "B-X", "I-X"])["f1"] == pytest.approx(0.5)
    assert head.fit(logits, side, {})["temperature"] > 0


def llama(plain):
    """Blanks are part of its pieces, ▁; it puts one before every text, unless it is `plain`."""
    pieces = [(piece, -1.0) for piece in ("<unk>", "▁A", "▁film", "▁B", "▁a", "A", "a", "▁")]
    made = Tokenizer(Unigram(pieces, 0))
    blank = normalizers.Replace(" ", "▁")
    made.normalizer = blank if plain else normalizers.Sequence([normalizers.Prepend("▁"), blank])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@pytest.mark.parametrize("plain", [False, True])
def test_no_empty_piece_stands_before_a_word(plain):
    tokenizer = llama(plain)
    side = labelled.Labelled([annotated.join(["A", "film", "B"])], [[1, 0, 3]])
    rows = registry.get("ner").rows(tokenizer, side, 48, 8)
    assert rows.ids == [tokenizer("A film B")["input_ids"]]
    assert tokenizer.convert_ids_to_tokens(rows.ids[0]) == ["A" if plain else "▁A", "▁film", "▁B"]
    assert rows.labels == [[1, 0, 3]]


def test_entities_are_learnt_reported_stored_and_found_in_text(conll, tmp_path, capsys):
    folder = pretrained(tmp_path / "m", context=48)
    sides = [f"--{name}={path}" for name, path in zip(("train", "valid", "test"), conll, strict=True)]
    options = ["finetune", "ner", *sides, f"--model={folder}", f"--runs={tmp_path}", "--run-id=r"]
    more = ["--epochs=6", "--step-rows=16", "--lr=0.003", "--stride=8", "--seeds=2"]
    assert cli.main([*options, *more]) == 0
    shown = capsys.readouterr().out
    assert "the tags are IOB2" in shown
    assert "seqeval, default" in shown
    assert "seqeval, strict (IOB2)" in shown
    assert "test texts are also in train" in shown
    run = Run.open(tmp_path / "r")
    result = run.info["result"]
    assert result["f1"] > 0.9
    assert result["seeds"] == 2
    assert result["ece"] <= result["ece_raw"] + 0.02
    assert finetune.correct(run).shape == (2, 40, 2)
    assert finetune.compare(run, run).mean == 0
    columns = (run.folder / "seed-0" / "predictions.conll").read_text(encoding="utf-8").splitlines()
    assert {len(line.split("\t")) for line in columns if line} == {3}
    text = "🙂 Bob Lee found New York!"
    (found,) = tokens.extract(run.folder, [text], device.pick("cpu"))
    assert [(text[e.start : e.end], e.label) for e in found] == [("Bob Lee", "PER"), ("New York", "LOC")]
    assert all(0.3 < e.score <= 1 for e in found)
    assert tokens.extract(run.folder, ["", text], device.pick("cpu")) == [[], found]
    with pytest.raises(CourseError, match="TF-IDF sorts texts"):
        finetune.compare(run, None)


def test_unseen_types_and_one_class(tmp_path, conll):
    (tmp_path / "c.conll").write_text("Ann B-GOD\n", encoding="utf-8")
    task = registry.get("ner").task(ner(conll, "m"))
    assert "1 test sentences have 'GOD', which train never shows" in " ".join(task.notes)
    assert task.classes[:3] == ["O", "B-GOD", "I-GOD"]
    (tmp_path / "a.conll").write_text("Ann O\n", encoding="utf-8")
    with pytest.raises(CourseError, match="only the class 'O'"):
        registry.get("ner").task(ner(conll, "m"))
    with pytest.raises(CourseError, match="Give both --train and --test"):
        registry.get("ner").task(ner([conll[0], "", ""], "m"))
    with pytest.raises(CourseError, match="no ner task called 'imdb'.*peoples_daily"):
        registry.get("ner").task(Tuning(head="ner", task="imdb"))


def rows_of(head, count):
    draw = random.Random(1)
    for i in range(count):
        good, long = draw.random() < 0.5, draw.random() < 0.5
        word = "wonderful" if good else "terrible"
        text = f"{make_text(i, 1)} {word} " + ("New York" if long else "")
        if head == "pair":  # neither text alone tells
            first = f"{make_text(i, 1)} {'wonderful' if long else 'terrible'}"
            yield {"text": first, "text_pair": f"The film. {word}", "label": str(good and long)}
        elif head == "multilabel":
            yield {"text": text, "labels": ["good"] * good + ["long"] * long}
        elif head == "regression":
            yield {"text": text, "label": 1000 + 50 * good}
        elif head == "span":
            name = draw.choice(NAMES)
            context = f"The {draw.choice(['film', 'story'])} {draw.choice(['saw', 'in'])} {name} The plot. {i}"
            yield {"question": "who", "context": context, "answer": name, "start": context.index(name)}
        else:
            yield {"text": text, "label": str(good)}


FLOORS = {"sequence": 0.9, "pair": 0.9, "multilabel": 0.9, "regression": 0.8, "span": 0.8}
RECIPES = {"multilabel": (20, 0.001)}  # two things to learn at once: at 0.004 it learns only one


LOSSES = {
    "sequence": ([0, 1, 1, 0], [[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [1.0, 0.0]], 1 / 4, [0.8, 0.4, 0.7, 1.0]),
    "multilabel": ([[1, 0], [1, 1]], [[0.9, 0.2], [0.4, 0.6]], 1 - 2 * 2 / (3 + 2), [0.9, 0.8, 0.4, 0.6]),
    "regression": ([1.0, 3.0], [2.0, 0.0], (1 + 9) / 2, None),
    "span": ([[0, 11], [4, 7]], [[8, 11], [4, 7]], 1 / 6, None),  # half of "big cat" is worth 2/3
}


@pytest.mark.parametrize("head", LOSSES)
def test_the_losses_that_choose_the_weights_in_closed_form(head):
    """Lower is better, also where the score that is reported goes up. `right`: the chance that each true answer got."""
    labels, answers, error, right = LOSSES[head]
    side = labelled.Labelled([("who", "the big cat")] * len(labels), labels)
    found = registry.get(head).losses(side, answers if head == "span" else np.array(answers), [])
    expected = {"error": error} | ({"log_loss": -np.log(right).mean()} if right else {})
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("head", FLOORS)
def test_every_head_learns_and_loads_as_a_stock_model(head, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(head, 500)), encoding="utf-8")
    epochs, lr = RECIPES.get(head, (6, 0.004))
    tuning = Tuning(
        task=str(path),
        head=head,
        model=str(pretrained(tmp_path / "m")),
        epochs=epochs,
        step_rows=16,
        lr=lr,
        stride=8,
    )
    run = finetune.finetune(tuning, runs=tmp_path, log=quiet)
    kind = registry.get(head)
    assert run.info["result"][kind.metric] > FLOORS[head]
    model = kind.auto.from_pretrained(run.folder / "model")
    assert model.config.calibration == Run.open(run.folder / "seed-0").info["result"]["calibration"]
    hits = finetune.correct(run)
    per_item = hits.sum(1)[0, 0] / hits.sum(1)[0, 1] if hits.ndim == 3 else hits.mean()
    if head == "regression":
        rmse = Run.open(run.folder / "seed-0").info["result"]["test"]["rmse"]
        assert -per_item == pytest.approx(rmse**2, rel=1e-3)
    else:
        assert per_item == pytest.approx(run.info["result"][kind.metric], abs=1e-3)


@pytest.mark.parametrize(
    ("head", "rows", "message"),
    [
        ("regression", [{"text": "a", "label": "x"}], "row 1: 'x' is not a number"),
        ("regression", [{"text": "a", "label": float("nan")}], "row 1: the label is not finite"),
        ("regression", [{"text": str(i), "label": i} for i in range(3)], "too few texts to train, choose and test"),
        ("pair", [{"text": "a", "label": 1}], "no column text_pair"),
        ("sequence", [{"text": "a", "label": 1}, {"text": "b"}], "row 2: there is no 'label'"),
        ("sequence", [{"text": "a", "label": 1}, {"text": None, "label": 2}], "row 2: there is no 'text'"),
        ("span", [{"question": "q", "context": "a", "answer": "a", "start": "0.0"}], "'0.0' is no whole number"),
        ("span", [{"question": "q", "context": "abc", "answer": "x", "start": 0}], "'x' does not stand at character 0"),
        ("multilabel", [{"text": "a", "labels": 3}], "row 1: the labels are a list of names, .* not 3"),
        ("multilabel", [{"text": "a", "labels": ["x", None]}], "row 1: the labels are a list of names"),
        ("multilabel", [{"text": f"t{i}", "labels": "a | b"} for i in range(99)], "have the same label, 'a, b'"),
        ("sequence", [{"text": f"t{i}", "label": i / 7} for i in range(200)], "classes for .* Are they numbers"),
        ("sequence", [{"text": f"t{i}", "label": "A"} for i in range(99)], "have the same label, 'A'"),
    ],
)
def test_tables_that_a_head_cannot_read(tmp_path, head, rows, message):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(CourseError, match=message):
        registry.get(head).task(Tuning(head=head, task=str(path)))


def test_numbers_without_variance_and_numbers_as_classes(tmp_path):
    write = lambda name, rows: (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    write("a.jsonl", [{"text": f"t{i}", "label": i / 7} for i in range(200)])
    write("b.jsonl", [{"text": "one", "label": 1}])
    files = {"train": str(tmp_path / "a.jsonl"), "test": str(tmp_path / "b.jsonl")}
    with pytest.raises(CourseError, match="There is one number in test"):
        registry.get("regression").task(Tuning(head="regression", **files))
    with pytest.raises(CourseError, match="classes for .* texts are no classes. Are they numbers"):
        registry.get("sequence").task(Tuning(head="sequence", **files))
    write("a.jsonl", [{"text": f"t{i}", "label": int(i == 7)} for i in range(200)])
    write("b.jsonl", [{"text": "one", "label": 1}, {"text": "two", "label": 0}])
    with pytest.raises(CourseError, match="All 2 numbers in train are the same"):
        registry.get("regression").task(Tuning(head="regression", labels=2, **files))


def test_few_labels_are_checked_as_all_of_them_are(tmp_path):
    rows = [{"text": f"t{i}", "label": "xyz"[i % 3]} for i in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = Tuning(task=str(tmp_path / "a.jsonl"))
    task = registry.get("sequence").task(config)
    assert (task.notes, task.train, task.test) == (
        (),
        *(getattr(labelled.load(config.task), s) for s in ("train", "test")),
    )
    with pytest.raises(CourseError, match="have the same label"):
        registry.get("sequence").task(replace(config, labels=1))
    two = next(n for n in range(2, 99) if len(set(task.train.labels[:n])) == 2)
    few = registry.get("sequence").task(replace(config, labels=two))
    (missing,) = set(range(3)) - set(few.train.labels)
    assert f"test texts have '{few.classes[missing]}', which train never shows" in " ".join(few.notes)
    assert few.test == task.test


def test_names_between_bars_may_have_blanks_and_one_class_is_a_yes_or_no(tmp_path):
    head, path = registry.get("multilabel"), tmp_path / "t.jsonl"
    rows = [{"text": f"t{i}", "labels": "a | b" if i % 2 else "b|a|"} for i in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {label for _, label in head.read(path, "utf-8")[0]} == {("a", "b")}
    path.write_text("".join(json.dumps({"text": f"t{i}", "labels": ["a"] * (i % 2)}) + "\n" for i in range(99)))
    assert head.task(Tuning(head="multilabel", task=str(path))).classes == ["a"]
    side, answers = labelled.Labelled(list("abcd"), [[1], [1], [0], [0]]), np.array([[0.9], [0.1], [0.9], [0.9]])
    found = head.scores(side, answers, ["a"])
    assert found == pytest.approx({"micro_f1": 2 / 5, "macro_f1": 2 / 5, "exact": 1 / 4})
    hits = head.hits({"labels": side.labels, "probabilities": answers})
    assert hits.sum(0)[0] / hits.sum(0)[1] == pytest.approx(found["micro_f1"])


def test_balanced_weights_of_a_class_that_every_text_has():
    train = labelled.Labelled(list("abcd"), [[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]])
    task = labelled.Task("t", ["always", "once", "never"], train, train, train)
    made = registry.get("multilabel").objective(Tuning(class_weights="balanced"), task)
    assert made.positive.tolist() == [1 / 4, 3, 4]


@pytest.mark.parametrize(("mean", "unit"), [(1.7e9, 10.0), (0.0, 1e-8)])
def test_numbers_far_from_zero_or_small_are_learnt_and_scored_in_their_own_units(mean, unit, tmp_path, cpu):
    head, folder = registry.get("regression"), pretrained(tmp_path / "m") / "model"
    train = labelled.Labelled([make_text(i, 1) for i in range(20)], [mean + unit * (i % 2) for i in range(20)])
    task = labelled.Task("t", ["value"], train, train, train)
    state = finetune.build(Tuning(head="regression"), folder, task, finetune.load_tokenizer(folder), cpu)
    assert state.loader.rows.labels == pytest.approx([-1.0, 1.0] * 10)
    unsure, sure = np.full((20, 1), 0.5, np.float32), np.array([[-1.0], [1.0]] * 10, np.float32)
    units = head.calibration(task)
    assert head.scores(train, head.answers(unsure, train, units), ["value"])["r2"] == pytest.approx(-0.25)
    assert head.scores(train, head.answers(sure, train, units), ["value"])["r2"] == pytest.approx(1)
    stored = head.stored(train, unsure, ["value"], units)
    assert stored["values"] == pytest.approx([mean + 0.75 * unit] * 20, abs=unit / 1000)
    assert head.hits(stored) == pytest.approx(np.array([-0.5625, -0.0625] * 10) * unit**2, rel=1e-3)


def test_labels_may_be_missing_where_a_text_may_have_none(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a", "labels": ["x"]}\n{"text": "b", "labels": null}\n{"text": "c"}\n')
    assert [label for _, label in registry.get("multilabel").read(path, "utf-8")[0]] == [("x",), (), ()]


def test_an_answer_is_found_in_the_window_that_holds_it(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(pretrained(tmp_path / "m") / "model")
    context = f"{make_text(1, 20)} Bob Lee {make_text(2, 20)}"
    at = context.index("Bob")
    side = labelled.Labelled([("who", context), ("who", "The plot.")], [[at, at + 7], [-1, -1]])
    head = registry.get("span")
    rows = head.rows(tokenizer, side, 48, 12)
    assert len(rows.ids) > 5
    outputs = []
    for ids, (start, end) in zip(rows.ids, rows.labels, strict=True):
        outputs.append(np.zeros((len(ids), 2)))
        outputs[-1][start, 0] = outputs[-1][end, 1] = 5
    found = head.answers(head.merge(outputs, rows, side), side, {"nowhere": 1.0})
    assert found == side.labels
    assert head.scores(side, found, [])["f1"] == 1
    assert spans.overlap("the big cat", "A cat!") == pytest.approx(2 / 3)


def test_an_answer_has_no_outer_blanks(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [
        {"question": "q", "context": " Ann saw Bob ", "answer": a, "start": s} for a, s in ((" Ann", 0), ("Bob ", 9))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = registry.get("span").read(path, "utf-8")[0]
    assert [context[slice(*place)] for (_, context), place in items] == ["Ann", "Bob"]
    tokenizer = AutoTokenizer.from_pretrained(pretrained(tmp_path / "m") / "model")
    side = labelled.Labelled([text for text, _ in items], [list(place) for _, place in items])
    assert [0, 0] not in registry.get("span").rows(tokenizer, side, 48, 8).labels


@pytest.mark.parametrize(("start", "end", "allowed"), [(30, 10, False), (4, 34, False), (4, 33, True), (7, 7, True)])
def test_a_span_goes_forward_and_has_30_tokens_at_most(start, end, allowed):
    outputs = np.zeros((45, 2))  # the first token is "nowhere"
    outputs[start, 0] = outputs[end, 1] = 5
    rows = examples.Rows([[0] * 45], [], places=[(0, {at: (10 * at, 10 * at + 9) for at in range(1, 45)})])
    ((score, (first, last)),) = registry.get("span").merge([outputs], rows, labelled.Labelled([("q", "c")], [[0, 0]]))
    assert score == (10 if allowed else 5)
    assert 0 <= (last - 9) // 10 - first // 10 < 30
    assert not allowed or [first, last] == [10 * start, 10 * end + 9]


def test_both_texts_of_a_pair_stand_in_one_row_each_of_its_own_type(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(pretrained(tmp_path / "m") / "model")
    texts = [("The film moves.", "Bob Lee saw the plot"), ("Oslo", "wonderful " * 60)]
    rows = registry.get("pair").rows(tokenizer, labelled.Labelled(texts, [0, 1]), 48, 8)
    for ids, types, (first, second) in zip(rows.ids, rows.types, texts, strict=True):
        theirs = tokenizer(first, second, truncation="only_second", max_length=48, return_token_type_ids=True)
        assert (ids, types) == (theirs["input_ids"], theirs["token_type_ids"])
        assert set(types) == {0, 1}
    asked = registry.get("span").rows(tokenizer, labelled.Labelled([("who", "Bob Lee saw")], [[0, 7]]), 48, 8)
    (ids,), (types,) = asked.ids, asked.types
    assert types == [0] * (1 + ids.index(tokenizer.sep_token_id)) + [1] * types.count(1)


def test_a_row_too_short_for_a_question_is_refused_in_a_sentence(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(pretrained(tmp_path / "m") / "model")
    side = labelled.Labelled([("who saw Bob Lee", "Bob Lee saw " * 20)], [[0, 7]])
    with pytest.raises(CourseError, match="--max-length 15 has no room for question and context. Give it 16 or more"):
        registry.get("span").rows(tokenizer, side, 15, 8)
    assert len(registry.get("span").rows(tokenizer, side, 16, 8).ids) > 3


@pytest.mark.parametrize(("how", "least"), [("none", 0), ("embeddings", 1), ("bottom-1", 2), ("body", 3)])
def test_frozen_weights_do_not_move(how, least, conll, tmp_path):
    folder = pretrained(tmp_path / "m")
    tuning = ner(conll, folder, freeze=how, epochs=1, weight_decay=0.1)
    before = dict(
        finetune.new_model(folder / "model", ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"], tuning).named_parameters()
    )
    run = finetune.finetune(tuning, runs=tmp_path, log=quiet)
    after = registry.get("ner").auto.from_pretrained(run.folder / "model")
    for name, p in after.named_parameters():
        if "classifier" not in name:  # the new head starts elsewhere
            moved = not torch.equal(p, before[name])
            assert moved == (freezing.level(after, name) >= least), name
    with pytest.raises(CourseError, match="bottom-1 to bottom-2 for this model; not 'bottom-3'"):
        freezing.lowest(after, "bottom-3")


def test_layers_thaw_from_the_top(tmp_path):
    model = finetune.new_model(pretrained(tmp_path / "m") / "model", ["a", "b"], Tuning())
    now = 0.0
    gradual = freezing.Gradual(Classification(), model, lambda: now)
    batch = examples.pad([[5, 6, 7], [8, 9]], [0, 1], 2)
    for now, least in ((0.0, 3), (0.2, 2), (0.4, 1), (0.5, 0)):  # noqa: B007
        model.zero_grad()
        gradual(model, batch)["classification"].backward()
        learning = {freezing.level(model, name) for name, p in model.named_parameters() if p.grad is not None}
        assert learning == set(range(least, 4))


def test_gradual_unfreezing_and_the_best_weights_survive_a_stop(conll, tmp_path, monkeypatch):
    config = ner(conll, pretrained(tmp_path / "m"), freeze="gradual", evaluate_every=0.2, epochs=2)
    whole = finetune.finetune(config, runs=tmp_path / "whole", log=quiet)
    steps, after = 0, recorder.Recorder.after

    def impatient(self, step):
        nonlocal steps
        steps += 1
        if steps == 9:  # thawing has begun, and one evaluation is done
            os.kill(os.getpid(), signal.SIGTERM)
        return after(self, step)

    monkeypatch.setattr(recorder.Recorder, "after", impatient)
    with pytest.raises(recorder.Interrupted):
        finetune.finetune(config, runs=tmp_path / "parts", log=quiet)
    resumed = finetune.finetune(config, runs=tmp_path / "parts", log=quiet)
    a, b = ((run.folder / "model" / "model.safetensors").read_bytes() for run in (whole, resumed))
    assert a == b


def test_the_best_weights_come_back(conll, tmp_path, monkeypatch):
    """A rate that ruins the model late: the run ends on what dev liked best."""
    config = ner(conll, pretrained(tmp_path / "m"), evaluate_every=0.25, metric="log_loss")
    seen = []
    head = type(registry.get("ner"))

    def worse(self, side, answers, classes):
        seen.append(float(len(seen) != 1))  # the second evaluation is the best
        return {"error": 0.0, "log_loss": seen[-1]}

    kept = []
    offer = optim.Best.offer

    def watch(self, value):
        offer(self, value)
        kept.append({name: p.detach().clone() for name, p in self.model.named_parameters()})

    monkeypatch.setattr(head, "losses", worse)
    monkeypatch.setattr(optim.Best, "offer", watch)
    run = finetune.finetune(config, runs=tmp_path, log=quiet)
    end = dict(head.auto.from_pretrained(run.folder / "model").named_parameters())
    assert len(seen) == 4
    assert all(torch.equal(end[name], p) for name, p in kept[1].items())
    assert any(not torch.equal(end[name], p) for name, p in kept[3].items())


def test_the_end_of_training_is_judged_where_no_evaluation_falls_on_it(conll, tmp_path, monkeypatch):
    config = ner(conll, pretrained(tmp_path / "m"), evaluate_every=0.6, epochs=1)
    seen = []

    def better(self, side, answers, classes):
        seen.append(-float(len(seen)))  # the last one is the best
        return {"error": seen[-1]}

    monkeypatch.setattr(type(registry.get("ner")), "losses", better)
    best, last = (finetune.finetune(replace(config, keep=k), tmp_path / k, log=quiet) for k in ("best", "last"))
    assert len(seen) == 2 + 1, "nobody keeps the best of the second"
    assert Run.open(best.folder / "seed-0").info["valid_at_end"] == {"error": -1.0}
    a, b = ((run.folder / "model" / "model.safetensors").read_bytes() for run in (best, last))
    assert a == b


def gpt(folder):
    """A stock token classifier whose tokenizer neither pads nor adds special tokens."""
    torch.manual_seed(0)
    tokenizer = tokenizers.train("byte-bpe", [make_text(i) for i in range(50)], 320, 64, exact=False)
    tokenizer.backend_tokenizer.post_processor = None
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    bare.model_max_length = 64
    bare.save_pretrained(folder)
    names = dict(enumerate(["O", "B-X", "I-X"]))
    config = GPT2Config(
        vocab_size=320, n_embd=32, n_layer=1, n_head=2, n_positions=64, id2label=names,
        label2id={name: i for i, name in names.items()}, bos_token_id=0, eos_token_id=bare.eos_token_id,
    )  # fmt: skip
    GPT2ForTokenClassification(config).save_pretrained(folder)
    return folder


def test_empty_texts_and_a_stock_model_that_never_padded(tmp_path):
    folder = gpt(tmp_path / "m")
    assert tokens.extract(folder, ["", ""], device.pick("cpu")) == [[], []]
    alone, both = (
        tokens.extract(folder, texts, device.pick("cpu")) for texts in (["The film"], ["The film", "", "The"])
    )
    assert both[:2] == [*alone, []]
    model = finetune.new_model(folder, ["a", "b"], Tuning())
    model.config.pad_token_id = padding = 3
    one, mixed = (
        base.predict(model, rows, padding, Precision("cpu", torch.float32)) for rows in ([[]], [[5, 6, 7], []])
    )
    assert mixed[1] == pytest.approx(one[0], abs=1e-6)


@pytest.mark.parametrize(
    ("head", "kind"),
    [("sequence", "single_label_classification"), ("multilabel", "multi_label_classification"), ("ner", None)],
)
def test_the_kind_of_problem_is_not_inherited(head, kind, tmp_path):
    folder = pretrained(tmp_path / "m") / "model"
    (finetune.new_model(folder, ["x"], Tuning(head="regression"))).save_pretrained(tmp_path / "r")
    assert finetune.new_model(tmp_path / "r", ["O", "B-X", "I-X"], Tuning(head=head)).config.problem_type == kind


def test_a_report_without_any_entity():
    report = lambda gold, found: registry.get("ner").report({"labels": gold, "tags": found})
    assert report([["O", "O"], []], [["O", "O"], []]) == "There are no entities, neither true nor predicted."
    assert "PER" in report([["O"]], [["B-PER"]])


def test_class_weights_let_every_class_count_the_same():
    labels = [0] * 90 + [1] * 10
    weights = base.class_weights(Tuning(class_weights="balanced"), labels, ["a", "b", "c"])
    assert weights[0] * 90 == pytest.approx(float(weights[1] * 10))
    assert float(weights[0] * 90 + weights[1] * 10) == pytest.approx(100)
    with pytest.raises(CourseError, match="none or balanced"):
        base.class_weights(Tuning(class_weights="x"), labels, ["a", "b"])


def test_a_temperature_undoes_what_scaled_the_logits():
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(20_000, 4)) * 2
    labels = np.array([draw.choice(4, p=p) for p in softmax(logits, axis=1)])
    assert metrics.temperature(logits * 3, labels) == pytest.approx(3, rel=0.05)
    raw, fitted = (base.trust(logits * 3, labels, 3.0)[name] for name in ("ece_raw", "ece"))
    assert fitted < 0.02 < raw
    assert metrics.ece(np.array([0.9, 0.9, 0.9, 0.9]), np.array([1, 1, 1, 0])) == pytest.approx(0.15)


def test_the_bootstrap_of_a_ratio_is_that_of_its_sums():
    draw = np.random.default_rng(0)
    right = (draw.random((5, 300)) < 0.8).astype(float)
    ones = np.ones_like(right)
    plain, ratio = (
        metrics.compare(right, right[::-1] * 0.9),
        metrics.compare(np.stack([right, ones], -1), np.stack([right[::-1] * 0.9, ones], -1)),
    )
    assert (ratio.mean, ratio.low, ratio.high) == pytest.approx((plain.mean, plain.low, plain.high))


def test_unknown_heads_are_named():
    with pytest.raises(CourseError, match="no head called 'nerr'. Did you mean ner"):
        registry.get("nerr")


@given(st.integers(0, 4), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_decoding_finds_the_likeliest_sound_row_of_tags(length, seed):
    """Equation eq-sound-path, against every row."""
    classes = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    chances = np.random.default_rng(seed).dirichlet(np.full(5, 0.3), length)
    sound = [
        row for row in itertools.product(range(5), repeat=length)
        if tags.of_spans(tags.spans([classes[i] for i in row]), length) == [classes[i] for i in row]
    ]  # fmt: skip
    best = max(sound, key=lambda row: np.log(np.maximum([chances[w, i] for w, i in enumerate(row)], 1e-12)).sum())
    assert tokens.decode(chances.reshape(length, 5), classes) == list(best)
