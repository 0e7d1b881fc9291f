"""Fine-tune the two-hour decoder in every parameter-efficient way on two tasks; write a record of all runs.

    python -m tools.ablate_peft --out runs/ablate-peft [--single | --tables]

Every run is a `course_lib finetune` of one seed. Learning rates come first: four trials a method and task, judged on
dev. Then LoRA against full fine-tuning with five seeds, then all methods and ranks, and few labels. Stopped, the same
command goes on, and a second one on another core, or beside it on the same GPU, takes its share. Epochs are counted,
not seconds, so runs of several devices may stand in one record; each says where it ran.
"""

import tempfile
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from course_lib import evaluate, finetune, metrics, models, progress
from course_lib.config import Tuning
from course_lib.data import labelled
from course_lib.data.pack import Packed
from course_lib.heads import base as heads
from course_lib.peft import adapters, base, files
from course_lib.precision import Precision
from course_lib.record import Run
from tools.trials import ROOT, Trials, record_parser, spread

MODEL = "runs/decoder-2h"
COMPARED = ("full", "lora")
SMALL = "lora:rank=6,targets=all"  # 1.9 % of the decoder's weights, 2.9 % of its classifier's
# arm: (method, what does not learn)
ARMS: dict[str, tuple[str, str]] = {
    "full": ("", "none"),
    "head": ("", "body"),
    "lora": (SMALL, "none"),
    "adalora": ("adalora:rank=6,target=4,targets=all", "none"),
    "adapter": ("adapter:width=16", "none"),
    "prefix": ("prefix:length=16", "none"),
    "prompt": ("prompt:length=16", "none"),
    "bitfit": ("bitfit", "none"),
}
RATES = {
    "full": (3e-4, 1e-3, 3e-3, 1e-2), "head": (3e-3, 1e-2, 3e-2, 1e-1), "lora": (1e-3, 3e-3, 1e-2, 3e-2),
    "adalora": (3e-3, 1e-2, 3e-2, 1e-1), "adapter": (1e-3, 3e-3, 1e-2, 3e-2), "prefix": (3e-3, 1e-2, 3e-2, 1e-1),
    "prompt": (1e-2, 3e-2, 1e-1, 3e-1), "bitfit": (3e-3, 1e-2, 3e-2, 1e-1),
}  # fmt: skip
SIZES = {
    "lora": ["lora:rank=1,targets=all", "lora:rank=3,targets=all", "lora:rank=16,targets=all", "lora:rank=8"],
    "adapter": ["adapter:width=4"],
    "prefix": ["prefix:length=64"],
}
TASKS = {"rotten_tomatoes": 0, "wiki_topics": 48}  # tokens of a text that are read, 0: all
ALL = {"rotten_tomatoes": 6946, "wiki_topics": 3000}  # texts of the comparison with five seeds
SEEDS = 5
MANY, FEW, FEW_ARMS = 2000, {100: 20.0, 500: 8.0}, ("full", "lora", "bitfit", "head")  # texts: epochs
RANKS = (0, 1, 2, 4, 8, 16, 32, 160)

Asked = dict[str, Any]


def main() -> None:
    """Run what is missing, most important first."""
    parser = record_parser(__doc__)
    parser.add_argument("--tables", action="store_true", help="run nothing: write the tables of what is there")
    options = parser.parse_args()
    progress.hush_transformers()
    about = {"model": MODEL, "rates": RATES, "all_texts": ALL, "max_length": TASKS}
    trials = Trials(options.out, "ablation", options.single, "auto", **about)
    for asked in [] if options.tables else plan(trials):
        run(trials, asked)
    rows = summary(trials.record["runs"])
    trials.store(summary=rows)
    for row in rows:
        print("{task} {texts:>5} {arm:<8} {method:<36} {mean:.3f} ({least:.3f} to {most:.3f})".format(**row))


def plan(trials: Trials) -> Iterator[Asked]:
    """All runs, most important first; what needs a rate whose trials are not all done is left for the next time."""
    for task in TASKS:
        yield from tried(task, COMPARED)
        yield from repeated(trials, compared(task), range(SEEDS))
    for task in TASKS:
        yield from tried(task, tuple(arm for arm in ARMS if arm not in COMPARED))
    for seed in range(SEEDS):
        for task in TASKS:
            yield from repeated(trials, grid(task), [seed])


