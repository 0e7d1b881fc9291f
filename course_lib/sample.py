"""Text from a model, with stock `generate`."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from course_lib import progress
from course_lib.device import Device
from course_lib.errors import CourseError
from course_lib.storage import model_folder
from course_lib.tokenizer import beginning


def load(folder: Path, device: Device) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model and tokenizer from a run folder (or any folder that `from_pretrained` accepts)."""
    progress.hush_transformers()
    folder = model_folder(folder)
    named = (AutoConfig.from_pretrained(folder).architectures or [""])[0]
    if not is_causal(named):  # an output layer drawn at random, or words chosen by what follows them
        raise CourseError(f"{folder} holds a {named or 'nameless model'}, which writes no text. Give a decoder.")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device.torch)
    return model, AutoTokenizer.from_pretrained(folder)


def is_causal(architecture: str) -> bool:
    """Whether a stock class of this name predicts the next token."""
    return "CausalLM" in architecture or "LMHead" in architecture


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[str],
    max_new_tokens: int = 60,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> list[str]:
    """One continuation a prompt (prompt not repeated). `temperature` 0 is greedy.

    Prompts are continued one by one: with these small models padding costs as much as it saves. A prompt longer than
    the context keeps its end.
    """
    model.eval()
    torch.manual_seed(seed)
    choice: dict[str, Any] = {"do_sample": False}
    if temperature > 0:  # transformers would keep the 50 likeliest tokens only
        choice = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    room = model.config.max_position_embeddings - max_new_tokens
    if room < 1:
        raise CourseError(
            f"The model's context is {model.config.max_position_embeddings} tokens; ask for fewer than that "
            f"(got --tokens {max_new_tokens})."
        )
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", split_special_tokens=True).input_ids  # (1, prompt)
        ids = (ids if ids.numel() else torch.tensor([[beginning(tokenizer)]]))[:, -room:].to(model.device)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, **choice)
        texts.append(tokenizer.decode(out[0, ids.size(1) :], skip_special_tokens=True))
    return texts


@torch.no_grad()
def blanks(folder: Path, texts: list[str], device: Device, best: int = 4) -> list[dict[str, Any]]:
    """One word of every text hidden, and an encoder's likeliest guesses: `before`, `truth`, `after`, `guesses`.

    The word is the longest one that is a single token and neither the first nor the last word.
    """
    model = AutoModelForMaskedLM.from_pretrained(model_folder(folder), dtype=torch.float32).to(device.torch).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder(folder))
    found = []
    for text in texts:
        ids = tokenizer(text, split_special_tokens=True)["input_ids"]
        words = [tokenizer.decode([i]) for i in ids]
        whole = [
            at
            for at in range(2, len(ids) - 1)
            if words[at].startswith(" ") and words[at].strip().isalpha() and not words[at + 1][:1].isalpha()
        ]
        if not whole:
            continue
        at = max(whole, key=lambda at: len(words[at]))
        hidden = torch.tensor([[*ids[:at], tokenizer.mask_token_id, *ids[at + 1 :]]], device=device.torch)
        chances = model(input_ids=hidden).logits[0, at].float().softmax(-1).topk(best)
        found.append(
            {
                "before": tokenizer.decode(ids[1:at]),
                "truth": words[at].strip(),
                "after": tokenizer.decode(ids[at + 1 :]),
                "guesses": [
                    [tokenizer.decode([i]).strip(), round(p, 3)]
                    for i, p in zip(chances.indices.tolist(), chances.values.tolist(), strict=True)
                ],
            }
        )
    return found
