"""Adapters as a mechanism: every method on every architecture, files, switching, merging, training, errors."""

import copy
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from course_lib import cli, finetune, recorder
from course_lib.budget import Budget, ReplayClock
from course_lib.errors import CourseError
from course_lib.heads import base as heads
from course_lib.loop import train
from course_lib.objectives import CausalLM
from course_lib.peft import adapters, base, bottleneck, files, methods
from course_lib.peft.adalora import AdaLoRA
from course_lib.peft.bitfit import BitFit
from course_lib.peft.bottleneck import Adapter
from course_lib.peft.lora import LoRA
from course_lib.peft.prefix import Prefix
from course_lib.peft.prompt import Prompt
from course_lib.precision import Precision
from tests.conftest import ROOT
from tests.test_finetune import pretrained, quiet, table, tuning  # noqa: F401 (table is a fixture)
from tests.test_peft_parity import TARGETS, error, logits, network, randomize, tokens

FLOAT32 = Precision("cpu", torch.float32)
METHODS = {
    "lora": LoRA(rank=4),
    "adalora": AdaLoRA(rank=6, target=3),
    "adapter": Adapter(width=4),
    "pfeiffer": Adapter(width=4, placement="pfeiffer"),
    "prefix": Prefix(length=3),
    "reparameterised": Prefix(length=3, width=5),
    "prompt": Prompt(length=3),
    "bitfit": BitFit(),
}
ALTERING = ("prefix", "reparameterised", "prompt")  # cannot start as the identity
LINEAR = {"lora": METHODS["lora"], "adalora": METHODS["adalora"], "rslora": LoRA(rank=3, targets=("all",), rslora=True)}


@pytest.mark.parametrize("architecture", TARGETS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_on_every_architecture(name, architecture, tmp_path):
    model = network(architecture)
    before = {n: p.clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        bare = logits(model)
        adapters.apply(model, METHODS[name])
        same = error(logits(model), bare)
    assert same > 0 if name in ALTERING else same < 1e-12
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(n.startswith("added.default.") for n in trained)
    randomize(model)
    found = logits(model)
    assert found.shape == bare.shape
    assert error(found, bare) > 0.01
    (found.sin() * found).sum().backward()
    for n, p in model.named_parameters():
        assert (p.grad is not None and p.grad.abs().max() > 0) == (n in trained), n
    with adapters.bare(model), torch.no_grad():
        assert torch.equal(logits(model), bare)
    assert all(torch.equal(dict(model.named_parameters())[n], p) for n, p in before.items())

    files.save(model, tmp_path, "some/base")
    again = files.load(network(architecture), tmp_path)
    with torch.no_grad():
        assert error(logits(again), found) < 1e-12
    written, computed = (tmp_path / files.WEIGHTS).stat().st_size, files.size(model.added["default"])
    assert computed < written < computed + 200 + 160 * len(again.added["default"].tensors())


def test_a_bottleneck_is_its_formula():
    """Equation eq-adapter written out."""
    torch.manual_seed(0)
    part = bottleneck.Bottleneck(6, 3).double()
    for p in part.parameters():
        torch.nn.init.normal_(p)
    h = torch.randn(2, 5, 6, dtype=torch.float64)
    low = h @ part.down.weight.T + part.down.bias
    gelu = low * (1 + torch.erf(low / 2**0.5)) / 2
    torch.testing.assert_close(part(None, (), {}, h), h + gelu @ part.up.weight.T + part.up.bias)


def test_a_bare_body_with_a_pooler_keeps_the_text_first():
    """As minilm is loaded: the pooled token must be the text's, not the prompt's."""
    torch.manual_seed(0)
    model = (
        BertModel(BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)).double().eval()
    )
    adapters.apply(model, Prompt(length=3))
    randomize(model)
    found = model(input_ids=tokens(), attention_mask=torch.ones_like(tokens()))
    assert found.last_hidden_state.shape == (3, 11, 32)
    torch.testing.assert_close(found.pooler_output, model.pooler(found.last_hidden_state))


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "qwen3", "gpt2"])
@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_padding_stays_unseen_behind_what_is_added(name, architecture):
    model = adapters.apply(network(architecture), METHODS[name])
    randomize(model)
    ids, mask = tokens(), torch.ones(3, 11).long()
    ids[0, 7:], mask[0, 7:] = 2, 0

    def answers(rows, length):
        found = model(input_ids=ids[:rows, :length], attention_mask=mask[:rows, :length])
        return (found.prediction_logits if architecture == "bert" else found.logits)[0, :7]

    with torch.no_grad():
        assert error(answers(3, 11), answers(1, 7)) < 1e-12


