"""Fine-tune the two-hour decoder on few labels with every cure against overfitting; write a record of all runs.

    python -m tools.ablate_generalization --out runs/ablate-generalization

Every cure gets three learning rates, judged on dev with seed 0, then five seeds with the best of them; all take nearly
the same number of optimizer steps. Some are attacked afterwards. Stopped, the same command goes on, and a second one
on another core takes its share.
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForSequenceClassification

from course_lib import device, finetune, progress
from course_lib.config import Tuning
from course_lib.data import labelled
from course_lib.heads import base as heads
from course_lib.precision import Precision
from course_lib.record import Run
from course_lib.robust import attack, augment, thesaurus
from tools.trials import ROOT, Trials, record_parser

MODEL, TASK, LABELS = "runs/decoder-2h", "rotten_tomatoes", 200
BASE: dict[str, Any] = {"labels": LABELS, "epochs": 10.0, "step_rows": 16, "keep": "last"}
ENCODER, ENCODER_TOKENS = "encoder", 1_500_000  # a short masked model, pretrained once
SENTENCES = ["a warm and funny film about a family in the north .", "two long hours of noise and no idea at all ."]
FIVE_COPIES = {"epochs": 2.0}  # 126 steps; ten epochs of the texts alone are 130
ARMS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "eda": {"augment": "eda:copies=4", **FIVE_COPIES},
    "dropout": {"regularize": "dropout:rate=0.1"},
    "rdrop": {"regularize": "dropout:rate=0.1+rdrop:alpha=1"},
    "fgm": {"regularize": "fgm"},
    "smoothing": {"smoothing": 0.1},
    "average": {"keep": "average"},
    "lora": {"method": "lora:rank=4,targets=all"},
    "all": {
        "augment": "eda:copies=4", **FIVE_COPIES, "regularize": "dropout:rate=0.1+rdrop:alpha=1+fgm",
        "weight_decay": 1.0, "smoothing": 0.1, "keep": "average",
    },
    "pgd": {"regularize": "pgd"},
    "stopping": {"evaluate_every": 0.1, "patience": 3, "metric": "log_loss", "keep": "best"},
    "decay": {"weight_decay": 1.0},
    "synonym": {"augment": "synonym:copies=4", **FIVE_COPIES},
    "masked": {"augment": f"masked:copies=4,model={ENCODER}", **FIVE_COPIES},
    "head": {"freeze": "body"},
    "constant": {"schedule": "constant"},
    "cosine": {"schedule": "cosine"},
    "cold": {"warmup": 0.0},
}  # fmt: skip
RATES = {"lora": (1e-3, 3e-3, 1e-2), "head": (3e-3, 1e-2, 3e-2)}
USUAL_RATES = (3e-4, 1e-3, 3e-3)
SEEDS = {"baseline": 15}  # enough for five ensembles of three
USUAL_SEEDS, TOGETHER = 5, 4  # seeds; of them in one process
KEPT = ("baseline", "all")  # whose outputs are stored, for ensembles and calibration
ATTACKED, ATTACKED_TEXTS, CHANGED_WORDS = ("baseline", "fgm", "pgd", "all"), 100, 3

Asked = dict[str, Any]


def main() -> None:
    """Run what is missing, most important first."""
    parser = record_parser(__doc__)
    options = parser.parse_args()
    progress.hush_transformers()
    about: dict[str, Any] = {"model": MODEL, "task": TASK, "base": BASE, "arms": ARMS, "rates": RATES}
    about |= {"usual_rates": USUAL_RATES, "attacked_texts": ATTACKED_TEXTS, "changed_words": CHANGED_WORDS}
    trials = Trials(options.out, "ablation", options.single, **about)
    encoder = (options.out / f".{ENCODER}").resolve()
    for asked in plan(trials):
        run(trials, asked, encoder)


def plan(trials: Trials) -> Iterator[Asked]:
    """All runs, most important first: of every arm the rates, then the seeds at the best of them."""
    for arm in ARMS:
        if arm == "masked":
            yield {"arm": ENCODER, "tokens": ENCODER_TOKENS}
            if not trials.done({"arm": ENCODER}):
                continue  # another process is at it
        yield from (ask(arm, rate, 0, 1) for rate in RATES.get(arm, USUAL_RATES))
        rate, together = best(trials, arm), 1 if arm in (*ATTACKED, *KEPT) else TOGETHER
        if rate is not None:
            yield from (ask(arm, rate, seed, together) for seed in range(1, USUAL_SEEDS, together))
    if rate := best(trials, "baseline"):
        yield from (ask("baseline", rate, seed, 1) for seed in range(USUAL_SEEDS, SEEDS["baseline"]))


def ask(arm: str, rate: float, seed: int, seeds: int) -> Asked:
    """What decides a run: `seeds` seeds from `seed` on."""
    return {"arm": arm, "lr": rate, "seed": seed, "seeds": seeds}


def best(trials: Trials, arm: str) -> float | None:
    """The rate with the best accuracy on dev among an arm's three trials; None until all are done."""
    tried = [r for r in trials.record["runs"] if r["arm"] == arm and r["seed"] == 0]
    return max(tried, key=lambda r: r["dev"][0])["lr"] if len(tried) == len(RATES.get(arm, USUAL_RATES)) else None


