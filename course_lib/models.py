"""Stock `transformers` architectures at sizes that one machine can train.

A checkpoint needs nothing of this library: `AutoModelForCausalLM.from_pretrained` (or `…MaskedLM`) loads it.
Adding an architecture: a function below and a line in `ARCHITECTURES`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    NanoChatConfig,
    NanoChatForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from course_lib.errors import unknown


@dataclass(frozen=True)
class Size:
    """Shape of a model and the vocabulary that suits it. `inner_parameters` are those of a Qwen3 decoder."""

    hidden: int
    layers: int
    heads: int
    vocab: int
    context: int

    @property
    def intermediate(self) -> int:
        """Gated width: 8/3 of the hidden size, so three matrices weigh as much as the usual two of 4×."""
        return round(self.hidden * 8 / 3 / 32) * 32

    @property
    def inner_parameters(self) -> int:
        """Weights in the blocks' matrices: attention 4·hidden², SwiGLU 3·hidden·intermediate."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)


SIZES = {
    "pico": Size(64, 2, 2, 1024, 128),
    "nano": Size(128, 4, 4, 2048, 128),
    "tiny": Size(160, 4, 5, 8192, 256),
    "micro": Size(256, 6, 4, 8192, 256),
    "mini": Size(384, 8, 6, 8192, 512),
    "small": Size(512, 12, 8, 16384, 1024),
    "base": Size(768, 12, 12, 32768, 1024),
}
SMALL_STEP = 2**11  # tokens of an optimizer step: small ones win on a core (the ladder of chapter 7)
# On a GPU. Not measured here: a choice that grows towards nanoGPT's half a million for 124 million weights.
STEP_TOKENS = dict(zip(SIZES, (2**11, 2**11, 2**11, 2**12, 2**14, 2**16, 2**17), strict=True))


def size(name: str) -> Size:
    """A preset by name, or an error with the nearest names."""
    if name not in SIZES:
        raise unknown("size", name, SIZES)
    return SIZES[name]


@dataclass(frozen=True)
class Tokens:
    """Ids that a config must know."""

    vocab: int
    bos: int = 0
    sep: int | None = None
    pad: int | None = None  # its embedding gets no gradient, so it must not be BOS


def _common(shape: Size, tokens: Tokens) -> dict[str, Any]:
    return {
        "vocab_size": tokens.vocab,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": shape.context,
        "bos_token_id": tokens.bos,
        "eos_token_id": tokens.bos,
        "pad_token_id": tokens.pad,
    }


