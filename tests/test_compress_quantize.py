"""Quantization against closed forms, torch's own kernels and finite gradients; quantized models and their files."""

import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForSequenceClassification,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
)

from course_lib import spec
from course_lib.compress import affine, files, quantized
from course_lib.compress.int4 import Int4
from course_lib.compress.int8 import Int8
from course_lib.compress.qat import QAT, simulate
from course_lib.compress.quantized import Bits
from course_lib.compress.units import Heads
from course_lib.errors import CourseError
from course_lib.objectives import Classification
from tests.conftest import ROOT
from tests.test_peft_parity import TARGETS, error, logits, network, tokens

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:.*quantize_per_.*")
RECIPES = {
    "dynamic": Int8(), "static": Int8(scheme="static"), "weight": Int8(scheme="weight", per="tensor"),
    "floats": Int8(embeddings=False), "int4": Int4(group=8),
}  # fmt: skip


class Desk:
    """What a step may ask for, without a task."""

    def __init__(self, model=None, empty=False):
        self.teacher, self.empty, self.trained = copy.deepcopy(model), empty, []

    def batches(self, rows):
        ids = torch.randint(3, 64, (8, 9), generator=torch.Generator().manual_seed(2))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 3}
        return [] if self.empty else [batch, {k: v.flip(0)[:3] for k, v in batch.items()}]

    def objective(self):
        return Classification()

    def learn(self, model, epochs, objective=None, after=None, rows=None):
        self.trained.append(epochs)
        objective, steps = objective or self.objective(), round(20 * epochs)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.003)
        model.train()
        for step in range(steps):
            loss = sum(objective(model, self.batches(8)[0]).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if after:
                after((step + 1) / steps)
        model.eval()


def classifier(architecture, tmp_path, dtype=torch.float32):
    folder = tmp_path / f"base-{architecture}"
    network(architecture, torch.float32).save_pretrained(folder)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, dtype=torch.float32).eval()
    model.config.pad_token_id, model.config.use_cache = 2, False
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("score", "classifier"):
            torch.nn.init.normal_(module.weight, std=0.3)
    return model.to(dtype)


# — the grid —


@given(bits=st.sampled_from([4, 8]), seed=st.integers(0, 50))
def test_per_tensor_equals_torch(bits, seed):
    """Equation eq-affine."""
    x = torch.randn(7, 9, generator=torch.Generator().manual_seed(seed)) + 0.3
    grid = affine.asymmetric(x, bits)
    ends = (grid.low, grid.high)
    theirs = torch.fake_quantize_per_tensor_affine(x, grid.scale, grid.zero.int(), *ends)
    # torch multiplies by 1/s, we divide by s: a value half way between two integers may go to the other one
    assert (grid.fake(x) - theirs).abs().max() <= grid.scale * 1.001
    assert ((grid.fake(x) - theirs).abs() > 1e-6).float().mean() < 0.02
    assert (x - grid.fake(x)).abs().max() <= grid.scale * 0.5001
    if bits == 8:
        stored = torch.quantize_per_tensor(x, float(grid.scale), int(grid.zero), torch.qint8)
        assert (stored.int_repr().int() - grid.quantize(x)).abs().max() <= 1
        torch.testing.assert_close(stored.dequantize(), grid.dequantize(stored.int_repr()), rtol=0, atol=1e-6)


