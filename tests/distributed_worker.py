"""What `test_distributed.py` runs under torchrun: cases of the loop on this rank's share of every step.

torchrun --nproc-per-node=2 -m tests.distributed_worker OUT MICRO_ROWS CASE…
"""

import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from course_lib import distributed, models, objectives
from course_lib.batches import split
from course_lib.budget import Budget, WorkClock
from course_lib.loop import train
from course_lib.precision import Precision

ROWS, LENGTH, VOCAB, STEPS = 8, 8, 64, 6


class TwoHeads:
    """Two terms with a head each; a batch without targets of a term does not touch the weights of its head."""

    weights = {"first": 1.0, "second": 0.5}

    def counts(self, batch):
        return {term: int((batch[term] >= 0).sum()) for term in self.weights}

    def __call__(self, model, batch):
        hidden = model["body"](batch["input_ids"])
        present = [term for term in self.weights if (batch[term] >= 0).any()]
        logits = {term: model[term](hidden).flatten(0, 1) for term in present}
        return {t: F.cross_entropy(logits[t], batch[t].flatten(), ignore_index=-1, reduction="sum") for t in present}


class OutOfMemory(objectives.CausalLM):
    """Fails on rank 1 in the second micro-batch, while rank 0 goes on and waits for the gradients."""

    calls = 0

    def __call__(self, model, batch):
        self.calls += 1
        if distributed.rank() == 1 and self.calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(model, batch)


def tokens(step):
    return torch.randint(VOCAB, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(step))


def causal(step):
    ids = tokens(step)
    labels = ids[:, 1:].clone()
    labels.view(-1)[: 5 * step] = objectives.IGNORE  # ranks and micro-batches differ in targets
    return {"input_ids": ids[:, :-1], "labels": labels}


def alternating(step):
    """Causal and masked steps: in each, one term has no target anywhere."""
    if step % 2:
        return causal(step)
    positions = torch.tensor([[2, 5]] * ROWS)
    ids = tokens(step)[:, :-1]
    return {"input_ids": ids, "positions": positions, "labels": ids.gather(1, positions)}


def lopsided(step):
    """The second term has targets in odd rows only, which are rank 1's; and in no row of every third step."""
    ids = tokens(step)
    second = ids[:, 1:].clone()
    second[0::2] = -1
    if step % 3 == 0:
        second[:] = -1
    return {"input_ids": ids[:, :-1], "first": ids[:, 1:], "second": second}


def decoder():
    torch.manual_seed(0)
    model = models.build("qwen3", models.Size(16, 1, 2, VOCAB, 16), models.Tokens(VOCAB))
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    return model


def two_heads():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"body": nn.Embedding(VOCAB, 16), "first": nn.Linear(16, VOCAB), "second": nn.Linear(16, VOCAB)}
    )


CASES = {
    "accumulation": (decoder, objectives.CausalLM, causal),
    "hybrid": (decoder, objectives.Hybrid, alternating),
    "lopsided": (two_heads, TwoHeads, lopsided),
    "memory": (decoder, OutOfMemory, causal),
}


def run(case, micro_rows):
    """The weights after training on this rank's rows, and how many gradient buckets were exchanged in each step."""
    make, objective, batch = CASES[case]
    model, sent, per_step = make().double(), [], []
    loss = objective()
    if distributed.world_size() > 1:
        loss = distributed.Parallel(model, loss)
        loss.engine.register_comm_hook(None, lambda state, bucket: sent.append(1) or allreduce_hook(None, bucket))
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "initial_lr": 0.05}], lr=0.05)
    rank, world = distributed.rank(), distributed.world_size()
    shares = [{key: value[rank::world] for key, value in batch(step).items()} for step in range(STEPS)]
    steps = [split(share, micro_rows) for share in shares]
    policy, budget = Precision("cpu", torch.float32), Budget(WorkClock(10**9))
    for _ in train(model, steps, loss, [optimizer], lambda _: 1.0, policy, budget, clip=math.inf):
        per_step.append(len(sent))
        sent.clear()
    return {name: p.detach() for name, p in model.named_parameters()}, per_step


if __name__ == "__main__":
    out, micro_rows, *cases = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    distributed.start("cpu")
    for case in cases:
        weights, per_step = run(case, micro_rows)
        if distributed.rank() == 0:
            save_file(weights, out / f"{case}.safetensors")
            (out / f"{case}.json").write_text(json.dumps(per_step))
    distributed.stop()
