"""Fine-tuning through the same loop, record and checkpoints as pretraining; scoring of any model folder."""

import json
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from course_lib import cli, finetune, judge, models, optim, pairs, recipes, recorder, schedule
from course_lib import tokenizer as tokenizers
from course_lib.config import Config, Tuning
from course_lib.data import annotated, labelled
from course_lib.errors import CourseError
from course_lib.heads import base, registry
from course_lib.objectives import Classification
from course_lib.precision import Precision
from course_lib.record import Run
from course_lib.robust import regularize
from tests.conftest import make_text

FLOAT32 = Precision("cpu", torch.float32)
quiet = lambda message: None


@pytest.fixture
def table(tmp_path):
    """A task that two words give away."""
    path = tmp_path / "mood.jsonl"
    word = lambda i: ("wonderful", "terrible")[i % 2]
    rows = [{"text": f"{make_text(i, 1)} It is {word(i)}.", "label": ("good", "bad")[i % 2]} for i in range(400)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(params=["modernbert", "qwen3", "gpt2", "bert"])
def folder(request, tmp_path):
    return pretrained(tmp_path / request.param, request.param)


def pretrained(folder, architecture, context=64):
    torch.manual_seed(0)
    tokenizer = tokenizers.train("byte-bpe", [f"{make_text(i)} wonderful terrible" for i in range(50)], 320, context)
    shape = models.Size(hidden=32, layers=2, heads=2, vocab=320, context=context)
    model = models.build(architecture, shape, recipes.token_ids(tokenizer))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


def tuning(table, folder, **more):
    return Tuning(task=str(table), model=str(folder), epochs=4, step_rows=16, lr=0.003, device="cpu", **more)


def test_every_architecture_learns_the_task_and_reloads(table, folder, tmp_path):
    run = finetune.finetune(tuning(table, folder), runs=tmp_path / "runs", log=quiet)
    assert run.info["result"]["accuracy"] > 0.95
    assert run.folder.name == f"{folder.name}-mood"
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(run.folder / "model")
    assert model.config.id2label == {0: "bad", 1: "good"}
    stored = json.loads((run.folder / "seed-0" / finetune.PREDICTIONS).read_text())
    texts = labelled.load(str(table)).test.texts
    rows = base.encode(AutoTokenizer.from_pretrained(run.folder / "model"), texts, 64)
    again = base.predict(model, rows, model.config.pad_token_id, FLOAT32)
    np.testing.assert_allclose(again, stored["probabilities"], atol=1e-5)


def test_predictions_do_not_depend_on_the_batch(folder):
    model = finetune.new_model(folder / "model", ["a", "b", "c"], Tuning()).double()
    torch.nn.init.normal_(next(p for n, p in model.named_parameters() if "score" in n or "classifier" in n))
    regularize.around(model, Classification(), "dropout:rate=0.5")
    model.train()  # as the loop leaves it
    rows = [[5 + i] * (1 + i % 9) for i in range(23)]
    one = base.predict(model, rows, 2, FLOAT32, batch_rows=1)
    np.testing.assert_allclose(base.predict(model, rows, 2, FLOAT32, batch_rows=23), one, atol=1e-6)
    assert one.sum(1) == pytest.approx(1)


def test_scratch_keeps_the_network_and_forgets_the_weights(tmp_path):
    folder = pretrained(tmp_path / "m", "modernbert") / "model"
    kept, new = (finetune.new_model(folder, ["a", "b"], Tuning(scratch=s)) for s in (False, True))
    source = load_file(folder / "model.safetensors")["model.layers.0.attn.Wqkv.weight"]
    assert torch.equal(kept.model.layers[0].attn.Wqkv.weight, source)
    assert not torch.equal(new.model.layers[0].attn.Wqkv.weight, source)
    assert models.count_parameters(kept) == models.count_parameters(new)
    assert kept.config.classifier_pooling == "mean"


def test_a_discriminator_of_replaced_tokens_learns_a_task(tmp_path):
    """Its output layer, one number a token, gives way to a new one."""
    folder = pretrained(tmp_path / "m", "modernbert") / "model"
    ids = recipes.token_ids(finetune.load_tokenizer(folder))
    shape = models.Size(hidden=32, layers=2, heads=2, vocab=320, context=64)
    pair = recipes.new_model(Config(objective="rtd", architecture="modernbert"), shape, ids)
    torch.nn.init.normal_(pair["discriminator"].classifier.weight, std=5.0)
    pair["discriminator"].save_pretrained(folder)
    model = finetune.new_model(folder, ["a", "b"], Tuning())
    assert model.classifier.weight.shape == (2, 32)
    assert model.classifier.weight.abs().max() < 1
    body = pair["discriminator"].model.state_dict()
    assert all(torch.equal(value, body[name]) for name, value in model.model.state_dict().items())


@pytest.mark.parametrize("scratch", [True, False])
def test_a_half_precision_checkpoint_trains_in_float32(tmp_path, scratch):
    """From random weights, too: a config remembers the dtype that it was stored in."""
    folder = pretrained(tmp_path / "m", "qwen3") / "model"
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16)
    half.save_pretrained(folder)
    model = finetune.new_model(folder, ["a", "b"], Tuning(scratch=scratch))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_finished_run_takes_more_seeds_and_nothing_else(table, tmp_path):
    short = replace(tuning(table, pretrained(tmp_path / "m", "qwen3")), epochs=1)
    train = lambda name, **more: finetune.finetune(replace(short, **more), tmp_path / "runs", name, log=quiet)
    first = (train("grown").folder / "seed-0" / "run.json").read_bytes()
    grown, whole = train("grown", seeds=3), train("whole", seeds=3)
    assert (grown.folder / "seed-0" / "run.json").read_bytes() == first, "it was not trained again"
    assert grown.info["result"] | {"cpu_share": 0} == whole.info["result"] | {"cpu_share": 0}
    assert (finetune.correct(grown) == finetune.correct(whole)).all()
    ours, theirs = (load_file(run.folder / "model" / "model.safetensors") for run in (grown, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs), "the best of all seeds is kept"
    for change in ({"seeds": 2}, {"seeds": 4, "lr": 0.1}):
        with pytest.raises(CourseError, match="exists already"):
            train("grown", **change)
    with pytest.raises(CourseError, match="exists already"):
        finetune.finetune(replace(short, seeds=4), tmp_path / "runs", "grown", fresh=True, log=quiet)
    assert Run.open(grown.folder).info["status"] == "finished", "what is refused is left as it was"


def test_seeds_differ_are_stored_apart_and_only_the_best_keeps_its_weights(table, tmp_path):
    folder = pretrained(tmp_path / "m", "modernbert")
    run = finetune.finetune(replace(tuning(table, folder, seeds=2), epochs=1), runs=tmp_path, log=quiet)
    assert run.info["result"]["seeds"] == 2
    assert 0 < run.info["result"]["cpu_share"] < 1.1
    assert finetune.correct(run).shape == (2, run.info["task"]["test"])
    assert run.info["result"]["accuracy"] == pytest.approx(finetune.correct(run).mean(), abs=1e-4)
    files = [(run.folder / f"seed-{i}" / finetune.PREDICTIONS).read_text() for i in range(2)]
    assert files[0] != files[1]
    assert [p.parent.name for p in tmp_path.rglob("model.safetensors")].count("model") == 2  # the source's, the best's
    same = finetune.compare(run, run)
    assert (same.mean, same.verdict) == (0.0, "undecided")
    with pytest.raises(CourseError, match="not a finished fine-tuning run"):
        finetune.correct(Run(folder, {}))
    run.update(config=run.info["config"] | {"pooling": "mask"})  # an option that is gone
    with pytest.raises(CourseError, match="another version, with pooling"):
        finetune.compare(run, None)


def test_the_seed_and_the_temperature_are_chosen_on_dev_and_the_test_side_is_only_reported(
    table, tmp_path, monkeypatch
):
    """Dev likes the first seed better, test the second one."""
    head, task, fitted = registry.get("sequence"), labelled.load(str(table)), []
    given = {"dev": iter([0.9, 0.2]), "test": iter([0.1, 0.7])}
    name = lambda side: "dev" if side.texts == task.dev.texts else "test"
    monkeypatch.setattr(type(head), "scores", lambda self, side, *rest: {"accuracy": next(given[name(side)])})
    monkeypatch.setattr(
        type(head), "fit", lambda self, logits, side, start: fitted.append(name(side)) or {"temperature": 1.0}
    )
    config = replace(tuning(table, pretrained(tmp_path / "m", "qwen3"), seeds=2), epochs=0.2)
    run = finetune.finetune(config, runs=tmp_path / "runs", log=quiet)
    found = [run.info["result"][field] for field in ("accuracy", "dev_accuracy", "least", "most")]
    assert found == pytest.approx([0.4, 0.55, 0.1, 0.7])
    assert fitted == ["dev", "dev"]
    model = head.auto.from_pretrained(run.folder / "model")
    rows = base.encode(finetune.load_tokenizer(run.folder / "model"), task.test.texts, 64)
    kept = base.predict(model, rows, model.config.pad_token_id, FLOAT32)
    first, second = (
        json.loads((run.folder / f"seed-{seed}" / finetune.PREDICTIONS).read_text())["probabilities"] for seed in (0, 1)
    )
    np.testing.assert_allclose(kept, first, atol=1e-5)
    assert abs(kept - second).max() > 1e-3


def test_stopped_and_continued_ends_on_the_same_bits(table, tmp_path, monkeypatch):
    config = tuning(table, pretrained(tmp_path / "m", "qwen3"), seeds=2)
    whole = finetune.finetune(config, runs=tmp_path / "whole", log=quiet)
    steps = 0
    after = recorder.Recorder.after

    def impatient(self, step):
        nonlocal steps
        steps += 1
        if steps == 100:  # in the middle of the second seed
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return after(self, step)

    monkeypatch.setattr(recorder.Recorder, "after", impatient)
    with pytest.raises(recorder.Interrupted, match="same command again"):
        finetune.finetune(config, runs=tmp_path / "parts", log=quiet)
    first = (tmp_path / "parts" / whole.folder.name / "seed-0" / finetune.PREDICTIONS).stat().st_mtime_ns
    resumed = finetune.finetune(config, runs=tmp_path / "parts", log=quiet)
    assert (resumed.folder / "seed-0" / finetune.PREDICTIONS).stat().st_mtime_ns == first, "done once, not again"
    for seed in (0, 1):
        a, b = ((r.folder / f"seed-{seed}" / finetune.PREDICTIONS).read_text() for r in (whole, resumed))
        assert a == b
    assert not list(resumed.folder.rglob("checkpoints"))


def test_early_stopping_watches_dev(table, tmp_path):
    folder = pretrained(tmp_path / "m", "modernbert")
    config = replace(tuning(table, folder), epochs=30, evaluate_every=0.1, patience=2, metric="error")
    run = finetune.finetune(config, runs=tmp_path, log=quiet)
    rows = list(Run.open(run.folder / "seed-0").metrics())
    errors = [row["valid"]["error"] for row in rows if "valid" in row]
    assert len(errors) < 10
    assert min(errors[-2:]) >= min(errors[:-2]), "stopped because the last two were no better"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"step_rows": 0}, "--step-rows is at least 1, not 0"),
        ({"seeds": 0}, "--seeds is at least 1"),
        ({"max_length": -5}, "--max-length is at least 0"),
        ({"stride": -1}, "--stride is at least 0"),
        ({"epochs": -1.0}, "--epochs is at least 0"),
        ({"smoothing": 2.0}, "--smoothing is at least 0 and below 1"),
        ({"scratch": True, "method": "bitfit"}, "--method with --scratch"),
        ({"evaluate_every": -0.5}, "--evaluate-every is at least 0"),
        ({"evaluate_every": 2.0}, "at most 1, not 2.0"),
        ({"patience": 3}, "add --evaluate-every"),
        ({"metric": "nonsense"}, "add --evaluate-every"),
        ({"labels": -5}, "so --labels cannot be -5"),
        ({"schedule": "cosin"}, "Did you mean cosine"),
        ({"freeze": "botom-1"}, "--freeze is none, .* not 'botom-1'"),
        ({"budget": "5min"}, "5min"),
        ({"head": "regression", "class_weights": "balanced"}, "--class-weights means nothing to the head 'regression'"),
        ({"head": "span", "smoothing": 0.1}, "--smoothing means nothing to the head 'span'"),
    ],
)
def test_numbers_that_no_training_has(table, tmp_path, wrong, message):
    folder = pretrained(tmp_path / "m", "qwen3")
    with pytest.raises(CourseError, match=message):
        finetune.finetune(replace(tuning(table, folder), **wrong), runs=tmp_path / "runs", log=quiet)
    assert not (tmp_path / "runs").exists()


