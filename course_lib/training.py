"""Everything that changes while a run trains, as one object that is saved and restored together."""

import hashlib
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from course_lib import cooccurrence, distributed, evaluate, models, optim, recipes
from course_lib.batches import Steps
from course_lib.budget import Budget
from course_lib.compress.losses import LanguageDistillation
from course_lib.config import Config
from course_lib.data import pack, prepare
from course_lib.device import Device
from course_lib.errors import CourseError
from course_lib.examples import Examples
from course_lib.objectives import Objective
from course_lib.precision import Precision
from course_lib.storage import model_folder


@dataclass
class Training:
    """A model in training. Made by `build`; `state_dict` is what a checkpoint holds."""

    model: Any  # a stock model, or a ModuleDict of two
    objective: Objective
    optimizers: list[torch.optim.Optimizer]
    loader: pack.Loader | Examples
    masking: torch.Generator
    precision: Precision
    signature: dict[str, Any]
    budget: Budget | None = None
    average: optim.TailAverage | None = None
    best: optim.Best | None = None
    step: int = 0
    stopping: dict[str, Any] = field(default_factory=dict)  # state of early stopping

    def state_dict(self) -> dict[str, Any]:
        """A tree for `checkpoint.save`: the same, however the weights were shared out. All processes must ask."""
        assert self.budget
        state = {
            "signature": self.signature,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "loader": self.loader.state_dict(),
            "precision": self.precision.state_dict(),
            "budget": self.budget.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "best": self.best.state_dict() if self.best else None,
            "stopping": self.stopping,
            "masking": self.masking.get_state(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        whole: dict[str, Any] = distributed.collect(state)
        return whole

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken; refuses another model's or tokenizer's checkpoint.

        Weights and buffers are taken out of `state`, so that the file they were read from leaves the memory.
        """
        assert self.budget
        other = [key for key, value in self.signature.items() if state["signature"].get(key) != value]
        if other:
            raise CourseError(f"The checkpoint belongs to another {' and '.join(other)}. Start over with --fresh.")
        self.step, self.stopping = state["step"], state["stopping"]
        ours = self.model.state_dict()
        self.model.load_state_dict({n: distributed.like(t, ours.get(n, t)) for n, t in state.pop("model").items()})
        for optimizer, saved in zip(self.optimizers, state.pop("optimizers"), strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            # Copies: what is read is a view of the whole file, which would stay in memory.
            buffers = {
                n: {k: distributed.like(t.clone(), parameters[n]) for k, t in s.items()}
                for n, s in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": buffers})
        self.loader.load_state_dict(state["loader"])
        self.precision.load_state_dict(state["precision"])
        self.budget.load_state_dict(state["budget"])
        if self.average:
            self.average.load_state_dict(state["average"])
        if self.best and state.get("best"):
            self.best.load_state_dict(state["best"])
        self.masking.set_state(state["masking"])
        torch.set_rng_state(state["rng"])
        for number, saved in zip(range(torch.cuda.device_count()), state["cuda_rng"], strict=False):  # other cards now
            torch.cuda.set_rng_state(saved, number)


def build(settings: Config, data: prepare.Prepared, where: Device) -> Training:
    """Model, optimizers and loader at step 0, in the order that the seed fixes. The budget comes with the plan."""
    torch.manual_seed(settings.seed)
    ids = recipes.token_ids(data.tokenizer)
    shape = replace(models.size(settings.size), context=settings.context)
    model = recipes.new_model(settings, shape, ids)
    if settings.embeddings == "cooccurrence":
        known = cooccurrence.embeddings(data.train.tokens, ids.vocab, shape.hidden, ids.bos, settings.seed)
        for part in _parts(model):
            models.set_embeddings(part, known)
    model = model.to(where.torch)
    if settings.activation_checkpointing:
        for part in _parts(model):
            # transformers 5 is renaming it
            enable = getattr(part, "activation_checkpointing_enable", None) or part.gradient_checkpointing_enable
            enable()
    tail = settings.tail_average
    return Training(
        model=model,
        objective=_objective(settings, data, where),
        optimizers=optimizers(model, settings),
        loader=pack.Loader(data.train, settings.context, step_rows(settings), settings.seed),
        masking=torch.Generator().manual_seed(settings.seed),
        precision=Precision.for_device(where),
        average=optim.TailAverage(model, 1 - tail) if tail else None,
        signature={
            "tokenizer": _sha256(data.folder / "tokenizer.json"),
            "architecture": [settings.objective, settings.architecture, settings.size, settings.context],
            "number of weights": models.count_parameters(model),
        },
    )


def _objective(settings: Config, data: prepare.Prepared, where: Device) -> Objective:
    """The recipe's, or half of it and half of what a teacher says about every next token."""
    if not settings.teacher:
        return recipes.get(settings.objective).objective
    if settings.objective != "clm":
        raise CourseError(
            f"A teacher says what comes next; --objective {settings.objective} does not ask that. Use clm."
        )
    folder = model_folder(Path(settings.teacher))
    if AutoTokenizer.from_pretrained(folder).get_vocab() != data.tokenizer.get_vocab():
        raise CourseError(
            f"{settings.teacher} has another tokenizer. Give the corpus, --vocab-size and budget that it had."
        )
    teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(where.torch)
    return LanguageDistillation(teacher)


def distribute(training: Training, settings: Config, shard: bool) -> None:
    """Put the engine of several processes around a training at step 0; with one process, nothing."""
    if distributed.world_size() > 1 or shard:
        training.objective = distributed.Parallel(training.model, training.objective, shard)
    if shard:  # the weights are other tensors now
        training.optimizers = optimizers(training.model, settings)


def optimizers(model: nn.Module, settings: Config) -> list[torch.optim.Optimizer]:
    """The optimizers that the settings ask for."""
    return optim.build(model, settings.optimizer, settings.matrix_lr, settings.lr, settings.weight_decay)


def step_rows(settings: Config) -> int:
    """Rows in a step of all processes together."""
    assert settings.step_tokens, "settings are a config after `pretrain.resolve`"
    rows, world = max(1, settings.step_tokens // settings.context), distributed.world_size()
    if rows % world:
        raise CourseError(f"A step has {rows} rows, which {world} processes cannot share. Change --step-tokens.")
    return rows


def steps(training: Training, settings: Config, tokenizer: Any, micro_rows: int) -> Steps:
    """The micro-batches of this process."""
    recipe, budget = recipes.get(settings.objective), training.budget
    assert budget
    transform = recipes.transform(settings, recipe, tokenizer, training.masking)
    rank, world = distributed.rank(), distributed.world_size()
    device = next(training.model.parameters()).device
    shared = lambda: distributed.from_rank_0(budget.progress, device)
    return Steps(cast(pack.Loader, training.loader), transform, shared, micro_rows, rank, world)


def score(training: Training, settings: Config, data: prepare.Prepared) -> dict[str, float]:
    """Held-out losses of every term at a fixed mask rate, and bits per byte if the model is causal."""
    recipe, tokenizer = recipes.get(settings.objective), data.tokenizer
    model, valid, context, precision = training.model, data.valid, settings.context, training.precision
    with distributed.whole_weights(training.objective):
        found: dict[str, float] = {}
        for fixed in recipes.evaluation_transforms(recipe, tokenizer):
            losses = evaluate.losses(model, recipe.objective, fixed, valid, context, precision)
            found |= {f"{term}_loss": round(loss, 4) for term, loss in losses.items()}
        if recipe.causal:
            bits = evaluate.bits_per_byte(model, valid, context, precision, tokenizer.bos_token_id)
            found["bits_per_byte"] = round(bits, 4)
    return found


def compile_body(model: Any, backend: str = "inductor") -> None:
    """Compile the part that costs the time; whatever cannot be compiled runs as it is (and is reported by torch)."""
    torch._dynamo.config.suppress_errors = True
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # what is left in float32 is meant to be
    for part in _parts(model):
        part.base_model.compile(backend=backend)


def _parts(model: Any) -> list[Any]:
    """The stock models that are trained: one, or a pair."""
    return list(model.values()) if isinstance(model, nn.ModuleDict) else [model]


def improved(training: Training, metric: str, value: float, patience: int) -> bool:
    """Note an evaluation of `metric` (lower is better). False when it has not improved for `patience` evaluations."""
    best = training.stopping.get("best", float("inf"))
    since = 0 if value < best else training.stopping.get("since", 0) + 1
    training.stopping = {"metric": metric, "best": min(best, value), "since": since}
    return not stopped(training, patience)


def stopped(training: Training, patience: int) -> bool:
    """Whether the last evaluation ended the run; a run that is continued after it must not train on."""
    return 0 < patience <= training.stopping.get("since", 0)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
