"""Scores of a pretrained model folder, ours or anybody's, on a corpus or on minimal pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from course_lib import evaluate, pairs, progress, recipes, sample
from course_lib.data import corpora, prepare
from course_lib.data.pack import Packed
from course_lib.device import Device
from course_lib.errors import CourseError
from course_lib.precision import Precision
from course_lib.storage import model_folder
from course_lib.tokenizer import beginning, encode_documents

ENOUGH_BYTES = 2_000_000  # of training text are prepared; the held-out side does not depend on it


def load(folder: Path, where: Device) -> tuple[Any, Any, bool]:
    """(model in float32, tokenizer, whether it is causal)."""
    progress.hush_transformers()
    folder = model_folder(folder)
    named = (AutoConfig.from_pretrained(folder).architectures or [""])[0]
    causal = sample.is_causal(named)
    if not causal and "MaskedLM" not in named and "BertForPreTraining" not in named:  # ELECTRA's tells tokens apart
        raise CourseError(f"{folder} holds a {named or 'model of unknown kind'}, which predicts no tokens.")
    kind = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    model = kind.from_pretrained(folder, dtype=torch.float32).to(where.torch)
    return model, AutoTokenizer.from_pretrained(folder), causal


def on_corpus(folder: Path, corpus: str, encoding: str, where: Device) -> dict[str, float]:
    """`bits_per_byte` of a causal model, `mlm_loss` (nats, 15 % masked, fixed seed) of an encoder, on held-out text."""
    model, tokenizer, causal = load(folder, where)
    data = prepare.prepare(corpora.load(corpus, encoding), 1024, 128, ENOUGH_BYTES, lambda message: None)
    packed = _with(tokenizer, data.held_out_documents())
    context, policy = model.config.max_position_embeddings, Precision.for_device(where)
    if causal:
        return {"bits_per_byte": evaluate.bits_per_byte(model, packed, context, policy, beginning(tokenizer))}
    if sorted(tokenizer.all_special_ids) != list(range(len(tokenizer.all_special_ids))):
        raise CourseError(f"Masks can only be drawn for tokenizers whose special tokens come first; {folder}'s do not.")
    recipe = recipes.get("mlm")
    (fixed,) = recipes.evaluation_transforms(recipe, tokenizer)
    context = min(context, len(packed.tokens) - 1)  # a row and the token after it
    return {"mlm_loss": evaluate.losses(model, recipe.objective, fixed, packed, context, policy)["mlm"]}


def on_pairs(folder: Path, pairs_folder: Path, where: Device) -> dict[str, float]:
    """Share of minimal pairs that the model gets right, by file and in all."""
    model, tokenizer, causal = load(folder, where)
    return pairs.minimal_pairs(model, tokenizer, pairs_folder, causal)


def _with(tokenizer: Any, documents: list[str]) -> Packed:
    """The documents as one stream of another tokenizer's tokens, each after a BOS."""
    stream = np.concatenate(encode_documents(tokenizer, documents))
    return Packed(stream, len(documents), sum(len(text.encode()) for text in documents))
