"""Our methods equal the `peft` package: outputs, gradients, merges, penalties, schedules, files. All weights random."""

import warnings

import peft
import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.models.modernbert.modeling_modernbert import apply_rotary_pos_emb

from course_lib import models
from course_lib.peft import adapters, files
from course_lib.peft.adalora import AdaLoRA
from course_lib.peft.base import path
from course_lib.peft.lora import LoRA
from course_lib.peft.prefix import Prefix

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft's own making
SHAPE = models.Size(hidden=32, layers=2, heads=4, vocab=64, context=32)
IDS = models.Tokens(64, bos=0, sep=1, pad=2)
TARGETS = {
    "qwen3": ("q_proj", "down_proj"), "modernbert": ("Wqkv", "attn.Wo"), "bert": ("query", "value"),
    "gpt2": ("c_attn",), "nanochat": ("q_proj", "v_proj"), "llama": ("q_proj", "v_proj"),
}  # fmt: skip
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def network(architecture, dtype=torch.float64):
    """A model whose every weight is random, always the same."""
    torch.manual_seed(0)
    if architecture == "llama":
        shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, pad_token_id=2))
    else:
        model = models.build(architecture, SHAPE, IDS)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model.to(dtype).eval()


def randomize(model, seed=1):
    """All trainable weights random, in the same order for equal names."""
    generator = torch.Generator().manual_seed(seed)
    for p in (p for p in model.parameters() if p.requires_grad):
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) * 0.3


def tokens(rows=3, length=11):
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(5))


def logits(model, **more):
    found = model(input_ids=tokens(), **more)
    return found.prediction_logits if hasattr(found, "prediction_logits") else found.logits


def error(ours, theirs):
    """Largest difference relative to the largest value."""
    return float(((ours - theirs).abs().max() / theirs.abs().max()).detach())


def lora_pair(architecture, dtype=torch.float64, rslora=False):
    """The same LoRA on the same base: ours and peft's."""
    ours = adapters.apply(network(architecture, dtype), LoRA(4, 6.0, 0.0, TARGETS[architecture], rslora))
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=list(TARGETS[architecture]), use_rslora=rslora,
        fan_in_fan_out=architecture == "gpt2",
    )  # fmt: skip
    theirs = peft.get_peft_model(network(architecture, dtype), config)
    randomize(ours)
    copy_lora(ours, theirs)
    return ours, theirs.eval()


def copy_lora(ours, theirs):
    for name, part in ours.added["default"].parts.items():
        module = theirs.base_model.model.get_submodule(path(name))
        module.lora_A["default"].weight.data = part.lora_A.weight.data.clone()
        module.lora_B["default"].weight.data = part.lora_B.weight.data.clone()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("architecture", TARGETS)
def test_lora_outputs_gradients_and_merge(architecture, rslora, dtype):
    """Equation eq-lora against peft."""
    ours, theirs = lora_pair(architecture, dtype, rslora)
    tolerance = TOLERANCE[dtype]
    with torch.no_grad(), adapters.bare(ours):
        bare = logits(ours)
    expected, found = logits(theirs), logits(ours)
    assert error(expected, bare) > 0.01, "the adapter does something"
    assert error(found, expected) <= tolerance
    (found.sin() * found).sum().backward()
    (expected.sin() * expected).sum().backward()
    for name, part in ours.added["default"].parts.items():
        module = theirs.base_model.model.get_submodule(path(name))
        for which in ("lora_A", "lora_B"):
            gradient = getattr(part, which).weight.grad
            assert gradient.abs().max() > 0
            assert error(gradient, getattr(module, which)["default"].weight.grad) <= tolerance
    adapters.merge(ours)
    merged = theirs.merge_and_unload()
    assert error(logits(ours), expected) <= tolerance
    for name in ours.added["default"].parts:
        a, b = (m.get_submodule(path(name)).weight for m in (ours, merged))
        assert error(a, b) <= tolerance


