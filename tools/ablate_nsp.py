"""Is BERT's second task worth its place? Pretrain with and without it on equally many tokens, then probe both.

    python tools/ablate_nsp.py --out runs/ablate-nsp [--arm rows --seed 0]

Three arms: `pairs+nsp` (two segments a row, both terms), `pairs` (the same rows and masks, the second term switched
off), `rows` (whole rows, masked only: what one would do without the task). Each model is judged by a linear probe, a
logistic regression on its mean hidden state, on Rotten Tomatoes; `untrained` is the same network before its first step.
What is in the record already is not run again, so that an arm and a seed at a time can be measured.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from course_lib import baselines, device, loop, objectives, progress, recipes, schedule, training
from course_lib.batches import split
from course_lib.budget import Budget, WorkClock
from course_lib.config import Config
from course_lib.data import corpora, labelled, prepare
from course_lib.heads import base
from course_lib.metrics import compare
from course_lib.pretrain import resolve
from course_lib.record import invocation, now, provenance

TOKENS = 600_000
SEEDS = 5
CHOICE: dict[str, Any] = {
    "architecture": "bert", "size": "pico", "tokens": TOKENS, "step_tokens": 1024, "lr": 0.005,
    "embeddings": "cooccurrence",
}  # fmt: skip
STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # inverse regularization of the probe, chosen on dev


class PairsWithoutNSP(objectives.MaskedLMWithNSP):
    """The same forward and the same counts; the second term does not reach the gradient."""

    weights: ClassVar[dict[str, float]] = {"mlm": 1.0, "nsp": 0.0}


ARMS: dict[str, tuple[str, objectives.Objective | None]] = {
    "pairs+nsp": ("mlm+nsp", None),
    "pairs": ("mlm+nsp", PairsWithoutNSP()),
    "rows": ("mlm", None),
    "untrained": ("mlm", None),
}


def main() -> None:
    """Measure what is asked for and missing, and rewrite the record after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arm", choices=list(ARMS), help="only this one")
    parser.add_argument("--seed", type=int, help="only this one")
    options = parser.parse_args()
    progress.hush_transformers()
    path = options.out / "run.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    done = {(row["arm"], row["seed"]) for row in rows}
    task = labelled.load("rotten_tomatoes")
    for arm in [options.arm] if options.arm else ARMS:
        for seed in range(SEEDS) if options.seed is None else [options.seed]:
            if (arm, seed) not in done:
                rows.append(measure(arm, seed, task))
                print({key: value for key, value in rows[-1].items() if key != "correct"}, flush=True)
                write(path, rows, task)


def measure(arm: str, seed: int, task: labelled.Task) -> dict[str, Any]:
    """Pretrain one model and probe it: a row of the record; `correct` has a 1 for each test text that is right."""
    started = time.monotonic()
    objective, replaced = ARMS[arm]
    settings = resolve(Config(objective=objective, seed=seed, **CHOICE), device.pick("cpu"))
    data = prepare.prepare(corpora.load(settings.corpus), settings.vocab_size, settings.context, TOKENS * 8, print)
    state = training.build(settings, data, device.pick("cpu"))
    state.objective = replaced or state.objective
    row: dict[str, Any] = {"arm": arm, "seed": seed}
    if arm != "untrained":
        train(state, settings, data)
        row |= {"held_out": training.score(state, settings, data)}
    if objective == "mlm+nsp":
        row["nsp_percent"] = round(100 * nsp_accuracy(state, settings, data), 2)
    correct = probe(state.model, data.tokenizer, task)
    row |= {"percent": round(100 * float(correct.mean()), 2), "correct": "".join(map(str, correct))}
    return row | {"seconds": round(time.monotonic() - started, 1)}


def train(state: training.Training, settings: Config, data: prepare.Prepared) -> None:
    """The course's loop, to the end of the token budget."""
    state.budget = Budget(WorkClock(settings.tokens))
    batches = training.steps(state, settings, data.tokenizer, training.step_rows(settings))
    shape = schedule.build(settings.schedule, settings.warmup, settings.cooldown)
    for _ in loop.train(state.model, batches, state.objective, state.optimizers, shape, state.precision, state.budget):
        state.step += 1


@torch.no_grad()
def nsp_accuracy(state: training.Training, settings: Config, data: prepare.Prepared) -> float:
    """Share of held-out pairs of which the model says rightly whether the second segment follows."""
    rows = torch.stack([data.valid.row(i, settings.context) for i in range(data.valid.rows(settings.context))])
    (fixed,) = recipes.evaluation_transforms(recipes.get("mlm+nsp"), data.tokenizer)
    batch = fixed(rows, 1.0)
    right = 0
    for part in split(batch, 64):
        body = state.model.base_model(input_ids=part["input_ids"], token_type_ids=part["token_type_ids"])
        says_next = state.model.cls.seq_relationship(body.pooler_output).argmax(-1) == 0
        right += int((says_next == part["is_next"]).sum())
    return right / len(rows)


def probe(model: Any, tokenizer: Any, task: labelled.Task) -> np.ndarray:
    """1 for each test text that a logistic regression on the mean hidden state gets right, (texts,) int."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train, dev, test = (features(model, tokenizer, side) for side in (task.train, task.dev, task.test))
    scaler = StandardScaler().fit(train)
    fitted = [LogisticRegression(C=c, max_iter=2000).fit(scaler.transform(train), task.train.labels) for c in STRENGTHS]
    best = max(fitted, key=lambda found: found.score(scaler.transform(dev), task.dev.labels))
    found: np.ndarray = (best.predict(scaler.transform(test)) == task.test.labels).astype(int)
    return found


@torch.no_grad()
def features(model: Any, tokenizer: Any, side: labelled.Labelled, batch_rows: int = 128) -> np.ndarray:
    """The mean over tokens of the last hidden state, (texts, hidden)."""
    model.eval()
    rows = base.encode(tokenizer, side.texts, tokenizer.model_max_length)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = np.empty((len(rows), model.config.hidden_size))
    for at in range(0, len(order), batch_rows):
        chosen = order[at : at + batch_rows]
        ids = [torch.tensor(rows[i]) for i in chosen]
        seen = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)[..., None]  # (rows, longest, 1)
        inputs = pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
        hidden = model.base_model(input_ids=inputs, attention_mask=seen[..., 0]).last_hidden_state
        found[chosen] = ((hidden * seen).sum(1) / seen.sum(1)).numpy()
    return found


def write(path: Path, rows: list[dict[str, Any]], task: labelled.Task) -> None:
    """The record: every row, the means, and the verdicts on the complete arms."""
    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in ARMS}
    correct = {arm: np.array([[int(c) for c in row["correct"]] for row in found]) for arm, found in by_arm.items()}
    summary = {
        arm: {"seeds": len(found), "mean": round(statistics.mean(row["percent"] for row in found), 2)}
        for arm, found in by_arm.items()
        if found
    }
    verdicts = {
        f"pairs+nsp against {other}": compare(correct["pairs+nsp"], correct[other]).describe()
        for other in ("pairs", "rows", "untrained")
        if len(correct["pairs+nsp"]) and len(correct[other])
    }
    tfidf = float((baselines.tfidf(task).argmax(1) == task.test.labels).mean())
    about: dict[str, Any] = {
        "id": path.parent.name,
        "kind": "ablation",
        "command": invocation(),
    }
    about |= {"finished": now(), **provenance(), "choice": CHOICE, "test_texts": len(task.test)}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = about | {"tfidf_percent": round(100 * tfidf, 2), "summary": summary, "verdicts": verdicts, "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
