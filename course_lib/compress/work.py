"""What a recipe works in: a fine-tuned model, its task, and the ordinary fine-tuning loop to learn on."""

import contextlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from course_lib import checkpoint, device, finetune, schedule
from course_lib.budget import parse_duration
from course_lib.compress import files
from course_lib.config import Tuning, restore
from course_lib.data import corpora, labelled
from course_lib.data.clean import CJK
from course_lib.errors import CourseError
from course_lib.examples import Examples, Rows
from course_lib.heads import registry
from course_lib.objectives import IGNORE, Batch, Objective
from course_lib.peft import adapters
from course_lib.peft import files as added
from course_lib.precision import Precision
from course_lib.record import Run, Timer
from course_lib.recorder import Log, drive


def teacher(source: Run, tuning: Tuning) -> Any:
    """The model that a fine-tuning run ended with; an adapter is merged into its base."""
    folder = source.folder / "model"
    if (folder / added.ABOUT).exists():
        return adapters.finish(added.restore(folder, registry.get(tuning.head).auto)).eval()
    if not (folder / "config.json").exists():
        raise CourseError(f"{source.folder} has lost its weights. Fine-tune again with the command in its run.json.")
    return files.load(folder)


STOPS = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])(?![。！？”’」』）])\s*")  # no blank follows a Chinese sentence


def sentences(text: str) -> list[str]:
    """The sentences of a text, English or Chinese, none of them empty."""
    return [part.strip() for part in STOPS.split(text) if part.strip()]


def words(text: str) -> int:
    """What stands between blanks; each CJK character is a word."""
    return len(re.sub(rf"([{CJK}])", r" \1 ", text).split())


class Texts:
    """What a task of the course gives a recipe to work on: the part of `base.Work` that does not learn."""

    def __init__(self, model: Any, tuning: Tuning, task: labelled.Task, tokenizer: Any):
        self.teacher, self.tuning, self.task, self.tokenizer = model, tuning, task, tokenizer

    def batches(self, rows: int) -> Sequence[Batch]:
        """The first texts of train, 32 at once."""
        train = registry.get(self.tuning.head).lesson(self.task).first(max(rows, 1))  # each gives a row or more
        encoded = finetune.encode(self.teacher, self.tokenizer, train, self.tuning)
        place = next(self.teacher.parameters()).device
        chosen = range(min(rows, len(encoded.ids)))
        parts = [chosen[at : at + 32] for at in range(0, len(chosen), 32)]
        made = [encoded.batch(list(part), self.tokenizer.pad_token_id) for part in parts]
        return [{k: v.to(place) for k, v in batch.items()} for batch in made]

    def more(self, corpus: str, texts: int) -> Rows:
        """Sentences of documents drawn from the whole corpus (which may be sorted), of 4 words or more.

        No sentence of a text of dev or test is among them. Raises CourseError for a task of another kind than one label
        a text, and for a corpus without such sentences.
        """
        if not (isinstance(self.task.train.texts[0], str) and isinstance(self.task.train.labels[0], int)):
            raise CourseError(f"More texts help a head of one label a text, not '{self.tuning.head}'. Use texts=0.")
        sides = (self.task.dev, self.task.test)
        held_out = {part for side in sides for text in side.texts for part in (text.strip(), *sentences(text))}
        documents = [text for text in corpora.load(corpus, self.tuning.encoding).documents() if text not in held_out]
        draw = random.Random(self.tuning.seed)
        every = [part for text in draw.sample(documents, min(texts, len(documents))) for part in sentences(text)]
        usable = [text for text in dict.fromkeys(every) if text not in held_out and words(text) >= 4]
        if not usable:
            raise CourseError(f"'{corpus}' has no sentence of 4 words that is not held out. Choose another corpus.")
        draw.shuffle(usable)
        side = labelled.Labelled(usable[:texts], [IGNORE] * len(usable[:texts]))
        train = finetune.encode(self.teacher, self.tokenizer, self.task.train, self.tuning)
        found = finetune.encode(self.teacher, self.tokenizer, side, self.tuning)
        types = train.types + found.types if train.types and found.types else None
        return Rows(train.ids + found.ids, train.labels + found.labels, types)

    def objective(self) -> Objective:
        """The head's."""
        return registry.get(self.tuning.head).objective(self.tuning, self.task)


