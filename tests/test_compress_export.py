"""ONNX in onnxruntime equals the model, its integers are ours; the command from a fine-tuning run to a record."""

import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from course_lib import cli, finetune, recorder
from course_lib.compress import command, export, files, magnitude, measure, quantized, work
from course_lib.compress.command import compress
from course_lib.compress.int4 import Int4
from course_lib.compress.int8 import Int8
from course_lib.compress.units import Heads
from course_lib.config import Compression, Tuning
from course_lib.data import labelled
from course_lib.errors import CourseError
from course_lib.objectives import IGNORE
from course_lib.record import Run
from tests.conftest import make_text
from tests.test_compress_quantize import Desk, classifier
from tests.test_finetune import pretrained, quiet, table, tuning  # noqa: F401 (table is a fixture)
from tests.test_peft_parity import error


def outputs(path, batch, level="all"):
    (found,) = export.session(path, level=level).run(None, export.feed(batch))
    return torch.from_numpy(found)


def odd_batch():
    ids = torch.randint(3, 64, (5, 13), generator=torch.Generator().manual_seed(9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids.where(mask > 0, 2), "attention_mask": mask}


@pytest.mark.parametrize("architecture", ["qwen3", "modernbert", "bert", "gpt2"])
def test_the_exported_graph_equals_the_model(architecture, tmp_path):
    model = Heads(0.5, epochs=0).apply(classifier(architecture, tmp_path), Desk())
    export.to_onnx(model, tmp_path / "m.onnx", Desk().batches(8))
    with torch.no_grad():
        expected = model(**odd_batch()).logits
    for level in export.LEVELS:
        assert error(outputs(tmp_path / "m.onnx", odd_batch(), level), expected) < 1e-5


@pytest.mark.parametrize("step", [Int8(), Int8(scheme="static"), Int4(group=16)], ids=str)
def test_quantized_graphs_are_small_and_close(step, tmp_path):
    before = classifier("qwen3", tmp_path)
    model = step.apply(classifier("qwen3", tmp_path), Desk())
    export.to_onnx(before, tmp_path / "a.onnx", Desk().batches(8))
    export.to_onnx(model, tmp_path / "b.onnx", Desk().batches(8))
    with torch.no_grad():
        ours, real = model(**odd_batch()).logits, before(**odd_batch()).logits
    theirs = outputs(tmp_path / "b.onnx", odd_batch())
    bound = 0.2 if isinstance(step, Int8) else 0.6
    assert error(theirs, real) < bound
    assert error(theirs, ours) < bound
    ops = {node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node}
    assert ops & {"MatMulInteger", "QuantizeLinear", "MatMulNBits"}
    inputs = [t for t in onnx.load(tmp_path / "b.onnx").graph.initializer if t.name.endswith("_zero_point")]
    if step == Int8(scheme="static"):
        assert any(onnx.numpy_helper.to_array(t).dtype == np.uint8 for t in inputs), "signed inputs are slow on x86"


def test_the_runtime_stores_our_integers(tmp_path):
    model = Int8(embeddings=False).apply(classifier("qwen3", tmp_path), Desk())
    export.to_onnx(model, tmp_path / "m.onnx", Desk().batches(8))
    stored = [onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer]
    stored = {t.astype(np.int16).tobytes() for t in stored if t.dtype == np.int8 and t.ndim == 2}
    ours = [layer.integers().T.contiguous().numpy() for layer in quantized.layers(model).values()]
    assert len(ours) == 14
    assert all(q.astype(np.int16).tobytes() in stored for q in ours)


def test_sentences_for_a_teacher_are_from_the_whole_corpus_and_not_from_held_out_texts(tmp_path):
    secret = [f"The secret words stand here {i}. And some more of them." for i in range(20)]
    first, second = ([f"The {word} film comes {i}th. It was {word} {i} times." for i in range(30)] for word in "ab")
    corpus = tmp_path / "sorted.jsonl"  # one class after the other
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in [*first, *secret, *second]))
    side = lambda some: labelled.Labelled(some, [0] * len(some))
    task = labelled.Task("mood", ["a", "b"], side(["It starts here."]), side(secret[:10]), side(secret[10:]))
    tokenizer = finetune.load_tokenizer(pretrained(tmp_path / "m", "qwen3") / "model")
    shop = SimpleNamespace(task=task, tuning=Tuning(), teacher=classifier("qwen3", tmp_path), tokenizer=tokenizer)
    rows = work.Workshop.more(shop, str(corpus), 40)
    found = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in rows.ids]
    assert len(found) == 41
    assert set(rows.labels[1:]) == {IGNORE}
    assert {word for word in "ab" if any(f" {word} " in text for text in found)} == {"a", "b"}
    assert not any("secret" in text or "more of them" in text for text in found)


