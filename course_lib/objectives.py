"""What is minimised. An objective counts its targets before the forward and returns *summed* losses.

`counts(batch)` → {term: number of targets}; `objective(model, batch)` → {term: summed loss}. The loop alone
divides, by the totals over all micro-batches and processes; so micro-batches with unequal numbers of targets
give exactly the big batch's gradient, and one without any contributes zero instead of NaN.
"""

from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import nn

Batch = dict[str, torch.Tensor]
IGNORE = -100  # the label that no loss counts


class Objective(Protocol):
    """What the loop needs to know; `weights` says how much each term counts."""

    weights: ClassVar[dict[str, float]]

    def counts(self, batch: Batch) -> dict[str, int]:
        """Targets per term in this micro-batch; needs no forward."""
        ...

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Summed loss per term, in nats."""
        ...


class CausalLM:
    """Predict the next token. Batch: `input_ids` and `labels` (rows, length), labels already shifted by one."""

    weights: ClassVar[dict[str, float]] = {"clm": 1.0}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Labels that are not `IGNORE`."""
        return {"clm": int((batch["labels"] != IGNORE).sum())}

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Sum of −log p(label | this token and those before it), nats."""
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits  # (rows, length, vocab)
        labels = batch["labels"].flatten()  # (rows · length,)
        return {"clm": F.cross_entropy(logits.flatten(0, 1).float(), labels, ignore_index=IGNORE, reduction="sum")}
