"""Adapters on stock classifiers of other makers, in 16 bits, and on weights that were put back."""

import copy
import json
import os

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BloomConfig,
    DistilBertConfig,
    RobertaConfig,
)

from course_lib import finetune, optim
from course_lib.data import labelled
from course_lib.errors import CourseError
from course_lib.heads import base as heads
from course_lib.peft import adapters, files
from course_lib.peft.adalora import AdaLoRA
from course_lib.peft.bottleneck import Adapter
from course_lib.peft.lora import LoRA
from course_lib.robust.regularize import Dropout
from course_lib.storage import model_folder
from tests.test_finetune import FLOAT32, pretrained, quiet, table, tuning  # noqa: F401 (table is a fixture)
from tests.test_peft_parity import network, tokens

COMMON = {"vocab_size": 64, "num_labels": 3, "pad_token_id": 2}
CONFIGS = {
    "distilbert": DistilBertConfig(dim=32, hidden_dim=48, n_layers=2, n_heads=2, **COMMON),
    "roberta": RobertaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=40, **COMMON,
    ),
    "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=2, **COMMON),
}  # fmt: skip
TRAINED = {"distilbert": ["pre_classifier", "classifier"], "roberta": ["classifier"]}


def stock(kind, seed=0):
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(CONFIGS[kind]).eval()


def answer(model):
    with torch.no_grad():
        return model(input_ids=tokens()).logits


@pytest.mark.parametrize("method", [LoRA(rank=2, targets=("all",)), Adapter(width=4)])
@pytest.mark.parametrize("kind", TRAINED)
def test_all_that_is_new_for_a_task_is_trained_and_comes_back(kind, method, tmp_path):
    model = adapters.apply(stock(kind), method)
    assert list(adapters.active(model).heads) == TRAINED[kind]
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"added"}
    with torch.no_grad():
        for p in adapters.active(model).parameters():
            p.add_(0.1 * torch.randn_like(p))
    files.save(model, tmp_path, "x")
    base = stock(kind)
    for name in TRAINED[kind]:  # a new process draws them anew
        for p in base.get_submodule(name).parameters():
            torch.nn.init.normal_(p)
    assert torch.allclose(answer(files.load(base, tmp_path)), answer(model), atol=1e-6)


def test_nothing_to_adapt_is_said():
    with pytest.raises(CourseError, match="Adapter finds nothing to adapt in a 'bloom' model. Try lora"):
        adapters.apply(stock("bloom"), Adapter())
    with pytest.raises(CourseError, match="dropout does not know the layers of a 'bloom' model"):
        Dropout().around(stock("bloom"), None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_classifier_in_16_bits(dtype, tmp_path):
    whole = stock("roberta").to(dtype)
    model = adapters.apply(copy.deepcopy(whole), LoRA(rank=2, targets=("all",)))
    found = answer(model)
    assert found.dtype == dtype
    assert torch.allclose(found, answer(whole), atol=0.02)
    finished = adapters.finish(model)
    assert {p.dtype for p in finished.parameters()} == {dtype}
    assert torch.isfinite(answer(finished)).all()


def test_a_base_without_the_digits_that_tell_is_not_called_another(tmp_path):
    files.save(adapters.apply(network("qwen3", torch.float32), LoRA()), tmp_path, "x")
    with pytest.raises(CourseError, match="A base in bfloat16 cannot be checked"):
        files.load(network("qwen3", torch.bfloat16), tmp_path)


def pruned():
    """(model, a singular value, what it was) of an AdaLoRA whose first triple has gone since the best evaluation."""
    model = adapters.apply(network("qwen3"), AdaLoRA(rank=6, target=3))
    best, mean = optim.Best(model), optim.TailAverage(model, 0.0)
    part = next(iter(adapters.active(model).parts.values()))
    with torch.no_grad():
        part.E.fill_(2.0)
    best.offer(1.0)
    mean.update(0.5)
    part.kept[0] = False
    adapters.active(model).settle()
    mean.update(1.0)
    assert part.E[0] == 0
    return model, part, best, mean


def test_the_best_weights_come_back_with_their_own_ranks():
    model, part, best, _ = pruned()
    best.swap_in()
    adapters.active(model).settle()
    assert part.kept.all()
    assert (part.E == 2).all()
    again = optim.Best(model)
    again.load_state_dict(best.state_dict())
    assert again.weights.keys() == best.weights.keys()


def test_an_average_is_what_its_file_holds():
    model, part, _, mean = pruned()
    mean.swap_in()
    assert part.E[0] == 1
    adapters.active(model).settle()
    assert part.E[0] == 0
    assert len(part.tensors()["E"]) == 5


@pytest.mark.parametrize("keep", ["best", "average"])
def test_what_is_stored_of_adalora_is_what_was_scored(keep, table, tmp_path):  # noqa: F811
    more = {"keep": keep, "evaluate_every": 0.2 if keep == "best" else 0.0}
    method = "adalora:rank=6,target=2,targets=all"
    config = tuning(table, pretrained(tmp_path / "m", "modernbert"), method=method, **more)
    run = finetune.finetune(config, runs=tmp_path / "runs", log=quiet)
    model = files.restore(run.folder / "model", AutoModelForSequenceClassification)
    tokenizer = finetune.load_tokenizer(run.folder / "model")
    rows = heads.encode(tokenizer, labelled.load(str(table)).test.texts, 64)
    kept = json.loads((run.folder / "seed-0" / finetune.PREDICTIONS).read_text())["probabilities"]
    again = heads.predict(model, rows, model.config.pad_token_id, FLOAT32)
    np.testing.assert_allclose(again, kept, atol=1e-5)


def test_an_adapter_finds_its_base_from_anywhere_and_is_no_model(table, tmp_path, monkeypatch):  # noqa: F811
    pretrained(tmp_path / "runs" / "m", "modernbert")
    monkeypatch.chdir(tmp_path)
    config = tuning(table, "runs/m", method="lora")
    run = finetune.finetune(config, runs=tmp_path / "runs", log=quiet)
    assert not os.path.isabs(json.loads((run.folder / "model" / files.ABOUT).read_text())["base"])
    monkeypatch.chdir("/")
    files.restore(run.folder / "model", AutoModelForSequenceClassification)
    with pytest.raises(CourseError, match="holds an adapter, not a whole model"):
        model_folder(run.folder)
