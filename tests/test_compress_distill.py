"""Distillation: losses against closed forms in float64, equal for every micro-batch, and a student that learns."""

import copy
import math

import pytest
import torch

from course_lib.compress import losses
from course_lib.compress.distill import Distill
from course_lib.errors import CourseError
from course_lib.objectives import IGNORE, CausalLM, Classification, MultiLabel, Regression
from tests.test_compress_quantize import Desk, classifier
from tests.test_peft_parity import network


def test_soft_targets_in_closed_form():
    """Equation eq-soft."""
    draw = torch.Generator().manual_seed(0)
    s, t = (torch.randn(6, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    for temperature in (1.0, 3.0):
        found = float(losses.soft(s, t, temperature))
        total = 0.0
        for i in range(6):
            p, q = ([math.exp(v / temperature) for v in row[i].tolist()] for row in (t, s))
            p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
            total += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert found == pytest.approx(total, rel=1e-12)
    assert float(losses.soft(t, t, 2.0)) == pytest.approx(0, abs=1e-12)


def test_the_gradient_of_soft_targets_keeps_its_size():
    """T·(q − p), which for large T is (s − t) / classes of centred logits: Hinton et al. (2015), equation 4."""
    draw = torch.Generator().manual_seed(0)
    s, t = (torch.randn(4, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    s.requires_grad_()
    for temperature in (1.0, 2.0, 1e4):
        (found,) = torch.autograd.grad(losses.soft(s, t, temperature), s)
        q, p = ((v / temperature).softmax(-1) for v in (s.detach(), t))
        torch.testing.assert_close(found, temperature * (q - p), rtol=1e-6, atol=1e-9)
    centre = lambda v: v - v.mean(-1, keepdim=True)
    torch.testing.assert_close(found, (centre(s.detach()) - centre(t)) / 3, rtol=1e-3, atol=1e-4)


def test_directions_and_attention_in_closed_form():
    """Equation eq-directions, by the cosine."""
    draw = torch.Generator().manual_seed(0)
    s, t = (torch.randn(6, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    cosine = torch.cosine_similarity(s, t)
    assert float(losses.directions(s, t)) == pytest.approx(float((2 - 2 * cosine).sum()), rel=1e-12)
    a, b = (torch.randn(2, 3, 4, 4, generator=draw, dtype=torch.float64).softmax(-1) for _ in range(2))
    seen = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    by_hand = sum(
        float((b[r, h, i] * (b[r, h, i] / a[r, h, i]).log()).sum())
        for r in range(2) for h in range(3) for i in range(4) if seen[r, i]
    )  # fmt: skip
    assert float(losses.attention(a, b, seen)) == pytest.approx(by_hand, rel=1e-10)


def test_attention_in_16_bits_is_a_number():
    """What is masked is an exact zero, and the clamp's least number is one too in float16."""
    looks = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]]).half()
    assert float(losses.attention(looks, looks, torch.ones(1, 2).bool())) == 0


def test_partners():
    assert losses.partners(2, 4) == [2, 4]
    assert losses.partners(1, 4) == [4]
    assert losses.partners(4, 12) == [3, 6, 9, 12]
    assert losses.partners(4, 4) == [1, 2, 3, 4]


def batch_of(lengths):
    ids = torch.randint(3, 64, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(3))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids.where(mask > 0, 2), "attention_mask": mask, "labels": torch.arange(len(lengths)) % 3}


@pytest.mark.parametrize("architecture", ["qwen3", "modernbert", "bert", "gpt2"])
def test_summed_losses_do_not_depend_on_the_batch(architecture, tmp_path):
    teacher, student = (classifier(architecture, tmp_path, torch.float64) for _ in range(2))
    for p in student.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(p)
    objective = losses.Distillation(Classification(), teacher, 2.0, 0.7, hidden=1.0, attention=0.5)
    assert objective.weights == pytest.approx({"classification": 0.3, "logits": 0.7, "hidden": 1.0, "attention": 0.5})
    whole = batch_of([9, 4, 6])
    parts = [
        {k: v[i : i + 1, : [9, 4, 6][i]] if v.ndim == 2 else v[i : i + 1] for k, v in whole.items()} for i in range(3)
    ]
    student.eval()
    with torch.no_grad():
        found = objective(student, whole)
        alone = [objective(student, part) for part in parts]
    for term, value in found.items():
        assert float(value) > 1e-3
        rounding = 1e-6 if term == "attention" else 0  # stock attention rounds its weights to float32, kernel by kernel
        assert float(value) == pytest.approx(sum(float(a[term]) for a in alone), rel=1e-6, abs=rounding), term
        assert objective.counts(whole)[term] == sum(objective.counts(part)[term] for part in parts)
    with torch.no_grad():
        same = losses.Distillation(Classification(), copy.deepcopy(student), hidden=1.0, attention=1.0)(student, whole)
    assert all(float(same[term]) == pytest.approx(0, abs=1e-9) for term in ("logits", "hidden", "attention"))


def test_only_the_student_gets_gradients(tmp_path):
    teacher, student = (classifier("qwen3", tmp_path) for _ in range(2))
    objective = losses.Distillation(Classification(), teacher, hidden=1.0)
    sum(objective(student, batch_of([5, 5])).values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_unlabelled_texts_count_for_the_teacher_only(tmp_path):
    model, batch = classifier("qwen3", tmp_path), batch_of([5, 6, 7])
    objective = losses.Distillation(Classification(), copy.deepcopy(model))
    batch["labels"][1:] = IGNORE
    assert objective.counts(batch) == {"classification": 1, "logits": 3}


def test_pretraining_with_a_teacher():
    teacher, student = network("qwen3"), network("qwen3")
    for p in student.parameters():
        p.data *= 0.9
    rows = torch.randint(3, 64, (3, 9), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": rows[:, :-1], "labels": rows[:, 1:].clone()}
    batch["labels"][0, :3] = IGNORE
    objective = losses.LanguageDistillation(teacher, 2.0, 0.25)
    found = objective(student, batch)
    assert objective.weights == {"clm": 0.75, "logits": 0.25}
    assert objective.counts(batch) == {"clm": 21, "logits": 21}
    torch.testing.assert_close(found["clm"], CausalLM()(student, batch)["clm"])
    at = batch["labels"] != IGNORE
    s, t = (m(input_ids=batch["input_ids"]).logits[at] for m in (student, teacher))
    p, q = (t / 2).softmax(-1), (s / 2).softmax(-1)
    torch.testing.assert_close(found["logits"], 4 * (p * (p / q).log()).sum())
    found["logits"].backward()
    assert all(p.grad is None for p in teacher.parameters())


def test_a_student_learns_from_its_teacher(tmp_path):
    teacher, desk = classifier("qwen3", tmp_path), Desk()
    desk.learn(teacher, 3.0)
    desk.teacher = copy.deepcopy(teacher)
    student = Distill(layers=1, attention=0.5, epochs=5.0).apply(teacher, desk)
    assert student.config.num_hidden_layers == 1
    batch = desk.batches(8)[0]
    with torch.no_grad():
        a, b = (m(input_ids=batch["input_ids"]).logits.argmax(-1) for m in (student, desk.teacher))
    assert (a == b).float().mean() > 0.8
    assert len(desk.teacher.model.layers) == 2, "the teacher is left alone"


def test_errors(tmp_path):
    with pytest.raises(CourseError, match="temperature of 0 softens nothing"):
        losses.Distillation(Classification(), classifier("qwen3", tmp_path), 0.0)
    with pytest.raises(CourseError, match="Hidden states of 4 and 6 cannot be compared. Use hidden=0"):
        losses.directions(torch.ones(2, 4), torch.ones(2, 6))
    with pytest.raises(CourseError, match="2 and 3 heads cannot be compared"):
        losses.attention(torch.ones(1, 2, 3, 3), torch.ones(1, 3, 3, 3), torch.ones(1, 3).bool())
    for objective in (MultiLabel(), Regression()):
        with pytest.raises(CourseError, match="one distribution over classes, which this head does not have"):
            losses.Distillation(objective, classifier("qwen3", tmp_path))
        losses.Distillation(objective, classifier("qwen3", tmp_path), alpha=0.0, hidden=1.0)
    other = network("qwen3")
    other.config.vocab_size = 65
    with pytest.raises(CourseError, match="other vocabularies"):
        losses.LanguageDistillation(other)(network("qwen3"), {"labels": torch.ones(1, 1).long()})
