"""What can be pretrained: an objective with the model and the batches that it needs.

Adding one: an objective, maybe a transform, and an entry in `RECIPES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import ModernBertForTokenClassification

from course_lib import models, objectives
from course_lib.batches import Alternate, Mask, SentencePairs, Transform, next_tokens
from course_lib.config import Config
from course_lib.errors import unknown


@dataclass(frozen=True)
class Recipe:
    """`architecture`: the default one, or with `fixed` the only one. `causal`: it has bits per byte, and can write."""

    objective: objectives.Objective
    architecture: str
    transform: Callable[[Mask, Any], Transform]
    causal: bool
    fixed: bool = False


RECIPES = {
    "clm": Recipe(objectives.CausalLM(), "qwen3", lambda mask, ids: next_tokens, causal=True),
    "mlm": Recipe(objectives.MaskedLM(), "modernbert", lambda mask, ids: mask, causal=False),
    "mlm+nsp": Recipe(
        objectives.MaskedLMWithNSP(),
        "bert",
        lambda mask, ids: SentencePairs(mask, ids.bos, ids.sep),
        causal=False,
        fixed=True,
    ),
    "hybrid": Recipe(objectives.Hybrid(), "qwen3", lambda mask, ids: Alternate(mask), causal=True),
    "rtd": Recipe(objectives.ReplacedTokens(), "modernbert", lambda mask, ids: mask, causal=False, fixed=True),
}
GENERATOR_SHARE = 4  # ELECTRA's generator is a quarter as wide


def get(name: str) -> Recipe:
    """A recipe by the name of its objective."""
    if name not in RECIPES:
        raise unknown("objective", name, RECIPES)
    return RECIPES[name]


def token_ids(tokenizer: Any) -> models.Tokens:
    """What a config must know of a tokenizer."""
    return models.Tokens(len(tokenizer), tokenizer.bos_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)


def new_model(settings: Config, shape: models.Size, ids: models.Tokens) -> Any:
    """The model that a recipe trains, with new weights."""
    if settings.objective != "rtd":
        return models.build(settings.architecture, shape, ids)
    small = models.Size(
        max(shape.hidden // GENERATOR_SHARE, 32), shape.layers, max(shape.heads // GENERATOR_SHARE, 1), 0, shape.context
    )
    masked = models.build("modernbert", shape, ids)
    discriminator = ModernBertForTokenClassification(masked.config)
    discriminator.config.num_labels = 1
    discriminator.num_labels, discriminator.classifier = 1, nn.Linear(shape.hidden, 1)
    discriminator.model.load_state_dict(masked.model.state_dict())
    return nn.ModuleDict({"generator": models.build("modernbert", small, ids), "discriminator": discriminator})


def to_keep(model: nn.Module) -> Any:
    """What is worth saving of what was trained: the discriminator of a pair, else the model itself."""
    return model["discriminator"] if isinstance(model, nn.ModuleDict) else model


def transform(settings: Config, recipe: Recipe, tokenizer: Any, generator: torch.Generator) -> Transform:
    """The recipe's transform; the mask rate falls from `mask_start` to `mask_end` over the budget."""
    start, end = settings.mask_start, settings.mask_end
    specials = len(tokenizer.all_special_ids)
    mask = Mask(
        tokenizer.mask_token_id, len(tokenizer), specials, generator, lambda progress: start + (end - start) * progress
    )
    return recipe.transform(mask, token_ids(tokenizer))


def evaluation_transforms(recipe: Recipe, tokenizer: Any, seed: int = 0) -> list[Transform]:
    """The same at a fixed 15 % and with a fixed seed, whatever the training used; one for each kind of step."""
    fixed = Config(mask_start=0.15, mask_end=0.15)
    found = transform(fixed, recipe, tokenizer, torch.Generator().manual_seed(seed))
    return [next_tokens, found.inner] if isinstance(found, Alternate) else [found]