def _qwen3(shape: Size, tokens: Tokens) -> PreTrainedModel:
    """RMSNorm before each part, rotary positions, QK-norm, SwiGLU, untied head."""
    heads = {"num_key_value_heads": shape.heads, "head_dim": shape.hidden // shape.heads}
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    common = _common(shape, tokens) | {"intermediate_size": shape.intermediate, "rope_parameters": rope}
    return Qwen3ForCausalLM(Qwen3Config(**common, **heads, tie_word_embeddings=False))


def _nanochat(shape: Size, tokens: Tokens) -> PreTrainedModel:
    """Norms without weights, rotary positions, QK-norm, ReLU², softcapped logits, untied head."""
    common = _common(shape, tokens) | {"intermediate_size": 4 * shape.hidden}
    return NanoChatForCausalLM(NanoChatConfig(**common))


def _gpt2(shape: Size, tokens: Tokens) -> PreTrainedModel:
    """The classic baseline: LayerNorm, learned positions, GELU, tied head; no dropout in pretraining."""
    config = GPT2Config(
        vocab_size=tokens.vocab, n_embd=shape.hidden, n_layer=shape.layers, n_head=shape.heads,
        n_positions=shape.context, bos_token_id=tokens.bos, eos_token_id=tokens.bos, pad_token_id=tokens.pad,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def _modernbert(shape: Size, tokens: Tokens) -> PreTrainedModel:
    """Encoder: pre-norm without biases, rotary positions, GeGLU, full attention in all layers, untied head.

    Untied, embeddings keep what they start with: tied ones must be small, and a step of AdamW is then half of one.
    """
    common = _common(shape, tokens) | {"intermediate_size": shape.intermediate, "tie_word_embeddings": False}
    ids = {"cls_token_id": tokens.bos, "sep_token_id": tokens.sep}  # the defaults are for its own vocabulary
    layers = ["full_attention"] * shape.layers
    return ModernBertForMaskedLM(ModernBertConfig(**common, **ids, layer_types=layers))


def _bert(shape: Size, tokens: Tokens) -> PreTrainedModel:
    """The classic encoder, with its next-sentence head; no dropout in pretraining."""
    common = _common(shape, tokens) | {"intermediate_size": 4 * shape.hidden}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForPreTraining(BertConfig(**common, **dropout))


ARCHITECTURES: dict[str, Callable[[Size, Tokens], PreTrainedModel]] = {
    "qwen3": _qwen3,
    "nanochat": _nanochat,
    "gpt2": _gpt2,
    "modernbert": _modernbert,
    "bert": _bert,
}
ENCODERS = ("modernbert", "bert")  # read in both directions
BASELINES: tuple[str, ...] = ("gpt2", "bert")  # keep the initialization that everybody uses
TIED_STD = 0.02  # of embeddings that are also the output head
RESIDUAL_OUTPUTS = ("o_proj", "down_proj", "fc2", "Wo")  # the matrices that write into the residual stream
HEADS = ("lm_head", "decoder", "classifier", "score", "qa_outputs", "seq_relationship")


def check(architecture: str) -> str:
    """The name itself, or an error with the nearest names."""
    if architecture not in ARCHITECTURES:
        raise unknown("architecture", architecture, ARCHITECTURES)
    return architecture


def build(architecture: str, shape: Size, tokens: Tokens) -> PreTrainedModel:
    """A model with new weights."""
    model = ARCHITECTURES[check(architecture)](shape, tokens)
    if architecture not in BASELINES:
        initialize(model)
    return model


def is_outer(name: str) -> bool:
    """Whether a parameter belongs to the embeddings or to an output head, which Muon is not for."""
    owner = name.split(".")[-2] if "." in name else ""
    return is_embedding(name) or owner in HEADS


def is_embedding(name: str) -> bool:
    """Whether a parameter belongs to the embeddings; what an adapter has added does not, whatever it is called."""
    return not name.startswith("added.") and any(part in name for part in ("embed", "wte.", "wpe."))


def positions(model: nn.Module) -> int:
    """Tokens for which a model has learnt positions; 0: it computes them. RoBERTa counts from behind its padding."""
    tables = (m for n, m in model.named_modules() if n.endswith(("wpe", "position_embeddings")))
    unused = lambda table: 0 if table.padding_idx is None else table.padding_idx + 1
    return next((m.num_embeddings - unused(m) for m in tables if isinstance(m, nn.Embedding)), 0)


@torch.no_grad()
def initialize(model: PreTrainedModel) -> None:
    """Every block starts as the identity, every prediction as almost uniform.

    Matrices have standard deviation 1/√inputs, but what writes into the residual stream is zero; embeddings have
    standard deviation 1 and an untied output head 0.001 (a tied one makes both 0.02). This is initialization only:
    the checkpoint stays a stock one.
    """
    tied = model.config.tie_word_embeddings
    for name, p in model.named_parameters():
        owner = name.split(".")[-2] if "." in name else ""
        if owner in RESIDUAL_OUTPUTS:
            p.zero_()
        elif p.ndim < 2:
            continue
        elif "embed" in name:
            p.normal_(std=TIED_STD if tied else 1.0)
        elif is_outer(name):
            p.normal_(std=0.001)
        else:
            p.normal_(std=1 / math.sqrt(p.size(1)))


@torch.no_grad()
def set_embeddings(model: PreTrainedModel, vectors: torch.Tensor) -> None:
    """Start from these input embeddings (vocab, hidden), standard deviation 1, at the scale that `initialize` gives."""
    weight = model.get_input_embeddings().weight
    if weight.shape == vectors.shape:  # else a generator, which is narrower than its discriminator
        weight.copy_(vectors * (TIED_STD if model.config.tie_word_embeddings else 1.0))


def token_logits(model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits over the vocabulary from the body's last hidden states: (…, hidden) → (…, vocab).

    Lets an objective apply the head where there is a target and nowhere else.
    """
    if hasattr(model, "cls"):  # BERT
        return model.cls.predictions(hidden)
    if hasattr(model, "decoder"):  # ModernBERT
        return model.decoder(model.head(hidden))
    logits = model.lm_head(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def count_parameters(model: nn.Module) -> int:
    """Number of distinct weights (tied ones once)."""
    return sum(p.numel() for p in model.parameters())


def flops_per_token(model: PreTrainedModel, context: int, head_share: float = 1.0) -> int:
    """Training FLOP per token: 6 a weight in a matrix product, and 12·layers·hidden·context for attention.

    `head_share`: the share of tokens the output head is applied to (0.3 for masked-language modelling at 30 %). Source:
    Chowdhery et al. (2022), appendix B; the input embedding is a look-up and costs nothing, a tied head does. Equation
    eq-training-flops.
    """
    inner = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and not is_outer(name))
    head = model.config.vocab_size * model.config.hidden_size
    attention = 12 * model.config.num_hidden_layers * model.config.hidden_size * context
    return round(6 * (inner + head_share * head) + attention)


def training_bytes(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, int]:
    """Bytes that stay in memory between steps, equation eq-bytes: float32 weights, gradients, optimizers' buffers.

    Muon keeps one buffer a weight, AdamW two. Activations come on top and depend on the micro-batch.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    buffers = 0
    for optimizer in optimizers:
        copies = 1 if type(optimizer).__name__ == "Muon" else 2
        buffers += copies * sum(p.numel() * 4 for group in optimizer.param_groups for p in group["params"])
    return {"weights": weights, "gradients": gradients, "optimizer": buffers}
