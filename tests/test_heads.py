"""Every head on tiny models: alignment, windows, learning, calibration, freezing, restoring the best."""

import itertools
import json
import os
import random
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from transformers import AutoTokenizer

from course_lib import cli, device, examples, finetune, freezing, metrics, models, optim, recipes, recorder
from course_lib import tokenizer as tokenizers
from course_lib.config import Tuning
from course_lib.data import annotated, labelled, tags
from course_lib.errors import CourseError
from course_lib.heads import base, registry, spans, tokens, windows
from course_lib.objectives import IGNORE, Classification
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
    for (a, b), (c, d) in itertools.pairwise(ranges):
        assert a < c <= b < d
        assert sum(sizes[c:b]) <= stride
    for word, number in enumerate(owner):
        assert ranges[number][0] <= word < ranges[number][1]
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
        if head == "pair":
            yield {"text": make_text(i, 1), "text_pair": f"The film. {word}", "label": str(good)}
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
    if head != "regression":
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
    task = registry.get("regression").task(Tuning(head="regression", labels=2, **files))
    with pytest.raises(CourseError, match="first 2 numbers of train are all the same"):
        registry.get("regression").calibration(task)


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
