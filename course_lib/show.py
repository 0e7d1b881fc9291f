"""Show a function or class of the library inside a notebook, as it is stored, without its docstring."""

import ast
import inspect
import textwrap
from pathlib import Path
from typing import Any

from course_lib.errors import CourseError

PACKAGE = Path(__file__).resolve().parent


def show(*objects: Any) -> None:
    """Display the source of functions, methods or classes of this library, one block each.

    A cell's output and not a copy in the text: nbval compares it, so the page cannot fall behind the code.
    """
    from IPython.display import display

    for thing in objects:
        code = source(thing)
        display({"text/plain": code, "text/markdown": f"```python\n{code}\n```"}, raw=True)


def source(thing: Any) -> str:
    """Return the code of `thing` without docstrings, under a line that names its file.

    Raises:
        CourseError: `thing` has no Python source (a value, or something written in C).

    """
    try:
        code = textwrap.dedent(inspect.getsource(thing))
        file = Path(inspect.getsourcefile(inspect.unwrap(thing)) or "").resolve()  # not the decorator's file
    except (TypeError, OSError):
        raise CourseError(f"show() wants a function or a class, and {thing!r} has no Python source.") from None
    where = file.relative_to(PACKAGE.parent) if file.is_relative_to(PACKAGE) else Path(file.name)
    return f"# {where.as_posix()}\n{without_docstrings(code)}"


def without_docstrings(code: str) -> str:
    """Drop every docstring; a body that was nothing else keeps an ellipsis."""
    lines = code.rstrip().splitlines()
    documented = [n for n in ast.walk(ast.parse(code)) if has_docstring(n)]
    for node in sorted(documented, key=lambda n: -n.lineno):  # type: ignore[attr-defined]
        first: ast.Expr = node.body[0]  # type: ignore[attr-defined]
        start, end = first.lineno - 1, first.end_lineno or first.lineno
        only = len(node.body) == 1  # type: ignore[attr-defined]
        while not only and end < len(lines) and not lines[end].strip():
            end += 1  # the blank line that set the docstring apart
        lines[start:end] = [" " * first.col_offset + "..."] if only else []
    return "\n".join(lines)


def has_docstring(node: ast.AST) -> bool:
    """Whether `node` is a function or class that starts with a docstring."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None
