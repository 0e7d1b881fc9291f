"""The race: everybody learns as long as the clock runs, and an average of weights is one."""

import pytest
import torch

from course_lib import progress
from course_lib.data import corpora, prepare
from tools import contestants


@pytest.fixture
def data(corpus_file):
    progress.hush_transformers()
    return prepare.prepare(corpora.load(str(corpus_file)), 300, 32, 10**6, lambda line: None)


def test_the_trainer_s_rate_follows_the_clock_to_the_end(data, monkeypatch):
    """However fast the machine: it has warmed up after 5 % of the time, and its last steps are the smallest."""
    rates, step = [], torch.optim.AdamW.step

    def seen(self, *given, **named):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *given, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", seen)
    found = contestants.hf_trainer(data, 4.0, 0, {"lr": 1e-3, "rows": 2, "context": 32}, "gpt2")
    assert found["tokens"] == len(rates) * 2 * 32
    assert found["seconds"] >= 4.0
    assert found["score"] < 8
    top = rates.index(max(rates))
    assert rates[0] == 0
    assert min(rates[1:]) > 0, "no other step is thrown away"
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < rates[top] / 2


def test_the_line_up_and_the_line_down():
    assert [contestants.decay(t) for t in (0, 0.025, 0.05, 0.525, 1, 1.1)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])


def test_an_average_of_weights_is_scored_beside_the_last_ones(data):
    asked = {"size": "pico", "context": 32, "step_tokens": 128, "embeddings": "random", "vocab_size": 300}
    found = contestants.ours(data, 3.0, 0, asked | {"tail_average": 0.5}, "clm")
    assert found["score"] != found["last"]
    assert found["score"] == pytest.approx(found["last"], abs=0.5)
    assert "last" not in contestants.ours(data, 1.0, 0, asked, "clm")