def test_per_channel_equals_torch_with_its_gradient():
    """Equation eq-straight."""
    x = torch.randn(5, 33, generator=torch.Generator().manual_seed(0), requires_grad=True)
    grid = affine.symmetric(x.detach() / 2, 8, (1,))  # half the range: some values are clamped
    theirs = torch.fake_quantize_per_channel_affine(x, grid.scale.flatten(), grid.zero.flatten().int(), 0, -127, 127)
    ours = grid.fake(x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    up = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (a,), (b,) = (torch.autograd.grad(y, x, up) for y in (ours, theirs))
    assert torch.equal(a, b)
    assert 0 < (a == 0).float().mean() < 0.5
    stored = torch.quantize_per_channel(x.detach(), grid.scale.flatten(), grid.zero.flatten().long(), 0, torch.qint8)
    clamped = grid.quantize(x.detach())
    assert (stored.int_repr().int().clamp(min=-127) - clamped).abs().max() == 0


def test_the_error_of_rounding_is_a_twelfth_of_the_step_squared():
    """Equation eq-rounding-error."""
    x = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    for bits in (4, 6, 8):
        grid = affine.asymmetric(x, bits)
        mean = (x - grid.fake(x)).square().mean()
        assert float(mean / (grid.scale**2 / 12)) == pytest.approx(1, abs=0.02)
    gained = [quantized.signal_to_noise(x, affine.asymmetric(x, bits).fake(x)) for bits in (4, 8)]
    assert gained[1] - gained[0] == pytest.approx(4 * 6.02, abs=0.6), "6 dB a bit"


@given(least=st.floats(-9, 9), width=st.floats(0, 9))
def test_zero_is_always_exact(least, width):
    x = torch.tensor([least, least + width, 0.0])
    for grid in (affine.asymmetric(x, 8), affine.symmetric(x, 8)):
        assert float(grid.fake(torch.zeros(()))) == 0


def test_integer_products_are_exact_and_equal_torchs_quantized_linear():
    """Equation eq-affine-matmul."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-128, 128, shape, generator=draw) for shape in ((17, 96), (24, 96)))
    assert torch.equal(affine.int_matmul(a, b).long(), a @ b.T)
    x, w = torch.randn(17, 96, generator=draw), torch.randn(24, 96, generator=draw)
    xg, wg = affine.asymmetric(x, 8), affine.symmetric(w, 8, (1,))
    ours = affine.affine_matmul(xg.quantize(x), xg, wg.quantize(w), wg)
    reals = xg.dequantize(xg.quantize(x)).double() @ wg.dequantize(wg.quantize(w)).double().T
    torch.testing.assert_close(ours.double(), reals, rtol=1e-5, atol=1e-4)
    packed = torch.ops.quantized.linear_prepack(
        torch.quantize_per_channel(w, wg.scale.flatten(), wg.zero.flatten().long(), 0, torch.qint8), None
    )
    theirs = torch.ops.quantized.linear_dynamic(x, packed, True)  # 7 bits: else AVX2 saturates
    assert error(ours, theirs) < 0.03
    assert error(theirs, x @ w.T) < 0.03


def test_four_bit_pairs_come_back():
    q = torch.randint(-8, 8, (5, 3, 8), generator=torch.Generator().manual_seed(0))
    assert affine.pack4(q).shape == (5, 3, 4)
    assert torch.equal(affine.unpack4(affine.pack4(q)).long(), q)


# — models —


@pytest.mark.parametrize("architecture", ["qwen3", "modernbert", "bert", "gpt2"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_architecture_keeps_its_outputs_and_reloads_to_the_same_bits(name, architecture, tmp_path):
    model = classifier(architecture, tmp_path)
    with torch.no_grad():
        before = logits(model)
        model = RECIPES[name].apply(model, Desk())
        after = logits(model)
        assert 0 < error(after, before) < (0.6 if name == "int4" else 0.15)
        files.save(model, tmp_path / "q")
        again = files.load(tmp_path / "q")
        assert torch.equal(logits(again), after)
        if name in ("weight", "int4"):
            assert error(logits(quantized.plain(again)), after) < 1e-5
    whole = sum(p.numel() * 4 for p in classifier(architecture, tmp_path).parameters())
    assert files.size(tmp_path / "q") < (0.9 if name == "floats" else 0.6) * whole
    assert not (tmp_path / "q" / "model.safetensors").exists(), "a stock class must not load it by mistake"


@pytest.mark.parametrize("step", [Int8(), Int4(group=8), Heads(0.5, epochs=0)], ids=["int8", "int4", "cut"])
def test_another_process_reads_the_same_model(step, tmp_path):
    model = step.apply(classifier("qwen3", tmp_path), Desk())
    files.save(model, tmp_path / "made")
    torch.save(tokens(), tmp_path / "ids.pt")
    code = """
import sys, torch
from pathlib import Path
from course_lib.compress import files
at = Path(sys.argv[1])
with torch.no_grad():
    torch.save(files.load(at / "made")(input_ids=torch.load(at / "ids.pt")).logits, at / "out.pt")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "out.pt"), model(input_ids=tokens()).logits)