def adalora_pair(architecture, targets, total=40):
    settings = {"rank": 24, "target": 8, "alpha": 6.0, "warmup": 5 / total, "final_share": 5 / total}
    ours = adapters.apply(network(architecture), AdaLoRA(targets=targets, **settings))
    config = peft.AdaLoraConfig(
        init_r=24,
        target_r=8,
        lora_alpha=6,
        tinit=5,
        tfinal=5,
        deltaT=1,
        total_step=total,
        target_modules=list(targets),
        fan_in_fan_out=architecture == "gpt2",
    )
    wrapped = peft.get_peft_model(network(architecture), config)
    randomize(ours)
    for mine, other in triples(ours, wrapped.base_model):
        for p, q in zip(mine, other, strict=True):
            q.data = p.data.clone()
    theirs = wrapped.base_model  # a bare `PeftModel` would leave the penalty out
    ours.loss_function = theirs.model.loss_function = mean_loss
    return ours, theirs


def mean_loss(logits, labels, vocab_size, **more):
    """Transformers' own computes in float32."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def triples(ours, theirs):
    """(P, E, Q) of ours and of peft's, for every matrix."""
    for name, part in ours.added["default"].parts.items():
        module = theirs.model.get_submodule(path(name))
        yield (part.P, part.E, part.Q), (module.lora_B["default"], module.lora_E["default"], module.lora_A["default"])


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_adalora_forward_penalty_and_gradients(architecture):
    """Equations eq-adalora and eq-adalora-penalty against peft."""
    ours, theirs = adalora_pair(architecture, TARGETS[architecture])
    plain = theirs.model(input_ids=tokens(), labels=tokens())
    whole = theirs(input_ids=tokens(), labels=tokens())
    with torch.no_grad(), adapters.bare(ours):
        assert error(plain.logits, logits(ours)) > 0.01
    found = ours(input_ids=tokens(), labels=tokens())
    assert error(found.logits, plain.logits) <= 1e-10
    weight = ours.added["default"].penalty_weight
    total = found.loss + weight * adapters.penalty(ours)
    assert weight * adapters.penalty(ours) > 0.1
    assert error(total, whole.loss) <= 1e-10
    total.backward()
    whole.loss.backward()
    for mine, other in triples(ours, theirs):
        for p, q in zip(mine, other, strict=True):
            assert error(p.grad, q.grad) <= 1e-10
    adapters.merge(ours)
    assert error(logits(ours), plain.logits) <= 1e-10


