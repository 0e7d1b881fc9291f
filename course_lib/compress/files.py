"""Compressed models in files: `compress.json` says what became of the layers, `compressed.safetensors` holds them.

A model that still fits its stock class is stored as a stock checkpoint, which needs nothing of this library.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from course_lib.compress import quantized, structure
from course_lib.errors import CourseError

ABOUT, WEIGHTS = "compress.json", "compressed.safetensors"


def save(model: Any, folder: Path) -> None:
    """Write a model whose layers may be integers or smaller than its config says. Equal tensors are stored once."""
    folder.mkdir(parents=True, exist_ok=True)
    if not quantized.layers(model) and _stock(model):
        model.save_pretrained(folder)
        return
    kept: dict[str, torch.Tensor] = {}
    first: dict[tuple[int, torch.Size], str] = {}
    shared = {}
    for name, tensor in model.state_dict().items():
        known = first.setdefault((tensor.data_ptr(), tensor.shape), name)
        if known == name or not tensor.numel():
            kept[name] = tensor.detach().cpu().contiguous()
        else:
            shared[name] = known
    about = {"class": type(model).__name__, "quantized": quantized.describe(model), "shared": shared}
    model.config.save_pretrained(folder)
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def load(folder: Path) -> Any:
    """The model in `folder`, as it was: the same outputs, bit by bit."""
    if not (folder / "config.json").exists():
        raise CourseError(f"There is no compressed model in {folder}. Make one with `python -m course_lib compress`.")
    config = transformers.AutoConfig.from_pretrained(folder)
    if not (folder / ABOUT).exists():
        return getattr(transformers, config.architectures[0]).from_pretrained(folder, dtype=torch.float32).eval()
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    tensors = load_file(folder / WEIGHTS)
    tensors |= {name: tensors[known] for name, known in about["shared"].items()}
    model = getattr(transformers, about["class"])(config).to(
        next(t.dtype for t in tensors.values() if t.is_floating_point())
    )
    for name in [n for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]:
        structure.fit(model, name, tensors, name in about["quantized"])
    for name, settings in about["quantized"].items():
        table = settings.pop("table")
        kind: Any = quantized.QuantizedEmbedding if table else quantized.QuantizedLinear
        quantized.put(model, name, kind(model.get_submodule(name), quantized.Bits(**settings)))
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def size(folder: Path) -> int:
    """Bytes of the weights' file."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _stock(model: Any) -> bool:
    """Whether the stock class, made from the config, has tensors of the same shapes."""
    with torch.device("meta"):
        expected = type(model)(model.config).state_dict()
    found = model.state_dict()
    return expected.keys() == found.keys() and all(expected[n].shape == found[n].shape for n in found)