def test_adapters_and_biases_stand_where_their_papers_put_them():
    paths = lambda method: {base.path(key) for key in method.build(network("bert")).parts}
    every = lambda *names: {f"bert.encoder.layer.{i}.{name}" for i in (0, 1) for name in names}
    assert paths(METHODS["adapter"]) == every("attention.output.dense", "output.dense")
    assert paths(METHODS["pfeiffer"]) == every("output.dense")
    linear = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    norms = ("attention.output.LayerNorm", "output.LayerNorm")
    assert paths(METHODS["bitfit"]) == every(*linear, "intermediate.dense", "output.dense", *norms)


def test_prompt_equals_its_vectors_as_embeddings():
    model = network("qwen3")
    adapters.apply(model, Prompt(length=3))
    randomize(model)
    with torch.no_grad():
        found = logits(model)
        vectors = model.added["default"].prompt.expand(3, -1, -1)
        with adapters.bare(model):
            whole = torch.cat([vectors, model.get_input_embeddings()(tokens())], 1)
            expected = model(inputs_embeds=whole).logits[:, 3:]
    assert error(found, expected) < 1e-12


@pytest.mark.parametrize("name", ["lora", "prefix", "prompt"])
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt2"])
def test_generation_with_a_cache_is_generation_without(name, architecture):
    model = network(architecture)
    adapters.apply(model, METHODS[name])
    randomize(model)
    padded = tokens()
    padded[0, :4] = 2
    mask = torch.ones_like(padded)
    mask[0, :4] = 0
    choose = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 2, "attention_mask": mask}
    with torch.no_grad():
        a, b = (model.generate(padded, use_cache=cache, **choose) for cache in (True, False))
        with adapters.bare(model):
            c = model.generate(padded, **choose)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_several_adapters_share_a_base_and_are_switched(tmp_path):
    model, results = network("modernbert"), {}
    with torch.no_grad():
        results[""] = logits(model)
        for seed, (name, method) in enumerate(METHODS.items()):
            adapters.apply(model, method, name)
            randomize(model, seed)
            results[name] = logits(model)
        for name in [*METHODS, "", *reversed(METHODS)]:
            adapters.use(model, name)
            assert torch.equal(logits(model), results[name])
            assert all(p.requires_grad == n.startswith(f"added.{name}.") for n, p in model.named_parameters())
        copied = copy.deepcopy(model)
        adapters.use(model, "")
        assert torch.equal(logits(copied), results["lora"])
        adapters.use(copied, "prefix")
        assert torch.equal(logits(copied), results["prefix"])
        assert torch.equal(logits(model), results[""])
        assert copied.added["prefix"] is not model.added["prefix"]


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from(sorted(LINEAR)),
    architecture=st.sampled_from(["qwen3", "gpt2", "modernbert"]),
    seed=st.integers(0, 9),
)
def test_merging_keeps_the_outputs_and_unmerging_the_weights(name, architecture, seed):
    model = network(architecture)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    adapters.apply(model, LINEAR[name])
    randomize(model, seed)
    with torch.no_grad():
        expected = logits(model)
        adapters.merge(model)
        assert error(logits(model), expected) < 1e-10
        adapters.unmerge(model)
        assert error(logits(model), expected) < 1e-10
    for n, p in model.named_parameters():
        if n in before:
            torch.testing.assert_close(p, before[n], rtol=1e-13, atol=1e-13)


def test_biases_merge_where_there_are_some():
    model = adapters.apply(network("bert"), BitFit())
    randomize(model)
    with torch.no_grad():
        expected = logits(model)
        adapters.merge(model)
        assert error(logits(model), expected) < 1e-10
    with pytest.raises(CourseError, match="no biases"):
        adapters.merge(adapters.apply(network("qwen3"), BitFit()))


def test_finished_it_is_a_stock_model(tmp_path):
    network("modernbert").save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3).double().eval()
    names = set(model.state_dict())
    adapters.apply(model, LoRA(rank=2))
    randomize(model)
    with torch.no_grad():
        expected = logits(model)
        adapters.finish(model).save_pretrained(tmp_path / "done")
        assert set(model.state_dict()) == names
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "done").double().eval()
        assert error(logits(again), expected) < 1e-6
    assert all(p.requires_grad for p in model.parameters())


