import copy
import json
import lzma
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForTokenClassification

from course_lib import evaluate, finetune, judge, models, optim, plan, sample
from course_lib.config import Tuning
from course_lib.data.pack import Packed
from course_lib.errors import CourseError
from course_lib.heads import base as heads
from course_lib.heads import registry
from course_lib.objectives import CausalLM
from course_lib.precision import Precision
from course_lib.tokenizer import beginning
from course_lib.tokenizer import train as train_tokenizer
from tests.conftest import ROOT, make_text

FLOAT32 = Precision("cpu", torch.float32)


@pytest.mark.parametrize("name", list(models.SIZES))
def test_parameters_and_flops_agree_with_counting(name, on_meta):
    """Ours from the config; against the built model's weights and torch's own FLOP counter, on the meta device."""
    shape = models.SIZES[name]
    with torch.device("meta"):
        model = models.build("qwen3", shape, models.Tokens(shape.vocab))
        ids = torch.zeros(2, shape.context, dtype=torch.long)
    inner = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n)
    assert inner == shape.inner_parameters
    norms = shape.layers * (2 * shape.hidden + 2 * shape.hidden // shape.heads) + shape.hidden
    assert models.count_parameters(model) == inner + 2 * shape.vocab * shape.hidden + norms
    with FlopCounterMode(display=False) as counter:
        CausalLM()(model, {"input_ids": ids, "labels": ids})["clm"].backward()
    measured = counter.get_total_flops() / ids.numel()
    assert models.flops_per_token(model, shape.context) == pytest.approx(measured, rel=0.12)


def test_a_new_model_predicts_uniformly_and_its_blocks_are_the_identity():
    torch.manual_seed(0)
    model = models.build("qwen3", models.SIZES["pico"], models.Tokens(512))
    ids = torch.randint(512, (4, 33))
    loss = CausalLM()(model, {"input_ids": ids[:, :-1], "labels": ids[:, 1:]})["clm"] / (4 * 32)
    assert loss.item() == pytest.approx(math.log(512), abs=0.01)
    embedded = model.get_input_embeddings()(ids)
    normed = model.model.norm(embedded)
    assert torch.allclose(model.model(ids).last_hidden_state, normed, atol=1e-6)


def test_unknown_sizes_name_the_nearest():
    with pytest.raises(CourseError, match="Did you mean micro"):
        models.size("micr0n")


def brute_force_bits(model, packed, context, bos):
    """Token by token with the documented context, in plain Python."""
    tokens, half, bits = packed.tokens.astype(int).tolist(), context // 2, 0.0
    for at in range(1, len(tokens)):
        if tokens[at] == bos:
            continue
        start = 0 if at <= context else ((at - context + half - 1) // half) * half
        logits = model(input_ids=torch.tensor([tokens[start:at]])).logits[0, -1].double()
        bits -= float(logits.log_softmax(-1)[tokens[at]]) / math.log(2)
    return bits / packed.bytes


@pytest.mark.parametrize("context", [16, 15])
@pytest.mark.parametrize("count", [5, 16, 17, 24, 25, 90])
def test_bits_per_byte_scores_every_token_once(tmp_path, tiny_model, count, context):
    """Equation eq-bpb."""
    draw = np.random.default_rng(count)
    tokens = draw.integers(1, 64, count)
    tokens[[0, count // 2]] = 0
    Packed.write(tmp_path / "x.bin", [[tokens.tolist()]], 64, 3 * count, {})
    packed = Packed.open(tmp_path / "x.bin")
    tiny_model.eval()
    with torch.no_grad():
        expected = brute_force_bits(tiny_model, packed, context, 0)
    scores = [evaluate.bits_per_byte(tiny_model, packed, context, FLOAT32, batch_rows=rows) for rows in (1, 3, 64)]
    with pytest.MonkeyPatch.context() as patch:  # a vocabulary too large for more than a row at once
        patch.setattr(evaluate, "MAX_LOGITS", 16 * tiny_model.config.vocab_size + 1)
        scores.append(evaluate.bits_per_byte(tiny_model, packed, context, FLOAT32))
    assert scores == pytest.approx([expected] * 4, rel=1e-6)


def test_a_uniform_model_needs_log2_of_the_vocabulary(tmp_path):
    model = models.build("qwen3", models.SIZES["pico"], models.Tokens(256))
    torch.nn.init.zeros_(model.lm_head.weight)
    Packed.write(tmp_path / "x.bin", [[[0, *range(1, 256)]]], 256, 255, {})
    assert evaluate.bits_per_byte(model, Packed.open(tmp_path / "x.bin"), 64, FLOAT32) == pytest.approx(8.0, rel=1e-5)


def test_xz_is_a_known_compressor():
    text = b"the film " * 1000
    assert evaluate.xz_bits_per_byte(text) == 8 * len(lzma.compress(text, preset=9)) / len(text)


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    tokenizer = train_tokenizer("byte-bpe", [make_text(i) for i in range(50)], 300, 64)
    model = models.build("qwen3", models.Size(32, 2, 2, 300, 64), models.Tokens(len(tokenizer)))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def test_sampling_is_reproducible_and_respects_its_limits(saved, cpu):
    model, tokenizer = sample.load(saved, cpu)
    first = sample.generate(model, tokenizer, ["The film", ""], max_new_tokens=10, seed=3)
    assert first == sample.generate(model, tokenizer, ["The film", ""], max_new_tokens=10, seed=3)
    assert first != sample.generate(model, tokenizer, ["The film", ""], max_new_tokens=10, seed=4)
    with pytest.raises(CourseError, match="context is 64 tokens"):
        sample.generate(model, tokenizer, ["x"], max_new_tokens=64)


def test_greedy_generation_is_the_argmax_chain(saved, cpu):
    """Also after a prompt longer than the context, of which the end counts; and by sampling that leaves no chance."""
    model, tokenizer = sample.load(saved, cpu)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    prompts, expected = ["The film", make_text(1, 40)], []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids[:, -58:]
        for _ in range(6):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        expected.append(tokenizer.decode(ids[0, -6:], skip_special_tokens=True))
    write = lambda **choice: sample.generate(model, tokenizer, prompts, max_new_tokens=6, **choice)
    assert write(temperature=0) == expected
    assert write(temperature=3.0, top_p=1e-9) == expected
    assert write(temperature=1e-4, top_p=1.0) == expected
    torch.manual_seed(7)
    choice, ids = {"temperature": 3.0, "top_p": 0.5}, tokenizer("The film", return_tensors="pt").input_ids
    every = {"attention_mask": torch.ones_like(ids), "top_k": 0}  # the stock default keeps the 50 likeliest
    stock = model.generate(ids, do_sample=True, max_new_tokens=6, **every, **choice)
    drawn = write(seed=7, **choice)
    assert drawn[0] == tokenizer.decode(stock[0, ids.size(1) :], skip_special_tokens=True)
    assert drawn != expected


def test_every_token_can_be_drawn(saved, cpu):
    """The stock default keeps the 50 likeliest."""
    model, tokenizer = sample.load(saved, cpu)
    model.lm_head.weight.data.mul_(1e-3)  # nearly uniform
    drawn = []
    tokenizer.decode = lambda ids, **how: drawn.append(ids[:1].item()) or ""
    for seed in range(120):
        sample.generate(model, tokenizer, ["a"], max_new_tokens=1, temperature=1.0, top_p=1.0, seed=seed)
    assert len(set(drawn)) > 60


def test_without_a_token_for_the_beginning_an_empty_prompt_begins_at_the_end_of_the_text_before(saved, cpu):
    from tokenizers import processors

    model, tokenizer = sample.load(saved, cpu)
    tokenizer._tokenizer.post_processor = processors.Sequence([])  # adds nothing, as GPT-2's
    assert tokenizer("").input_ids == []
    first = torch.tensor([[beginning(tokenizer)]])
    expected = model.generate(first, attention_mask=torch.ones_like(first), max_new_tokens=5, do_sample=False)
    found = sample.generate(model, tokenizer, [""], max_new_tokens=5, temperature=0)
    assert found == [tokenizer.decode(expected[0, 1:], skip_special_tokens=True)]


def test_a_missing_model_and_one_that_writes_nothing_are_said(saved, cpu):
    with pytest.raises(CourseError, match="no model in"):
        sample.load(saved / "tokenizer", cpu)
    for kind in ("modernbert", "bert"):
        models.build(kind, models.Size(32, 2, 2, 300, 64), models.Tokens(300)).save_pretrained(saved / kind)
        with pytest.raises(CourseError, match="which writes no text. Give a decoder"):
            sample.load(saved / kind, cpu)


def test_a_model_that_tells_tokens_apart_predicts_none(saved, cpu):
    """ELECTRA's discriminator would be given an output layer drawn at random."""
    from transformers import ElectraConfig, ElectraForPreTraining

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ElectraForPreTraining(ElectraConfig(vocab_size=300, embedding_size=32, **shape)).save_pretrained(saved / "e")
    with pytest.raises(CourseError, match="predicts no tokens"):
        judge.load(saved / "e", cpu)


@pytest.mark.parametrize("flops", [1e13, 3.4e19, 5.76e23])
def test_the_compute_optimal_pair_spends_the_budget_at_its_ratio(flops):
    """Equation eq-compute-optimal."""
    for ratio in (20.0, 200.0):
        weights, tokens = plan.compute_optimal(flops, ratio)
        assert 6 * weights * tokens == pytest.approx(flops)
        assert tokens / weights == pytest.approx(ratio)
    assert plan.compute_optimal(5.76e23)[0] == pytest.approx(70e9, rel=0.02)  # Chinchilla's own budget and size


def test_bigger_budgets_choose_bigger_models(monkeypatch, cpu):
    monkeypatch.setattr(plan, "matmul_flops", lambda device: 2.3e11)  # two AVX2 cores
    chosen = [plan.choose_size(cpu, seconds) for seconds in (1, 300, 3600, 7200, 86400)]
    assert chosen == ["pico", "nano", "tiny", "micro", "mini"]
    monkeypatch.setattr(plan, "matmul_flops", lambda device: 2e14)
    assert plan.choose_size(cpu, 86400) == "base"


def test_the_probe_halves_the_micro_batch_until_it_fits(tiny_model):
    tried = []

    class Hungry(CausalLM):
        def __call__(self, model, batch):
            tried.append(len(batch["input_ids"]))
            if len(batch["input_ids"]) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(model, batch)

    before = copy.deepcopy(tiny_model.state_dict())
    ids = torch.randint(64, (13, 16))
    batch = {"input_ids": ids, "labels": ids}
    rows, rate = plan.probe(tiny_model, Hungry(), lambda m: optim.build(m, "muon", 0.02, 0.01), batch, FLOAT32)
    assert rows == 2
    assert rate > 0
    assert list(dict.fromkeys(tried))[:4] == [13, 7, 4, 2]
    assert sum(tried[3:]) == plan.PROBE_STEPS * 13  # accumulation: 13 rows a step all the same
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    fits, _ = plan.probe(tiny_model, CausalLM(), lambda m: optim.build(m, "muon", 0.02, 0.01), batch, FLOAT32)
    assert fits == 13  # nothing shrank: the whole batch


def test_the_committed_chinese_encoder_scores_what_its_record_says(cpu):
    """One hour of one thread; its test block is in no part of the pretraining."""
    folder = ROOT / "runs" / "encoder-zh-1h"
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    found = judge.on_corpus(folder, "peoples_daily+zh_reviews", "utf-8", cpu)
    assert found["mlm_loss"] == pytest.approx(record["committed"]["mlm_loss"], abs=1e-3)
    assert record["result"]["cpu_share"] >= 0.9


def test_the_committed_english_encoder_scores_what_its_record_says(cpu):
    """Two hours of one thread."""
    folder = ROOT / "runs" / "encoder-2h"
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for corpus, name in (("movie_reviews+wiki_leads", "mlm_loss"), ("movie_reviews", "movie_reviews_mlm_loss")):
        assert judge.on_corpus(folder, corpus, "utf-8", cpu)["mlm_loss"] == pytest.approx(
            record["committed"][name], abs=1e-3
        )
    assert record["result"]["cpu_share"] >= 0.9


def test_the_committed_encoder_that_transfers_scores_what_its_record_says(cpu):
    """Two hours of one thread, from co-occurrence embeddings."""
    folder = ROOT / "runs" / "encoder-2h-cooccurrence"
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record["committed"]["weights"] == "float16"
    for corpus, scores in record["committed"]["scores"].items():
        assert judge.on_corpus(folder, corpus, "utf-8", cpu) == pytest.approx(scores, abs=1e-3)
    assert record["result"]["cpu_share"] >= 0.9


def test_the_committed_model_of_names_scores_what_its_record_says(cpu):
    """On the whole test side, with the float16 weights as they are stored."""
    folder = ROOT / "runs" / "encoder-zh-1h-ner"
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    ner, tuning = registry.get("ner"), Tuning(task="peoples_daily", head="ner")
    task, tokenizer = ner.task(tuning), finetune.load_tokenizer(folder / "model")
    model = AutoModelForTokenClassification.from_pretrained(folder / "model", dtype=torch.float32).eval()
    rows = finetune.encode(model, tokenizer, task.test, tuning)
    logits = ner.merge(heads.run(model, rows, tokenizer.pad_token_id, FLOAT32), rows, task.test)
    found = ner.scores(task.test, ner.answers(logits, task.test, model.config.calibration), task.classes)
    assert found == pytest.approx({name: record["committed"][name] for name in found}, abs=1e-3)
    assert record["result"]["cpu_share"] >= 0.9


def test_the_committed_decoder_scores_what_its_record_says(cpu):
    """Two hours of one thread; its float16 weights are read as they are stored."""
    folder = ROOT / "runs" / "decoder-2h"
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    found = judge.on_corpus(folder, "movie_reviews", "utf-8", cpu)
    assert found["bits_per_byte"] == pytest.approx(record["committed"]["movie_reviews_bits_per_byte"], abs=1e-3)
    assert record["committed"]["movie_reviews_bits_per_byte"] <= 1.55
    assert record["result"]["cpu_share"] >= 0.9


@pytest.mark.parametrize(
    ("marks", "first"), [((5, 6, 7), 5), ((None, 6, 7), 6), ((None, None, 0), 0), ((None, None, None), None)]
)
def test_documents_begin_with_what_the_tokenizer_has(marks, first):
    tokenizer = SimpleNamespace(**dict(zip(("bos_token_id", "cls_token_id", "eos_token_id"), marks, strict=True)))
    if first is not None:
        assert beginning(tokenizer) == first
    else:
        with pytest.raises(CourseError, match="neither begin nor end of a text"):
            beginning(tokenizer)