class Rehearsal(Texts):
    """`base.Work` in which nothing learns, on two texts: to see what a recipe cannot do before it takes hours."""

    def batches(self, rows: int) -> Sequence[Batch]:
        """Two texts, however many are asked for."""
        return super().batches(2)

    def learn(
        self,
        model: Any,
        epochs: float,
        objective: Objective | None = None,
        after: Callable[[float], None] | None = None,
        rows: Rows | None = None,
    ) -> None:
        """One look at the loss, which says whether model and objective fit."""
        with torch.no_grad():
            (objective or self.objective())(model, self.batches(2)[0])


class Workshop(Texts):
    """`base.Work` for a task of the course. Every training is a run of its own below the recipe's."""

    def __init__(self, run: Run, model: Any, tuning: Tuning, task: labelled.Task, log: Log, save_every: str):
        super().__init__(model, tuning, task, finetune.load_tokenizer(run.folder / "tokenizer"))
        self.run, self.log = run, log
        self.where, self.save_every, self.stages = device.pick(tuning.device), save_every, 0

    def learn(
        self,
        model: Any,
        epochs: float,
        objective: Objective | None = None,
        after: Callable[[float], None] | None = None,
        rows: Rows | None = None,
    ) -> None:
        """Train from the last checkpoint of this stage, if there is one; a finished stage only loads its end.

        As in the fine-tuning, but all weights learn, and for `epochs` whatever the clock says. The fine-tuning's
        regularizers are around the head's objective, not around one that is given.
        """
        self.stages += 1
        tuning = replace(self.tuning, epochs=epochs, budget="", method="", freeze="none", evaluate_every=0.0)
        part = self._part(asdict(tuning))
        timer = Timer(part.info.get("timings", {}))
        try:
            with hooks_removed(model):
                torch.manual_seed(tuning.seed + self.stages)
                state = finetune.around(model, tuning, self.task, self.tokenizer, self.where, objective, rows)
                budget = state.budget
                assert budget
                if saved := checkpoint.load(part.folder / "checkpoints", self.log):
                    state.load_state_dict(saved)
                part.rewind(state.step)
                if after:
                    taken = list(part.metrics())
                    after(taken[-1]["progress"] if taken else budget.progress)  # what the last step was told
                    state.optimizers[0].register_step_post_hook(lambda *_: after(budget.progress))
                part.update(settings=asdict(tuning), plan={"micro_rows": tuning.step_rows}, status="running")
                shape = schedule.build(tuning.schedule, tuning.warmup, 1 - tuning.warmup)
                steps = ([batch] for batch in cast(Examples, state.loader))
                with timer("train"):
                    drive(part, state, steps, shape, dict, timer, self.log, parse_duration(self.save_every))
            part.update(status="finished")
        finally:
            part.end(timings=timer.seconds)
        model.eval()

    def _part(self, config: dict[str, Any]) -> Run:
        """The run of this stage, old or new."""
        folder = self.run.folder / f"stage-{self.stages}"
        part = Run.open(folder) if (folder / "run.json").exists() else Run.create(folder, config)
        part.acquire()
        return part

    def finish(self) -> None:
        """All stages are done: what would continue them is not needed any more."""
        for folder in self.run.folder.glob("stage-*"):
            checkpoint.remove(folder / "checkpoints")

    def judge(self, model: Any) -> tuple[dict[str, float], dict[str, Any]]:
        """(scores on test, predictions as a fine-tuning run stores them) of a model or an `export.Runtime`."""
        state: Any = SimpleNamespace(model=model, precision=Precision("cpu", torch.float32))
        ask = finetune.Asking(state, self.tokenizer, self.task, self.tuning)
        logits, side, head = ask.logits("test"), self.task.test, ask.head
        calibration = model.config.calibration
        scores = head.scores(side, head.answers(logits, side, calibration), self.task.classes)
        return scores, head.stored(side, logits, self.task.classes, calibration)


@contextlib.contextmanager
def hooks_removed(model: Any) -> Iterator[None]:
    """What is hooked to the modules inside goes in the end; the next stage hooks the regularizers' dropout anew."""
    known = {module: set(module._forward_hooks) for module in model.modules()}
    try:
        yield
    finally:
        for module, before in known.items():
            for key in module._forward_hooks.keys() - before:
                del module._forward_hooks[key]


def tuned(folder: Path) -> tuple[Run, Tuning]:
    """A finished fine-tuning run and its settings."""
    run = Run.open(folder)
    if run.info.get("kind") != "finetune" or run.info["status"] != "finished":
        raise CourseError(f"{folder} is no finished fine-tuning run. Make one with `finetune --model {folder}`.")
    return run, restore(Tuning, run.info["config"])
