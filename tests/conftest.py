"""Shared fixtures: a corpus made by a small grammar, a private cache, and a tiny model."""

import random
from pathlib import Path

import pytest
import torch

from course_lib import device, models

ROOT = Path(__file__).resolve().parent.parent
NOUNS = ["film", "actor", "story", "ending", "scene", "director", "score", "script", "plot", "camera"]
VERBS = ["moves", "charms", "bores", "surprises", "follows", "carries", "loses", "finds"]
ADVERBS = ["slowly", "gently", "badly", "rarely", "always", "never quite", "almost", "wisely"]


def make_text(seed: int, sentences: int = 12) -> str:
    """A document of simple sentences; different seeds give different documents."""
    draw = random.Random(seed)
    return " ".join(
        f"The {draw.choice(NOUNS)} {draw.choice(ADVERBS)} {draw.choice(VERBS)} the {draw.choice(NOUNS)}."
        for _ in range(sentences)
    )


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has a cache of its own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("COURSE_CACHE", str(folder))
    return folder


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    """300 documents (about 160 kB) as jsonl."""
    import json

    path = tmp_path / "grammar.jsonl"
    path.write_text("".join(json.dumps({"text": make_text(i)}) + "\n" for i in range(300)), encoding="utf-8")
    return path


@pytest.fixture
def cpu() -> device.Device:
    return device.pick("cpu")


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers run on the meta device: its check for packed rows reads a tensor's value."""
    from transformers import masking_utils

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)


@pytest.fixture
def tiny_model():
    """A decoder of 30 thousand weights, vocabulary 64, context 32."""
    torch.manual_seed(0)
    model = models.build("qwen3", models.Size(hidden=32, layers=2, heads=2, vocab=64, context=32), models.Tokens(64))
    for p in model.parameters():  # zero output projections would hide most mistakes
        torch.nn.init.normal_(p, std=0.1)
    return model