@pytest.mark.parametrize("targets", [("h.0.attn.c_attn",), ("c_attn", "c_fc", "mlp.c_proj")], ids=len)
def test_adalora_follows_the_whole_rank_schedule(targets):
    """24 singular values at first, 8 at the end, the same ones at every step (eq-adalora-budget).

    On GPT-2, which is float64 throughout: RMS norms compute in float32, and 40 steps of Adam make 1e-6 of that.
    """
    ours, theirs = adalora_pair("gpt2", targets)
    # peft marks `ranknum`, the constant in its scale, as trainable; a step of AdamW would change it
    named = [[p for n, p in m.named_parameters() if p.requires_grad and "ranknum" not in n] for m in (ours, theirs)]
    optimizers = [torch.optim.AdamW(parameters, lr=0.01) for parameters in named]
    ranks = []
    for step in range(1, 41):
        batch = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(step))
        loss = ours(input_ids=batch, labels=batch).loss + 0.5 * adapters.penalty(ours)
        loss.backward()
        theirs(input_ids=batch, labels=batch).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        adapters.active(ours).after_step(step / 40)
        theirs.update_and_allocate(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        for mine, other in triples(ours, theirs):
            assert torch.equal(mine[1] != 0, other[1] != 0), f"step {step}"
            assert error(mine[1], other[1]) <= 1e-10
        ranks.append(sum(int((mine[1] != 0).sum()) for mine, _ in triples(ours, theirs)))
    matrices = len(list(triples(ours, theirs)))
    assert ranks[4] == 24 * matrices
    assert ranks[5] < 24 * matrices
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[34:] == [8 * matrices] * 6
    if matrices == 1:
        (part,) = ours.added["default"].parts.values()
        change = (part.scale * part.P @ (part.E * part.Q)).detach()
        assert int(torch.linalg.matrix_rank(change)) == 8


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt2", "nanochat"])
@pytest.mark.parametrize("width", [0, 6])
def test_prefix_equals_the_same_tensors_as_past_key_values(architecture, width, padded):
    """Equation eq-prefix against the stock model with a cache."""
    ours = adapters.apply(network(architecture), Prefix(length=5, width=width))
    randomize(ours)
    mask = torch.ones_like(tokens())
    if padded:
        mask[0, -4:] = 0
    with torch.no_grad():
        found = logits(ours, attention_mask=mask if padded else None)
        prefixes = ours.added["default"]
        with adapters.bare(ours):
            bare = logits(ours, attention_mask=mask)
            cache = DynamicCache(config=ours.config)
            for layer in range(2):
                keys, values = prefixes.layer(layer)[:, None].expand(-1, 3, -1, -1, -1)
                cache.update(keys, values, layer)
            seen = torch.cat([mask.new_ones(3, 5), mask], 1)
            places = torch.arange(11)[None].expand(3, -1)  # the prefix takes no positions
            expected = logits(ours, attention_mask=seen, past_key_values=cache, position_ids=places)
    real = mask.bool()
    assert error(expected[real], bare[real]) > 0.01
    assert error(found[real], expected[real]) <= 1e-10


def test_prefix_works_on_an_encoder_where_peft_raises():
    """Against attention written out: the prefix is text that every token sees and that sees nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.PrefixTuningConfig(task_type="TOKEN_CLS", num_virtual_tokens=5)
        with pytest.raises(ValueError, match="past key"):
            peft.get_peft_model(network("modernbert"), config)(input_ids=tokens())
    model = adapters.apply(network("modernbert"), Prefix(length=5))
    randomize(model)
    seen = {}
    first = model.model.layers[0].attn
    first.Wqkv.register_forward_hook(lambda m, args, out: seen.update(qkv=out))
    first.Wo.register_forward_pre_hook(lambda m, args: seen.update(mixed=args[0]))
    with torch.no_grad():
        found = logits(model)
        q, k, v = seen["qkv"].view(3, 11, 3, 4, 8).permute(2, 0, 3, 1, 4)
        cos, sin = model.model.rotary_emb(seen["qkv"], torch.arange(11)[None], "full_attention")
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        pk, pv = model.added["default"].layer(0)[:, None].expand(-1, 3, -1, -1, -1)
        scores = q @ torch.cat([pk, k], 2).mT / 8**0.5
        expected = (scores.softmax(-1) @ torch.cat([pv, v], 2)).transpose(1, 2).reshape(3, 11, 32)
        assert error(seen["mixed"], expected) <= 1e-10
        with adapters.bare(model):
            assert error(found, logits(model)) > 0.01


@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # it looks for the base's config on the hub
@pytest.mark.parametrize("architecture", ["qwen3", "modernbert", "bert", "gpt2"])
def test_lora_files_go_both_ways(architecture, tmp_path):
    ours, theirs = lora_pair(architecture, rslora=True)
    files.save(ours, tmp_path / "ours", "some/base")
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = peft.PeftModel.from_pretrained(network(architecture), tmp_path / "ours").eval()
    back = files.load(network(architecture), tmp_path / "theirs")
    with torch.no_grad():
        expected = logits(ours)
        assert error(logits(loaded), expected) <= 1e-10
        assert error(logits(back), expected) <= 1e-10
        with adapters.bare(back):
            assert error(logits(back), expected) > 0.01


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_a_classifiers_head_goes_both_ways(tmp_path):
    from transformers import AutoModelForSequenceClassification

    network("modernbert", torch.float32).save_pretrained(tmp_path / "base")

    def classifier(seed):
        torch.manual_seed(seed)  # of the new head
        return AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3).double().eval()

    config = peft.LoraConfig(r=4, target_modules=["Wqkv"], task_type="SEQ_CLS")
    theirs = peft.get_peft_model(classifier(1), config).eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = files.load(classifier(2), tmp_path / "theirs")
    files.save(ours, tmp_path / "ours", str(tmp_path / "base"))
    back = peft.PeftModel.from_pretrained(classifier(3), tmp_path / "ours").eval()
    with torch.no_grad():
        assert error(logits(ours), logits(theirs)) <= 1e-6, "stored in float32"
        assert error(logits(back), logits(ours)) <= 1e-10
