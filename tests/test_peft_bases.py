"""Adapters and what their base must be: complete, bare, unmerged, of a known build. Names and settings, too."""

import json

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    BertForMaskedLM,
    BloomConfig,
    DebertaV2Config,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    LlamaConfig,
    RobertaConfig,
    RobertaForMaskedLM,
    XLNetConfig,
    XLNetLMHeadModel,
)

from course_lib import finetune, freezing
from course_lib.config import Tuning
from course_lib.data.labelled import Labelled
from course_lib.errors import CourseError
from course_lib.heads import base as heads
from course_lib.peft import adapters, base, files, methods
from course_lib.peft.bitfit import BitFit
from course_lib.peft.lora import LoRA
from course_lib.peft.prefix import Prefix
from course_lib.peft.prompt import Prompt
from tests.test_finetune import FLOAT32, pretrained, quiet, table, tuning  # noqa: F401 (table is a fixture)
from tests.test_peft_parity import network, randomize, tokens

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft's own making
COMMON = {"vocab_size": 64, "num_labels": 3, "pad_token_id": 2}
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SHAPE, **COMMON),
    "bert": lambda: BertConfig(**SHAPE, **COMMON),
    "roberta": lambda: RobertaConfig(max_position_embeddings=40, **SHAPE, **COMMON),
    "albert": lambda: AlbertConfig(embedding_size=16, **SHAPE, **COMMON),
    "bart": lambda: BartConfig(d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=48, **COMMON),
    "bloom": lambda: BloomConfig(hidden_size=32, n_layer=2, n_head=2, **COMMON),
    "deberta": lambda: DebertaV2Config(**SHAPE, **COMMON),
    "gemma2": lambda: Gemma2Config(num_key_value_heads=1, head_dim=16, **SHAPE, **COMMON),
    "gpt-neo": lambda: GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], **COMMON
    ),
    "xlnet": lambda: XLNetConfig(d_model=32, n_layer=2, n_head=2, d_inner=48, **COMMON),
}


def stock(kind, seed=0):
    """A classifier of three classes."""
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(CONFIGS[kind]()).eval()


def answer(model):
    with torch.no_grad():
        return model(input_ids=tokens()).logits


# — heads —


def test_every_adapter_of_a_classifier_answers_with_its_own_head(tmp_path):
    """A copy of the base's layer that is made while another adapter acts would carry that one's hook along."""
    expected = {}
    for seed, name in enumerate("ab"):
        alone = adapters.apply(stock("llama"), LoRA(rank=2))
        randomize(alone, seed)
        files.save(alone, tmp_path / name, "x")
        expected[name] = answer(alone)
    model = stock("llama")
    for name in expected:
        files.load(model, tmp_path / name, name)
    assert model.added.active == "b"
    assert torch.equal(answer(model), expected["b"])
    model(input_ids=tokens()).logits.sum().backward()
    assert all(p.grad is not None for p in model.added["b"].parameters())
    adapters.use(model, "a")
    assert torch.equal(answer(model), expected["a"])


def masked_bert(folder, words):
    """A base without a pooler, which transformers draws anew for every classifier."""
    torch.manual_seed(0)
    more = {"max_position_embeddings": 64, "initializer_range": 0.2, "hidden_dropout_prob": 0.0}
    BertForMaskedLM(BertConfig(**SHAPE, vocab_size=words, attention_probs_dropout_prob=0.0, **more)).save_pretrained(
        folder
    )


