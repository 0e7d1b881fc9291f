"""Adapters on a model: put on, switched, merged, trained.

    model = adapters.apply(model, LoRA(rank=8))          # freezes the base, adds trainable weights
    objective = adapters.objective(model, objective)     # with the method's penalty, if it has one
    adapters.follow(model, optimizer, budget)            # what the method does after every step
    adapters.use(model, "other"); adapters.merge(model); adapters.finish(model)

Everything else (the loop, checkpoints, `generate`) sees a model like any other.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from course_lib.budget import Budget
from course_lib.errors import CourseError, unknown
from course_lib.objectives import Objective, Penalized
from course_lib.peft import base


class Adapters(nn.ModuleDict):
    """All adapters of one base, {name: Added}; one of them acts, or none."""

    def __init__(self, fingerprint: str = "") -> None:
        super().__init__()
        self.fingerprint = fingerprint  # the base's at first: to merge and unmerge rounds
        self.active = ""
        self.merged = False
        self.methods: dict[str, base.Method] = {}
        self.handles: list[base.Handle] = []

    def switch(self, model: nn.Module, parts: bool = True) -> None:
        """Let the active adapter act: its heads, and its parts unless they are merged."""
        for handle in self.handles:
            handle.remove()
        self.handles = []
        for name, added in self.items():
            added.requires_grad_(name == self.active)
        if self.active:
            added = cast(base.Added, self[self.active])
            self.handles = (added.attach(model) if parts else []) + base.hook(model, added.heads)


def apply(model: Any, method: base.Method, name: str = "default", classes: int = 0) -> Any:
    """Freeze the base, add the method's weights as adapter `name`, and switch it on. Returns the same model.

    A classifier's output layer is new for every task: it is trained, too, as the adapter's own copy (with another
    number of outputs if `classes` says so). Raises CourseError for targets, ranks or names that are impossible.
    """
    return put(model, build(model, method, classes), method, name)


def build(model: Any, method: base.Method, classes: int = 0) -> base.Added:
    """The weights of an adapter, heads included, on the model's device: float32, or float64 where the base has that."""
    added = method.build(model)
    if not any(True for _ in added.parameters()):
        kind = f"'{model.config.model_type}' model"
        raise CourseError(f"{type(method).__name__} finds nothing to adapt in a {kind}. Try lora:targets=all.")
    with bare(model) if hasattr(model, base.CONTAINER) else contextlib.nullcontext():  # a copy would copy hooks
        for name, module in base.heads(model).items():
            added.heads[base.key(name)] = base.Head(module, classes if name in base.HEADS else 0)
    weight = next(model.parameters())
    added.train(model.training)
    return added.to(device=weight.device, dtype=weight.dtype if weight.itemsize >= 4 else torch.float32)


def put(model: Any, added: base.Added, method: base.Method, name: str) -> Any:
    """Put weights that `build` made on a model. Whatever goes wrong, the model stays as it was."""
    check(model, name)
    learning = [p for p in model.parameters() if p.requires_grad]
    if not hasattr(model, base.CONTAINER):
        model.added = Adapters(base.fingerprint(model))
        model.requires_grad_(False)
    before = model.added.active
    model.added[name], model.added.methods[name] = added, method
    try:
        use(model, name)
    except BaseException:
        del model.added[name], model.added.methods[name]
        use(model, before)
        if not model.added:
            delattr(model, base.CONTAINER)
        for p in learning:
            p.requires_grad_(True)
        raise
    return model


def check(model: Any, name: str) -> None:
    """Raise CourseError if no adapter `name` can be put on the model now."""
    if not re.fullmatch(r"[\w-]+", name) or hasattr(Adapters(), name):
        rule = "a name of letters, digits, '_' and '-', such as 'mood'"
        raise CourseError(f"An adapter cannot be called '{name}'. Choose {rule}.")
    if hasattr(model, base.CONTAINER):
        free(model)
        if name in model.added:
            raise CourseError(f"There is already an adapter called '{name}' on this model. Choose another name.")


