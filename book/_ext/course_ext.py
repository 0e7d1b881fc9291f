"""The book's own Sphinx parts: numbers of equations, titles of exercises and folds, nothing loaded from elsewhere."""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_exercise.directive import ExerciseDirective
from sphinx_exercise.nodes import exercise_node


class Exercise(ExerciseDirective):
    """An exercise that carries its own number (3.2) in the title, as its label and its grader do."""

    def run(self) -> list[nodes.Node]:
        """Never count: chapters are written apart, and a number must survive another exercise before it."""
        self.options["nonumber"] = None
        return super().run()


class ExerciseTitles(SphinxPostTransform):
    """`Exercise (3.2 · Title)` becomes `Exercise 3.2 · Title`."""

    default_priority = 30  # after sphinx-exercise has put its titles together

    def run(self, **kwargs: Any) -> None:
        """Take the brackets off, which are text nodes of their own."""
        for node in self.document.findall(exercise_node):
            title = node.children[0]
            if len(title.children) > 2 and title.children[1].astext() == " (":
                inner = [nodes.Text(" "), *(child.deepcopy() for child in title.children[2:-1])]
                title.children = title.children[:1]
                title += inner


def number_equations(app: Sphinx, document: nodes.document) -> None:
    """Number labelled equations as chapter and place: the third one of 03_cross_entropy is (3.3)."""
    chapter = re.search(r"/(\d\d)_", app.env.docname)
    if not chapter:
        return
    equations = app.env.get_domain("math").equations  # type: ignore[attr-defined]
    labelled = [node for node in document.findall(nodes.math_block) if node.get("label")]
    for place, node in enumerate(labelled, 1):
        node["number"] = f"{int(chapter[1])}.{place}"
        equations[node["label"]] = (app.env.docname, node["number"])


def name_what_is_folded(app: Sphinx, document: nodes.document) -> None:
    """A fold says what is inside: an exercise's solution, or the code of a figure."""
    for node in document.findall(nodes.container):
        if node.get("hide_mode"):
            kind = "a solution" if "# BEGIN SOLUTION" in node.astext() else "the code"
            node["prompt_show"], node["prompt_hide"] = f"Show {kind}", f"Hide {kind}"


def break_names(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Let names of 28 characters or more break behind a dot, a slash or an underscore rather than inside a word."""
    context["body"] = re.sub(
        r'(?<=<span class="pre">)[^<]{28,}(?=</span>)',
        lambda found: re.sub(r"([./_=])(?=\w)", r"\1<wbr>", found[0]),
        context.get("body", ""),
    )


def drop_thebe(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Jupyter Book loads sphinx-thebe on every page even when it is off, from a CDN and with a script error."""
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "THEBE_JS_URL" not in (getattr(script, "attributes", {}).get("body") or "")
        and "sphinx-thebe" not in str(getattr(script, "filename", script) or "")
    ]


def plain_bibliography(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Docutils calls the bibliography a list for screen readers, but its entries are not items of one."""
    context["body"] = context.get("body", "").replace(
        '<div role="list" class="citation-list">', '<div class="citation-list">'
    )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register; sphinx-exercise must be there first, since its directive is replaced."""
    app.setup_extension("sphinx_exercise")
    app.add_directive("exercise", Exercise, override=True)
    app.add_post_transform(ExerciseTitles)
    app.connect("doctree-read", number_equations)
    app.connect("doctree-read", name_what_is_folded)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", break_names)
    app.connect("html-page-context", plain_bibliography)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