def test_dynamic_outputs_do_not_depend_on_the_batch(tmp_path):
    model = Int8().apply(classifier("qwen3", tmp_path), Desk())
    with torch.no_grad():
        whole = model(input_ids=tokens()).logits
        single = torch.cat([model(input_ids=row[None]).logits for row in tokens()])
    torch.testing.assert_close(whole, single, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_tied_table_is_stored_once(architecture, tmp_path):
    model = network(architecture, torch.float32)
    assert model.config.tie_word_embeddings
    model = Int8(scheme="weight").apply(model, Desk())
    files.save(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(logits(files.load(tmp_path)), logits(model))
    table = 64 * 32
    weights = sum(layer.q.numel() for layer in quantized.layers(model).values())
    assert files.size(tmp_path) < weights - table + 30_000
    assert [len(v) for v in [files.json.loads((tmp_path / files.ABOUT).read_text())["shared"]]] != [0]


@pytest.mark.parametrize("kind", ["gemma3", "opt"])
def test_tables_that_do_more_than_look_up_stay_real(kind, tmp_path):
    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"pad_token_id": 2, "num_labels": 3}
    if kind == "opt":
        config = OPTConfig(ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=32, **shape)
        model = OPTForSequenceClassification(config).eval()
    else:
        config = Gemma3TextConfig(intermediate_size=64, head_dim=16, num_key_value_heads=1, **shape)
        model = Gemma3TextForSequenceClassification(config).eval()
    before = copy.deepcopy(model)
    for step in (Int8(scheme="weight"), QAT(epochs=0.1)):
        made = step.apply(copy.deepcopy(model), Desk())
        left = [name for name, module in made.named_modules() if isinstance(module, torch.nn.Embedding)]
        assert left == ["model.decoder.embed_positions" if kind == "opt" else "model.embed_tokens"]
        if step == Int8(scheme="weight"):
            assert 0 < error(logits(made), logits(before)) < 0.15
            files.save(made, tmp_path / "made")
            assert torch.equal(logits(files.load(tmp_path / "made")), logits(made))


def test_rounding_again_changes_nothing():
    """So a runtime that rounds the dequantized weights by the same rule finds our integers."""
    w = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    layer = torch.nn.Linear(40, 24)
    layer.weight.data = w
    once = quantized.QuantizedLinear(layer, Bits())
    assert torch.equal(quantized.QuantizedLinear(once.plain(), Bits()).q, once.q)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_training_sees_what_will_be_stored(architecture, bits, tmp_path):
    model = classifier(architecture, tmp_path)
    layout = QAT(bits, group=8).layout
    simulated = copy.deepcopy(model)
    hooks = simulate(simulated, layout)
    done = QAT(bits, group=8, epochs=0).apply(model, Desk())
    with torch.no_grad():
        assert error(logits(simulated), logits(done)) < 2e-3  # integers and their sums, once in float32
    logits(simulated).square().sum().backward()
    originals = [p for n, p in simulated.named_parameters() if n.endswith("original")]
    assert len(originals) == len(quantized.layers(done))
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in originals)
    assert hooks or bits == 4


def test_learning_with_rounded_weights_pays(tmp_path):
    model, desk = classifier("qwen3", tmp_path), Desk()
    desk.learn(model, 2.0)
    loss = lambda m: float(sum(Classification()(m, desk.batches(8)[0]).values()))
    aware, after = copy.deepcopy(model), copy.deepcopy(model)
    aware = QAT(bits=3, group=32, epochs=2.0).apply(aware, desk)
    after = quantized.quantize(after, Bits(3, "group", 32), Bits(3, "group", 32))
    with torch.no_grad():
        assert loss(aware) < loss(after)


# — errors —


def test_errors_say_what_and_what_to_do(tmp_path):
    with pytest.raises(CourseError, match="calibrated on no texts"):
        Int8(scheme="static").apply(classifier("qwen3", tmp_path), Desk(empty=True))
    with pytest.raises(CourseError, match="int32 cannot be quantized"):
        affine.symmetric(torch.ones(3, dtype=torch.int32), 8)
    with pytest.raises(CourseError, match="infinite values or NaN"):
        affine.asymmetric(torch.tensor([1.0, float("nan")]), 8)
    with pytest.raises(CourseError, match="Groups of 7 do not divide the 32 inputs of .*Choose a divisor"):
        Int4(group=7).apply(classifier("qwen3", tmp_path), Desk())
    with pytest.raises(CourseError, match="Did you mean dynamic"):
        Int8(scheme="dynamc").apply(classifier("qwen3", tmp_path), Desk())
    with pytest.raises(CourseError, match="one scale an output"):
        quantized.quantize(classifier("qwen3", tmp_path), Bits(8, "group", 8, "dynamic"))
    with pytest.raises(CourseError, match="no compressed model in"):
        files.load(tmp_path / "nowhere")


def test_settings_in_one_line():
    known = {"int8": Int8, "int4": Int4}
    assert spec.parse("int8:scheme=static,embeddings=false", "step", known) == Int8("static", embeddings=False)
    with pytest.raises(CourseError, match="no step called 'int9'. Did you mean int8 or int4"):
        spec.parse("int9", "step", known)
    assert set(TARGETS) >= {"qwen3", "modernbert", "bert", "gpt2"}
