"""One contestant of the race trains for a fixed time on the same tokens, and is scored on the same held-out bytes.

    python tools/contestants.py NAME --data FOLDER --budget 60 --seed 0 --setting '{"lr": 0.003}'

Prints one line of JSON. `tools/race.py` starts each in a process of its own. Everybody gets our tokenizer and packed
text. The Trainer's learning rate follows the clock, as ours does; nanoGPT needs a number of steps, and gets one from a
short probe of its own speed, which is not counted.
"""

import argparse
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from course_lib import device, evaluate, models, progress, recipes, schedule, training
from course_lib.budget import Budget
from course_lib.config import Config
from course_lib.data.prepare import Prepared
from course_lib.loop import train
from course_lib.precision import Precision

PROBE_STEPS = 100
WARMUP = 0.05  # of the Trainer's time
ENDLESS = 10**7  # steps; the clock ends the Trainer
Result = dict[str, Any]


def ours(data: Prepared, seconds: float, seed: int, setting: dict[str, Any], objective: str) -> Result:
    """`course_lib`, without the command around it; `setting` overrides fields of its config.

    Embeddings in closed form are computed within the budget. With `tail_average`, `last` is the score of the weights
    as the last step left them, so that averaging is compared within one run.
    """
    settings = Config(
        objective=objective,
        architecture=recipes.get(objective).architecture,
        size="nano",
        context=models.SIZES["nano"].context,
        step_tokens=models.SMALL_STEP,
        seed=seed,
        embeddings="cooccurrence" if objective == "clm" else "random",
    )
    settings = replace(settings, **setting)
    timer = Stopwatch()
    state = training.build(settings, data, device.pick("cpu"))
    state.budget = Budget(seconds - timer.passed())
    rows = training.steps(state, settings, data.tokenizer, training.step_rows(settings))
    shape = schedule.build(settings.schedule, settings.warmup, settings.cooldown)
    tokens = 0
    for step in train(state.model, rows, state.objective, state.optimizers, shape, state.precision, state.budget):
        tokens += step.tokens
        if state.average:
            state.average.update(state.budget.progress)
    found = timer.stop() | {"tokens": tokens}
    if state.average:
        found["last"] = held_out(state, settings, data)
        state.average.swap_in()
    return {"score": held_out(state, settings, data)} | found


def held_out(state: training.Training, settings: Config, data: Prepared) -> float:
    """Bits per byte of a causal model, masked loss of an encoder."""
    scores = training.score(state, settings, data)
    return scores["bits_per_byte" if "bits_per_byte" in scores else "mlm_loss"]


def hf_trainer(data: Prepared, seconds: float, seed: int, setting: dict[str, Any], architecture: str) -> Result:
    """GPT-2 or BERT, the Hugging Face `Trainer` and its AdamW, linear decay with 5 % warm-up, packed rows.

    Its own scheduler counts steps. Here the same line goes by the clock: whatever its speed, it has warmed up after 5 %
    of the time and reaches zero at the end.
    """
    import datasets
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    context, tokenizer, rows = setting.get("context", 128), data.tokenizer, setting.get("rows", 16)
    torch.manual_seed(seed)
    size = replace(models.SIZES["nano"], context=context)
    model = models.build(architecture, size, recipes.token_ids(tokenizer))
    if architecture == "bert":
        from transformers import BertForMaskedLM

        model = BertForMaskedLM(model.config)
    packed = data.train.tokens[: len(data.train.tokens) // context * context].reshape(-1, context)
    table = datasets.Dataset.from_dict({"input_ids": packed}).with_format("torch")
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=architecture == "bert", mlm_probability=0.15)

    class ByTheClock(Trainer):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            shape = lambda step: decay(timer.passed() / seconds) if step else 0.0  # made before the clock starts
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, shape)
            return self.lr_scheduler

    class Clock(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            timer.start()  # what it sets up before is not counted

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if timer.passed() >= seconds:
                control.should_training_stop = True

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=ENDLESS, per_device_train_batch_size=rows, learning_rate=setting["lr"],
            weight_decay=0.01, optim="adamw_torch_fused", report_to=[], save_strategy="no", logging_strategy="no",
            disable_tqdm=True, use_cpu=True, seed=seed,
        )  # fmt: skip
        trainer = ByTheClock(model, arguments, train_dataset=table, data_collator=collator, callbacks=[Clock()])
        timer = Stopwatch()
        trainer.train()
        found = timer.stop()
    return {"score": score(model, data, context), "tokens": trainer.state.global_step * rows * context} | found


def decay(progress: float) -> float:
    """`linear` of the Trainer with `warmup_steps`: a line up over `WARMUP`, then one down to zero at 1."""
    return max(0.0, min(progress / WARMUP, (1 - progress) / (1 - WARMUP)))


