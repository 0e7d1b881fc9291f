"""What notebooks show: code of the library as it is stored, without its docstring; entities marked in their text."""

import ast
import html
import inspect
import textwrap
from collections.abc import Callable, Iterable, Sequence
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


AGREED, OTHER = "border-bottom: 3px solid #0072B2", "border-bottom: 3px dashed #D55E00"


def show_entities(text: str, **rows: Iterable[Sequence[Any]]) -> None:
    """Display a text once for every row of entities (start, end, label, …), each marked and named.

    Dashed, and with a `!` in plain text, is what another row does not have in the same place with the same label.
    """
    from IPython.display import display

    marks = {name: sorted({(*entity[:3],) for entity in found}) for name, found in rows.items()}
    agreed = set.intersection(*map(set, marks.values()))
    width = max(map(len, marks))
    plain = [f"{name:<{width}}  {_marked(text, found, agreed, _bracket)}" for name, found in marks.items()]
    cells = [f"<td>{name}</td><td>{_marked(text, found, agreed, _underline)}</td>" for name, found in marks.items()]
    align = 'style="text-align: left"'
    table = f"<table>{''.join(f'<tr {align}>{cell}</tr>' for cell in cells)}</table>".replace("<td>", f"<td {align}>")
    display({"text/plain": "\n".join(plain), "text/html": table}, raw=True)


def _marked(
    text: str, found: list[tuple[int, int, str]], agreed: set[Any], mark: Callable[[str, str, bool], str]
) -> str:
    pieces, at = [], 0
    escape = html.escape if mark is _underline else str
    for start, end, label in found:
        pieces += [escape(text[at:start]), mark(escape(text[start:end]), label, (start, end, label) in agreed)]
        at = end
    return "".join([*pieces, escape(text[at:])])


def _bracket(name: str, label: str, right: bool) -> str:
    return f"[{name} {label}{'' if right else '!'}]"


def _underline(name: str, label: str, right: bool) -> str:
    return f'<span style="{AGREED if right else OTHER}">{name}<sub>{label}</sub></span>'


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