def test_a_pooler_that_the_base_lacks_is_stored_with_the_adapter(table, tmp_path):  # noqa: F811
    source = pretrained(tmp_path / "m", "bert")
    masked_bert(source / "model", 320)
    config = tuning(table, source, method="lora:targets=query+dense")
    run = finetune.finetune(config, runs=tmp_path / "runs", log=quiet)
    tokenizer = finetune.load_tokenizer(run.folder / "model")
    kept = json.loads((run.folder / "seed-0" / finetune.PREDICTIONS).read_text())["probabilities"]
    rows = heads.encode(tokenizer, finetune.registry.get("sequence").task(config).test.texts, 64)
    for seed in range(2):  # a new process draws anew
        torch.manual_seed(seed)
        model = files.restore(run.folder / "model", AutoModelForSequenceClassification)
        assert list(map(base.path, adapters.active(model).heads)) == ["classifier", "bert.pooler.dense"]
        again = heads.predict(model, rows, model.config.pad_token_id, FLOAT32)
        np.testing.assert_allclose(again, kept, atol=1e-5)
    adapters.finish(model).save_pretrained(tmp_path / "done")
    done = AutoModelForSequenceClassification.from_pretrained(tmp_path / "done")
    np.testing.assert_allclose(heads.predict(done, rows, model.config.pad_token_id, FLOAT32), kept, atol=1e-5)


def test_all_that_xlnet_needs_for_a_task_is_new(tmp_path):
    torch.manual_seed(0)
    XLNetLMHeadModel(CONFIGS["xlnet"]()).save_pretrained(tmp_path)
    model = adapters.apply(finetune.new_model(tmp_path, ["a", "b"], Tuning()), BitFit())
    assert set(adapters.active(model).heads) == {"sequence_summary", "logits_proj"}


def test_a_base_that_lacks_a_layer_takes_no_adapter(tmp_path):
    source = pretrained(tmp_path / "m", "modernbert") / "model"
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.1.mlp.Wi.weight"]
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    model = finetune.new_model(source, ["a", "b"], Tuning())
    with pytest.raises(CourseError, match=r"lacks the weights of 'model\.layers\.1\.mlp\.Wi\.weight'"):
        adapters.apply(model, LoRA())


def test_an_adapter_comes_back_on_a_base_with_another_head(table, tmp_path):  # noqa: F811
    source = pretrained(tmp_path / "m", "modernbert")
    three = finetune.new_model(source / "model", ["a", "b", "c"], Tuning())
    three.save_pretrained(source / "model")
    run = finetune.finetune(tuning(table, source, method="lora"), runs=tmp_path / "runs", log=quiet)
    model = files.restore(run.folder / "model", AutoModelForSequenceClassification)
    assert answer(model).shape == (3, 2)


def test_an_output_layer_is_no_target():
    with pytest.raises(CourseError, match="'score' is the task's and learns in full"):
        adapters.apply(stock("llama"), LoRA(rank=2, targets=("q_proj", "score")))
    model = adapters.apply(stock("roberta"), LoRA(rank=2, targets=("dense",)))
    model.train()(input_ids=tokens()).logits.sum().backward()
    assert all(p.grad is not None for p in model.added.parameters()), "the classifier's dense layer is a head's"


def test_finished_with_other_classes_it_loads(tmp_path):
    model = adapters.apply(stock("llama"), LoRA(rank=2), classes=5)
    expected = answer(model)
    adapters.finish(model).save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert again.config.num_labels == model.num_labels == 5
    assert torch.allclose(answer(again), expected)


# — merging —


def test_what_is_tied_to_the_embeddings_cannot_be_merged():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32)).eval()
    adapters.apply(model, LoRA(rank=2, targets=("c_attn", "lm_head")))
    randomize(model)
    before, embeddings = answer(model), model.transformer.wte.weight.clone()
    with pytest.raises(CourseError, match="'lm_head' shares its weights with another layer"):
        adapters.merge(model)
    assert torch.equal(model.transformer.wte.weight, embeddings)
    assert torch.equal(answer(model), before)


def test_merging_and_unmerging_leaves_the_same_base(tmp_path):
    half = lambda: network("bert", torch.float16)
    model = adapters.apply(half(), LoRA(rank=4, targets=("all",)))
    randomize(model)
    files.save(model, tmp_path / "first", "x")
    adapters.merge(model)
    with pytest.raises(CourseError, match="`unmerge` it first"):
        files.load(model, tmp_path / "first", "b")
    adapters.unmerge(model)
    assert base.fingerprint(model) != adapters.fingerprint(model), "rounding has moved the weights"
    files.save(model, tmp_path / "second", "x")
    assert files.load(half(), tmp_path / "second")
    assert files.load(model, tmp_path / "first", "b")