def nanogpt(data: Prepared, seconds: float, seed: int, setting: dict[str, Any]) -> Result:
    """NanoGPT's own train.py from the folder in $NANOGPT, on the CPU, cosine decay over the steps that fit."""
    source = Path(os.environ["NANOGPT"]).resolve()
    block, batch, lr = setting["block_size"], setting["batch_size"], setting["lr"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("model.py", "train.py", "configurator.py"):
            (place / name).symlink_to(source / name)
        text = place / "data" / "shared"
        text.mkdir(parents=True)
        for name, file in (("train.bin", "train.bin"), ("val.bin", "valid.bin")):
            (text / name).symlink_to(data.folder.resolve() / file)
        (text / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(data.tokenizer)}))

        def run(steps: int) -> list[float]:
            """Seconds of every iteration."""
            options = {
                "dataset": "shared", "device": "cpu", "compile": False, "dtype": "float32", "n_layer": 4, "n_head": 4,
                "n_embd": 128, "block_size": block, "batch_size": batch, "gradient_accumulation_steps": 1,
                "learning_rate": lr, "min_lr": lr / 10, "beta2": 0.99, "warmup_iters": max(1, steps // 20),
                "max_iters": steps, "lr_decay_iters": steps, "eval_interval": steps, "eval_iters": 1, "log_interval": 1,
                "always_save_checkpoint": True,
            }  # fmt: skip
            # Its seed is fixed in the source; a data set's order is all that a seed changes here.
            code = (
                (place / "train.py").read_text().replace("torch.manual_seed(1337", f"torch.manual_seed(1337 + {seed}")
            )
            (place / "seeded.py").write_text(code)
            command = [sys.executable, "seeded.py", *(f"--{k}={v}" for k, v in options.items())]
            out = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stdout
            return [float(ms) / 1000 for ms in re.findall(r"iter \d+: loss [\d.]+, time ([\d.]+)ms", out)]

        probe = sorted(run(PROBE_STEPS)[1:])
        timer = Stopwatch()
        took = run(round(seconds / probe[len(probe) // 2]))
        timing = timer.stop() | {"seconds": round(sum(took[1:]), 1)}  # the first one contains an evaluation
        sys.path.insert(0, str(source))
        import model as theirs  # type: ignore[import-not-found]

        saved = torch.load(place / "out" / "ckpt.pt", weights_only=False)
        network = theirs.GPT(theirs.GPTConfig(**saved["model_args"]))
        network.load_state_dict(saved["model"])
    return {"score": score(Shown(network), data, block), "tokens": len(took) * batch * block} | timing


class Shown(torch.nn.Module):
    """nanoGPT gives all logits only if it is given targets."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network, self.config = network, network.config

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:  # noqa: D102
        ids = input_ids.contiguous()
        logits, _ = self.network(ids, ids)
        return argparse.Namespace(logits=logits)


def score(model: Any, data: Prepared, context: int) -> float:
    """Bits per byte of a causal model, masked loss of an encoder; with our evaluator for everybody."""
    policy = Precision("cpu", torch.float32)
    if type(model).__name__ != "BertForMaskedLM":
        return round(evaluate.bits_per_byte(model, data.valid, context, policy, data.tokenizer.bos_token_id), 4)
    recipe = recipes.get("mlm")
    (fixed,) = recipes.evaluation_transforms(recipe, data.tokenizer)
    return round(evaluate.losses(model, recipe.objective, fixed, data.valid, 128, policy)["mlm"], 4)


class Stopwatch:
    """Wall-clock seconds, and the share of the threads' time that was really got."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begin, or begin again."""
        self.started, self.cpu = time.monotonic(), self._cpu()

    @staticmethod
    def _cpu() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    def passed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def stop(self) -> Result:
        """What has passed since the start."""
        wall = self.passed()
        return {
            "seconds": round(wall, 1),
            "cpu_share": round((self._cpu() - self.cpu) / wall / torch.get_num_threads(), 3),
        }


CONTESTANTS: dict[str, Callable[[Prepared, float, int, dict[str, Any]], Result]] = {
    "ours": partial(ours, objective="clm"),
    "adamw": partial(ours, objective="clm"),
    "gpt2-trainer": partial(hf_trainer, architecture="gpt2"),
    "nanogpt": nanogpt,
    "ours-mlm": partial(ours, objective="mlm"),
    "bert-trainer": partial(hf_trainer, architecture="bert"),
}


def main() -> None:
    """Train one contestant and print its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--budget", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--setting", type=json.loads, default={})
    options = parser.parse_args()
    progress.hush_transformers()
    data = Prepared.open(options.data)
    print(json.dumps(CONTESTANTS[options.name](data, options.budget, options.seed, options.setting)))


if __name__ == "__main__":
    main()
