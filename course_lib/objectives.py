"""What is minimised. An objective counts its targets before the forward and returns *summed* losses.

`counts(batch)` → {term: number of targets}; `objective(model, batch)` → {term: summed loss}. The loop alone
divides, by the totals over all micro-batches and processes; so micro-batches with unequal numbers of targets
give exactly the big batch's gradient, and one without any contributes zero instead of NaN.

Every objective predicts tokens at `labels` that are not `IGNORE`, and applies the output head there only.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from course_lib.models import token_logits

Batch = dict[str, torch.Tensor]
IGNORE = -100  # the label that no loss counts
MAX_LOGITS = 2**28  # elements (1 GB in float32) that may exist at once; more are computed in chunks, twice


class Objective(Protocol):
    """What the loop needs to know."""

    @property
    def weights(self) -> Mapping[str, float]:
        """How much each term counts."""
        ...

    def counts(self, batch: Batch) -> dict[str, int]:
        """Targets per term in this micro-batch; needs no forward."""
        ...

    def __call__(self, model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
        """Summed loss per term, in nats."""
        ...


def token_loss(
    model: PreTrainedModel, hidden: torch.Tensor, labels: torch.Tensor, limit: int = MAX_LOGITS
) -> torch.Tensor:
    """Σ −log p(label) over targets: hidden (targets, size), labels (targets,) → scalar, in float32.

    If the logits had more than `limit` elements, they are computed in chunks and once more in the backward, so that
    they never exist all at once.
    """
    rows = max(1, limit // model.config.vocab_size)
    if len(labels) <= rows:
        return _chunk_loss(model, hidden, labels)
    parts = zip(hidden.split(rows), labels.split(rows), strict=True)
    return torch.stack([checkpoint(_chunk_loss, model, h, y, use_reentrant=False) for h, y in parts]).sum()


def _chunk_loss(model: PreTrainedModel, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = token_logits(model, hidden)
    logits = logits.float() if logits.itemsize < 4 else logits  # a 16-bit sum would overflow or round
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")


class CausalLM:
    """Predict the next token. Batch: `input_ids` and `labels` (rows, length), labels already shifted by one."""

    weights: ClassVar[dict[str, float]] = {"clm": 1.0}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Labels that are not `IGNORE`."""
        return {"clm": int((batch["labels"] != IGNORE).sum())}

    def __call__(self, model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
        """Sum of −log p(label | this token and those before it), nats."""
        hidden = model.base_model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
        return {"clm": token_loss(model, hidden.flatten(0, 1), batch["labels"].flatten())}


class MaskedLM:
    """Predict hidden tokens (Devlin et al. 2019). Batch: `input_ids` (rows, length), `positions`, `labels` (rows, k).

    k is the same in every row, so shapes stay fixed and the head works on k·rows tokens instead of all.
    """

    weights: ClassVar[dict[str, float]] = {"mlm": 1.0}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Masked positions."""
        return {"mlm": int((batch["labels"] != IGNORE).sum())}

    def __call__(self, model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
        """Sum of −log p(hidden token | what is visible), nats."""
        inputs = {k: batch[k] for k in ("input_ids", "token_type_ids") if k in batch}
        hidden = model.base_model(**inputs).last_hidden_state
        return {"mlm": token_loss(model, at(hidden, batch["positions"]), batch["labels"].flatten())}


def at(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Hidden states at some positions: (rows, length, size), (rows, k) → (rows · k, size)."""
    index = positions[..., None].expand(-1, -1, hidden.size(-1))  # (rows, k, size)
    return hidden.gather(1, index).flatten(0, 1)


class MaskedLMWithNSP(MaskedLM):
    """BERT's two terms: hidden tokens, and whether the second segment follows the first (`is_next`, (rows,))."""

    weights: ClassVar[dict[str, float]] = {"mlm": 1.0, "nsp": 1.0}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Masked positions and rows."""
        return {**super().counts(batch), "nsp": len(batch["is_next"])}

    def __call__(self, model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
        """Both sums, from one forward; label 0 means that the segment follows, as in BERT."""
        body = model.base_model(input_ids=batch["input_ids"], token_type_ids=batch["token_type_ids"])
        mlm = token_loss(model, at(body.last_hidden_state, batch["positions"]), batch["labels"].flatten())
        logits = model.cls.seq_relationship(body.pooler_output).float()  # (rows, 2)
        return {"mlm": mlm, "nsp": F.cross_entropy(logits, 1 - batch["is_next"].long(), reduction="sum")}


class Hybrid:
    """One stock decoder learns both ways (Charpentier and Samuel 2024, GPT-BERT): causal rows, and masked rows.

    Masked rows see everything (`is_causal=False` in this call only) and predict a hidden token from the position
    before it, so the shifted output layer serves both. A batch holds rows of one kind; `positions` marks masked ones.
    """

    weights: ClassVar[dict[str, float]] = {"clm": 1.0, "mlm": 1.0}
    causal = CausalLM()

    def counts(self, batch: Batch) -> dict[str, int]:
        """Targets of the kind that the batch holds, zero of the other."""
        found = int((batch["labels"] != IGNORE).sum())
        return {"clm": 0, "mlm": found} if "positions" in batch else {"clm": found, "mlm": 0}

    def __call__(self, model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
        """The loss of the kind that the batch holds."""
        if "positions" not in batch:
            return self.causal(model, batch)
        hidden = model.base_model(input_ids=batch["input_ids"], use_cache=False, is_causal=False).last_hidden_state
        before = (batch["positions"] - 1).clamp(min=0)  # position 0 is never masked
        return {"mlm": token_loss(model, at(hidden, before), batch["labels"].flatten())}


class ReplacedTokens:
    """ELECTRA (Clark et al. 2020): a small generator fills the masks, the discriminator finds what it replaced.

    The model is an `nn.ModuleDict` of `generator` (masked LM) and `discriminator` (one logit a token, stock
    token classification with one label). Every token is a target for the discriminator, not only the masked ones.
    """

    weights: ClassVar[dict[str, float]] = {"mlm": 1.0, "rtd": 50.0}  # 50: the paper's λ
    masked = MaskedLM()

    def counts(self, batch: Batch) -> dict[str, int]:
        """Masked positions, and all tokens."""
        return {**self.masked.counts(batch), "rtd": batch["input_ids"].numel()}

    def __call__(self, model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
        """Generator's masked loss and discriminator's binary loss; no gradient flows through the sampling."""
        generator, discriminator = model["generator"], model["discriminator"]
        hidden = generator.base_model(input_ids=batch["input_ids"]).last_hidden_state
        picked = at(hidden, batch["positions"])  # (rows · k, size)
        mlm = token_loss(generator, picked, batch["labels"].flatten())
        with torch.no_grad():
            guesses = torch.distributions.Categorical(logits=token_logits(generator, picked).float()).sample()
        asked = batch["labels"] != IGNORE  # (rows, k); what was not hidden stays
        shown = batch["input_ids"].gather(1, batch["positions"])
        filled, original = (
            batch["input_ids"].scatter(1, batch["positions"], tokens.where(asked, shown))
            for tokens in (guesses.view_as(shown), batch["labels"])
        )
        logits = discriminator(input_ids=filled).logits.squeeze(-1).float()  # (rows, length)
        replaced = (filled != original).float()
        return {"mlm": mlm, "rtd": F.binary_cross_entropy_with_logits(logits, replaced, reduction="sum")}


def _inputs(batch: Batch) -> Batch:
    return {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids") if k in batch}


class Classification:
    """One label a row, or one a token. Batch: `input_ids`, `attention_mask` (rows, length), `labels` (rows,) or
    (rows, length) with `IGNORE` where there is nothing to learn.

    Works with every stock `…ForSequenceClassification` and `…ForTokenClassification`; `smoothing` mixes that much of
    the uniform distribution in, `class_weights` (classes,) say how much each class counts.
    """

    weights: ClassVar[dict[str, float]] = {"classification": 1.0}

    def __init__(self, smoothing: float = 0.0, class_weights: torch.Tensor | None = None):
        self.smoothing, self.class_weights = smoothing, class_weights

    def counts(self, batch: Batch) -> dict[str, int]:
        """Labels that are not `IGNORE`."""
        return {"classification": int((batch["labels"] != IGNORE).sum())}

    def __call__(self, model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
        """Sum of −w(label)·log p(label), nats."""
        logits = model(**_inputs(batch)).logits.float().flatten(0, -2)  # (rows or rows · length, classes)
        weight = None if self.class_weights is None else self.class_weights.to(logits)
        loss = F.cross_entropy(
            logits,
            batch["labels"].flatten(),
            weight,
            ignore_index=IGNORE,
            reduction="sum",
            label_smoothing=self.smoothing,
        )
        return {"classification": loss}


class MultiLabel:
    """Any number of labels a row: a yes or no for each class. `labels`: (rows, classes), 0 or 1.

    `positive` (classes,): how much more a yes counts than a no.
    """

    weights: ClassVar[dict[str, float]] = {"labels": 1.0}

    def __init__(self, positive: torch.Tensor | None = None):
        self.positive = positive

    def counts(self, batch: Batch) -> dict[str, int]:
        """Decisions: rows × classes."""
        return {"labels": batch["labels"].numel()}

    def __call__(self, model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
        """Sum of the binary cross-entropies, nats."""
        logits = model(**_inputs(batch)).logits.float()  # (rows, classes)
        positive = None if self.positive is None else self.positive.to(logits)
        loss = F.binary_cross_entropy_with_logits(
            logits, batch["labels"].to(logits), pos_weight=positive, reduction="sum"
        )
        return {"labels": loss}


class Regression:
    """One number a row, `labels` (rows,): standardised, so that every scale is as easy."""

    weights: ClassVar[dict[str, float]] = {"squares": 1.0}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Rows."""
        return {"squares": len(batch["labels"])}

    def __call__(self, model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
        """Sum of squared errors."""
        found = model(**_inputs(batch)).logits.float().squeeze(-1)  # (rows,)
        return {"squares": (found - batch["labels"].to(found)).square().sum()}


class SpanEnds:
    """Where an answer starts and ends, as two choices among the positions (Devlin et al. 2019). `labels`: (rows, 2)."""

    weights: ClassVar[dict[str, float]] = {"span": 1.0}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Ends: two a row."""
        return {"span": batch["labels"].numel()}

    def __call__(self, model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
        """Sum of −log p(start) − log p(end), nats; padding is no choice."""
        found = model(**_inputs(batch))
        ends = torch.stack([found.start_logits, found.end_logits], 1).float()  # (rows, 2, length)
        ends = ends.masked_fill(batch["attention_mask"][:, None] == 0, float("-inf"))
        return {"span": F.cross_entropy(ends.flatten(0, 1), batch["labels"].flatten(), reduction="sum")}


class Penalized:
    """Another objective and a penalty on the weights, `weight` times once a step.

    The penalty is a term with one target a row, so the loop's mean over targets makes it count once, however the step
    is cut into micro-batches and shared by processes.
    """

    def __init__(self, objective: Objective, penalty: Callable[[PreTrainedModel], torch.Tensor], weight: float):
        self.objective, self.penalty = objective, penalty
        self.weights = {**objective.weights, "penalty": weight}

    def counts(self, batch: Batch) -> dict[str, int]:
        """The objective's own, and rows."""
        return {**self.objective.counts(batch), "penalty": len(batch["input_ids"])}

    def __call__(self, model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
        """The objective's own sums, and the penalty for each row."""
        return {**self.objective(model, batch), "penalty": self.penalty(model) * len(batch["input_ids"])}
