"""Stock `transformers` architectures at sizes that one machine can train.

A checkpoint needs nothing of this library: `AutoModelForCausalLM.from_pretrained` loads it.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from course_lib.errors import unknown


@dataclass(frozen=True)
class Size:
    """Shape of a decoder and the vocabulary that suits it."""

    hidden: int
    layers: int
    heads: int
    vocab: int
    context: int

    @property
    def intermediate(self) -> int:
        """SwiGLU width: 8/3 of the hidden size, so three matrices weigh as much as the usual two of 4×."""
        return round(self.hidden * 8 / 3 / 32) * 32

    @property
    def inner_parameters(self) -> int:
        """Weights in the blocks' matrices: attention 4·hidden², SwiGLU 3·hidden·intermediate."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)


SIZES = {
    "pico": Size(64, 2, 2, 1024, 128),
    "nano": Size(128, 4, 4, 2048, 128),
    "micro": Size(256, 6, 4, 8192, 256),
    "mini": Size(384, 8, 6, 8192, 512),
    "small": Size(512, 12, 8, 16384, 1024),
    "base": Size(768, 12, 12, 32768, 1024),
}


def size(name: str) -> Size:
    """A preset by name, or an error with the nearest names."""
    if name not in SIZES:
        raise unknown("size", name, SIZES)
    return SIZES[name]


def decoder(shape: Size, vocab_size: int, bos: int = 0, pad: int | None = None) -> PreTrainedModel:
    """A Qwen3 decoder (RMSNorm before each block, rotary positions, QK-norm, SwiGLU), new weights."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=shape.context,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=False,
        bos_token_id=bos,
        eos_token_id=bos,
        pad_token_id=pad,  # its embedding gets no gradient, so it must not be BOS
    )
    model = Qwen3ForCausalLM(config)
    initialize(model)
    return model


@torch.no_grad()
def initialize(model: PreTrainedModel) -> None:
    """Every block starts as the identity, every prediction as almost uniform.

    Matrices have standard deviation 1/√inputs, but what writes into the residual stream is zero; embeddings have
    standard deviation 1 and the output head 0.001. This is initialization only: the checkpoint stays a stock one.
    """
    for name, p in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            p.zero_()
        elif "embed_tokens" in name:
            p.normal_()
        elif "lm_head" in name:
            p.normal_(std=0.001)
        elif p.ndim == 2:
            p.normal_(std=1 / math.sqrt(p.size(1)))


def count_parameters(model: nn.Module) -> int:
    """Number of distinct weights (tied ones once)."""
    return sum(p.numel() for p in model.parameters())


def flops_per_token(model: PreTrainedModel, context: int) -> int:
    """Training FLOP per token: 6 a weight in a matrix product, and 12·layers·hidden·context for attention.

    Source: Kaplan et al. (2020), table 1; the input embedding is a look-up and costs nothing, a tied head does.
    """
    inner = sum(
        p.numel() for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n
    )
    head = model.config.vocab_size * model.config.hidden_size
    attention = 12 * model.config.num_hidden_layers * model.config.hidden_size * context
    return 6 * (inner + head) + attention
