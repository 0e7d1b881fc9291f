"""Fine-tuning for named entities: our step against HF `Trainer`, with and without batches of similar length.

    python -m tools.bench_ner --out runs/bench-ner --model runs/encoder-zh-1h

All four train the same weights on the same sentences for one epoch, float32, fused AdamW, batches padded to their
longest row. They take turns; the ratio is between runs of one repeat. `bucketed`: rows of similar length share a
batch (ours sorts pools of 50 steps, the Trainer's `group_by_length` does the same); `shuffled`: any rows do. What
counts is tokens that are no padding per second.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorForTokenClassification, Trainer, TrainingArguments

from course_lib import device, examples, finetune, progress
from course_lib.budget import Budget, WorkClock
from course_lib.config import Tuning
from course_lib.data import labelled, pretrained
from course_lib.heads import registry
from course_lib.loop import train
from course_lib.objectives import Batch, Classification
from course_lib.precision import Precision
from course_lib.record import invocation, now, provenance

REPEATS, SENTENCES, ROWS, LR = 3, 960, 32, 1e-3
CONTESTANTS = ("ours bucketed", "trainer bucketed", "ours shuffled", "trainer shuffled")


def main() -> None:
    """Measure, write the record, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", required=True, help="the pretrained run, or any folder with a model")
    parser.add_argument("--task", default="peoples_daily")
    parser.add_argument("--sentences", type=int, default=SENTENCES)
    options = parser.parse_args()
    progress.hush_transformers()
    result = measure(options.model, options.task, options.sentences)
    options.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"id": options.out.name, "kind": "bench", "command": invocation()}
    record |= {"finished": now(), **provenance(), "device": device.pick("cpu").describe(), **result}
    (options.out / "run.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def measure(model: str, task: str, sentences: int, repeats: int = REPEATS) -> dict[str, Any]:
    """Seconds and padding of each contestant, and how many times as long the Trainer takes; one unmeasured round."""
    tuning, folder = Tuning(task=task, head="ner", labels=sentences, device="cpu"), pretrained.locate(model)
    found = registry.get("ner").task(tuning)
    tokenizer = finetune.load_tokenizer(folder)
    rows = finetune.encode(finetune.new_model(folder, found.classes, tuning), tokenizer, found.train, tuning)
    tokens = sum(map(len, rows.ids))
    seconds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    padding: dict[str, float] = {}
    for repeat in range(repeats + 1):
        for name in CONTESTANTS:
            side, how = name.split()
            run = ours if side == "ours" else theirs
            took, width = run(network(folder, found, tuning), rows, tokenizer, how == "bucketed")
            padding[name] = round(1 - tokens / width, 4)
            if repeat:
                seconds[name].append(round(took, 3))
    about = {"rows": len(rows.ids), "tokens": tokens, "step_rows": ROWS, "threads": torch.get_num_threads()}
    over = lambda how: ratio(seconds[f"trainer {how}"], seconds[f"ours {how}"])
    rates = {name: round(tokens / statistics.median(took), 1) for name, took in seconds.items()}
    ratios = {how: over(how) for how in ("bucketed", "shuffled")}
    return about | {"seconds": seconds, "padding": padding, "tokens_per_second": rates, "trainer_over_ours": ratios}


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Median, least and most of the ratio within a repeat."""
    values = [round(a / b, 4) for a, b in zip(above, below, strict=True)]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def network(folder: Path, task: labelled.Task, tuning: Tuning) -> Any:
    """The same weights for everyone."""
    torch.manual_seed(0)
    return finetune.new_model(folder, task.classes, tuning)


def ours(model: Any, rows: examples.Rows, tokenizer: Any, bucketed: bool) -> tuple[float, int]:
    """One epoch of `loop.train` over `Examples`: seconds, and tokens with their padding."""
    loader = examples.Examples(rows, ROWS, tokenizer.pad_token_id, seed=0)
    if not bucketed:
        order = torch.randperm(len(rows.ids), generator=torch.Generator().manual_seed(0)).tolist()
        loader._steps = lambda: [order[at : at + ROWS] for at in range(0, len(order), ROWS)]  # type: ignore[method-assign]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    width = 0

    def epoch() -> Iterator[list[Batch]]:
        nonlocal width
        for _, batch in zip(range(loader.steps_per_epoch), loader, strict=False):
            width += batch["input_ids"].numel()
            yield [batch]

    objective = Classification()
    budget, policy = Budget(WorkClock(10**9)), Precision("cpu", torch.float32)
    started = time.perf_counter()
    for _ in train(model, epoch(), objective, [optimizer], lambda _: 1.0, policy, budget):
        pass
    return time.perf_counter() - started, width


def theirs(model: Any, rows: examples.Rows, tokenizer: Any, bucketed: bool) -> tuple[float, int]:
    """One epoch of `Trainer` with everything off that it does not need."""
    import datasets

    table = datasets.Dataset.from_dict({"input_ids": rows.ids, "labels": rows.labels})
    stock = DataCollatorForTokenClassification(tokenizer)
    width = 0

    def collate(found: list[dict[str, Any]]) -> dict[str, Any]:
        nonlocal width
        batch: dict[str, Any] = stock(found)
        width += batch["input_ids"].numel()
        return batch

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=1, per_device_train_batch_size=ROWS, learning_rate=LR, weight_decay=0.0,
            optim="adamw_torch_fused", lr_scheduler_type="constant", report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, use_cpu=True,
            train_sampling_strategy="group_by_length" if bucketed else "random",
        )  # fmt: skip
        runner = Trainer(model, arguments, train_dataset=table, data_collator=collate)
        started = time.perf_counter()
        runner.train()
        return time.perf_counter() - started, width


if __name__ == "__main__":
    main()
