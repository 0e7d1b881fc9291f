"""Pruning: what is cut equals what is masked, masks stay, scores follow the paper's gradient."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.utils import prune
from transformers import AlbertConfig, AlbertForSequenceClassification

from course_lib import models
from course_lib.compress import files, magnitude, quantized, recipes, structure
from course_lib.compress.int4 import Int4
from course_lib.compress.int8 import Int8
from course_lib.compress.layers import Layers, chosen
from course_lib.compress.magnitude import Magnitude
from course_lib.compress.movement import Movement, Scored
from course_lib.compress.qat import QAT
from course_lib.compress.units import Heads, Neurons
from course_lib.errors import CourseError
from course_lib.objectives import Classification
from course_lib.peft.base import inner
from tests.test_compress_quantize import Desk, classifier
from tests.test_peft_parity import IDS, SHAPE, error, logits, network

ARCHITECTURES = ["qwen3", "llama", "nanochat", "modernbert", "bert", "gpt2"]


@pytest.mark.parametrize("kind", ["heads", "neurons"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_cut_model_is_the_masked_model(architecture, kind):
    model = network(architecture)
    found = structure.sublayers(model, kind)
    if kind == "heads":
        assert [sub.units for sub in found] == [2 if architecture == "llama" else 4] * 2
    draw = torch.Generator().manual_seed(0)
    gates = [(torch.rand(sub.units, generator=draw) > 0.4).double() for sub in found]
    for gate in gates:
        gate[0] = 1
    with torch.no_grad():
        hooks = structure.gated(model, found, gates)
        masked = logits(model)
        for hook in hooks:
            hook.remove()
        whole, before = logits(model), sum(p.numel() for p in model.parameters())
        structure.shrink(model, found, [gate.nonzero().flatten() for gate in gates])
        assert error(logits(model), masked) < 1e-12
        assert error(whole, masked) > 1e-3
    assert sum(p.numel() for p in model.parameters()) < before


def test_importance_is_the_derivative_of_the_loss(tmp_path):
    """Equation eq-importance, by finite differences."""
    model, desk = classifier("qwen3", tmp_path, torch.float64), Desk()
    found, batches = structure.sublayers(model, "heads"), desk.batches(8)
    scores = structure.importance(model, found, Classification(), batches)

    def loss(gate, batch):
        hooks = structure.gated(model, found[:1], [gate])
        with torch.no_grad():
            value = float(Classification()(model, batch)["classification"])
        hooks[0].remove()
        return value

    for unit in range(found[0].units):
        up, down = torch.ones(2, found[0].units, dtype=torch.float64)
        up[unit], down[unit] = 1 + 1e-3, 1 - 1e-3
        slope = sum(abs(loss(up, b) - loss(down, b)) / 2e-3 for b in batches)  # the loss is summed in float32
        assert float(scores[0][unit]) == pytest.approx(slope, rel=2e-2, abs=2e-3)


@pytest.mark.parametrize("step", [Heads(0.5, epochs=0.5), Neurons(0.5), Layers(1, epochs=0.2)], ids=["h", "n", "l"])
@pytest.mark.parametrize("architecture", ["qwen3", "modernbert", "bert", "gpt2"])
def test_cut_models_learn_on_and_reload_to_the_same_bits(step, architecture, tmp_path):
    model, desk = classifier(architecture, tmp_path), Desk()
    model = step.apply(model, desk)
    assert desk.trained == [step.epochs]
    files.save(model, tmp_path / "cut")
    with torch.no_grad():
        assert torch.equal(logits(files.load(tmp_path / "cut")), logits(model))
        model = Int8().apply(model, desk)
        files.save(model, tmp_path / "cut8")
        assert torch.equal(logits(files.load(tmp_path / "cut8")), logits(model))


def test_fewer_layers_are_a_stock_checkpoint(tmp_path):
    files.save(Layers(1, epochs=0).apply(classifier("qwen3", tmp_path), Desk()), tmp_path / "one")
    assert (tmp_path / "one" / "model.safetensors").exists()
    assert not (tmp_path / "one" / files.ABOUT).exists()
    model = models.build("qwen3", replace(SHAPE, layers=4), IDS)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    before = copy.deepcopy(model.model.layers)
    left = Layers(2, "even", epochs=0).apply(model, Desk()).model.layers
    for ours, theirs in zip(left, (before[0], before[3]), strict=True):
        state = theirs.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
    assert [layer.self_attn.layer_idx for layer in left] == [0, 1]
    assert chosen(4, 2, "even") == [0, 3]
    assert chosen(12, 4, "even") == [0, 4, 7, 11]
    assert chosen(4, 3, "bottom") == [0, 1, 2]


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
@pytest.mark.parametrize(
    "step", [Magnitude(0.6, epochs=0.5), Magnitude(0.6, "layer", 0.5), Movement(0.6, 1.0)], ids=str
)
def test_zeros_stay_while_the_rest_learns(step, architecture, tmp_path):
    model, desk = classifier(architecture, tmp_path), Desk()
    before = copy.deepcopy(model)
    names, zeros = set(model.state_dict()), {}
    learn = desk.learn

    def watched(model, epochs, objective=None, after=None, rows=None):
        def note(progress):
            if after:
                after(progress)
            zeros[progress] = magnitude.sparsity(model)

        learn(model, epochs, objective, note, rows)

    desk.learn = watched
    model = step.apply(model, desk)
    assert desk.trained == [step.epochs]
    due = step.zeros if isinstance(step, Movement) else lambda progress: 0.6
    assert zeros == pytest.approx({progress: due(progress) for progress in zeros}, abs=0.005)
    at = {name: module.weight != 0 for name, module in inner(model).items()}
    assert all((inner(before)[name].weight != inner(model)[name].weight)[left].any() for name, left in at.items())
    assert magnitude.sparsity(model) == pytest.approx(0.6, abs=0.005)
    assert set(model.state_dict()) == names
    assert error(logits(model), logits(before)) > 0.01
    files.save(model, tmp_path / "m")
    with torch.no_grad():
        assert torch.equal(logits(files.load(tmp_path / "m")), logits(model))


LATER = "heads:ratio=0.5,epochs=0.2+neurons:ratio=0.5,epochs=0.2+layers:keep=1,epochs=0.2+distill:layers=0,epochs=0.2"


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
@pytest.mark.parametrize("first", ["magnitude:ratio=0.8,epochs=0", "movement:ratio=0.8,epochs=0.5"])
def test_zeros_stay_in_the_steps_that_follow(first, architecture, tmp_path):
    """Through copies and cuts; what is zero for another reason may learn."""
    model = classifier(architecture, tmp_path)
    desk = Desk(model)
    for step in recipes.parse(first):
        model = step.apply(model, desk)
    learn, seen = desk.learn, []

    def watched(model, *arguments, **settings):
        before = {name: module.weight.detach().clone() for name, module in inner(model).items()}
        learn(model, *arguments, **settings)
        for name, weight in before.items():
            after = inner(model)[name].weight
            assert (after[weight == 0] == 0).all(), name
            assert (after != weight)[weight != 0].any(), name
        seen.append(magnitude.sparsity(model))

    desk.learn = watched
    for step in recipes.parse(LATER):
        model = step.apply(copy.deepcopy(model), desk)
    assert len(seen) == 4
    assert min(seen) > 0.7
    fresh = classifier(architecture, tmp_path)
    writer = fresh.get_submodule(structure.sublayers(fresh, "neurons")[0].writer)
    torch.nn.init.zeros_(writer.weight)
    Layers(1, epochs=0.5).apply(fresh, Desk())
    assert (writer.weight != 0).any(), "zero at first is not pruned"


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_are_zeros_in_integers(bits, tmp_path):
    model, desk = classifier("qwen3", tmp_path), Desk()
    model = Magnitude(0.8, epochs=0).apply(model, desk)
    gone = {name: module.weight == 0 for name, module in inner(model).items()}
    model = QAT(bits, group=8, epochs=0.5).apply(model, desk)
    assert desk.trained == [0.5]
    layers = quantized.layers(model)
    assert all((layers[name].dense()[zeros] == 0).all() for name, zeros in gone.items())


def test_a_model_whose_blocks_nobody_knows_is_refused():
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    model = AlbertForSequenceClassification(AlbertConfig(vocab_size=64, embedding_size=16, **shape))
    for step in (Magnitude(), Movement()):
        with pytest.raises(CourseError, match="albert model has no blocks that this library knows how to prune"):
            step.apply(model, Desk())
    for step in (Heads(), Neurons(), Layers(1)):
        with pytest.raises(CourseError, match="albert model has no list of 2 layers"):
            step.apply(model, Desk())


def test_the_units_with_the_highest_scores_survive():
    scores = [torch.tensor([0.1, 0.9, 0.5, 0.3, 0.7]), torch.tensor([0.2, 0.1])]
    assert [kept.tolist() for kept in structure.survivors(scores, 0.4)] == [[1, 2, 4], [0]]
    assert [kept.tolist() for kept in structure.survivors(scores, 0.9)] == [[1], [0]]


def test_magnitude_keeps_the_largest():
    """Equation eq-magnitude, by hand and by `torch.nn.utils.prune`."""
    weights = {"a": torch.tensor([[1.0, -5.0], [0.1, 3.0]]), "b": torch.tensor([[0.2, 0.3]])}
    found = magnitude.masks(weights, 0.5)
    assert found["a"].tolist() == [[True, True], [False, True]]
    assert found["b"].tolist() == [[False, False]]
    assert magnitude.masks(weights, 0.5, "layer")["b"].tolist() == [[False, True]]
    module = torch.nn.Linear(30, 20)
    mask = magnitude.masks({"w": module.weight}, 0.3)["w"]
    prune.l1_unstructured(module, "weight", 0.3)
    assert torch.equal(mask, module.weight_mask.bool())


def test_scores_move_as_the_paper_says():
    """Equation eq-movement: the gradient of the scores in closed form."""
    w, x = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    part = Scored(w).double()
    part.share = 0.5
    torch.nn.init.normal_(part.scores)
    pruned = part(w)
    assert int((pruned == 0).sum()) == 6
    (x @ pruned.T).square().sum().backward()
    gradient = 2 * (x @ pruned.detach().T).T @ x  # ∂L/∂W'
    torch.testing.assert_close(part.scores.grad, gradient * w)


def test_movement_is_a_pure_function_of_progress():
    step = Movement(ratio=0.8, ramp=0.5)
    assert step.zeros(0) == 0
    assert step.zeros(0.5) == step.zeros(1) == 0.8
    curve = [step.zeros(i / 20) for i in range(21)]
    assert curve == sorted(curve)


@pytest.mark.parametrize("step", [Magnitude(1.0), Movement(1.0), Heads(1.0), Neurons(1.5), Magnitude(-0.1)], ids=str)
def test_pruning_everything_is_an_error(step, tmp_path):
    with pytest.raises(CourseError, match="Choose a ratio from 0 up to, not with, 1"):
        step.apply(classifier("qwen3", tmp_path), Desk())


@pytest.mark.parametrize("ramp", [0, -0.1, 1.1])
def test_a_ramp_is_a_share(ramp, tmp_path):
    with pytest.raises(CourseError, match="Choose above 0, at most 1"):
        Movement(ramp=ramp).apply(classifier("qwen3", tmp_path), Desk())


def test_units_are_counted_where_they_are():
    """On a GPU the scores are there, too; a mixture of devices fails."""
    units = structure._spread(torch.ones(2, dtype=torch.long, device="meta"), 3)
    assert (units.device.type, units.shape) == ("meta", (6,))


def test_other_errors(tmp_path):
    with pytest.raises(CourseError, match="Of 2 layers 3 cannot be kept. Choose 1 to 2"):
        Layers(3).apply(classifier("qwen3", tmp_path), Desk())
    with pytest.raises(CourseError, match="asked on no texts"):
        Heads().apply(classifier("qwen3", tmp_path), Desk(empty=True))
    with pytest.raises(CourseError, match="no scope called 'globl'. Did you mean global"):
        Magnitude(scope="globl").apply(classifier("qwen3", tmp_path), Desk())
    with pytest.raises(CourseError, match="no recipe called 'magnitud'. Did you mean magnitude"):
        recipes.parse("magnitud:ratio=0.5")
    with pytest.raises(CourseError, match="'heads' cannot follow 'int8'"):
        recipes.parse("int8+heads")
    with pytest.raises(CourseError, match="setting of heads called 'ration'. Did you mean ratio"):
        recipes.parse("heads:ration=0.5")


def test_recipes_combine():
    assert recipes.parse("heads:ratio=0.25+neurons+int8:scheme=static") == [Heads(0.25), Neurons(), Int8("static")]
    assert [type(step).__name__.lower() for name in recipes.STEPS for step in recipes.parse(name)] == list(
        recipes.STEPS
    )


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_groups_that_do_not_divide_what_is_left_say_which_ratio_works(architecture, tmp_path):
    model = classifier(architecture, tmp_path)
    inputs = structure.sublayers(model, "neurons")[0].units
    kept = inputs - 24
    steps = [Neurons(24 / inputs, epochs=0), Int4(group=16)]
    desk = Desk(model)
    with pytest.raises(CourseError, match=f"leaves {kept} of the {inputs} inputs of .* groups of 16") as error:
        recipes.apply(steps, model, desk)
    ratio = float(str(error.value).partition("ratio=")[2].partition(",")[0])
    recipes.apply([Neurons(ratio, epochs=0), Int4(group=16)], model, desk)
    assert structure.sublayers(model, "neurons")[0].units == inputs, "only a copy is cut"
