"""Prefix-tuning: every layer attends to a few more keys and values, which are learnt.

Li and Liang (2021), *Prefix-tuning: optimizing continuous prompts for generation*; equation 3 is the reparameterisation
by a small network, which is dropped after training. The prefix is put in where attention is computed, not into a cache,
so encoders have it too, and it takes no positions from the text.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from course_lib.errors import CourseError
from course_lib.peft import base

IMPLEMENTATION = "prefix_sdpa"  # the name of our attention function in transformers' registry


@dataclass(frozen=True)
class Prefix(base.Method):
    """`length` more keys and values a layer; `width` of the network that makes them in training, 0: none."""

    length: int = 16
    width: int = 0

    def build(self, model: Any) -> "Prefixes":
        """Keys and values for every layer. Raises CourseError if attention is computed where ours cannot step in."""
        if not (model._supports_attention_backend and model._supports_sdpa):
            kind = f"'{model.config.model_type}' model"
            raise CourseError(f"Prefix-tuning cannot reach the attention of a {kind}. Take another method (lora).")
        return Prefixes(attentions(model), model.config, self)

    def final(self) -> "Prefix":
        """Without the network."""
        return replace(self, width=0)


def attentions(model: nn.Module) -> list[str]:
    """Paths of the modules that compute attention, one a layer: the innermost that are called so."""
    named = [n for n, m in model.named_modules() if base.BLOCK.search(n) and type(m).__name__.endswith("Attention")]
    return [n for n in named if not any(other.startswith(f"{n}.") for other in named)]


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    prefix: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(q [Pₖ; k]ᵀ) [Pᵥ; v], equation eq-prefix: query (rows, heads, n, size).

    Key and value are (rows, key heads, m, size). `prefix` (2, key heads, length, size) is visible to every query; the
    rest stays as causal as it was. Without one this is stock attention: models may share their config, which says who
    computes it.
    """
    if prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=is_causal, **kwargs)
    rows, n, m, length = len(query), query.size(2), key.size(2), prefix.size(2)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal and n > 1:
        attention_mask = torch.ones(1, 1, n, m, dtype=torch.bool, device=key.device).tril(m - n)
    if attention_mask is not None:  # boolean: True is seen; else added to the scores
        shape = (*attention_mask.shape[:-1], length)
        seen = attention_mask.new_full(shape, attention_mask.dtype == torch.bool)
        attention_mask = torch.cat([seen, attention_mask], -1)  # (rows or 1, 1, n, length + m)
    k, v = prefix.to(key.dtype)[:, None].expand(-1, rows, -1, -1, -1)
    key, value = torch.cat([k, key], 2), torch.cat([v, value], 2)
    return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=False, **kwargs)


class Prefixes(base.Added):
    """The keys and values of all layers, given as they are or by a network: tanh(E W) Vₗ."""

    layers: Any  # of every layer: its keys and values, or the last map of the network

    def __init__(self, paths: list[str], config: Any, method: Prefix):
        super().__init__()
        self.paths, self.method = paths, method
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.shape = (2, heads, method.length, size)
        if method.width:
            self.embedding = nn.Parameter(torch.randn(method.length, config.hidden_size))
            self.stem = nn.Linear(config.hidden_size, method.width)
            self.layers = nn.ModuleList(nn.Linear(method.width, 2 * heads * size) for _ in paths)
        else:
            self.layers = nn.ParameterList(nn.Parameter(0.02 * torch.randn(self.shape)) for _ in paths)

    def layer(self, number: int) -> torch.Tensor:
        """Keys and values of one layer, (2, key heads, length, size)."""
        if not self.method.width:
            return self.layers[number]
        _, heads, length, size = self.shape
        found = self.layers[number](torch.tanh(self.stem(self.embedding)))  # (length, 2 · heads · size)
        return found.view(length, 2, heads, size).permute(1, 2, 0, 3)

    def attach(self, model: Any) -> list[base.Handle]:
        """Switch the model to our attention function, and hand every layer its prefix."""
        handles: list[base.Handle] = [Switched(model)]
        for number, name in enumerate(self.paths):
            give = Giver(self, number)
            handles.append(model.get_submodule(name).register_forward_pre_hook(give.before, with_kwargs=True))
        return handles

    def merge(self, model: nn.Module, sign: int) -> None:
        """Impossible: no weight of the base does what a prefix does."""
        raise CourseError("A prefix is no change of a weight, so it cannot be merged.")

    def tensors(self) -> dict[str, torch.Tensor]:
        """Keys and values, and the heads; not the network that made them."""
        return {f"{n}.prefix": self.layer(i) for i, n in enumerate(self.paths)} | super().tensors()

    def load(self, tensors: Any) -> None:
        """Take over keys and values."""
        base.fill({f"{n}.prefix": self.layer(i) for i, n in enumerate(self.paths)}, tensors)
        super().load(tensors)


@dataclass
class Giver:
    """Hands a layer's prefix to its attention module as a keyword, which the module hands on to `attend`."""

    prefixes: Prefixes
    number: int

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """A forward pre-hook."""
        return args, {**kwargs, "prefix": self.prefixes.layer(self.number)}


class Switched:
    """A model whose attention is ours until `remove`."""

    def __init__(self, model: Any):
        AttentionInterface.register(IMPLEMENTATION, attend)
        AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
        self.model, self.before = model, model.config._attn_implementation
        model.set_attn_implementation(IMPLEMENTATION)

    def remove(self) -> None:
        """Back to what it was."""
        self.model.set_attn_implementation(self.before)
