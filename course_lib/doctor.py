"""Is this machine ready, and what will it manage? Plain facts, and a fix for whatever is missing."""

import os
import platform
import shutil
from importlib import metadata
from typing import Any

from course_lib import assets

NEEDED = ("torch", "transformers", "datasets", "tokenizers", "safetensors", "numpy", "pyarrow")
FREE_DISK = 2e9  # bytes: the largest asset and its prepared form, with room for checkpoints


def examine() -> dict[str, Any]:
    """Everything `doctor` knows, as JSON-able values; `problems` lists one sentence each, with its fix."""
    problems: list[str] = []
    versions = {name: _version(name) for name in NEEDED}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        problems.append(f"Not installed: {', '.join(missing)}. Run `pip install -e .` in the project's folder.")
    if _version("pip") is None:  # asking for its module would make setuptools let go of distutils (torch.compile's)
        problems.append("pip is missing, and datasets come through it: run `python -m ensurepip`.")
    cache = assets.cache_dir()
    nearest = next(p for p in [cache, *cache.parents] if p.exists())
    if not os.access(nearest, os.W_OK):
        problems.append(f"The cache folder {cache} cannot be written: set COURSE_CACHE to one that can.")
    free = shutil.disk_usage(nearest).free
    if free < FREE_DISK:
        problems.append(f"Only {free / 1e9:.1f} GB are free at {nearest}: make room for {FREE_DISK / 1e9:.0f} GB.")
    facts = {
        "python": platform.python_version(),
        "versions": versions,
        "cache": str(cache),
        "disk_free": free,
        "data": {name: assets.cached(name) is not None for name in assets.registry()},
    }
    return {**facts, **({} if missing else _machine()), "problems": problems}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    from course_lib import device, plan

    found = device.pick()
    flops = plan.matmul_flops(found)
    sizes = {
        budget: plan.choose_size(found, seconds) for budget, seconds in (("5m", 300), ("2h", 7200), ("24h", 86400))
    }
    return {"device": found.describe(), "matmul_flops": flops, "sizes": sizes}


def describe(facts: dict[str, Any]) -> str:
    """The same for a person."""
    lines = [f"Python   {facts['python']}, " + ", ".join(f"{k} {v}" for k, v in facts["versions"].items() if v)]
    if "device" in facts:
        found = facts["device"]
        lines.append(f"Device   {found['name']}: {found['kind']}, {found['dtype']}, {found['memory'] / 1e9:.0f} GB, "
                     f"{found['threads']} CPU threads")  # fmt: skip
        lines.append(f"Speed    {facts['matmul_flops'] / 1e9:,.0f} GFLOP/s in a matrix product")
        lines.append("Sizes    " + ", ".join(f"{budget} → {size}" for budget, size in facts["sizes"].items()))
    lines.append(f"Cache    {facts['cache']} ({facts['disk_free'] / 1e9:.0f} GB free)")
    for name, there in facts["data"].items():
        size = f"{assets.get(name).size / 1e6:.0f} MB, fetched on first use"
        lines.append(f"Data     {name}: {'in the cache' if there else size}")
    lines += [f"Problem  {problem}" for problem in facts["problems"]] or ["Ready."]
    return "\n".join(lines)
