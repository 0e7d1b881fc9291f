"""Distillation: a student learns what its teacher says, not only what the labels say. Objectives of the one loop.

Hinton et al. (2015), *Distilling the knowledge in a neural network*; hidden states: Sun et al. (2019), *Patient
knowledge distillation*; attention: Wang et al. (2020), *MiniLM*, here of all layers.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from course_lib.errors import CourseError
from course_lib.models import token_logits
from course_lib.objectives import IGNORE, Batch, Objective


def soft(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T²·Σ KL(teacher ‖ student) of softened distributions (eq-soft): logits (targets, classes) → scalar.

    T² keeps the gradient as large as the labels', whose softening would shrink it by 1/T².
    """
    p, q = F.log_softmax(teacher / temperature, -1), F.log_softmax(student / temperature, -1)
    return temperature**2 * F.kl_div(q, p, reduction="sum", log_target=True)


def directions(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Σ ‖h/‖h‖ − g/‖g‖‖² over hidden states (targets, size), equation eq-directions: lengths do not count."""
    if student.size(-1) != teacher.size(-1):
        sizes = f"{student.size(-1)} and {teacher.size(-1)}"
        raise CourseError(
            f"Hidden states of {sizes} cannot be compared. Use hidden=0, or a student as wide as its teacher."
        )
    return (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum()


def attention(student: torch.Tensor, teacher: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Σ KL(teacher ‖ student) of where heads look: (rows, heads, length, length), at the positions that are `seen`."""
    if student.size(1) != teacher.size(1):
        sizes = f"{student.size(1)} and {teacher.size(1)} heads"
        raise CourseError(f"{sizes} cannot be compared one by one. Use attention=0, or a student with as many.")
    if student.itemsize < 4:  # the smallest number of the clamp would be zero
        student, teacher = student.float(), teacher.float()
    divergence = torch.xlogy(teacher, teacher) - teacher * student.clamp(min=1e-12).log()  # what is masked adds 0
    return (divergence.sum(-1) * seen[:, None]).sum()


def partners(student: int, teacher: int) -> list[int]:
    """The teacher's layer for every one of the student's, 1 to `teacher`; the last for the last."""
    return [round((i + 1) * teacher / student) for i in range(student)]


class Distillation:
    """A task's objective, mixed with what a teacher says about the same batch.

    `alpha`: weight of the teacher's logits, 1 − alpha of the labels; `hidden`, `attention`: weights of the layers'.
    Terms without a weight are not computed. Logits count rows (or labelled tokens), hidden states and attention count
    tokens × layers (× heads), so every term is a mean and micro-batches do not matter.
    """

    def __init__(
        self,
        objective: Objective,
        teacher: Any,
        temperature: float = 2.0,
        alpha: float = 0.5,
        hidden: float = 0.0,
        attention: float = 0.0,
    ):
        if temperature <= 0:
            raise CourseError(f"A temperature of {temperature:g} softens nothing. Choose a positive one, like 2.")
        if alpha and "classification" not in objective.weights:
            raise CourseError(
                "A teacher's answers are compared as one distribution over classes, which this head does not have. "
                "Use alpha=0 and hidden=1, or another step."
            )
        self.objective, self.teacher, self.temperature = objective, teacher.eval().requires_grad_(False), temperature
        mixed = {term: (1 - alpha) * w for term, w in objective.weights.items()}
        ours = {"logits": alpha, "hidden": hidden, "attention": attention}
        self.weights = mixed | {term: w for term, w in ours.items() if w}
        self.look = {"output_hidden_states": hidden > 0, "output_attentions": attention > 0}
        if attention:
            self.teacher.set_attn_implementation("eager")  # other implementations never form the matrix

    def counts(self, batch: Batch) -> dict[str, int]:
        """Targets of every term."""
        tokens = int(batch["attention_mask"].sum())
        ours = {"logits": int(_targets(batch).sum()), "hidden": tokens, "attention": tokens}
        return {**self.objective.counts(batch), **{t: n for t, n in ours.items() if t in self.weights}}

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Summed loss per term; the student runs once."""
        if self.look["output_attentions"] and model.config._attn_implementation != "eager":
            model.set_attn_implementation("eager")
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        student = model(**inputs, **self.look)
        with torch.no_grad():
            teacher = self.teacher(**inputs, **self.look)
        losses = self.objective(lambda **_: student, batch)  # it reads nothing but the output
        seen = batch["attention_mask"].bool()
        if "logits" in self.weights:
            chosen = _targets(batch)
            losses["logits"] = soft(student.logits[chosen], teacher.logits[chosen], self.temperature)
        if "hidden" in self.weights:
            losses["hidden"] = self._layers(
                student.hidden_states[1:], teacher.hidden_states[1:], lambda a, b: directions(a[seen], b[seen])
            )
        if "attention" in self.weights:
            heads = student.attentions[0].size(1)
            found = self._layers(student.attentions, teacher.attentions, lambda a, b: attention(a, b, seen))
            losses["attention"] = found / heads
        return losses

    def _layers(self, student: Any, teacher: Any, loss: Callable[[Any, Any], torch.Tensor]) -> torch.Tensor:
        """The mean over the student's layers."""
        pairs = zip(student, partners(len(student), len(teacher)), strict=True)
        return torch.stack([loss(a, teacher[at - 1]) for a, at in pairs]).mean()


class LanguageDistillation:
    """Pretraining with a teacher of the same tokenizer: the next token, and the teacher's distribution over it.

    Batch as for `CausalLM`. The heads run at targets only.
    """

    def __init__(self, teacher: Any, temperature: float = 1.0, alpha: float = 0.5):
        self.teacher, self.temperature = teacher.eval().requires_grad_(False), temperature
        self.weights = {"clm": 1 - alpha, "logits": alpha}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Labels that are not `IGNORE`, for both."""
        found = int((batch["labels"] != IGNORE).sum())
        return {"clm": found, "logits": found}

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """Summed loss per term, nats. Raises CourseError for vocabularies that differ."""
        if model.config.vocab_size != self.teacher.config.vocab_size:
            raise CourseError("Student and teacher have other vocabularies. Distil with the teacher's tokenizer.")
        at = batch["labels"] != IGNORE
        logits = [self._logits(model, batch, at)]
        with torch.no_grad():
            logits.append(self._logits(self.teacher, batch, at))
        hard = F.cross_entropy(logits[0], batch["labels"][at], reduction="sum")
        return {"clm": hard, "logits": soft(logits[0], logits[1], self.temperature)}

    def _logits(self, model: Any, batch: Batch, at: torch.Tensor) -> torch.Tensor:
        """(targets, vocab), in float32 at least."""
        hidden = model.base_model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
        logits = token_logits(model, hidden[at])
        return logits.float() if logits.itemsize < 4 else logits


def _targets(batch: Batch) -> torch.Tensor:
    """Which outputs a teacher is asked about: all rows, labelled or not; of tokens those with a label."""
    labels = batch["labels"]
    if labels.shape == batch["input_ids"].shape and labels.ndim == 2:
        return labels != IGNORE
    return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