def tried(task: str, arms: tuple[str, ...]) -> Iterator[Asked]:
    """The trials of a learning rate: seed 0, `MANY` texts, a method's first size."""
    for arm in arms:
        yield from (cell(task, arm, ARMS[arm][0], MANY) | {"lr": rate, "seed": 0} for rate in RATES[arm])


def repeated(trials: Trials, cells: list[Asked], seeds: Iterable[int]) -> Iterator[Asked]:
    """Cells at their best rates, looked up when each one's turn comes."""
    for seed in seeds:
        for wanted in cells:
            if rate := best(trials.record["runs"], wanted):
                yield wanted | {"lr": rate, "seed": seed}


def compared(task: str) -> list[Asked]:
    """The claim's cells: all texts."""
    return [cell(task, arm, ARMS[arm][0], ALL[task]) for arm in COMPARED]


def grid(task: str) -> list[Asked]:
    """All methods and sizes, then few labels."""
    many = [cell(task, arm, method, MANY) for arm in ARMS for method in (ARMS[arm][0], *SIZES.get(arm, []))]
    few = FEW.items()
    return many + [cell(task, arm, ARMS[arm][0], texts, epochs) for texts, epochs in few for arm in FEW_ARMS]


def cell(task: str, arm: str, method: str, texts: int, epochs: float = 3.0) -> Asked:
    """What the runs of all seeds share, as it stands in the record."""
    return {"task": task, "arm": arm, "method": method, "texts": texts, "epochs": epochs}


def best(runs: list[Asked], wanted: Asked) -> float | None:
    """The rate with the best accuracy on dev among the trials of the cell's arm; None until all are there."""
    arm = wanted["arm"]
    first = cell(wanted["task"], arm, ARMS[arm][0], MANY) | {"seed": 0}
    found = [run for run in runs if first.items() <= run.items() and run["lr"] in RATES[arm]]
    return max(found, key=lambda run: run["dev"])["lr"] if len(found) == len(RATES[arm]) else None


def summary(runs: list[Asked]) -> list[dict[str, Any]]:
    """Test accuracy of every cell over its seeds, and its paired difference from training everything with its texts.

    `weights`: how many are stored, the new output layer's included. A cell without all its seeds is left out.
    """
    rows, hits = [], {}
    for wanted in (each for task in TASKS for each in (*compared(task), *grid(task))):
        at_best = wanted | {"lr": best(runs, wanted)}
        found = sorted((run for run in runs if at_best.items() <= run.items()), key=lambda run: run["seed"])
        if len(found) < SEEDS:
            continue
        key = (wanted["task"], wanted["texts"], wanted["arm"], wanted["method"])
        hits[key] = np.array([[float(hit) for hit in run["correct"]] for run in found])  # (seeds, texts)
        weights = found[0].get("trained") or counted(wanted["task"], wanted["arm"])
        row = wanted | {"lr": found[0]["lr"], "weights": weights} | spread([run["test"] for run in found])
        whole = hits.get((*key[:2], "full", ""))
        if wanted["arm"] != "full" and whole is not None:
            row["against_full"] = metrics.compare(hits[key], whole).describe()
        rows.append(row)
    return rows


@cache
def counted(task: str, arm: str) -> int:
    """Weights that are stored without a method: the classifier's, or its output layer's alone."""
    config = AutoConfig.from_pretrained(ROOT / MODEL / "model", num_labels=len(labelled.load(task).classes))
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    frozen = models.count_parameters(model.base_model) if arm == "head" else 0
    return models.count_parameters(model) - frozen


def run(trials: Trials, asked: Asked) -> None:
    """One fine-tuning as a process; its weights are looked at and go."""
    with tempfile.TemporaryDirectory() as runs:
        folder = Path(runs) / "run"
        trials.run(asked, command(asked, runs), partial(observe, asked, folder), folder)


def command(asked: Asked, runs: str) -> list[str]:
    """`python …` of a run."""
    options = {
        "task": asked["task"], "model": ROOT / MODEL, "method": asked["method"], "freeze": ARMS[asked["arm"]][1],
        "labels": asked["texts"], "lr": asked["lr"], "seed": asked["seed"], "epochs": asked["epochs"],
        "max-length": TASKS[asked["task"]], "runs": runs, "run-id": "run",
    }  # fmt: skip
    return ["-m", "course_lib", "finetune", "--json", *(f"--{name}={value}" for name, value in options.items())]


