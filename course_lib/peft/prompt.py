"""Prompt tuning: a few vectors before the text's embeddings are all that learns.

Lester et al. (2021), *The power of scale for parameter-efficient prompt tuning*. The vectors enter with the embeddings,
and their hidden states are cut off again behind the last layer, so that heads and losses see the text alone.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from course_lib import models
from course_lib.errors import CourseError
from course_lib.peft import base


@dataclass(frozen=True)
class Prompt(base.Method):
    """`length`: how many vectors; they take as many positions of the model's context."""

    length: int = 16

    @property
    def positions(self) -> int:
        """Each vector takes one."""
        return self.length

    def build(self, model: Any) -> "Vectors":
        """Vectors that start as embeddings of random tokens (section 3.2 of the paper)."""
        pooler = getattr(model.base_model, "pooler", None)
        if model.config.is_encoder_decoder or isinstance(pooler, nn.Linear):  # two texts, or pooled outside the pooler
            kind = f"'{model.config.model_type}' model"
            raise CourseError(f"Prompt tuning does not fit the body of a {kind}. Take another method (lora:targets=…).")
        table = model.get_input_embeddings().weight.detach()
        return Vectors(table[torch.randint(len(table), (self.length,), device=table.device)].clone())


class Vectors(base.Added):
    """The prompt, (length, hidden)."""

    def __init__(self, start: torch.Tensor):
        super().__init__()
        self.prompt = nn.Parameter(start)
        self.context = 0  # positions that the model has learnt; 0: as many as you like
        self.entered = False  # whether the present forward has the prompt in its input (else it is in the cache)

    def attach(self, model: Any) -> list[base.Handle]:
        """Around the body of the model, which its heads call."""
        body = model.base_model
        self.context = models.positions(body)
        before = body.register_forward_pre_hook(self.before, with_kwargs=True)
        return [before, body.register_forward_hook(self.after)]

    def before(self, body: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Replace `input_ids` (rows, n) by embeddings (rows, length + n, hidden), and lengthen what goes with them."""
        kwargs = {**kwargs, **dict(zip(inspect.signature(body.forward).parameters, args, strict=False))}
        ids, x = kwargs.pop("input_ids", None), kwargs.get("inputs_embeds")
        x = body.get_input_embeddings()(ids) if x is None else x  # (rows, n, hidden)
        cache, rows, length = kwargs.get("past_key_values"), len(x), len(self.prompt)
        self.entered = cache is None or cache.get_seq_length() == 0
        if self.entered:
            if 0 < self.context < length + x.size(1):
                sizes = f"A prompt of {length} and a text of {x.size(1)} tokens"
                raise CourseError(f"{sizes} do not fit into {self.context} positions. Shorten the text (--max-length).")
            x = torch.cat([self.prompt.to(x.dtype).expand(rows, -1, -1), x], 1)
        if (mask := kwargs.get("attention_mask")) is not None:
            kwargs["attention_mask"] = torch.cat([mask.new_ones(rows, length), mask], 1)
        if (kinds := kwargs.get("token_type_ids")) is not None and self.entered:
            kwargs["token_type_ids"] = torch.cat([kinds.new_zeros(rows, length), kinds], 1)
        if (places := kwargs.get("position_ids")) is not None:
            first = torch.arange(length, device=places.device).expand(len(places), -1)
            kwargs["position_ids"] = torch.cat([first, places + length], 1) if self.entered else places + length
        return (), {**kwargs, "inputs_embeds": x}

    def after(self, body: Any, args: Any, output: Any) -> Any:
        """Cut the prompt's hidden states off; what pools the first token must pool the text's."""
        if self.entered:
            output.last_hidden_state = output.last_hidden_state[:, len(self.prompt) :]  # (rows, n, hidden)
            if getattr(body, "pooler", None) is not None:
                output.pooler_output = body.pooler(output.last_hidden_state)
        return output

    def merge(self, model: nn.Module, sign: int) -> None:
        """Impossible: no weight of the base does what a prompt does."""
        raise CourseError("A prompt is no change of a weight, so it cannot be merged.")

    def tensors(self) -> dict[str, torch.Tensor]:
        """The prompt, and the heads."""
        return {"prompt": self.prompt} | super().tensors()

    def load(self, tensors: Any) -> None:
        """Take over the prompt."""
        base.fill({"prompt": self.prompt}, tensors)
        super().load(tensors)