def test_sentences_are_found_in_chinese(tmp_path):
    """Where no blank stands between words or sentences."""
    corpus = tmp_path / "zh.jsonl"
    documents = [f"第{i}部电影真好看！演员的表演也不错吗？！好。他说：“这是{i}。”" for i in range(30)]
    corpus.write_text("\n".join(json.dumps({"text": text}) for text in documents))
    side = lambda some: labelled.Labelled(some, [0] * len(some))
    task = labelled.Task("mood", ["a", "b"], side(["开始。"]), side(documents[:1]), side(["第2部电影真好看！第二句。"]))
    tokenizer = finetune.load_tokenizer(pretrained(tmp_path / "m", "qwen3") / "model")
    shop = work.Texts(classifier("qwen3", tmp_path), Tuning(), task, tokenizer)
    found = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in shop.more(str(corpus), 99).ids[1:]]
    films = {f"第{i}部电影真好看！" for i in range(1, 30) if i != 2}
    assert set(found) == films | {f"他说：“这是{i}。”" for i in range(1, 30)}
    assert work.sentences("One. Two! “好。”") == ["One.", "Two!", "“好。”"]
    corpus.write_text(json.dumps({"text": "好。Too short."}))
    with pytest.raises(CourseError, match="no sentence of 4 words that is not held out"):
        shop.more(str(corpus), 9)
    shop.task = replace(task, train=labelled.Labelled(["text"], [[0, 1]]))
    with pytest.raises(CourseError, match="help a head of one label a text, not 'sequence'"):
        shop.more(str(corpus), 9)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_groups_have_as_many_bits_in_the_runtime(bits, tmp_path):
    model = quantized.quantize(classifier("qwen3", tmp_path), quantized.Bits(bits, "group", 16))
    export.to_onnx(model, tmp_path / "m.onnx", Desk().batches(8))
    nodes = [node for node in onnx.load(tmp_path / "m.onnx").graph.node if node.op_type == "MatMulNBits"]
    assert {a.i for node in nodes for a in node.attribute if a.name == "bits"} == {bits}


def test_what_the_runtime_cannot_multiply_is_said(tmp_path):
    for bits, message in (
        (quantized.Bits(8, "channel"), "reals with integers in groups only"),
        (quantized.Bits(6, "group", 16), "no products of 6 bits"),
    ):
        model = quantized.quantize(classifier("qwen3", tmp_path), bits)
        with pytest.raises(CourseError, match=message):
            export.to_onnx(model, tmp_path / "m.onnx", Desk().batches(8))


def test_times_are_percentiles_of_all_but_the_first_three(monkeypatch):
    """20 runs of 1 to 20 ms, after three that take a second."""
    now = [0.0]
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Session:
        def __init__(self, factor):
            self.took = iter([*[1000.0] * 3, *(factor * ms for ms in range(20, 0, -1))])

        def run(self, outputs, feed):
            now[0] += next(self.took) / 1000

    found = measure.latency({"a": Session(1), "b": Session(10)}, {"input_ids": np.ones((3, 7))}, 20)
    assert found["a"] == {"p50_ms": 10.5, "p95_ms": 19.05, "tokens_per_second": 2000}
    assert found["b"] == {"p50_ms": 105, "p95_ms": 190.5, "tokens_per_second": 200}


