"""Text from a model, with stock `generate`."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from course_lib import progress
from course_lib.device import Device
from course_lib.errors import CourseError
from course_lib.storage import model_folder


def load(folder: Path, device: Device) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model and tokenizer from a run folder (or any folder that `from_pretrained` accepts)."""
    progress.hush_transformers()
    folder = model_folder(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device.torch)
    return model, AutoTokenizer.from_pretrained(folder)


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
    choice = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {"do_sample": False}
    )
    room = model.config.max_position_embeddings - max_new_tokens
    if room < 1:
        raise CourseError(
            f"The model's context is {model.config.max_position_embeddings} tokens; ask for fewer than that "
            f"(got --tokens {max_new_tokens})."
        )
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", split_special_tokens=True).input_ids  # (1, prompt)
        ids = ids[:, -room:].to(model.device)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, **choice)
        texts.append(tokenizer.decode(out[0, ids.size(1) :], skip_special_tokens=True))
    return texts
