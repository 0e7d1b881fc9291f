"""Measure the data path against `datasets.map` and the HF collator on the same text, and write a record.

    python tools/bench_data.py --out runs/bench-data            ratios, five repeats, one and two threads
    python tools/bench_data.py --out runs/bench-data --stream 2  peak memory while preparing a 2 GB file

Each repeat measures every contestant in turn, so that a busy machine slows all of them alike.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

REPEATS, CONTEXT, ROWS = 5, 128, 16


def main() -> None:
    """Run one of the two measurements and merge it into the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stream", type=float, default=0, help="size of the synthetic file, GB")
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        print(json.dumps(compare()))
        return
    result = {"stream": stream(options.stream)} if options.stream else {"speed": speeds()}
    from course_lib.record import invocation, now, provenance

    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "run.json"
    record = json.loads(path.read_text()) if path.exists() else {"id": options.out.name}
    record.setdefault("commands", {})[next(iter(result))] = invocation()
    record |= {"finished": now(), **provenance(), **result}
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def speeds() -> dict[str, Any]:
    """`compare` in fresh processes with one and with two threads: thread pools cannot be resized in one."""
    found = {}
    for threads in (1, 2):
        command = [sys.executable, __file__, "--out", "unused", "--threads", str(threads)]
        environment = {**os.environ, "RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found[f"threads_{threads}"] = json.loads(done.stdout.splitlines()[-1])
    return found


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare() -> dict[str, Any]:
    """Seconds per part and contestant over REPEATS rounds, as rates and ratios with their spread."""
    import datasets

    from course_lib import tokenizer
    from course_lib.data import library
    from course_lib.data.pack import Packed

    datasets.disable_progress_bars()
    texts = library.load("movie_reviews", "train")["text"][:15_000]
    megabytes = sum(len(t.encode()) for t in texts) / 1e6
    made = tokenizer.train("byte-bpe", texts[:4000], 2048, CONTEXT)
    ids = tokenizer.encode(made, texts)
    tokens = sum(map(len, ids))
    seconds: dict[str, list[float]] = {
        name: [] for name in ("encode", "map", "pack", "group", "load", "collate", "step")
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.bin"
        batches = [ids[i : i + 500] for i in range(0, len(ids), 500)]
        Packed.write(path, iter(batches), 2048, 1, {})
        theirs = Theirs(texts, made, folder)
        step = training_step(path)
        for _ in range(REPEATS):
            seconds["encode"].append(timed(lambda: encode_all(made, texts)))
            seconds["map"].append(timed(theirs.tokenize))
            seconds["pack"].append(timed(lambda: Packed.write(path, iter(batches), 2048, 1, {})))
            seconds["group"].append(timed(theirs.group))
            seconds["load"].append(timed(lambda: load(path)))
            seconds["collate"].append(timed(theirs.collate))
            seconds["step"].append(step())
    return summary(seconds, megabytes, tokens)


def summary(seconds: dict[str, list[float]], megabytes: float, tokens: int) -> dict[str, Any]:
    """Rates of ours and ratios to theirs: median, least and most over the rounds."""

    def spread(values: Iterator[float]) -> dict[str, float]:
        listed = [round(value, 4) for value in values]
        return {"median": statistics.median(listed), "min": min(listed), "max": max(listed)}

    def pairs(ours: str, other: str) -> Iterator[float]:
        return (b / a for a, b in zip(seconds[ours], seconds[other], strict=True))

    return {
        "tokenize_mb_per_s": spread(megabytes / s for s in seconds["encode"]),
        "tokenize_times_datasets_map": spread(pairs("encode", "map")),
        "pack_m_tokens_per_s": spread(tokens / s / 1e6 for s in seconds["pack"]),
        "pack_times_group_texts": spread(pairs("pack", "group")),
        "load_m_tokens_per_s": spread(LOADED * ROWS * CONTEXT / s / 1e6 for s in seconds["load"]),
        "load_times_hf_collator": spread(pairs("load", "collate")),
        "loader_share_of_a_step": spread(a / LOADED / b for a, b in zip(seconds["load"], seconds["step"], strict=True)),
        "repeats": REPEATS,
        "megabytes": round(megabytes, 2),
        "tokens": tokens,
    }


LOADED = 300  # steps that the loaders hand out in one round


def encode_all(made: Any, texts: list[str]) -> None:
    """Ours: batches of 500 documents through the Rust encoder."""
    from course_lib import tokenizer

    # The encoder's threads are switched off once a process has forked, as `datasets.map` does with several processes.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    for start in range(0, len(texts), 500):
        tokenizer.encode(made, texts[start : start + 500])
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def load(path: Path) -> None:
    """Ours: LOADED steps from a memory map."""
    from course_lib.data.pack import Loader, Packed

    steps = Loader(Packed.open(path), CONTEXT, ROWS, 0)
    for _ in zip(range(LOADED), steps, strict=False):
        pass


def training_step(path: Path) -> Callable[[], float]:
    """Seconds of a step of the 5-minute default model (median of ten), batches made beforehand."""
    import torch

    from course_lib import models, optim
    from course_lib.batches import next_tokens
    from course_lib.budget import Budget, WorkClock
    from course_lib.data.pack import Loader, Packed
    from course_lib.loop import train
    from course_lib.objectives import CausalLM
    from course_lib.precision import Precision

    model = models.build("qwen3", models.SIZES["nano"], models.Tokens(2048))
    optimizers = optim.build(model, "muon", 0.02, 0.01)
    batches = [
        [next_tokens(rows, 0.0)]
        for rows, _ in zip(Loader(Packed.open(path), CONTEXT, ROWS, 0), range(10), strict=False)
    ]

    def measure() -> float:
        stamps = [time.perf_counter()]
        policy, budget = Precision("cpu", torch.float32), Budget(WorkClock(10**9))
        for _ in train(model, batches, CausalLM(), optimizers, lambda progress: 1.0, policy, budget):
            stamps.append(time.perf_counter())
        return statistics.median(b - a for a, b in pairwise(stamps))

    return measure


class Theirs:
    """The usual way: `datasets.map` with the fast tokenizer, `group_texts`, DataLoader and the HF collator."""

    def __init__(self, texts: list[str], made: Any, folder: str):
        import datasets

        self.table = datasets.Dataset.from_dict({"text": texts})
        self.made, self.processes = made, int(os.environ["RAYON_NUM_THREADS"])
        self.made.model_max_length = 10**9  # no warning about long texts
        self.tokenize()
        self.group()

    def tokenize(self) -> None:
        """Batched map, as many processes as we get threads."""
        datasets_map = {"batched": True, "remove_columns": ["text"], "load_from_cache_file": False}
        workers = self.processes if self.processes > 1 else None
        self.encoded = self.table.map(lambda b: self.made(b["text"]), num_proc=workers, **datasets_map)

    def group(self) -> None:
        """The grouping of transformers' run_clm example."""

        def together(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
            joined = {key: list(chain.from_iterable(values)) for key, values in batch.items()}
            total = len(joined["input_ids"]) // CONTEXT * CONTEXT
            return {k: [v[i : i + CONTEXT] for i in range(0, total, CONTEXT)] for k, v in joined.items()}

        workers = self.processes if self.processes > 1 else None
        self.grouped = self.encoded.map(together, batched=True, load_from_cache_file=False, num_proc=workers)

    def collate(self) -> None:
        """LOADED batches from a shuffled DataLoader."""
        from torch.utils.data import DataLoader
        from transformers import DataCollatorForLanguageModeling

        collator = DataCollatorForLanguageModeling(self.made, mlm=False)
        for _ in zip(range(LOADED), DataLoader(self.grouped, ROWS, shuffle=True, collate_fn=collator), strict=False):
            pass


def stream(gigabytes: float) -> dict[str, Any]:
    """Peak resident memory while preparing text files of a tenth of `gigabytes` and of all of it."""
    found: dict[str, Any] = {}
    for share in (0.1, 1.0):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "synthetic.txt"
            size = synthetic(path, int(gigabytes * share * 1e9))
            command = [sys.executable, "-c", PREPARE, str(path)]
            started = time.monotonic()
            done = subprocess.run(
                command, env={**os.environ, "COURSE_CACHE": folder}, capture_output=True, text=True, check=True
            )
            row = json.loads(done.stdout.splitlines()[-1])
            found[f"{size / 1e9:.2f}_gb"] = row | {"seconds": round(time.monotonic() - started, 1)}
    return found


PREPARE = """
import json, resource, sys
from course_lib.data import corpora, prepare
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
data = prepare.prepare(corpora.load(sys.argv[1]), 2048, 128, 10**12, lambda message: None)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"imports_mb": round(before), "peak_mb": round(after), "tokens": len(data.train.tokens)}))
"""


def synthetic(path: Path, size: int) -> int:
    """Sentences of random words, written a block at a time; returns bytes."""
    import numpy as np

    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = np.array(["".join(draw.choice(letters, draw.integers(2, 9))) for _ in range(20_000)])
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            lengths = draw.integers(5, 25, 2_000)
            chosen = iter(draw.choice(words, int(lengths.sum())))
            written += file.write("\n\n".join(" ".join(next(chosen) for _ in range(n)) + "." for n in lengths) + "\n\n")
    return written


if __name__ == "__main__":
    main()