def test_a_clock_can_limit_it_instead(table, tmp_path):
    folder = pretrained(tmp_path / "m", "modernbert")
    run = finetune.finetune(replace(tuning(table, folder), epochs=1000, budget="1s"), runs=tmp_path, log=quiet)
    rows = list(Run.open(run.folder / "seed-0").metrics())
    assert 0.9 < sum(row["seconds"] for row in rows) < 3


@pytest.mark.parametrize("architecture", ["qwen3", "modernbert", "bert", "gpt2"])
def test_rates_fall_layer_by_layer(architecture, tmp_path):
    model = finetune.new_model(pretrained(tmp_path / "m", architecture) / "model", ["a", "b"], Tuning())
    optimizer = optim.for_finetuning(model, 0.1, layer_decay=0.5, weight_decay=0.01)
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(rate) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        level = (
            0
            if "embed" in name or "wte" in name or "wpe" in name
            else 1
            if ".0." in name
            else 2
            if ".1." in name
            else 3
        )
        assert rate[id(p)] == pytest.approx(0.1 * 0.5 ** (3 - level)), name
        assert decay[id(p)] == (0.01 if p.ndim >= 2 else 0)


def test_settings_reach_what_they_are_for(table, tmp_path, cpu):
    folder = pretrained(tmp_path / "m", "modernbert") / "model"
    more = {"labels": 17, "layer_decay": 0.5, "weight_decay": 0.3, "evaluate_every": 0.5, "max_length": 24, "stride": 5}
    config, tokenizer = tuning(table, folder.parent, **more), finetune.load_tokenizer(folder)
    task = registry.get("sequence").task(config)
    assert task.train.texts == labelled.load(str(table)).train.texts[:17]
    make = lambda **more: finetune.build(replace(config, **more), folder, task, tokenizer, cpu)
    state = make()
    assert len(state.loader.rows.ids) == 17
    assert {group["weight_decay"] for group in state.optimizers[0].param_groups} == {0.0, 0.3}
    rates = {group["lr"] for group in state.optimizers[0].param_groups}
    assert sorted(rates) == pytest.approx([0.003 / 8, 0.003 / 4, 0.003 / 2, 0.003])
    assert [bool(make(keep=keep).best) for keep in ("best", "last", "average")] == [True, False, False]
    words = annotated.join([word for i in range(30) for word in make_text(i, 1).split()])
    side = labelled.Labelled([words], [[0] * len(words.places)])
    found, apart = (
        finetune.encode(state.model, tokenizer, side, replace(config, head="ner", stride=stride)) for stride in (5, 0)
    )
    assert found.ids == registry.get("ner").rows(tokenizer, side, 24, 5).ids != apart.ids
    assert max(map(len, found.ids)) == 24


