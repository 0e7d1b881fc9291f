"""Graders are programs, too: each must reject the stub and plausible mistakes, and accept different right answers."""

import importlib
import json
import re

import pytest

from course_lib import checks
from course_lib.checks.grading import Properties, UnsolvedError, close, equal, grader
from course_lib.errors import CourseError
from tests.conftest import ROOT

GRADERS = dir(checks)


def answers_to(name):
    return importlib.import_module(f"tests.exercises.ch{name[2:4]}").ANSWERS[name]


def test_there_are_graders_and_each_has_its_answers():
    assert GRADERS
    for chapter in checks.CHAPTERS:
        known = set(importlib.import_module(f"tests.exercises.{chapter}").ANSWERS)
        assert known == {name for name in GRADERS if name[2:4] == chapter[2:]}


@pytest.mark.parametrize("name", GRADERS)
def test_the_stub_is_rejected_with_a_plain_word(name):
    for nothing in (None, ...):
        with pytest.raises(UnsolvedError, match="returns nothing yet"):
            getattr(checks, name)(lambda *arguments, returned=nothing, **options: returned)


@pytest.mark.parametrize("name", GRADERS)
def test_each_mistake_misses_the_property_it_should_and_each_property_is_missed(name):
    wrong = answers_to(name).wrong
    assert sum(map(len, wrong.values())) >= 3
    for start, mistakes in wrong.items():
        for mistake in mistakes:
            with pytest.raises(UnsolvedError) as caught:
                getattr(checks, name)(mistake)
            failed = [title for title, _ in caught.value.failed]
            assert any(title.startswith(start) for title in failed), f"{mistake.__name__} fails only {failed}"
    untested = [title for title in caught.value.names if not any(title.startswith(start) for start in wrong)]
    assert untested == [], "no wrong answer violates these"


@pytest.mark.parametrize("name", GRADERS)
def test_different_right_answers_are_accepted(name, capsys):
    right = answers_to(name).right
    assert len({function.__code__.co_code + repr(function.__code__.co_consts).encode() for function in right}) >= 2
    for function in right:
        getattr(checks, name)(function)
        assert re.fullmatch(rf"{name}: all \d+ properties hold\.\n", capsys.readouterr().out)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_the_notebooks_exercises_and_their_graders_agree(path):
    """The same name and points for otter, the book and the grader; kinds, times and what to hand in are said."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    questions = []
    for place, (kind, text) in enumerate(cells):
        if kind == "raw" and text.startswith("# BEGIN QUESTION"):
            name, points = re.search(r"name: (ex\d\d_\d+)\npoints: (\d+)", text).groups()
            box = cells[place + 1][1]
            chapter, number = int(name[2:4]), name.split("_")[1]
            assert re.match(rf":::\{{exercise\}} {chapter}\.{number} · \S.*\n:label: {name}\n\n", box), name
            line = r"^\*(Derive|Implement|Experiment) · (\d+) points? · \d+ minutes? · \d+ GPU minutes?\*$"
            found = re.search(line, box, re.M)
            assert found, f"{name}: its line of kind, points and minutes"
            assert found[2] == points
            assert "\n**Hand in:** " in box
            assert "\n**On a small machine:** " in box
            assert ("manual: true" in text) == (name not in GRADERS)
            questions.append(name)
    boxes = [
        re.search(r":label: (ex\d\d_\d+)$", text, re.M)[1] for _, text in cells if text.startswith(":::{exercise}")
    ]
    called = {name for kind, text in cells if kind == "code" for name in re.findall(r"checks\.(ex\d\d_\d+)\(", text)}
    assert questions == boxes
    assert sorted(called) == [name for name in GRADERS if name.startswith(f"ex{path.stem[:2]}_")]


@grader
def ex99_1(double, holds: Properties) -> None:
    with holds("2 becomes 4"):
        equal(double(2), 4)
    with holds("half becomes 1"):
        close(double(0.5), 1.0, what="double(0.5)")


def test_a_message_names_each_property_that_fails_and_why():
    with pytest.raises(UnsolvedError) as caught:
        ex99_1(lambda x: x + 2)
    assert str(caught.value) == "ex99_1: 1 of 2 properties hold.\n  ✗ half becomes 1: double(0.5): expected 1, got 2.5"
    with pytest.raises(UnsolvedError, match="2 becomes 4: your code raised ZeroDivisionError: division by zero"):
        ex99_1(lambda x: x / 0)


def test_comparisons_reach_into_tensors_and_see_other_shapes():
    import torch

    close(torch.tensor([[1.0, 2.0]]), [[1.0, 2.0 + 1e-8]])
    with pytest.raises(AssertionError, match=r"expected \[1, 2\], got \[1, 2.5\]"):
        close(torch.tensor([1.0, 2.5]), [1.0, 2.0])
    with pytest.raises(AssertionError, match="expected 2 values, got 3"):
        close([1, 2, 3], [1, 2])
    with pytest.raises(AssertionError, match="expected 1, got nan"):
        close(float("nan"), 1.0)
    equal(torch.tensor([1, 2]), torch.tensor([1, 2]))
    with pytest.raises(AssertionError, match="expected"):
        equal(torch.tensor([1, 2]), torch.tensor([1, 3]))


def test_what_looks_alike_is_told_apart():
    with pytest.raises(AssertionError, match=r"expected \[1\], got \[1\]; the largest difference is 2\.0e-07"):
        close([1 + 2e-7], [1.0], tolerance=1e-9)
    with pytest.raises(AssertionError, match="expected 0.3, got 0.3: float 0.3 and float 0.30000000000000004"):
        equal(0.1 + 0.2, 0.3)
    with pytest.raises(AssertionError, match=r"tuple \(1, 2\) and list \[1, 2\]"):
        equal([1, 2], (1, 2))


def test_a_call_instead_of_a_function_and_a_name_that_is_not_there():
    with pytest.raises(CourseError, match="wants your function itself, not int"):
        ex99_1(4)
    with pytest.raises(AttributeError, match="no exercise called 'ex98_7'"):
        checks.ex98_7  # noqa: B018
