"""Adapters in files: the added weights alone, the base by reference. LoRA's files are those of the `peft` package.

A folder holds `adapter.json` (method, settings, base and its fingerprint) and `adapter_model.safetensors`.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from course_lib.errors import CourseError, unknown
from course_lib.peft import adapters, base, methods
from course_lib.peft.lora import LoRA

ABOUT, WEIGHTS, THEIRS = "adapter.json", "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # before every name in peft's files
# Settings of peft with which a file is more than two matrices beside the base as it is stored …
UNUSUAL = ("use_dora", "rank_pattern", "alpha_pattern", "use_qalora", "lora_bias", "trainable_token_indices",
           "alora_invocation_tokens", "layer_replication", "kasa_config")  # fmt: skip
CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")  # … and ways to start that take them out of the base


def save(model: Any, folder: Path, reference: str, name: str = "") -> None:
    """Write adapter `name` (the active one) into `folder`; `reference`: where the base is, a path or a hub's id."""
    on = adapters.of(model)
    if on.merged:
        raise CourseError("The adapter is merged into the base. `unmerge` it first, or `finish` and save the model.")
    if name and name not in on:
        raise unknown("adapter on this model", name, on)
    added: Any = on[name] if name else adapters.active(model)
    name = name or on.active
    method: Any = on.methods[name].final()
    about = {
        "method": methods.name_of(method),
        "settings": asdict(method),
        "base": reference,
        "fingerprint": on.fingerprint,
    }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {PREFIX + n: t.detach().cpu().contiguous() for n, t in added.tensors().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    if isinstance(method, LoRA):
        theirs = _for_peft(model, method, added, reference)
        (folder / THEIRS).write_text(json.dumps(theirs, indent=2) + "\n", encoding="utf-8")


def load(model: Any, folder: Path, name: str = "default") -> Any:
    """Put the adapter in `folder` on `model` as `name`, and switch it on; also a LoRA that `peft` wrote.

    Raises CourseError if it was made for another base.
    """
    adapters.check(model, name)
    about = _about(folder)
    tensors = {n.removeprefix(PREFIX): t for n, t in load_file(folder / WEIGHTS).items()}
    if about["fingerprint"] and about["fingerprint"] != adapters.fingerprint(model):
        if model.dtype == torch.bfloat16:  # has lost the digits that tell
            raise CourseError(
                f"A base in bfloat16 cannot be checked. Load it in float32, put {folder} on it, convert both."
            )
        raise CourseError(f"The adapter in {folder} was made for another base, '{about['base']}'. Load that one first.")
    settings = {n: tuple(v) if isinstance(v, list) else v for n, v in about["settings"].items()}
    if about["method"] == "lora" and not about["fingerprint"]:
        settings["targets"] = tuple(sorted(n.removesuffix(".lora_A.weight") for n in tensors if "lora_A" in n))
    if about["fingerprint"]:  # ours: what has the name of a weight of the base stands in for it
        own = tensors.keys() & dict(model.named_parameters()).keys()
        setattr(model, base.LACKING, sorted(own.union(getattr(model, base.LACKING, ()))))
    method = methods.get(about["method"])(**settings)
    outputs = next((len(t) for n, t in tensors.items() if n in {f"{head}.weight" for head in base.HEADS}), 0)
    added = adapters.build(model, method, outputs)
    for head in [name for name in added.heads if not any(n.startswith(f"{base.path(name)}.") for n in tensors)]:
        if head in base.HEAD_LAYERS - base.HEADS:  # a file that leaves this layer as the base has it
            del added.heads[head]
    added.load(tensors)
    return adapters.put(model, added, method, name)


def restore(folder: Path, kind: Any) -> Any:
    """The base that an adapter refers to, with the adapter on it. `kind`: an auto class of `transformers`.

    A `config.json` beside the adapter counts before the base's own.
    """
    place = _place(folder, _about(folder)["base"])
    config = AutoConfig.from_pretrained(folder if (folder / "config.json").exists() else place)
    return load(stock(kind, place, config), folder)


def stock(kind: Any, place: Path | str, config: Any) -> Any:
    """A stored model in float32, which notes what it has no weights for. `kind`: an auto class of `transformers`.

    Layers of another size, such as another task's output, give way to new ones.
    """
    options = {"ignore_mismatched_sizes": True, "output_loading_info": True, "dtype": torch.float32}
    model, found = kind.from_pretrained(place, config=config, **options)
    lacking = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    setattr(model, base.LACKING, sorted(lacking & dict(model.named_parameters()).keys()))  # buffers are not drawn
    return model


def _place(folder: Path, reference: str) -> str:
    """Where the base is: a relative path is one from here, or from a folder around the adapter; else a hub's id."""
    around = (parent / reference for parent in (Path(), *folder.resolve().parents))
    return str(next((path for path in around if path.is_dir()), reference))


def _about(folder: Path) -> dict[str, Any]:
    """What a folder says of its adapter."""
    if (folder / ABOUT).exists():
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if not (folder / THEIRS).exists():
        raise CourseError(f"There is no adapter in {folder}.")
    theirs = json.loads((folder / THEIRS).read_text(encoding="utf-8"))
    used = [n for n in UNUSUAL if theirs.get(n)] + ["bias"] * (theirs.get("bias", "none") != "none")
    used += [start] if (start := str(theirs.get("init_lora_weights"))).startswith(CHANGING) else []
    if theirs["peft_type"] != "LORA" or used:
        raise CourseError(f"Of peft's adapters, plain LoRA is read; this is {theirs['peft_type']} {', '.join(used)}.")
    theirs = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "use_rslora": False} | theirs  # old files have fewer
    names = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "rslora": "use_rslora"}
    settings = {ours: theirs[name] for ours, name in names.items()}
    return {"method": "lora", "settings": settings, "base": theirs["base_model_name_or_path"], "fingerprint": ""}


def _for_peft(model: Any, method: LoRA, added: base.Added, reference: str) -> dict[str, Any]:
    """LoRA's settings as `peft` writes them."""
    paths = [base.path(name) for name in added.parts]
    transposed = any(isinstance(model.get_submodule(path), Conv1D) for path in paths)
    return {
        "peft_type": "LORA", "base_model_name_or_path": reference, "r": method.rank, "lora_alpha": method.alpha,
        "lora_dropout": method.dropout, "use_rslora": method.rslora, "target_modules": paths, "bias": "none",
        "fan_in_fan_out": transposed, "modules_to_save": list(map(base.path, added.heads)) or None,
        "inference_mode": True,
    }  # fmt: skip


def size(added: base.Added) -> int:
    """Bytes of the weights that `save` writes, without the few hundred of names before them."""
    return sum(t.numel() * t.element_size() for t in added.tensors().values())