def observe(asked: Asked, folder: Path, printed: str) -> dict[str, Any]:
    """The row of a finished run: scores, a 1 for each test text that is right, and what its weights say."""
    done = Run.open(folder)
    found: dict[str, Any] = {
        "dev": done.info["result"]["dev_accuracy"], "test": done.info["result"]["accuracy"],
        "test_hash": done.info["task"]["test_hash"], "device": done.info["device"]["name"],
        "correct": "".join(str(int(hit)) for hit in finetune.correct(done)[0]),
    }  # fmt: skip
    weights = folder / "model" / files.WEIGHTS
    if asked["method"]:
        stored = load_file(weights)
        found |= {"trained": sum(t.numel() for t in stored.values()), "bytes": weights.stat().st_size}
    if asked["arm"] == "adalora":
        found["ranks"] = {n.removeprefix(files.PREFIX)[:-2]: len(t) for n, t in stored.items() if n.endswith(".E")}
    if asked["arm"] == "full" and asked["texts"] == ALL[asked["task"]] and asked["seed"] == 0:
        found["change"] = change(folder / "model", asked)
    if asked["texts"] == ALL[asked["task"]] and asked["seed"] == 0:
        found["bits_per_byte"] = forgotten(folder / "model", bool(asked["method"]))
    return found


def forgotten(folder: Path, adapter: bool) -> dict[str, float]:
    """Bits per byte of film reviews by the base's output layer: on the base, and on the body that has learnt a task."""
    tokenizer, reviews = finetune.load_tokenizer(folder), labelled.load("rotten_tomatoes").test.texts
    stream = np.array([token for text in reviews for token in tokenizer(text).input_ids])
    held_out = Packed(stream, len(reviews), sum(len(text.encode()) for text in reviews))
    causal = AutoModelForCausalLM.from_pretrained(ROOT / MODEL / "model", dtype=torch.float32)
    score = lambda: round(
        evaluate.bits_per_byte(causal, held_out, 128, Precision("cpu", torch.float32), tokenizer.bos_token_id), 4
    )
    found = {"base": score()}
    if adapter:
        tuned = files.restore(folder, AutoModelForSequenceClassification)
        causal.model = tuned.model
        with adapters.bare(tuned):
            found["off"] = score()
    else:
        causal.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).model
    return found | {"tuned": score()}


@torch.no_grad()
def change(folder: Path, asked: Asked) -> dict[str, Any]:
    """How much of ΔW, and of the accuracy, is left when every ΔW is cut to its largest singular values.

    `energy`: share of ‖ΔW‖² by matrix and rank; `test`: accuracy by rank.
    """
    tuning = Tuning(task=asked["task"], model=MODEL, max_length=TASKS[asked["task"]])
    task, tokenizer = labelled.load(asked["task"]), finetune.load_tokenizer(folder)
    before = AutoModelForSequenceClassification.from_pretrained(ROOT / MODEL / "model", dtype=torch.float32)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    parts = {}
    for name, module in base.inner(model).items():
        start: Any = before.get_submodule(name).weight
        parts[name] = (module, start, torch.linalg.svd(module.weight - start, full_matrices=False))
    rows = finetune.encode(model, tokenizer, task.test, tuning)
    energy: dict[str, list[float]] = {}
    for name, (_, _, (_, s, _)) in parts.items():
        energy[name] = [round(float((s[:r] ** 2).sum() / (s**2).sum()), 4) for r in RANKS]
    accuracy = []
    for rank in RANKS:
        for module, start, (u, s, v) in parts.values():
            weights: Any = module.weight
            weights.copy_(start + u[:, :rank] * s[:rank] @ v[:rank])
        logits = heads.run(model, rows, tokenizer.pad_token_id, Precision("cpu", torch.float32))
        right = np.stack(logits).argmax(-1) == np.array(task.test.labels)
        accuracy.append(round(float(right.mean()), 4))
    return {"ranks": list(RANKS), "energy": energy, "test": accuracy}


if __name__ == "__main__":
    main()
