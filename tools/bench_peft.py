"""Measure our LoRA and AdaLoRA against the `peft` package, and the adapters' files against arithmetic; write a record.

    python tools/bench_peft.py --out runs/bench-peft

Seconds of a training step (forward, backward, AdamW) on the same base, targets, rank and batch. Each repeat measures
ours and theirs in turn, so that a busy machine slows both alike; a ratio below 1 means that ours is faster.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from course_lib import models
from course_lib.peft import adapters, files
from course_lib.peft.adalora import AdaLoRA
from course_lib.peft.bitfit import BitFit
from course_lib.peft.bottleneck import Adapter
from course_lib.peft.lora import LoRA
from course_lib.peft.prefix import Prefix
from course_lib.peft.prompt import Prompt
from course_lib.record import invocation, now, provenance

REPEATS, STEPS, ROWS, LENGTH = 5, 5, 4, 64
SIZE, VOCAB = "micro", 2048
TARGETS = {"modernbert": ("Wqkv", "Wo", "Wi"), "qwen3": ("q_proj", "k_proj", "v_proj", "o_proj")}


def main() -> None:
    """Measure everything and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    step = {f"{method}-{base}": compare(base, method) for base in TARGETS for method in ("lora", "adalora")}
    about = provenance()
    about["versions"]["peft"] = metadata.version("peft")
    settings = {"repeats": REPEATS, "steps": STEPS, "rows": ROWS, "length": LENGTH, "size": SIZE, "rank": 8}
    record = {
        "id": options.out.name, "command": invocation(), "finished": now(), **about,
        "settings": settings, "step": step, "files": sizes(),
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps({"step": step, "files": record["files"]}, indent=2))


def base(architecture: str) -> Any:
    """The same random base every time."""
    torch.manual_seed(0)
    return models.build(architecture, models.size(SIZE), models.Tokens(VOCAB, bos=0, sep=1, pad=2))


def ours(architecture: str, method: str) -> Any:
    """Our adapter on a base."""
    targets = TARGETS[architecture]
    chosen = LoRA(8, targets=targets) if method == "lora" else AdaLoRA(8, 4, targets=targets)
    return adapters.apply(base(architecture), chosen)


def theirs(architecture: str, method: str) -> Any:
    """The package's adapter on the same base; AdaLoRA at the same point of its schedule."""
    import peft

    targets = {"target_modules": list(TARGETS[architecture]), "lora_alpha": 16}
    plain = peft.LoraConfig(r=8, **targets)
    rich = peft.AdaLoraConfig(init_r=8, target_r=4, tinit=0, tfinal=100, total_step=10**6, **targets)
    return peft.get_peft_model(base(architecture), plain if method == "lora" else rich)


def stepper(model: Any, loss: Callable[[Any], torch.Tensor], after: Callable[[], None]) -> Callable[[], float]:
    """A function that does STEPS training steps and gives the median seconds of one."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)

    def run() -> float:
        seconds = []
        for _ in range(STEPS):
            started = time.perf_counter()
            loss(model).backward()
            optimizer.step()
            after()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    return run


def compare(architecture: str, method: str) -> dict[str, Any]:
    """Milliseconds a step, ours and peft's in turn, and their ratio in every repeat."""
    batch = torch.randint(3, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    mine, other = ours(architecture, method), theirs(architecture, method)
    counts = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (mine, other)]
    assert counts[0] == counts[1], counts
    plain = lambda model: model(input_ids=batch, labels=batch).loss
    if method == "lora":
        runs = [stepper(mine, plain, lambda: None), stepper(other, plain, lambda: None)]
    else:
        theirs_penalized = lambda model: plain(model.base_model)  # a bare `PeftModel` would leave the penalty out
        weight, numbers = adapters.active(mine).penalty_weight, iter(range(1, 10**6))
        penalized = lambda model: plain(model) + weight * adapters.penalty(model)
        runs = [
            stepper(mine, penalized, lambda: adapters.active(mine).after_step(0.2)),
            stepper(other, theirs_penalized, lambda: other.base_model.update_and_allocate(next(numbers))),
        ]
    for run in runs:  # warm-up
        run()
    pairs = [[1000 * run() for run in (runs if repeat % 2 else runs[::-1])] for repeat in range(REPEATS)]
    pairs = [pair if repeat % 2 else pair[::-1] for repeat, pair in enumerate(pairs)]
    ratios = [a / b for a, b in pairs]
    return {
        "ours_ms": round(statistics.median(a for a, _ in pairs), 2),
        "peft_ms": round(statistics.median(b for _, b in pairs), 2),
        "ratio": {"median": round(statistics.median(ratios), 3), "min": round(min(ratios), 3),
                  "max": round(max(ratios), 3)},
        "trainable": counts[0],
    }  # fmt: skip


def sizes() -> dict[str, Any]:
    """Bytes of every method's file on the decoder, beside closed formulas of its weights in float32."""
    shape = models.size(SIZE)
    layers, h, inner = shape.layers, shape.hidden, shape.intermediate
    computed = {
        "lora": layers * 4 * 8 * 2 * h,  # four h × h matrices of attention, rank 8
        "adalora": layers * 4 * 8 * (2 * h + 1),
        "adapter": layers * 2 * (2 * 16 * h + 16 + h),
        "prefix": layers * 2 * 16 * h,
        "prompt": 16 * h,
        "bitfit": layers * (4 * h + 2 * inner + h),  # a vector for every linear layer: Qwen3 has no biases
    }
    kinds = [LoRA(8), AdaLoRA(8, 4), Adapter(16), Prefix(16, width=64), Prompt(16), BitFit()]
    found = {}
    for (name, weights), method in zip(computed.items(), kinds, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            files.save(adapters.apply(base("qwen3"), method), Path(folder), "base")
            written = (Path(folder) / files.WEIGHTS).stat().st_size
        found[name] = {"computed_kb": round(4 * weights / 1000, 1), "file_kb": round(written / 1000, 1)}
    return found


if __name__ == "__main__":
    main()