# — models that a method does not fit —


@pytest.mark.parametrize("kind", ["bloom", "gpt-neo", "deberta", "xlnet", "gemma2"])
def test_a_prefix_that_would_not_act_is_refused(kind):
    model = stock(kind)
    with pytest.raises(CourseError, match="Prefix-tuning cannot reach the attention of a"):
        adapters.apply(model, Prefix(length=3))
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", ["albert", "bart"])
def test_a_prompt_before_an_unknown_body_is_refused(kind):
    with pytest.raises(CourseError, match=f"Prompt tuning does not fit the body of a '{kind}' model"):
        adapters.apply(stock(kind), Prompt(length=3))


def test_a_mask_called_bias_is_no_bias():
    model = adapters.apply(stock("gpt-neo"), BitFit())
    assert not any(name.endswith("/attention") for name in adapters.active(model).parts)
    assert answer(model).shape == (3, 3)


class Broken(LoRA):
    """Fails with an error that is not ours."""

    def build(self, model):
        added = super().build(model)
        added.attach = lambda model: {}["nothing"]
        return added


def test_whatever_goes_wrong_the_base_stays_as_it_was():
    model = stock("llama")
    with pytest.raises(KeyError):
        adapters.apply(model, Broken(rank=2))
    assert not hasattr(model, "added")
    assert all(p.requires_grad for p in model.parameters())
    adapters.apply(model, LoRA(rank=2), "good")
    randomize(model)
    expected = answer(model)
    with pytest.raises(KeyError):
        adapters.apply(model, Broken(rank=2), "bad")
    assert list(model.added) == ["good"]
    assert {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad} == {"good"}
    assert torch.equal(answer(model), expected)


# — files of peft —


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("more", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}])
def test_a_lora_that_changes_the_base_is_refused(more, tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], **more)
    peft.get_peft_model(network("qwen3", torch.float32), config).save_pretrained(tmp_path)
    with pytest.raises(CourseError, match=f"plain LoRA is read; this is LORA {more['init_lora_weights']}"):
        files.load(network("qwen3", torch.float32), tmp_path)


def test_settings_of_a_file_by_peft(tmp_path):
    model = adapters.apply(network("qwen3"), LoRA(rank=4))
    randomize(model)
    files.save(model, tmp_path, "x")
    (tmp_path / files.ABOUT).unlink()
    theirs = json.loads((tmp_path / files.THEIRS).read_text())
    (tmp_path / files.THEIRS).write_text(json.dumps({n: v for n, v in theirs.items() if n != "use_rslora"}))
    assert torch.equal(answer(files.load(network("qwen3"), tmp_path)), answer(model)), "an old file has fewer"
    (tmp_path / files.THEIRS).write_text(json.dumps(theirs | {"alora_invocation_tokens": [5, 6]}))
    with pytest.raises(CourseError, match="this is LORA alora_invocation_tokens"):
        files.load(network("qwen3"), tmp_path)


# — names and settings —


@pytest.mark.parametrize("name", ["v1.0", "", "keys", "active", "a/b"])
def test_names_that_cannot_be(name):
    model = stock("llama")
    with pytest.raises(CourseError, match=f"An adapter cannot be called '{name}'"):
        adapters.apply(model, LoRA(rank=2), name)
    assert all(p.requires_grad for p in model.parameters())