def test_a_recipe_that_cannot_be_measured_is_refused_first(tmp_path):
    """Before the model is even looked for."""
    with pytest.raises(CourseError, match="reals with integers in groups only"):
        compress(Compression(model=str(tmp_path / "none"), recipe="distill+int8:scheme=weight"), runs=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "al"}, "Did you mean all"),
        ({"repeats": 0}, "--repeats is at least 1, not 0"),
        ({"rows": 0}, "--rows is at least 1, not 0"),
        ({"length": 0}, "--length is at least 1, not 0"),
        ({"recipe": "heads+int4:group=48"}, "no groups of 48 inputs. Use 16, 32, 64, 128 or 256"),
        ({"recipe": "heads+qat:bits=4,group=8"}, "no groups of 8 inputs"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(options, message, tmp_path):
    with pytest.raises(CourseError, match=message):
        compress(Compression(model=str(tmp_path / "none"), **options), runs=tmp_path)


def test_what_fails_in_a_later_step_is_refused_before_the_first_learns(table, tmp_path, monkeypatch):  # noqa: F811
    source = tuning(table, pretrained(tmp_path / "m", "gpt2"))
    tuned = finetune.finetune(replace(source, epochs=0.1), runs=tmp_path / "runs", log=quiet)
    monkeypatch.setattr(work.Workshop, "learn", lambda *arguments, **settings: pytest.fail("it learns"))
    for recipe, message in (
        ("heads+neurons:ratio=1", "Choose a ratio from 0 up to"),
        ("heads+layers:keep=3", "Of 2 layers 3 cannot be kept"),
        ("layers:keep=1+distill:layers=2", "Of 1 layers 2 cannot be kept"),
        ("heads+layers:keep=1,which=botom", "Did you mean bottom"),
        ("heads+distill:temperature=0", "softens nothing"),
        ("heads+distill:attention=1", "1 and 2 heads cannot be compared"),
        ("heads+distill:texts=9,corpus=movie-reviews", "Did you mean movie_reviews"),
        ("heads+movement:ramp=0", "Choose above 0"),
        ("neurons+int4:group=128", "Groups of 128 do not divide the "),
        ("neurons:ratio=0.4+int4:group=16", "Prune with ratio=0.375, which leaves 80, or use a smaller group"),
    ):
        with pytest.raises(CourseError, match=message):
            compress(Compression(model=str(tuned.folder), recipe=recipe), runs=tmp_path / "made", log=quiet)
    with pytest.raises(CourseError, match="has learnt 64 positions: choose a --length up to that, not 65"):
        compress(Compression(model=str(tuned.folder), length=65), runs=tmp_path / "made", log=quiet)
    assert not (tmp_path / "made").exists(), "nothing is left of what was refused"


def test_every_stage_has_its_epochs_and_drops_out_once(table, tmp_path, monkeypatch):  # noqa: F811
    """Whatever the fine-tuning's wall clock said; its regularizers act in each stage alike."""
    source = tuning(table, pretrained(tmp_path / "m", "qwen3"), regularize="dropout:rate=0.1", budget="25s")
    tuned = finetune.finetune(replace(source, epochs=0.1), runs=tmp_path / "runs", log=quiet)
    monkeypatch.setattr(command, "_measured", lambda *arguments: {})
    monkeypatch.setattr(command, "table", lambda run: "")
    around, hooks = finetune.around, []

    def watched(model, *arguments):
        state = around(model, *arguments)
        hooks.append(sum(len(module._forward_hooks) for module in model.modules()))
        return state

    monkeypatch.setattr(finetune, "around", watched)
    settings = Compression(model=str(tuned.folder), recipe="magnitude:epochs=0.1+neurons:epochs=0.1", device="cpu")
    run = compress(settings, runs=tmp_path / "made", log=quiet)
    assert hooks[0] > 0
    assert hooks == hooks[:1] * 2
    assert Run.open(run.folder / "stage-2").info["settings"]["budget"] == ""


def test_what_cannot_be_exported_is_named(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, input_ids):
            return SequenceClassifierOutput(logits=torch.special.bessel_j0(input_ids.float()))

    with pytest.raises(CourseError, match=r"ONNX has no form of the operation '.*bessel_j0.*'. Replace it"):
        export.to_onnx(Odd(), tmp_path / "m.onnx", [{"input_ids": torch.ones(2, 3).long()}])
    with pytest.raises(CourseError, match="Did you mean all"):
        export.session(tmp_path / "m.onnx", level="al")


@pytest.mark.parametrize("recipe", ["movement:epochs=1", "magnitude:epochs=0+distill:layers=0,epochs=1"])
def test_a_recipe_on_an_adapter_goes_on_where_it_was_stopped(recipe, table, tmp_path, monkeypatch):  # noqa: F811
    """In the middle of a stage, to the same bytes; nothing of the adapter is left, rate and seed are its own."""
    source = tuning(table, pretrained(tmp_path / "m", "qwen3"), method="lora:rank=2", freeze="embeddings")
    tuned = finetune.finetune(replace(source, epochs=0.5), runs=tmp_path / "runs", log=quiet)
    monkeypatch.setattr(command, "_measured", lambda *arguments: {})
    monkeypatch.setattr(command, "table", lambda run: "")
    settings = Compression(model=str(tuned.folder), recipe=recipe, device="cpu", lr=0.002, seed=3)
    whole = compress(settings, runs=tmp_path / "whole", log=quiet)
    done, after = [], recorder.Recorder.after

    def impatient(self, step):
        done.append(self.state.step)
        if len(done) == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return after(self, step)

    monkeypatch.setattr(recorder.Recorder, "after", impatient)
    with pytest.raises(recorder.Interrupted):
        compress(settings, runs=tmp_path / "parts", log=quiet)
    again = compress(settings, runs=tmp_path / "parts", log=quiet)
    stage = Run.open(again.folder / "stage-1")
    assert done == list(range(len(list(stage.metrics())))), "each step once"
    assert len(done) > 15
    ours, theirs = ((run.folder / "model" / "model.safetensors").read_bytes() for run in (whole, again))
    assert ours == theirs
    model, used = files.load(again.folder / "model"), stage.info["settings"]
    bare = finetune.new_model(tmp_path / "m" / "model", ["a", "b"], Tuning())
    assert model.state_dict().keys() == bare.state_dict().keys()
    assert magnitude.sparsity(model) == pytest.approx(0.5, abs=0.01)
    expected = {"lr": 0.002, "seed": 3, "epochs": 1, "method": "", "freeze": "none"}
    assert {name: used[name] for name in expected} == expected


def test_the_command_measures_stores_and_is_compared(table, tmp_path, capsys, monkeypatch):  # noqa: F811
    asked, session, latency, memory = [], export.session, measure.latency, measure.peak_memory

    def open_session(path, threads, level):
        asked.append((threads, level))
        return session(path, 1, level)  # two threads would wait for each other on a busy machine

    def time(sessions, feed, repeats):
        asked.append((*feed["input_ids"].shape, repeats))
        return latency(sessions, feed, repeats)

    def peak(path, feed, threads, scratch, level):
        asked.append((threads, level, *feed["input_ids"].shape))
        return memory(path, feed, 1, scratch, level)

    monkeypatch.setattr(export, "session", open_session)
    monkeypatch.setattr(measure, "latency", time)
    monkeypatch.setattr(measure, "peak_memory", peak)
    source = pretrained(tmp_path / "m", "qwen3")
    more = tmp_path / "more.txt"
    more.write_text("\n\n".join(f"{make_text(i, 3)} It is wonderful." for i in range(900, 960)))
    tuned = finetune.finetune(tuning(table, source), runs=tmp_path / "runs", log=quiet)
    options = ["compress", f"--model={tuned.folder}", f"--runs={tmp_path / 'runs'}", "--repeats=5"]
    options += ["--threads=2", "--level=basic", "--rows=3", "--length=7"]
    assert cli.main([*options, f"--recipe=distill:layers=1,epochs=3,texts=60,corpus={more}+int8:scheme=dynamic"]) == 0
    shown = capsys.readouterr().out
    assert "× smaller" in shown
    assert "peak memory" in shown
    run = Run.open(tmp_path / "runs" / "m-mood-distill-int8")
    result = run.info["result"]
    assert run.info["status"] == "finished"
    assert result["after"]["accuracy"] > 0.9
    assert result["torch"]["accuracy"] > 0.9
    assert result["smaller"] > 1.5
    assert result["before"]["memory"] > 10e6
    assert result["faster"] == pytest.approx(result["before"]["p50_ms"] / result["after"]["p50_ms"], rel=2e-3)
    assert asked == [(2, "basic"), (2, "basic"), (3, 7, 5), (2, "basic", 3, 7), (2, "basic", 3, 7)]
    model = files.load(run.folder / "model")
    assert len(model.model.layers) == 1
    assert len(quantized.layers(model)) == 8
    assert not list(run.folder.rglob("checkpoints"))
    gained = result["after"]["accuracy"] - tuned.info["result"]["accuracy"]
    assert finetune.compare(run, tuned).mean == pytest.approx(gained, abs=1e-4)
    assert cli.main(["sample", f"--run={run.folder}"]) == 1
    assert "holds a compressed model" in capsys.readouterr().err
    assert cli.main(["sample", f"--run={tuned.folder}"]) == 1
    assert "which writes no text" in capsys.readouterr().err

    assert cli.main([*options, "--recipe=int9"]) == 1
    assert "Did you mean int8 or int4" in capsys.readouterr().err
    assert cli.main(["compress", f"--model={source}", f"--runs={tmp_path / 'runs'}"]) == 1
    assert "no run at" in capsys.readouterr().err
