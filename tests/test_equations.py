"""Principle 2: each numbered equation has a function that implements it and a test that checks it."""

import inspect
import pkgutil

import pytest

from tools import list_equations

LABELS = [label for labels in list_equations.labelled().values() for label in labels]


@pytest.mark.parametrize("label", LABELS)
def test_what_the_library_implements_is_tested(label):
    assert LABELS.count(label) == 1, "labelled twice"
    implemented, tested = (label in list_equations.mentions(folder) for folder in ("course_lib", "tests"))
    assert implemented == tested, "a docstring in course_lib names it, or one of a test, but not both"


def test_chapters_3_and_4_number_only_what_the_library_implements():
    for path, labels in list_equations.labelled().items():
        if path.stem[:2] in ("03", "04"):
            assert set(labels) <= set(list_equations.mentions("course_lib"))


@pytest.mark.parametrize("folder", ["course_lib", "tests"])
def test_what_names_an_equation_exists_and_so_does_the_equation(folder):
    for label, names in list_equations.mentions(folder).items():
        assert label in LABELS, f"{names} name an equation that no notebook has"
        for name in names:
            found, attribute = pkgutil.resolve_name(name), name.rpartition(".")[2]
            assert folder == "course_lib" or (inspect.isfunction(found) and attribute.startswith("test_"))


def test_the_page_is_current():
    assert list_equations.PAGE.read_text(encoding="utf-8") == list_equations.page()