def test_only_an_adapter_that_is_there_can_be_saved(tmp_path):
    model = adapters.apply(stock("llama"), LoRA(rank=2))
    with pytest.raises(CourseError, match="Did you mean default"):
        files.save(model, tmp_path, "x", "defalt")
    adapters.use(model, "")
    with pytest.raises(CourseError, match="No adapter is switched on"):
        files.save(model, tmp_path, "x")
    files.save(model, tmp_path, "x", "default")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora:dropout=2", "LoRA: 'dropout' is 2.0, but must be at least 0 and below 1"),
        ("adalora:dropout=-0.1", "AdaLoRA: 'dropout' is -0.1, but"),
        ("prefix:length=0", "Prefix: 'length' is 0, but must be at least 1"),
        ("prefix:length=-2", "Prefix: 'length' is -2"),
        ("prefix:width=-2", "Prefix: 'width' is -2, but must be at least 0"),
        ("prompt:length=-2", "Prompt: 'length' is -2"),
        ("prompt:length=0", "Prompt: 'length' is 0"),
    ],
)
def test_settings_out_of_range(text, message):
    with pytest.raises(CourseError, match=message):
        methods.parse(text)


# — room, and levels —


def test_a_prompt_takes_its_room_from_every_text(tmp_path):
    source = pretrained(tmp_path / "m", "bert") / "model"
    tokenizer, side = finetune.load_tokenizer(source), Labelled(["wonderful " * 99], [0])
    longest = lambda text: len(finetune.encode(model, tokenizer, side, Tuning(method=text)).ids[0])
    model = finetune.new_model(source, ["a", "b"], Tuning())
    assert (longest(""), longest("prefix:length=8"), longest("prompt:length=8")) == (64, 64, 56)
    with pytest.raises(CourseError, match="prompt:length=64 leaves no room for a text"):
        longest("prompt:length=64")


def test_positions_that_begin_behind_the_paddings(tmp_path):
    """RoBERTa's table of 40 with padding at 2 has places for 37 tokens."""
    source = pretrained(tmp_path / "m", "bert") / "model"
    tokenizer = finetune.load_tokenizer(source)
    tokenizer.model_max_length = 1000
    RobertaForMaskedLM(
        RobertaConfig(**SHAPE, vocab_size=320, max_position_embeddings=40, pad_token_id=2, type_vocab_size=1)
    ).save_pretrained(source)
    model = finetune.new_model(source, ["a", "b"], Tuning()).eval()
    rows = finetune.encode(model, tokenizer, Labelled(["wonderful " * 99], [0]), Tuning())
    assert len(rows.ids[0]) == 37
    assert model(input_ids=torch.tensor(rows.ids).clamp(min=3)).logits.shape == (1, 2)
    adapters.apply(model, Prompt(length=3))
    with pytest.raises(CourseError, match="prompt of 3 and a text of 37 tokens do not fit into 37 positions"):
        model(input_ids=torch.tensor(rows.ids).clamp(min=3))


@pytest.mark.parametrize("width", [0, 5])
def test_a_layers_prefix_stands_at_the_layers_level(width):
    model = adapters.apply(network("qwen3"), Prefix(length=3, width=width))
    layers = [(n, freezing.level(model, n)) for n, _ in model.added.named_parameters(prefix="added") if ".layers." in n]
    assert {level for _, level in layers} == {1, 2}
    assert all(level == 1 + int(name.split(".layers.")[1][0]) for name, level in layers)


def test_a_prefixes_network_learns_at_the_heads_rate_and_is_never_frozen_as_embeddings():
    model = adapters.apply(network("qwen3"), Prefix(length=3, width=5))
    freezing.freeze(model, "embeddings")
    added = {f"added.{name}": p for name, p in model.added.named_parameters()}
    assert any("embedding" in name for name in added)
    assert all(p.requires_grad for p in added.values())
    assert all(freezing.level(model, name) > 0 for name in added)


def test_a_model_of_the_same_config_is_not_touched_by_a_prefix():
    first = network("qwen3")
    second = type(first)(first.config).to(next(first.parameters()).dtype).eval()
    before = second(input_ids=tokens()).logits
    adapters.apply(first, Prefix(length=3))
    assert torch.equal(second(input_ids=tokens()).logits, before)


@pytest.mark.parametrize("how", ["body", "gradual", "bottom-1"])
def test_layers_that_freezing_does_not_know_are_said(how):
    with pytest.raises(CourseError, match=f"--freeze {how} does not know the layers of a 'albert' model"):
        freezing.freeze(stock("albert"), how)
    freezing.freeze(stock("albert"), "embeddings")