def test_tasks_with_other_classes_share_a_base(tmp_path):
    network("qwen3").save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2, dtype=torch.float64)
    model.eval()
    adapters.apply(model, LoRA(rank=2), "mood")
    adapters.apply(model, BitFit(), "topic", classes=7)
    randomize(model)
    with torch.no_grad():
        expected = logits(model)
        assert expected.shape == (3, 7)
        files.save(model, tmp_path / "topic", "base")
        adapters.use(model, "mood")
        assert logits(model).shape == (3, 2)
        files.load(model, tmp_path / "topic", "loaded")
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("name", METHODS)
def test_a_16_bit_base_has_float32_adapters(name):
    model = adapters.apply(network("qwen3", torch.bfloat16), METHODS[name])
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    randomize(model)
    found = logits(model)
    assert found.dtype == torch.bfloat16
    found.float().sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_dropout_acts_in_training_only():
    model = adapters.apply(network("qwen3"), LoRA(dropout=0.5))
    randomize(model)
    with torch.no_grad():
        assert torch.equal(logits(model), logits(model))
        model.train()
        assert not torch.equal(logits(model), logits(model))


# — training —


def steps(count, micro):
    draw = torch.Generator().manual_seed(3)
    rows = torch.randint(3, 64, (1, 8, 10), generator=draw).expand(count, -1, -1)
    batches = [[{"input_ids": part[:, :-1], "labels": part[:, 1:]} for part in step.split(8 // micro)] for step in rows]
    return batches, Budget(ReplayClock([i / count for i in range(count)]))


def trained(method, count=20, micro=1):
    model = adapters.apply(network("qwen3"), method)
    batches, budget = steps(count, micro)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    optimizer.param_groups[0]["initial_lr"] = 0.01
    objective = adapters.objective(model, CausalLM())
    adapters.follow(model, [optimizer], budget)
    return model, list(train(model, batches, objective, [optimizer], lambda progress: 1.0, FLOAT32, budget))


@pytest.mark.parametrize("name", METHODS)
def test_the_loop_trains_every_method(name):
    _, done = trained(METHODS[name], count=10)
    assert done[-1].losses["clm"] < done[0].losses["clm"]


def test_the_penalty_counts_once_a_step_and_ranks_are_pruned_on_the_way():
    whole, parts = (trained(AdaLoRA(rank=6, target=2), micro=micro) for micro in (1, 4))
    for a, b in zip(whole[1], parts[1], strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-5)  # the loop adds them up in float32
        assert a.norm == pytest.approx(b.norm, rel=1e-7)
    assert whole[1][-1].losses["penalty"] < whole[1][0].losses["penalty"], "P and Q become more orthogonal"
    left = [int((part.E != 0).sum()) for part in whole[0].added["default"].parts.values()]
    assert sum(left) == 2 * len(left)


@given(
    rank=st.integers(1, 30), target=st.integers(1, 30), warmup=st.floats(0, 0.45), final=st.floats(0, 0.45),
    at=st.lists(st.floats(0, 1), min_size=2, max_size=20),
)  # fmt: skip
def test_the_budget_only_falls(rank, target, warmup, final, at):
    target = min(rank, target)
    model = adapters.apply(network("qwen3"), AdaLoRA(rank=2, target=1))
    added = model.added["default"]
    added.method = AdaLoRA(rank=rank, target=target, warmup=warmup, final_share=final)
    budgets = [added.budget(progress) for progress in sorted(at)]
    assert budgets == sorted(budgets, reverse=True)
    assert added.budget(0) == rank * len(added.parts)
    assert added.budget(1) == target * len(added.parts)


def test_pruned_triples_are_not_stored(tmp_path):
    model, _ = trained(AdaLoRA(rank=6, target=2))
    adapted = model.added["default"]
    shapes = [part.Q.size(1) + part.P.size(0) + 1 for part in adapted.parts.values()]
    kept = [int(part.kept.sum()) for part in adapted.parts.values()]
    assert files.size(adapted) == 8 * sum(s * k for s, k in zip(shapes, kept, strict=True))
    files.save(model, tmp_path, "base")
    again = files.load(network("qwen3"), tmp_path)
    model.eval()
    with torch.no_grad():
        assert error(logits(again), logits(model)) < 1e-12


# — errors —


def test_targets_that_match_nothing_name_the_nearest():
    with pytest.raises(CourseError, match="no linear layer called 'q_porj'. Did you mean .*q_proj"):
        adapters.apply(network("qwen3"), LoRA(targets=("v_proj", "q_porj")))
    with pytest.raises(CourseError, match="Did you mean .*Wqkv"):
        adapters.apply(network("modernbert"), AdaLoRA(rank=2, target=1, targets=("qkv",)))


def test_targets_name_the_ends_of_paths():
    model = network("modernbert")
    count = lambda *targets: len(base.find(model, targets))
    assert (count("Wo"), count("attn.Wo"), count("Wqkv", "Wi")) == (4, 2, 4)
    assert count() == 4, "attention's matrices"
    assert count("all") == 8


@pytest.mark.parametrize(
    "method", [LoRA(rank=33), AdaLoRA(rank=40, target=2), Adapter(width=64), LoRA(rank=0)], ids=str
)
def test_impossible_ranks(method):
    model = network("qwen3")
    with pytest.raises(CourseError, match=r"Rank \d+ is impossible for '.*', a matrix of 32 × 32. Choose 1 to 32"):
        adapters.apply(model, method)
    assert all(p.requires_grad for p in model.parameters()), "nothing was changed"


def test_an_adapter_of_another_base_is_refused(tmp_path):
    files.save(adapters.apply(network("qwen3"), LoRA()), tmp_path, "runs/one")
    other = network("qwen3")
    torch.nn.init.normal_(other.model.layers[1].mlp.up_proj.weight)
    for wrong in (other, network("llama"), network("bert")):
        with pytest.raises(CourseError, match="made for another base, 'runs/one'"):
            files.load(wrong, tmp_path)
        assert not hasattr(wrong, "added")
    single = files.load(network("qwen3", torch.float32), tmp_path)  # the same base in another precision
    assert next(single.added.parameters()).dtype == torch.float32


def test_double_merge_and_other_misuse(tmp_path):
    model = adapters.apply(network("qwen3"), LoRA())
    with pytest.raises(CourseError, match="No adapter is merged"):
        adapters.unmerge(model)
    adapters.merge(model)
    with pytest.raises(CourseError, match="already merged; twice"):
        adapters.merge(model)
    for forbidden in (lambda: adapters.use(model, ""), lambda: adapters.apply(model, LoRA(), "b")):
        with pytest.raises(CourseError, match="is merged into the base. `unmerge` it first"):
            forbidden()
    with pytest.raises(CourseError, match="`unmerge` it first"):
        files.save(model, tmp_path, "base")
    adapters.unmerge(model)
    with pytest.raises(CourseError, match="already an adapter called 'default'"):
        adapters.apply(model, LoRA())
    with pytest.raises(CourseError, match="Did you mean default"):
        adapters.use(model, "defualt")
    adapters.use(model, "")
    with pytest.raises(CourseError, match="No adapter is switched on"):
        adapters.merge(model)
    with pytest.raises(CourseError, match="no adapter"):
        adapters.merge(network("qwen3"))
    with pytest.raises(CourseError, match="no adapter in"):
        files.load(network("qwen3"), tmp_path / "nowhere")


@pytest.mark.parametrize("architecture", ["gpt2", "bert"])
def test_a_prompt_needs_room(architecture):
    model = adapters.apply(network(architecture), Prompt(length=3))
    assert model(input_ids=tokens(length=29))
    with pytest.raises(CourseError, match="prompt of 3 and a text of 30 tokens do not fit into 32 positions"):
        model(input_ids=tokens(length=30))


@pytest.mark.parametrize("name", ["adapter", "prefix", "prompt"])
def test_what_is_not_linear_cannot_be_merged(name):
    model = adapters.apply(network("qwen3"), METHODS[name])
    with pytest.raises(CourseError, match="cannot be merged"):
        adapters.merge(model)
    assert not model.added.merged


def test_methods_are_written_in_one_line():
    assert methods.parse("lora") == LoRA()
    assert methods.parse("lora:rank=4,targets=q_proj+v_proj,rslora=true") == LoRA(4, 16, 0, ("q_proj", "v_proj"), True)
    assert methods.parse("adapter:placement=pfeiffer") == Adapter(placement="pfeiffer")
    assert [methods.name_of(methods.parse(name)) for name in methods.METHODS] == list(methods.METHODS)
    for text, message in (
        ("lroa", "Did you mean lora"), ("lora:rnak=4", "setting of lora called 'rnak'. Did you mean rank"),
        ("lora:rank=many", "lora:rank is a number like 8"), ("lora:rslora=1", "true or false"),
    ):  # fmt: skip
        with pytest.raises(CourseError, match=message):
            methods.parse(text)
    for wrong in (Adapter(placement="houslby"), AdaLoRA(target=20)):
        with pytest.raises(CourseError):
            adapters.apply(network("qwen3"), wrong)


def test_the_library_runs_without_peft():
    code = "import sys; sys.modules['peft'] = None; from course_lib.peft import files, methods"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_record_says_that_our_step_is_no_slower_and_files_are_as_computed():
    """`runs/bench-peft`, by `tools/bench_peft.py`; names and shapes are all that a file holds more."""
    record = json.loads((ROOT / "runs" / "bench-peft" / "run.json").read_text())
    assert record["settings"]["repeats"] >= 3
    assert all(step["ratio"]["median"] <= 1 for step in record["step"].values())
    assert set(record["files"]) == set(methods.METHODS)
    assert all(0 < file["file_kb"] - file["computed_kb"] < 10 for file in record["files"].values())


# — fine-tuning —


@pytest.mark.parametrize(
    "method", ["lora:targets=all", "adalora:rank=6,target=3", "adapter", "prefix", "prompt", "bitfit"]
)
def test_finetuning_stores_the_added_weights_only(method, table, tmp_path):  # noqa: F811
    source = pretrained(tmp_path / "m", "modernbert")
    weights = source / "model" / "model.safetensors"  # every weight random: zeros would hide what an adapter does
    save_file({n: 0.2 * torch.randn_like(t) for n, t in load_file(weights).items()}, weights, {"format": "pt"})
    config = tuning(table, source, method=method)
    run = finetune.finetune(config, runs=tmp_path / "runs", log=quiet)
    assert run.folder.name == f"m-mood-{method.partition(':')[0]}"
    stored = run.folder / "model"
    assert not (stored / "model.safetensors").exists()
    assert json.loads((stored / files.ABOUT).read_text())["base"] == str(source / "model")
    model = files.restore(stored, AutoModelForSequenceClassification)
    assert model.config.id2label == {0: "bad", 1: "good"}
    from transformers import AutoTokenizer

    from course_lib.data import labelled

    rows = heads.encode(AutoTokenizer.from_pretrained(stored), labelled.load(str(table)).test.texts, 64)
    again = heads.predict(model, rows, model.config.pad_token_id, FLOAT32)
    kept = json.loads((run.folder / "seed-0" / finetune.PREDICTIONS).read_text())["probabilities"]
    np.testing.assert_allclose(again, kept, atol=1e-5)
    for handle in model.added.handles[: -len(model.added["default"].heads)]:
        handle.remove()
    alone = heads.predict(model, rows, model.config.pad_token_id, FLOAT32)
    assert abs(alone - again).max() > 1e-3, "not only the head has learnt"


def test_stopped_and_continued_prunes_the_same(table, tmp_path, monkeypatch):  # noqa: F811
    config = tuning(table, pretrained(tmp_path / "m", "qwen3"), method="adalora:rank=6,target=3,dropout=0.1")
    whole = finetune.finetune(config, runs=tmp_path / "whole", log=quiet)
    after, done = recorder.Recorder.after, []

    def impatient(self, step):
        done.append(step)
        if len(done) == 40:
            os.kill(os.getpid(), signal.SIGTERM)
        return after(self, step)

    monkeypatch.setattr(recorder.Recorder, "after", impatient)
    with pytest.raises(recorder.Interrupted):
        finetune.finetune(config, runs=tmp_path / "parts", log=quiet)
    resumed = finetune.finetune(config, runs=tmp_path / "parts", log=quiet)
    a, b = ((run.folder / "model" / files.WEIGHTS).read_bytes() for run in (whole, resumed))
    assert a == b


def test_the_command_line_names_the_method(table, tmp_path, capsys):  # noqa: F811
    source = pretrained(tmp_path / "m", "modernbert")
    options = ["finetune", f"--task={table}", f"--model={source}", "--epochs=1", f"--runs={tmp_path}"]
    assert cli.main([*options, "--method=lora:rank=2"]) == 0
    assert "right on" in capsys.readouterr().out
    assert cli.main([*options, "--method=lroa"]) == 1
    assert "Did you mean lora" in capsys.readouterr().err