def run(trials: Trials, asked: Asked, encoder: Path) -> None:
    """One fine-tuning as a process, or the pretraining of the encoder."""
    if asked["arm"] == ENCODER:
        trials.run(asked, pretraining(encoder), lambda printed: about_the_encoder(Run.open(encoder)), encoder)
        return
    with tempfile.TemporaryDirectory() as runs:
        folder = Path(runs) / "run"
        trials.run(asked, command(asked, runs, encoder), partial(observe, asked, folder), folder)


def pretraining(encoder: Path) -> list[str]:
    """`python …` of the masked model."""
    options: dict[str, Any] = {
        "objective": "mlm", "size": "nano", "tokens": ENCODER_TOKENS, "runs": encoder.parent, "run-id": encoder.name
    }  # fmt: skip
    return ["-m", "course_lib", "pretrain", "--json", *(f"--{name}={value}" for name, value in options.items())]


def about_the_encoder(run: Run) -> dict[str, Any]:
    """Its loss, what it cost, and what it makes of some sentences."""
    said = augment.enlarge(labelled.Labelled(SENTENCES, [0, 1]), f"masked:copies=2,model={run.folder}", 0)
    return {
        "mlm_loss": run.info["result"]["scores"]["mlm_loss"],
        "seconds": run.info["seconds"],
        "examples": said.texts,
    }


def command(asked: Asked, runs: str, encoder: Path) -> list[str]:
    """`python …` of a run."""
    options: dict[str, Any] = {
        "task": TASK, "model": ROOT / MODEL, **BASE, **ARMS[asked["arm"]], "lr": asked["lr"], "seed": asked["seed"],
        "seeds": asked["seeds"], "runs": runs, "run-id": "run",
    }  # fmt: skip
    options["augment"] = options.get("augment", "").replace(f"model={ENCODER}", f"model={encoder}")
    pairs = (f"--{name.replace('_', '-')}={value}" for name, value in options.items())
    return ["-m", "course_lib", "finetune", "--json", *pairs]


def observe(asked: Asked, folder: Path, printed: str) -> dict[str, Any]:
    """The row of a finished run, lists with one entry a seed: scores, and a 1 for each test text that is right."""
    done = Run.open(folder)
    parts = [Run.open(folder / f"seed-{asked['seed'] + i}").info["result"] for i in range(asked["seeds"])]
    found: dict[str, Any] = {
        "dev": [part["dev"]["accuracy"] for part in parts], "test": [part["test"]["accuracy"] for part in parts],
        "ece_raw": [part["test"]["ece_raw"] for part in parts], "ece": [part["test"]["ece"] for part in parts],
        "temperature": [part["calibration"]["temperature"] for part in parts],
        "test_hash": done.info["task"]["test_hash"], "seconds": done.info["seconds"],
        "cpu_share": done.info["result"]["cpu_share"],
        "correct": ["".join(str(int(hit)) for hit in row) for row in finetune.correct(done)],
    }  # fmt: skip
    found = {k: [round(x, 4) for x in v] if isinstance(v, list) and k != "correct" else v for k, v in found.items()}
    if asked["arm"] in (*KEPT, *ATTACKED):
        found |= ask_the_model(folder / "model", asked["arm"])
    return found


def ask_the_model(folder: Path, arm: str) -> dict[str, Any]:
    """Its outputs on dev and test (log odds of the second class, in hundredths), and how it stands an attack."""
    task, tokenizer = labelled.load(TASK), finetune.load_tokenizer(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    exact, tuning = Precision.for_device(device.pick("cpu")), Tuning(task=TASK)

    def logits(texts: list[str]) -> np.ndarray:
        rows = finetune.encode(model, tokenizer, labelled.Labelled(texts, [0] * len(texts)), tuning)
        return np.stack(heads.run(model, rows, tokenizer.pad_token_id, exact))  # (texts, 2)

    found: dict[str, Any] = {}
    if arm in KEPT:
        for side in ("dev", "test"):
            odds = np.diff(logits(getattr(task, side).texts))[:, 0]
            found[f"{side}_odds"] = " ".join(f"{100 * value:.0f}" for value in odds)
    if arm in ATTACKED:
        shown = task.test.first(ATTACKED_TEXTS)
        ways = {"letters": attack.letters, "words": attack.exchanged(thesaurus.load())}
        for name, way in ways.items():
            score = lambda texts: heads.softmax(logits(texts))
            done = attack.attack(score, shown.texts, shown.labels, way, CHANGED_WORDS)
            found[f"{name}_right"] = "".join(str(int(hit)) for hit in done.right)
            found[f"{name}_queries"] = done.queries
    return found


if __name__ == "__main__":
    main()
