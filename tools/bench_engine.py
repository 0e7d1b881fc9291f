"""Measure the engine: its loop, the masked head, the memory of a large vocabulary's loss, and of a resumed run.

    python tools/bench_engine.py --out runs/bench-engine

Loops (ours, a bare one, HF `Trainer`) train the same model on the same random tokens with fused AdamW, in turns.
Whatever is measured by its peak memory has a process of its own, on Linux.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from course_lib import models, progress
from course_lib.batches import Mask
from course_lib.budget import Budget, WorkClock
from course_lib.loop import train
from course_lib.objectives import CausalLM, MaskedLM, token_loss
from course_lib.precision import Precision
from course_lib.record import Run, invocation, now, provenance

REPEATS, STEPS, ROWS = 5, 40, 16
WAYS = ("all logits", "recomputed chunks", "linear_cross_entropy")
TARGETS, VOCAB, CHUNK = 1024, 32768, 256  # of `large_vocabulary`; CHUNK: targets whose logits exist at once


def main() -> None:
    """Measure, write the record, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # one way of `large_vocabulary`, in a child
    options = parser.parse_args()
    progress.hush_transformers()
    if options.way:
        print(json.dumps(loss_in_this_process(options.way, options.out)))
        return
    result = {
        "threads": torch.get_num_threads(),
        "large_vocabulary": large_vocabulary(),
        "resume": resume(),
        "loop": loops(),
        "masked_head": heads(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    record = {"id": options.out.name, "command": invocation(), "finished": now(), **provenance(), **result}
    (options.out / "run.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def take_turns(contestants: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds of every contestant in every repeat, after one unmeasured round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repeat in range(REPEATS + 1):
        for name, run in contestants.items():
            took = run()
            if repeat:
                seconds[name].append(round(took, 4))
    return seconds


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Median, least and most of the ratio within a repeat."""
    values = [round(a / b, 4) for a, b in zip(above, below, strict=True)]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def fresh(architecture: str, vocab: int) -> Any:
    """The 5-minute default's shape, new weights."""
    torch.manual_seed(0)
    shape = models.SIZES["nano"]
    return models.build(architecture, shape, models.Tokens(vocab, 0, 1, 2))


def adamw(model: Any) -> torch.optim.Optimizer:
    """What every contestant uses."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)


def loops() -> dict[str, Any]:
    """Seconds of STEPS steps by our loop, by a bare one, and by HF Trainer."""
    context = models.SIZES["nano"].context
    rows = torch.randint(4, 2048, (STEPS, ROWS, context + 1), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": r[:, :-1], "labels": r[:, 1:]} for r in rows]
    seconds = take_turns(
        {"ours": lambda: ours(batches), "bare": lambda: bare(batches), "trainer": lambda: trainer(rows)}
    )
    return {
        "seconds": seconds,
        "ours_over_bare": ratio(seconds["ours"], seconds["bare"]),
        "trainer_over_ours": ratio(seconds["trainer"], seconds["ours"]),
    }


def ours(batches: list[dict[str, torch.Tensor]]) -> float:
    """`course_lib.loop.train`."""
    model = fresh("qwen3", 2048)
    optimizer = adamw(model)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    budget, policy = Budget(WorkClock(10**9)), Precision("cpu", torch.float32)
    started = time.perf_counter()
    for _ in train(model, [[b] for b in batches], CausalLM(), [optimizer], lambda _: 1.0, policy, budget):
        pass
    return time.perf_counter() - started


def bare(batches: list[dict[str, torch.Tensor]]) -> float:
    """The shortest correct loop: forward, loss, backward, clip, step."""
    model = fresh("qwen3", 2048)
    optimizer = adamw(model)
    model.train()
    started = time.perf_counter()
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
    return time.perf_counter() - started


def trainer(rows: torch.Tensor) -> float:
    """HF Trainer with everything off that it does not need."""
    import datasets
    from transformers import Trainer, TrainingArguments

    model = fresh("qwen3", 2048)
    flat = rows[..., :-1].flatten(0, 1)
    table = datasets.Dataset.from_dict({"input_ids": flat.tolist(), "labels": flat.tolist()}).with_format("torch")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=STEPS, per_device_train_batch_size=ROWS, learning_rate=1e-3, weight_decay=0.0,
            optim="adamw_torch_fused", report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
            use_cpu=True, lr_scheduler_type="constant",
        )  # fmt: skip
        runner = Trainer(model, arguments, train_dataset=table)
        started = time.perf_counter()
        runner.train()
        return time.perf_counter() - started


def heads() -> dict[str, Any]:
    """Forward and backward of a masked step at vocabulary 8,192: head on 15 % of the tokens, or on all of them."""
    vocab, context = 8192, models.SIZES["nano"].context
    model = fresh("modernbert", vocab)
    mask = Mask(3, vocab, 4, torch.Generator().manual_seed(0), lambda _: 0.15)
    batch = mask(torch.randint(4, vocab, (ROWS, context + 1), generator=torch.Generator().manual_seed(1)), 0.0)
    labels = torch.full_like(batch["input_ids"], -100).scatter(1, batch["positions"], batch["labels"])

    def sparse() -> torch.Tensor:
        return MaskedLM()(model, batch)["mlm"] / batch["labels"].numel()

    def dense() -> torch.Tensor:
        logits = model(input_ids=batch["input_ids"]).logits
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)

    def timed(loss: Callable[[], torch.Tensor]) -> float:
        started = time.perf_counter()
        for _ in range(STEPS // 2):
            loss().backward()
            model.zero_grad(set_to_none=True)
        return time.perf_counter() - started

    difference = abs(sparse().item() - dense().item())
    seconds = take_turns({"sparse": lambda: timed(sparse), "dense": lambda: timed(dense)})
    return {
        "seconds": seconds,
        "dense_over_sparse": ratio(seconds["dense"], seconds["sparse"]),
        "loss_difference": difference,
    }


def large_vocabulary() -> dict[str, Any]:
    """Peak memory above what was there before (MB) and seconds of a loss's forward and backward, three ways."""
    found: dict[str, Any] = {"targets": TARGETS, "vocabulary": VOCAB, "hidden": 256, "chunk": CHUNK}
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            line = [sys.executable, __file__, "--out", folder, "--way", way]
            found[way] = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
            ours, plain = (load_file(Path(folder) / f"{name}.safetensors") for name in (way, WAYS[0]))
            for name in plain:  # relative to the largest entry
                difference = (ours[name] - plain[name]).abs().max() / plain[name].abs().max()
                found[way][f"{name}_difference"] = float(difference)
    return found


def loss_in_this_process(way: str, folder: Path) -> dict[str, Any]:
    """One way of `large_vocabulary`; leaves loss and gradients in `folder` for the comparison."""
    torch.manual_seed(0)
    model: Any = models.build("qwen3", models.Size(256, 1, 4, VOCAB, 128), models.Tokens(VOCAB))
    torch.nn.init.normal_(model.lm_head.weight, std=0.05)
    hidden = torch.randn(TARGETS, 256, requires_grad=True)
    labels = torch.randint(VOCAB, (TARGETS,))
    chunks = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK)
    losses: dict[str, Callable[[int], torch.Tensor]] = {
        "all logits": lambda n: token_loss(model, hidden[:n], labels[:n]),
        "recomputed chunks": lambda n: token_loss(model, hidden[:n], labels[:n], limit=CHUNK * VOCAB),
        "linear_cross_entropy": lambda n: F.linear_cross_entropy(
            hidden[:n], model.lm_head.weight, labels[:n], reduction="sum", options=chunks
        ),
    }
    losses[way](8).backward()  # starts the libraries, and makes the gradients that all ways need
    peaks, seconds = [], []
    for _ in range(REPEATS):
        model.lm_head.weight.grad.zero_()
        hidden.grad = None
        before, started = memory("VmRSS"), time.perf_counter()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        loss = losses[way](TARGETS)
        loss.backward()
        seconds.append(round(time.perf_counter() - started, 4))
        peaks.append(round(memory("VmHWM") - before, 1))
    assert hidden.grad is not None
    tensors = {"loss": loss.detach(), "hidden_gradient": hidden.grad, "weight_gradient": model.lm_head.weight.grad}
    save_file(tensors, folder / f"{way}.safetensors")
    return {"peak_mb": peaks, "seconds": seconds}


def memory(field: str) -> float:
    """A field of this process's memory, MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def resume() -> dict[str, Any]:
    """Peak memory (MB) of a run from its start to its end, and of one that continues from a checkpoint."""
    chosen = {"size": "mini", "context": 128, "step-tokens": 256, "tokens": 2048, "optimizer": "adamw"}
    flags = [f"--{name}={value}" for name, value in chosen.items()]
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=5)) for _ in range(2000)]
    texts = [json.dumps({"text": " ".join(draw.choices(words, k=60))}) for _ in range(100)]
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder) / "whole", Path(folder) / "parts"
        corpus = Path(folder) / "words.jsonl"
        corpus.write_text("\n".join(texts), encoding="utf-8")
        line = [sys.executable, "-m", "course_lib", "pretrain", "--corpus", str(corpus), *flags, "--runs"]
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "COURSE_PROGRESS": "off"}}
        child = subprocess.Popen([*line, str(parts), "--checkpoint-every", "0.1s"], **quiet)  # also prepares the data
        while not list(parts.glob("*/checkpoints/step-*")):
            if child.poll() is not None:
                raise SystemExit("The run ended before its first checkpoint.")
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
        found: dict[str, Any] = {}
        for name, runs in {"start": whole, "resumed": parts}.items():
            subprocess.run([*line, str(runs)], check=True, **quiet)
            run = Run.open(next(runs.iterdir()))
            found[f"{name}_mb"] = round(run.info["peak_memory"] / 2**20, 1)
            found["weights_mb"] = round(run.info["plan"]["memory"]["weights"] / 2**20, 1)
    return {"flags": flags, **found}


if __name__ == "__main__":
    main()