def test_the_schedule_and_its_warm_up_are_those_asked_for(table, tmp_path, monkeypatch):
    """One that is zero leaves the body alone."""
    asked, folder = [], pretrained(tmp_path / "m", "qwen3")
    monkeypatch.setattr(schedule, "build", lambda *settings: asked.append(settings) or (lambda progress: 0.0))
    config = replace(tuning(table, folder, schedule="cosine", warmup=0.25), epochs=0.2)
    run = finetune.finetune(config, runs=tmp_path / "runs", log=quiet)
    assert set(asked) == {("cosine", 0.25, 0.75)}  # once to see that they can be built
    before, after = (load_file(at / "model" / "model.safetensors") for at in (folder, run.folder))
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("model."))


def test_the_command_line_tunes_compares_and_evaluates(table, tmp_path, capsys):
    folder = pretrained(tmp_path / "m", "modernbert")
    options = ["finetune", f"--task={table}", f"--model={folder}", "--epochs=2", "--lr=0.003", f"--runs={tmp_path}"]
    assert cli.main([*options, "--run-id=a"]) == 0
    assert "right on" in capsys.readouterr().out
    assert cli.main([*options, "--run-id=b", "--scratch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["seeds"] == 1
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "undecided" in capsys.readouterr().out
    assert cli.main(["compare", str(tmp_path / "a"), "tfidf"]) == 0
    assert "95 % interval" in capsys.readouterr().out
    assert cli.main(["finetune", f"--task={table}", "--model=nowhere"]) == 1
    assert "no model in nowhere" in capsys.readouterr().err


def test_any_model_is_scored_on_the_same_bytes(corpus_file, tmp_path, cpu, capsys):
    """A model with another tokenizer, and one whose score is known: uniform over the vocabulary."""
    folder = pretrained(tmp_path / "m", "qwen3")
    model, tokenizer, causal = judge.load(folder, cpu)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(folder / "model")
    assert causal
    from course_lib.data import corpora, prepare

    data = prepare.prepare(corpora.load(str(corpus_file)), 1024, 128, judge.ENOUGH_BYTES, quiet)
    documents = data.held_out_documents()
    tokens = sum(len(tokenizer(text)["input_ids"]) - 1 for text in documents)
    expected = tokens * np.log2(len(tokenizer)) / sum(len(text.encode()) for text in documents)
    assert cli.main(["evaluate", f"--run={folder}", f"--corpus={corpus_file}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    encoder = pretrained(tmp_path / "e", "modernbert")
    assert judge.on_corpus(encoder, str(corpus_file), "utf-8", cpu)["mlm_loss"] == pytest.approx(np.log(320), rel=0.1)
    long = pretrained(tmp_path / "l", "modernbert", context=8192)  # reads more at once than is held out
    assert judge.on_corpus(long, str(corpus_file), "utf-8", cpu)["mlm_loss"] == pytest.approx(np.log(320), rel=0.1)


@pytest.mark.parametrize("architecture", ["qwen3", "modernbert"])
def test_a_decoder_and_an_encoder_are_asked_about_pairs_each_in_its_way(architecture, tmp_path, cpu, capsys):
    folder = pretrained(tmp_path / "m", architecture)
    model, tokenizer, _ = judge.load(folder, cpu)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.save_pretrained(folder / "model")
    every = {text: len(tokenizer(text)["input_ids"]) for text in (make_text(i, 1) for i in range(200))}
    usual = statistics.mode(every.values())  # what is shorter is likelier, whoever is asked
    texts = [text for text, length in every.items() if length == usual][:24]
    assert len(texts) == 24
    likely = pairs.log_likelihoods(model, tokenizer, texts, causal=architecture == "qwen3")
    rows = []
    for i in range(0, 24, 2):
        better = i + int(likely[i + 1] > likely[i])
        rows.append({"sentence_good": texts[better], "sentence_bad": texts[2 * i + 1 - better]})
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "planted.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert cli.main(["evaluate", f"--run={folder}", f"--pairs={tmp_path / 'pairs'}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"all": 1.0, "planted": 1.0}


def test_a_classifier_predicts_no_tokens(tmp_path, cpu):
    model = finetune.new_model(pretrained(tmp_path / "m", "modernbert") / "model", ["a", "b"], Tuning())
    model.save_pretrained(tmp_path / "c")
    with pytest.raises(CourseError, match="predicts no tokens"):
        judge.load(tmp_path / "c", cpu)


def test_other_texts_are_not_mixed_into_a_run(table, tmp_path):
    source = pretrained(tmp_path / "m", "modernbert")
    finetune.finetune(tuning(table, source), runs=tmp_path / "runs", run_id="r", log=quiet)
    rows = table.read_text().splitlines()
    table.write_text("\n".join([rows[0].replace("good", "bad"), *rows[1:]]) + "\n")
    with pytest.raises(CourseError, match="texts of .* have changed since it began. Add --fresh"):
        finetune.finetune(tuning(table, source, seeds=2), runs=tmp_path / "runs", run_id="r", log=quiet)
    left = Run.open(tmp_path / "runs" / "r").info
    assert (left["status"], left["result"]["seeds"], left["config"]["seeds"]) == ("finished", 1, 1)