def free(model: Any) -> None:
    """Raise CourseError while an adapter is merged."""
    if of(model).merged:
        raise CourseError(f"The adapter '{of(model).active}' is merged into the base. `unmerge` it first.")


def fingerprint(model: Any) -> str:
    """The base's, before anything was merged into it."""
    return of(model).fingerprint if hasattr(model, base.CONTAINER) else base.fingerprint(model)


def of(model: Any) -> Adapters:
    """The adapters of a model."""
    found = getattr(model, base.CONTAINER, None)
    if found is None:
        raise CourseError("This model has no adapter. Put one on it with `apply` or `load`.")
    return found


def active(model: Any) -> base.Added:
    """The adapter that acts."""
    adapters = of(model)
    if not adapters.active:
        raise CourseError(f"No adapter is switched on. `use` one of: {', '.join(adapters)}.")
    return cast(base.Added, adapters[adapters.active])


def use(model: Any, name: str) -> None:
    """Switch to adapter `name`; `""` is the bare base. Only the adapter in use is trainable."""
    adapters = of(model)
    if name and name not in adapters:
        raise unknown("adapter on this model", name, adapters)
    free(model)
    adapters.active = name
    adapters.switch(model)


@contextlib.contextmanager
def bare(model: Any) -> Iterator[None]:
    """The base alone for the length of a block."""
    name = of(model).active
    use(model, "")
    try:
        yield
    finally:
        use(model, name)


def merge(model: Any) -> None:
    """Add the active adapter to the base's weights: the same outputs without its cost. Heads stay as they are.

    Raises CourseError for a second merge, and for methods that are no change of weights.
    """
    adapters, added = of(model), active(model)
    if adapters.merged:
        raise CourseError(f"The adapter '{adapters.active}' is already merged; twice would count it double.")
    added.merge(model, 1)
    adapters.merged = True
    adapters.switch(model, parts=False)


def unmerge(model: Any) -> None:
    """Take the merged adapter out again, up to rounding (no copy of the weights is kept)."""
    adapters = of(model)
    if not adapters.merged:
        raise CourseError("No adapter is merged into this model.")
    active(model).merge(model, -1)
    adapters.merged = False
    adapters.switch(model)


def finish(model: Any) -> Any:
    """Merge, put the heads in their places and forget the adapters: a stock model that `save_pretrained` stores."""
    adapters = of(model)
    if not adapters.merged:
        merge(model)
    for name, head in active(model).heads.items():
        owner, _, last = base.path(name).rpartition(".")
        old = model.get_submodule(base.path(name))
        setattr(model.get_submodule(owner), last, head.copy.to(next(old.parameters()).dtype))
        if (classes := getattr(head.copy, "out_features", 0)) != getattr(old, "out_features", 0):
            model.num_labels = model.config.num_labels = classes
    adapters.active = ""
    adapters.switch(model)
    delattr(model, base.CONTAINER)
    return model.requires_grad_(True)


def objective(model: Any, inner: Objective) -> Objective:
    """`inner`, and the active method's penalty once a step."""
    added = active(model)
    return Penalized(inner, penalty, added.penalty_weight) if added.penalty_weight else inner


def penalty(model: Any) -> torch.Tensor:
    """The penalty of the active adapter, scalar; zero for most methods."""
    return active(model).penalty()


def follow(model: Any, optimizers: Sequence[torch.optim.Optimizer], budget: Budget) -> None:
    """Let the active method act after every step that is taken (AdaLoRA prunes), as a function of progress."""
    added = active(model)
    optimizers[-1].register_step_post_hook(lambda optimizer, args, kwargs: added.after_step(budget.progress))


def trainable(model: nn.Module) -> tuple[int, int]:
    """(trainable weights, weights of the base)."""
    added = {id(p) for p in getattr(model, base.CONTAINER, nn.Module()).parameters()}
    rest = sum(p.numel() for p in model.parameters() if id(p) not in added)
    return sum(p.numel() for p in model.parameters() if p.requires_grad), rest
