"""How good a language model is, independent of its tokenizer."""

import lzma
import math
from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from course_lib.batches import Transform, split
from course_lib.data.pack import Packed
from course_lib.objectives import Objective
from course_lib.precision import Precision

MAX_LOGITS = 2**28  # at once: a gigabyte in float32, of which scoring holds three


@torch.no_grad()
def bits_per_byte(
    model: Any, packed: Packed, context: int, precision: Precision, bos: int = 0, batch_rows: int = 32
) -> float:
    """−log₂ p(text) / bytes(text) over held-out documents, equation eq-bpb; lower is better, 8 is no knowledge.

    Every byte is scored exactly once, with at least half a context before it (the first tokens of the stream have what
    there is): windows of `context` tokens advance by half their length and only the new half counts. BOS tokens
    are context, never targets, since they stand for no byte; so the number compares any two tokenizers.
    """
    model.eval()
    device = next(model.parameters()).device
    stream = torch.from_numpy(packed.tokens.astype("int64"))  # (tokens,)
    half = context // 2
    nats = 0.0
    batch_rows = max(1, min(batch_rows, MAX_LOGITS // (context * model.config.vocab_size)))
    starts = list(range(0, max(1, len(stream) - 1 - half), half))
    for at in range(0, len(starts), batch_rows):
        chunk = starts[at : at + batch_rows]
        rows = torch.nn.utils.rnn.pad_sequence(
            [stream[s : s + context + 1] for s in chunk], batch_first=True, padding_value=bos
        ).to(device)  # (rows, context + 1); the padding comes last, where a causal model cannot see it
        with precision.autocast():
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits  # (rows, context, vocab)
        loss = F.cross_entropy(logits.float().transpose(1, 2), rows[:, 1:], reduction="none")  # (rows, context)
        scored = rows[:, 1:] != bos
        scored[1 if at == 0 else 0 :, : context - half] = False  # seen by the window before; the first one has none
        nats += float(loss[scored].cpu().double().sum())  # not every device has 64 bits
    return nats / math.log(2) / packed.bytes


@torch.no_grad()
def losses(
    model: nn.Module,
    objective: Objective,
    transform: Transform,
    packed: Packed,
    context: int,
    precision: Precision,
    batch_rows: int = 32,
) -> dict[str, float]:
    """Mean held-out loss per target and term, nats. `transform` decides what is masked (see `recipes`).

    All rows are transformed at once, so that the masks do not depend on `batch_rows`.
    """
    model.eval()
    device = next(model.parameters()).device
    rows = torch.stack([packed.row(i, context) for i in range(packed.rows(context))])
    sums: Counter[str] = Counter()
    targets: Counter[str] = Counter()
    with torch.random.fork_rng():  # an objective that samples (rtd) does so from a fixed seed, and training's is kept
        torch.manual_seed(0)
        for batch in split(transform(rows, 1.0), batch_rows):
            targets.update(objective.counts(batch))
            with precision.autocast():
                found = objective(model, {key: value.to(device) for key, value in batch.items()})
            sums.update({term: float(loss) for term, loss in found.items()})
    return {term: sums[term] / count for term, count in targets.items() if count}


def xz_bits_per_byte(text: bytes) -> float:
    """What a general-purpose compressor needs for the same text; it has not seen the training text."""
    return 8 * len(lzma.compress(text, preset=9)) / len(text)
