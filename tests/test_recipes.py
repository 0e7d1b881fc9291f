"""Every objective with its model: closed forms, no leak, meta device, 16 bit, save and load."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForTokenClassification

from course_lib import models, objectives, optim, recipes
from course_lib.batches import Alternate, Mask, SentencePairs, next_tokens
from course_lib.budget import Budget, WorkClock
from course_lib.config import Config
from course_lib.loop import train
from course_lib.precision import Precision

SHAPE = models.Size(hidden=32, layers=2, heads=4, vocab=64, context=32)
IDS = models.Tokens(64, 0, 1, 2)


def model_for(name, architecture=""):
    torch.manual_seed(0)
    recipe = recipes.get(name)
    settings = Config(objective=name, architecture=architecture or recipe.architecture)
    model = recipes.new_model(settings, SHAPE, IDS)
    for p in model.parameters():  # zero output projections would hide most mistakes
        if p.abs().max() < 0.01:
            torch.nn.init.normal_(p, std=0.1)
    return model.eval()


def batch_for(name, rows=4, length=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = Mask(3, 64, 4, generator, lambda progress: 0.25)
    text = torch.randint(4, 64, (rows, length + 1), generator=generator)
    if name == "hybrid":
        return Alternate(mask, share=1.0)(text, 0.0)
    return {"clm": next_tokens, "mlm": mask, "rtd": mask, "mlm+nsp": SentencePairs(mask, 0, 1)}[name](text, 0.0)


@pytest.mark.parametrize("architecture", list(models.ARCHITECTURES))
def test_the_head_on_hidden_states_is_the_models_own(architecture):
    model = model_for("mlm+nsp" if architecture == "bert" else "clm", architecture)
    ids = torch.randint(4, 64, (2, 16))
    out = model(input_ids=ids)
    logits = out.prediction_logits if architecture == "bert" else out.logits
    hidden = model.base_model(input_ids=ids).last_hidden_state
    assert torch.equal(models.token_logits(model, hidden), logits)


@pytest.mark.parametrize("architecture", ["modernbert", "bert"])
def test_masked_loss_is_the_stock_models_and_depends_on_masked_labels_only(architecture):
    """A well-known course averaged over all positions, so that its mask did nothing."""
    model = model_for("mlm", architecture)
    batch = batch_for("mlm")
    labels = torch.full_like(batch["input_ids"], -100).scatter(1, batch["positions"], batch["labels"])
    out = model(input_ids=batch["input_ids"])
    logits = out.prediction_logits if architecture == "bert" else out.logits
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    objective = objectives.MaskedLM()
    assert objective.counts(batch) == {"mlm": 4 * 6}
    assert objective(model, batch)["mlm"].item() == pytest.approx(expected.item(), rel=1e-5)
    for position in range(24):  # another label at an unmasked place is not even representable; a masked one counts
        changed = {**batch, "labels": batch["labels"].clone()}
        hit = (batch["positions"][0] == position).nonzero()
        if len(hit):
            changed["labels"][0, hit[0]] = (changed["labels"][0, hit[0]] + 1) % 60 + 4
            assert objective(model, changed)["mlm"].item() != pytest.approx(expected.item(), rel=1e-6)


def test_two_terms_are_berts_own_loss():
    model = model_for("mlm+nsp")
    batch = batch_for("mlm+nsp")
    labels = torch.full_like(batch["input_ids"], -100).scatter(1, batch["positions"], batch["labels"])
    stock = model(
        input_ids=batch["input_ids"],
        token_type_ids=batch["token_type_ids"],
        labels=labels,
        next_sentence_label=1 - batch["is_next"].long(),
    )
    objective = objectives.MaskedLMWithNSP()
    losses, counts = objective(model, batch), objective.counts(batch)
    ours = sum(losses[term].item() / counts[term] for term in losses)
    assert ours == pytest.approx(stock.loss.item(), rel=1e-5)


def influence(model, name, source, target):
    """Whether the hidden state at `target` moves with the token at `source`, as the objective calls the model."""
    asked = {"input_ids": torch.randint(4, 64, (1, 12), generator=torch.Generator().manual_seed(1))}
    kind = {"is_causal": False} if name == "hybrid" else {}
    states = []
    for change in (0, 1):
        ids = asked["input_ids"].clone()
        ids[0, source] = (ids[0, source] + change - 4) % 60 + 4
        states.append(model.base_model(input_ids=ids, use_cache=False, **kind).last_hidden_state[0, target])
    return not torch.equal(*states)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("architecture", ["qwen3", "nanochat"])
def test_a_decoder_sees_the_future_only_when_the_hybrid_asks(architecture, stored, tmp_path):
    model = model_for("hybrid", architecture)
    if stored:
        model.save_pretrained(tmp_path)
        model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert not influence(model, "clm", source=9, target=4)
    assert influence(model, "hybrid", source=9, target=4)
    assert not influence(model, "clm", source=9, target=4), "asking once must not change the model"
    assert influence(model, "clm", source=4, target=9)


def test_the_hybrid_predicts_a_hidden_token_from_the_position_before():
    model, batch = model_for("hybrid"), batch_for("hybrid")
    logits = model(input_ids=batch["input_ids"], is_causal=False).logits
    expected = sum(
        F.cross_entropy(logits[row, position - 1], label).item()
        for row in range(4)
        for position, label in zip(batch["positions"][row], batch["labels"][row], strict=True)
    )
    objective = objectives.Hybrid()
    assert objective(model, batch)["mlm"].item() == pytest.approx(expected, rel=1e-5)
    assert objective.counts(batch) == {"clm": 0, "mlm": 24}
    assert objective.counts(batch_for("clm")) == {"clm": 96, "mlm": 0}


def test_the_discriminator_is_asked_about_every_token_and_teaches_the_generator_nothing():
    model, batch = model_for("rtd"), batch_for("rtd")
    objective = objectives.ReplacedTokens()
    assert objective.counts(batch) == {"mlm": 24, "rtd": 96}
    torch.manual_seed(0)
    losses = objective(model, batch)
    losses["rtd"].backward()
    assert all(p.grad is None for p in model["generator"].parameters())
    assert model["discriminator"].classifier.weight.grad.abs().sum() > 0
    assert 0 < losses["rtd"].item() / 96 < 3


def test_a_replaced_token_is_one_that_differs_from_the_text():
    """Where the generator guesses right, nothing was replaced: here at every second mask, its guesses drawn first."""
    model, batch = model_for("rtd"), batch_for("rtd")
    ids, positions = batch["input_ids"], batch["positions"]
    with torch.no_grad():
        hidden = model["generator"].base_model(input_ids=ids).last_hidden_state
        logits = models.token_logits(model["generator"], objectives.at(hidden, positions))
        torch.manual_seed(5)
        guesses = torch.distributions.Categorical(logits=logits).sample().view_as(positions)
    right = torch.arange(positions.numel()).view_as(positions) % 2 == 0
    batch["labels"] = torch.where(right, guesses, (guesses + 1) % 64)
    filled, replaced = ids.clone(), torch.zeros(ids.shape, dtype=torch.bool)
    for row, column in positions.new_ones(positions.shape).nonzero().tolist():
        filled[row, positions[row, column]] = guesses[row, column]
        replaced[row, positions[row, column]] = not right[row, column]
    torch.manual_seed(5)
    found = objectives.ReplacedTokens()(model, batch)["rtd"]
    says = model["discriminator"](input_ids=filled).logits.squeeze(-1).double()
    expected = -F.logsigmoid(says[replaced]).sum() - F.logsigmoid(-says[~replaced]).sum()
    assert replaced.sum() == 12
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_chunks_change_nothing(name, monkeypatch):
    model, batch = model_for(name).double(), batch_for(name)
    results = []
    for limit in (2**28, 64 * 5):
        monkeypatch.setattr(objectives.token_loss, "__defaults__", (limit,))
        model.zero_grad()
        torch.manual_seed(0)
        losses = recipes.get(name).objective(model, batch)
        torch.stack(list(losses.values())).sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append(([loss.item() for loss in losses.values()], gradients))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-12)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.parametrize("name", [n for n in recipes.RECIPES if n != "rtd"])
def test_forward_and_backward_on_the_meta_device(name, on_meta):
    """Stands in for a GPU: any tensor made on the wrong device fails here. (rtd samples, which meta cannot.)"""
    with torch.device("meta"):
        model = recipes.new_model(Config(objective=name, architecture=recipes.get(name).architecture), SHAPE, IDS)
    batch = {key: value.to("meta") for key, value in batch_for(name).items()}
    losses = recipes.get(name).objective(model, batch)
    torch.stack(list(losses.values())).sum().backward()
    assert any(p.grad is not None and p.grad.is_meta for p in model.parameters())
    for optimizer in optim.build(model, "muon", 0.02, 0.01):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_every_recipe_learns_in_every_precision(name, dtype):
    model, batch = model_for(name), batch_for(name, rows=8)
    torch.manual_seed(0)
    optimizers = optim.build(model, "muon", 0.02, 0.01)
    steps = train(
        model, iter(lambda: [batch], None), recipes.get(name).objective, optimizers,
        lambda progress: 1.0, Precision("cpu", dtype), Budget(WorkClock(8 * 24 * 25)),
    )  # fmt: skip
    losses = [step.losses for step in steps]
    for term in losses[0]:
        if losses[0][term]:
            assert losses[-1][term] < losses[0][term] - (0.03 if term in ("rtd", "nsp") else 0.3)
    assert all(math.isfinite(value) for row in losses for value in row.values())


@pytest.mark.parametrize("name", list(recipes.RECIPES))
def test_what_is_kept_loads_as_a_stock_model(name, tmp_path: Path):
    model = model_for(name)
    kept = recipes.to_keep(model)
    kept.save_pretrained(tmp_path)
    auto = {"mlm": AutoModelForMaskedLM, "mlm+nsp": AutoModelForMaskedLM, "rtd": AutoModelForTokenClassification}
    loaded = auto.get(name, AutoModelForCausalLM).from_pretrained(tmp_path).eval()
    ids = torch.randint(4, 64, (2, 12))
    ours = kept.base_model(input_ids=ids).last_hidden_state
    assert torch.equal(loaded.base_model(input_ids=ids).last_hidden_state, ours)


@pytest.mark.parametrize("architecture", list(models.ARCHITECTURES))
@pytest.mark.parametrize("size", ["pico", "micro"])
def test_flops_agree_with_torchs_counter(architecture, size):
    """Equation eq-training-flops."""
    shape = models.SIZES[size]
    model = models.build(architecture, shape, models.Tokens(shape.vocab, 0, 1, 2))
    model.set_attn_implementation("eager")  # the counter does not know the CPU's fused attention
    ids = torch.zeros(2, shape.context, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        hidden = model.base_model(input_ids=ids).last_hidden_state
        models.token_logits(model, hidden).sum().backward()
    assert models.flops_per_token(model, shape.context) == pytest.approx(
        counter.get_total_flops() / ids.numel(), rel=0.12
    )


def test_memory_between_steps_is_counted_by_hand():
    """Equation eq-bytes."""
    model = model_for("clm")
    optimizers = optim.build(model, "muon", 0.02, 0.01)
    ids = torch.randint(4, 64, (2, 16))
    model(input_ids=ids, labels=ids).loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    found = models.training_bytes(model, optimizers)
    state = [v for o in optimizers for s in o.state.values() for v in s.values() if torch.is_tensor(v) and v.ndim > 0]
    assert found["optimizer"] == sum(v.numel() * v.element_size() for v in state)
    assert found["weights"] == found["gradients"] == sum(p.numel() * 4 for p in model.parameters())
    assert found["gradients"] == sum(p.grad.numel() * 4 for p in model.parameters())
