"""Search for hyperparameters at an equal budget: random, or by Optuna's model of what was good; pruned or not.

The budget is counted in epochs of training, not in trials: whoever gives up bad trials early may try more of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from course_lib.data.labelled import Task
from course_lib.errors import unknown

EPOCHS = 12  # of a whole trial
METHODS = ("random", "random+pruning", "tpe", "tpe+pruning")


@dataclass(frozen=True)
class Problem:
    """Vectors of texts and their classes for train, dev and test: {side: (x (texts, features), y (texts,))}."""

    sides: dict[str, tuple[torch.Tensor, torch.Tensor]]
    classes: int

    @classmethod
    def of(cls, task: Task, features: int = 100) -> "Problem":
        """TF-IDF of words and pairs of words, by its largest singular directions; in float64, so that it repeats."""
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline

        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        pipe = make_pipeline(words, TruncatedSVD(features, random_state=0)).fit(task.train.texts)
        sides = {name: getattr(task, name) for name in ("train", "dev", "test")}
        scale = features**0.5  # about one a feature
        vectors = {name: torch.from_numpy(pipe.transform(side.texts) * scale) for name, side in sides.items()}
        made = {name: (vectors[name], torch.tensor(side.labels)) for name, side in sides.items()}
        return cls(made, len(task.classes))

    def train(self, setting: dict[str, Any], seed: int = 0) -> Iterator[tuple[float, nn.Module]]:
        """A net with one hidden layer; after every epoch its log loss on dev, nats, and itself."""
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        (x, y), (x_dev, y_dev) = self.sides["train"], self.sides["dev"]
        net = nn.Sequential(
            nn.Linear(x.size(1), setting["hidden"]),
            nn.ReLU(),
            nn.Dropout(setting["dropout"]),
            nn.Linear(setting["hidden"], self.classes),
        ).double()
        optimizer = torch.optim.AdamW(net.parameters(), lr=setting["lr"], weight_decay=setting["weight_decay"])
        for _ in range(EPOCHS):
            net.train()
            for rows in torch.randperm(len(x), generator=generator).split(setting["rows"]):
                optimizer.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows], label_smoothing=setting["smoothing"]).backward()
                optimizer.step()
            with torch.no_grad():
                yield F.cross_entropy(net.eval()(x_dev), y_dev).item(), net

    @torch.no_grad()
    def correct(self, net: nn.Module) -> np.ndarray:
        """1 for each test text that is right, (texts,)."""
        x, y = self.sides["test"]
        return (net.eval()(x).argmax(1) == y).double().numpy()


def suggest(trial: Any) -> dict[str, Any]:
    """A setting out of the space; what spans orders of magnitude is drawn by its logarithm."""
    return {
        "lr": trial.suggest_float("lr", 1e-5, 1.0, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-4, 10.0, log=True),
        "dropout": trial.suggest_float("dropout", 0.0, 0.8),
        "smoothing": trial.suggest_float("smoothing", 0.0, 0.4),
        "hidden": trial.suggest_int("hidden", 4, 256, log=True),
        "rows": trial.suggest_int("rows", 8, 256, log=True),
    }


def study(method: str, seed: int = 0, storage: Any = None, name: str = "study") -> Any:
    """An Optuna study that minimises; one in a `storage` goes on where it was stopped."""
    import optuna

    if method not in METHODS:
        raise unknown("search", method, METHODS)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kind, _, pruning = method.partition("+")
    samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
    return optuna.create_study(
        storage=storage,
        study_name=name,
        sampler=samplers[kind](seed=seed),
        pruner=optuna.pruners.MedianPruner(5, 2) if pruning else optuna.pruners.NopPruner(),
        load_if_exists=True,
    )


def run(study: Any, problem: Problem, epochs: int) -> None:
    """Trials until the study has spent `epochs` of training in all, what it had spent before included.

    A trial is judged by its best epoch on dev. It is pruned when it is worse than the median of the others at the same
    epoch.
    """
    import optuna

    def one(trial: Any) -> float:
        best = float("inf")
        for epoch, (loss, _) in enumerate(problem.train(suggest(trial)), 1):
            best = min(best, loss)
            trial.report(best, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return best

    while spent(study) < epochs:
        study.optimize(one, n_trials=1)


def spent(study: Any) -> int:
    """Epochs that all trials together have trained."""
    return sum(len(trial.intermediate_values) for trial in study.trials)


def trace(study: Any) -> list[tuple[int, float]]:
    """(epochs spent, best log loss on dev so far) after every trial."""
    epochs, best, rows = 0, float("inf"), []
    for trial in study.trials:
        epochs += len(trial.intermediate_values)
        best = min([best, *trial.intermediate_values.values()])
        rows.append((epochs, best))
    return rows
