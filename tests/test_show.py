"""`show` prints the library's code as it is stored, without docstrings."""

import ast
import inspect
import textwrap

import pytest

from course_lib import loop, objectives, optim
from course_lib.errors import CourseError
from course_lib.show import show, show_entities, source, without_docstrings


def test_code_is_the_stored_code_without_docstrings():
    shown = source(objectives.CausalLM)
    assert shown.splitlines()[0] == "# course_lib/objectives.py"
    assert '"""' not in shown

    def bare(code):
        tree = ast.parse(textwrap.dedent(code))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
                node.body = node.body[1:] or [ast.Expr(ast.Constant(...))]
        return ast.dump(tree)

    for thing in (objectives.CausalLM, loop.train):
        assert bare(inspect.getsource(thing)) == ast.dump(ast.parse(source(thing)))


def test_comments_and_blank_lines_stay():
    code = 'class A:\n    """Doc.\n\n    More."""\n\n    x = 1  # why\n\n    def f(self):\n        """Only this."""\n'
    assert without_docstrings(code) == "class A:\n    x = 1  # why\n\n    def f(self):\n        ..."


def test_a_cell_shows_text_and_markdown_of_the_same_code(monkeypatch):
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: outputs.append(data))
    show(loop.train, without_docstrings)
    first, second = outputs
    assert first["text/plain"] == source(loop.train)
    assert first["text/markdown"] == f"```python\n{source(loop.train)}\n```"
    assert "def without_docstrings" in second["text/plain"]


def test_a_value_has_no_source():
    with pytest.raises(CourseError, match="wants a function or a class, and 3 has no Python source"):
        show(3)


def test_a_decorated_function_is_in_its_own_file():
    assert source(optim.Muon.step).startswith("# course_lib/optim.py\n@torch.no_grad()\n")


def test_entities_are_marked_in_their_text_and_differences_stand_out(monkeypatch):
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: outputs.append(data))
    show_entities(
        "Ada & Bo in York", true=[(0, 3, "PER"), (12, 16, "LOC")], found=[(12, 16, "LOC", 0.9), (0, 8, "PER", 1)]
    )
    (shown,) = outputs
    assert shown["text/plain"].splitlines() == [
        "true   [Ada PER!] & Bo in [York LOC]",
        "found  [Ada & Bo PER!] in [York LOC]",
    ]
    table = shown["text/html"]
    assert table.count("dashed") == table.count("solid") == 2
    assert "Ada &amp; Bo<sub>PER</sub>" in table
    assert "&amp;amp;" not in table


def test_a_text_without_entities_is_shown_as_it_is(monkeypatch):
    outputs = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: outputs.append(data))
    show_entities("a < b", found=[])
    assert outputs[0]["text/plain"] == "found  a < b"
    assert "a &lt; b" in outputs[0]["text/html"]
