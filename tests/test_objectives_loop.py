"""The contract of the loop: losses per target, big batch = micro-batches, nothing hidden in the division."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import models, objectives, optim
from course_lib.budget import Budget, WorkClock
from course_lib.errors import CourseError
from course_lib.loop import MAX_SKIPPED, train
from course_lib.objectives import IGNORE, CausalLM
from course_lib.precision import Precision
from course_lib.schedule import trapezoid

FLOAT32 = Precision("cpu", torch.float32)


def flat(progress):
    return 1.0


def batch_of(rows, ignored=0, seed=0, length=8, vocab=64):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocab, (rows, length + 1), generator=generator)
    labels = ids[:, 1:].clone()
    labels.view(-1)[:ignored] = IGNORE
    return {"input_ids": ids[:, :-1], "labels": labels}


def test_causal_loss_is_the_closed_form(tiny_model):
    batch = batch_of(2, ignored=3)
    logits = tiny_model(input_ids=batch["input_ids"]).logits.detach().double()
    expected = 0.0
    for row in range(2):
        for at in range(8):
            label = int(batch["labels"][row, at])
            if label != IGNORE:
                expected += math.log(float(logits[row, at].exp().sum())) - float(logits[row, at, label])
    objective = CausalLM()
    assert objective.counts(batch) == {"clm": 13}
    assert objective(tiny_model, batch)["clm"].item() == pytest.approx(expected, rel=1e-5)


SAYS = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IDS = torch.tensor([[1, 5, 2, 7], [3, 8, 4, 0], [6, 2, 0, 0]])  # 0 is padding
HEAVY = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
TAGGED = [[2, IGNORE, 0, 1], [1, 1, 0, IGNORE], [IGNORE, 2, IGNORE, IGNORE]]


def smoothed(logits, label, epsilon):
    """One target of a weighted and smoothed cross-entropy."""
    nll = -HEAVY * logits.log_softmax(-1)
    return (1 - epsilon) * nll[label] + epsilon * nll.mean()


def span(logits, ends, length):
    return sum(logits[:length, k].logsumexp(0) - logits[ends[k], k] for k in (0, 1))


CASES = {
    "a class a row": (
        objectives.Classification(), {"classification": 3}, lambda z: z[:, 0], [2, 0, 1],
        lambda z, row, labels, length: -z[row, 0].log_softmax(-1)[labels],
    ),
    "a class a token": (
        objectives.Classification(0.2, HEAVY), {"classification": 7}, lambda z: z, TAGGED,
        lambda z, row, labels, length: sum(smoothed(z[row, i], y, 0.2) for i, y in enumerate(labels) if y != IGNORE),
    ),
    "any number of classes": (
        objectives.MultiLabel(HEAVY), {"labels": 9}, lambda z: z[:, 0], [[1, 0, 1], [0, 0, 0], [0, 1, 0]],
        lambda z, row, labels, length: -sum(
            HEAVY[k] * F.logsigmoid(z[row, 0, k]) if y else F.logsigmoid(-z[row, 0, k]) for k, y in enumerate(labels)
        ),
    ),
    "a number": (
        objectives.Regression(), {"squares": 3}, lambda z: z[:, 0, :1], [-1.75, 0.5, -0.6],
        lambda z, row, labels, length: (z[row, 0, 0] - labels) ** 2,
    ),
    "two ends": (
        objectives.SpanEnds(), {"span": 6}, None, [[0, 2], [2, 2], [1, 1]],
        lambda z, row, labels, length: span(z[row], labels, length),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_losses_of_a_task_in_closed_form(name):
    """In float64, row by row; rows alone give the same sum, without their padding."""
    objective, counts, shown, labels, expected = CASES[name]

    def model(input_ids, attention_mask):
        z = SAYS[input_ids]  # (rows, length, 3)
        ends = {"start_logits": z[..., 0], "end_logits": z[..., 1]}
        return SimpleNamespace(logits=shown(z)) if shown else SimpleNamespace(**ends)

    mask = (IDS > 0).long()
    whole = {"input_ids": IDS, "attention_mask": mask, "labels": torch.tensor(labels)}
    (term,) = objective.weights
    lengths = mask.sum(1).tolist()
    by_hand = [float(expected(SAYS[IDS], row, labels[row], lengths[row])) for row in range(3)]
    assert objective(model, whole)[term].item() == pytest.approx(sum(by_hand), rel=1e-6)
    assert objective.counts(whole) == counts
    alone = [
        {
            key: v[row : row + 1, : lengths[row]] if v.shape == IDS.shape else v[row : row + 1]
            for key, v in whole.items()
        }
        for row in range(3)
    ]
    assert [objective(model, part)[term].item() for part in alone] == pytest.approx(by_hand, rel=1e-6)
    assert sum(objective.counts(part)[term] for part in alone) == counts[term]


def test_the_model_never_sees_the_future(tiny_model):
    tiny_model.eval()
    ids = batch_of(1)["input_ids"]
    changed = ids.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 64
    before, after = (tiny_model(input_ids=x).logits for x in (ids, changed))
    assert torch.equal(before[0, :5], after[0, :5])
    assert not torch.equal(before[0, 5:], after[0, 5:])


def weights_after(model, steps, objective=None, tokens=None, schedule=flat, lr=0.05):
    """Plain SGD in float64, unclipped, so that gradients can be compared through the weights."""
    model = copy.deepcopy(model).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for group in optimizer.param_groups:
        group["initial_lr"] = lr
    budget = Budget(WorkClock(tokens or 10**9))
    done = list(train(model, steps, objective or CausalLM(), [optimizer], schedule, FLOAT32, budget, clip=math.inf))
    return torch.cat([p.detach().flatten() for p in model.parameters()]), done


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 16), min_size=2, max_size=4))
def test_unequal_micro_batches_equal_the_big_batch(ignored):
    """Equation eq-mean: the mean of means would differ, and a micro-batch without targets (16 of 16 ignored) NaN."""
    torch.manual_seed(0)
    model = models.build("qwen3", models.Size(16, 1, 2, 64, 16), models.Tokens(64))
    micro = [batch_of(2, n, seed) for seed, n in enumerate(ignored)]
    big = {key: torch.cat([b[key] for b in micro]) for key in micro[0]}
    split, _ = weights_after(model, [micro])
    whole, _ = weights_after(model, [[big]])
    assert torch.isfinite(split).all()
    assert (split - whole).abs().max() < 1e-10


def test_the_mean_of_means_would_have_been_another_gradient(tiny_model):
    """The test above can fail: dividing each micro-batch by its own count moves the weights elsewhere."""

    class MeanOfMeans(CausalLM):
        def __call__(self, model, batch):
            share = super().counts(batch)["clm"] / 18  # 18 targets in all
            return {"clm": super().__call__(model, batch)["clm"] / 2 / share}

    micro = [batch_of(2, 0, 1), batch_of(2, 14, 2)]
    right, _ = weights_after(tiny_model, [micro])
    wrong, _ = weights_after(tiny_model, [micro], MeanOfMeans())
    assert (right - wrong).abs().max() > 1e-4


def test_a_term_without_targets_contributes_zero(tiny_model):
    class TwoTerms(CausalLM):
        weights = {"clm": 1.0, "other": 0.5}

        def counts(self, batch):
            return {**super().counts(batch), "other": 0}

        def __call__(self, model, batch):
            return {**super().__call__(model, batch), "other": model.lm_head.weight.sum() * 0}

    batch = [batch_of(2)]
    alone, _ = weights_after(tiny_model, [batch])
    both, steps = weights_after(tiny_model, [batch], TwoTerms())
    assert torch.equal(alone, both)
    assert steps[0].losses["other"] == 0


def test_the_schedule_ends_with_the_budget(tiny_model):
    seen = []

    def schedule(progress):
        seen.append(progress)
        return trapezoid(0.1, 0.5)(progress)

    _, steps = weights_after(tiny_model, iter(lambda: [batch_of(2)], None), tokens=160, schedule=schedule)
    assert [s.progress for s in steps] == seen == pytest.approx([i / 10 for i in range(10)])
    assert sum(s.tokens for s in steps) == 160


def test_losses_are_means_per_target(tiny_model):
    micro = [batch_of(2, 0, 1), batch_of(1, 4, 2)]
    _, steps = weights_after(tiny_model, [micro])
    objective, model = CausalLM(), copy.deepcopy(tiny_model).double()
    total = sum(objective(model, b)["clm"].item() for b in micro)
    assert steps[0].losses["clm"] == pytest.approx(total / (16 + 4), rel=1e-6)


class OutOfMemoryAbove(CausalLM):
    """Stands in for a device that holds `rows` rows; counts how often it did not."""

    def __init__(self, rows):
        self.rows, self.failed = rows, 0

    def __call__(self, model, batch):
        losses = super().__call__(model, batch)
        if len(batch["input_ids"]) > self.rows:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses


def test_a_step_that_runs_out_of_memory_is_repeated_in_smaller_parts(tiny_model):
    """The second micro-batch fails, when the first has left gradients; later steps begin with the smaller size."""
    steps = [[batch_of(2, 3, n), batch_of(7, 5, n + 10)] for n in range(3)]
    small = OutOfMemoryAbove(2)
    found, done = weights_after(tiny_model, steps, small)
    expected, plain = weights_after(tiny_model, steps)
    assert (found - expected).abs().max() < 1e-10
    assert small.failed == 2  # 7, 4, 2
    assert [s.shrunk for s in done] == [2, 0, 0]
    assert [s.shrunk for s in plain] == [0, 0, 0]
    assert [s.tokens for s in done] == [s.tokens for s in plain]
    assert [s.losses["clm"] for s in done] == pytest.approx([s.losses["clm"] for s in plain], rel=1e-6)


def test_memory_that_runs_out_in_the_middle_of_a_run_changes_nothing(tiny_model):
    class Late(OutOfMemoryAbove):
        calls = 0

        def __call__(self, model, batch):
            self.calls += 1
            self.rows = 3 if self.calls > 2 else 9
            return super().__call__(model, batch)

    steps = [[batch_of(6, n, n)] for n in range(4)]
    found, done = weights_after(tiny_model, steps, Late(9))
    assert (found - weights_after(tiny_model, steps)[0]).abs().max() < 1e-10
    assert [s.shrunk for s in done] == [0, 0, 3, 0]


def test_a_penalty_counts_once_when_memory_runs_out(tiny_model):
    decay = lambda model: sum(p.square().sum() for p in model.parameters())
    steps = [[batch_of(7, n, n)] for n in range(3)]
    found, done = weights_after(tiny_model, steps, objectives.Penalized(OutOfMemoryAbove(2), decay, 0.1))
    expected, plain = weights_after(tiny_model, steps, objectives.Penalized(CausalLM(), decay, 0.1))
    assert done[0].shrunk == 2
    assert (found - expected).abs().max() < 1e-10
    assert [s.losses["penalty"] for s in done] == pytest.approx([s.losses["penalty"] for s in plain], rel=1e-6)
    assert plain[0].losses["penalty"] == pytest.approx(decay(tiny_model).item(), rel=1e-5)


def test_what_thaws_after_the_loop_was_entered_is_clipped_too(tiny_model):
    """A notebook may leave the loop and enter it again with layers that are still frozen."""
    late = [p for name, p in tiny_model.named_parameters() if "layers.0" in name]

    class Thaws(CausalLM):
        calls = 0

        def __call__(self, model, batch):
            self.calls += 1
            for p in late:
                p.requires_grad_(self.calls > 1)
            return super().__call__(model, batch)

    optimizer = torch.optim.SGD(tiny_model.parameters(), lr=0.0)
    optimizer.param_groups[0]["initial_lr"] = 0.0
    for p in late:
        p.requires_grad_(False)
    rest = ([optimizer], flat, FLOAT32, Budget(WorkClock(10**6)))
    frozen, thawed = train(tiny_model, [[batch_of(2)]] * 2, Thaws(), *rest)
    assert thawed.norm > 1.01 * frozen.norm


def test_one_row_that_does_not_fit_says_what_to_change(tiny_model):
    with pytest.raises(CourseError, match="Not even one row fits into memory. Use a smaller --size or --context"):
        weights_after(tiny_model, [[batch_of(3)]], OutOfMemoryAbove(0))


def test_a_non_finite_step_is_skipped_and_too_many_end_the_run(tiny_model):
    class Broken(CausalLM):
        calls = 0

        def __call__(self, model, batch):
            self.calls += 1
            return {"clm": super().__call__(model, batch)["clm"] * (math.nan if self.calls > 1 else 1.0)}

    optimizers = optim.build(tiny_model, "muon", 0.02, 0.01)
    steps = []
    with pytest.raises(CourseError, match=f"{MAX_SKIPPED} steps in a row. Lower the learning rate"):
        for step in train(
            tiny_model, iter(lambda: [batch_of(1)], None), Broken(), optimizers, flat, FLOAT32, Budget(WorkClock(10**6))
        ):
            steps.append(step)
            if len(steps) == 1:
                after_first = copy.deepcopy(tiny_model.state_dict())
    assert [s.taken for s in steps] == [True] + [False] * (MAX_SKIPPED - 1)
    assert all(torch.equal(value, after_first[name]) for name, value in tiny_model.state_dict().items())


def test_a_step_on_the_meta_device_makes_no_tensor_elsewhere(on_meta):
    """Stands in for a GPU: any tensor made on the wrong device fails here."""
    with torch.device("meta"):
        model = models.build("qwen3", models.Size(32, 2, 2, 64, 16), models.Tokens(64))
    batch = {key: value.to("meta") for key, value in batch_of(2).items()}
    loss = CausalLM()(model, batch)["clm"]
    loss.backward()
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())
    for optimizer in optim.build(model, "muon", 0.02, 0.01):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loop_runs_in_16_bit_on_cpu(tiny_model, dtype):
    optimizers = optim.build(tiny_model, "muon", 0.02, 0.01)
    steps = list(
        train(
            tiny_model,
            iter(lambda: [batch_of(4), batch_of(4, seed=1)], None),
            CausalLM(),
            optimizers,
            flat,
            Precision("cpu", dtype),
            Budget(WorkClock(64 * 12)),
        )
    )
    assert steps[-1].losses["clm"] < steps[0].losses["clm"] - 0.5
    assert all(p.dtype == torch.float32 for p in tiny_model.parameters())


def test_memory_runs_out_in_other_words_on_other_devices(tiny_model):
    class Apple(CausalLM):
        def __init__(self, message):
            self.message = message

        def __call__(self, model, batch):
            if len(batch["input_ids"]) > 2:
                raise RuntimeError(self.message)
            return super().__call__(model, batch)

    _, done = weights_after(tiny_model, [[batch_of(4, 3, 0)]], Apple("MPS backend out of memory (MPS allocated: 1 GB)"))
    assert done[0].shrunk == 2
    with pytest.raises(RuntimeError, match="shapes differ"):
        weights_after(tiny_model, [[batch_of(4, 3, 0)]], Apple("shapes differ"))
