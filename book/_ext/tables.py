"""Tables made from what is stored: `{run-table}` from runs/*/run.json, `{notebook-table}` from the notebooks."""

import ast
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

Record = dict[str, Any]
NOTHING = "–"
ROOT = Path(__file__).resolve().parent.parent.parent


class RunTable(SphinxDirective):
    """One row a record: training runs of one kind of columns, or with `:others:` measurements of any other kind."""

    option_spec = {"others": lambda text: True}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """Read every record that is there; a reader's own runs appear in a book that they build."""
        root = Path(self.env.srcdir) / "runs"
        paths = sorted(root.glob("*/run.json"))
        for path in paths:
            self.env.note_dependency(str(path))
        records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        if "others" in self.options:
            return [table(OTHER_COLUMNS, [record for record in records if not trainings(record)])]
        return [table(TRAINING_COLUMNS, [part for record in records for part in trainings(record)])]


class NotebookTable(SphinxDirective):
    """One row a notebook: cells, how many are compared, and when and where it printed the same."""

    def run(self) -> list[nodes.Node]:
        """Read the notebooks and their records of stability."""
        rows = []
        for path in sorted((Path(self.env.srcdir) / "notebooks").glob("*.ipynb")):
            self.env.note_dependency(str(path))
            rows.append(notebook_row(path))
        return [table(NOTEBOOK_COLUMNS, rows)]


def trainings(record: Record) -> list[Record]:
    """The runs of the training loop in a record: itself, or the models that one command trained."""
    if "settings" in record and "result" in record:
        return [record]
    parts = {
        name: part for name, part in record.items() if isinstance(part, dict) and {"settings", "result"} <= set(part)
    }
    return [{**record, **part, "id": f"{record['id']}/{name}"} for name, part in parts.items()]


def score(record: Record) -> str:
    """The scores of a run, bits per byte first if it has them."""
    result = record["result"]
    scores = {**result.get("scores", {}), **{k: v for k, v in result.items() if k == "bits_per_byte"}}
    if "bits_per_byte" in scores:
        return f"{scores['bits_per_byte']:.3f} bits\u00a0per\u00a0byte"
    shown = [
        f"{name.replace('_', ' ')} {value:.4g}" for name, value in scores.items() if isinstance(value, int | float)
    ]
    return ", ".join(shown[:3]) or NOTHING


def model(record: Record) -> str:
    """Objective, size and number of weights."""
    settings, plan = record["settings"], record.get("plan", {})
    parts = [settings.get("objective", "clm"), str(settings.get("size", ""))]
    weights = plan.get("parameters")
    return " ".join(part for part in parts if part) + (f", {weights / 1e6:.2f}\u00a0M" if weights else "")


def device(record: Record) -> str:
    """Which machine, with its threads if it is a CPU."""
    found = record.get("device", {})
    threads = f", {found['threads']} threads" if found.get("kind") == "cpu" and found.get("threads") else ""
    return (found.get("name", "") + threads) or record.get("platform", NOTHING)


def command(record: Record) -> str:
    """The command that made the record; several are joined."""
    commands = [record["command"]] if "command" in record else list(record.get("commands", {}).values())
    return "; ".join(" ".join(words) for words in commands)


def about(record: Record) -> str:
    """What a measurement is: its own words, else the first line of the tool that made it."""
    if record.get("kind") == "finetune":
        return finetuned(record)
    script = re.search(r"\btools[/.](\w+)", command(record))  # `python tools/x.py` or `python -m tools.x`
    words = record.get("about") or (documentation(ROOT / "tools" / f"{script[1]}.py") if script else "")
    return re.split(r"\.(?:\s|$)", words)[0].replace("`", "") or NOTHING


def finetuned(record: Record) -> str:
    """Model, task and test score of a fine-tuning run."""
    result, asked = record["result"], record["config"]
    start = "the network of" if asked["scratch"] else ""
    metric = next(key.removeprefix("dev_") for key in result if key.startswith("dev_"))  # the one that the head names
    shown = (lambda value: f"{value:.1%}") if metric == "accuracy" else (lambda value: f"{value:.3f}")
    score = f"{shown(result[metric])} right" if metric == "accuracy" else f"{metric} {shown(result[metric])}"
    seeds = f"{shown(result['least'])} to {shown(result['most'])}, {result['seeds']} seed{'s' * (result['seeds'] > 1)}"
    return f"{start} {Path(asked['model']).name} on {record['task']['name']}: {score} ({seeds})".strip()


def documentation(script: Path) -> str:
    """A script's docstring, or nothing where the script is no longer there."""
    return ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or "" if script.exists() else ""


def day(record: Record) -> str:
    """The date on which the run ended, or began if it was stopped."""
    at = record.get("finished", record.get("started", NOTHING))
    return at[:10].replace("-", "\u2011")  # hyphens that do not break


def tokens(record: Record) -> str:
    """Millions of tokens read."""
    read = record["result"].get("tokens")
    return f"{read / 1e6:.1f}\u00a0M" if read else NOTHING


def notebook_row(path: Path) -> Record:
    """What the status page says of one notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [c for c in cells if c["cell_type"] == "code" and "bootstrap" not in c["metadata"].get("tags", [])]
    ignored = sum("nbval-ignore-output" in cell["metadata"].get("tags", []) for cell in code)
    record = path.parent / "stability" / f"{path.stem}.json"
    stable = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {"passed": "not yet", "seconds": {}}
    seconds = list(stable["seconds"].values())
    return {
        "name": path.stem,
        "cells": str(len(code)),
        "compared": str(len(code) - ignored),
        "seconds": f"{seconds[0]:.0f}" if seconds else NOTHING,
        "settings": ", ".join(stable["seconds"]) or NOTHING,
        "passed": stable["passed"].replace("-", "\u2011"),
    }


Columns = dict[str, Callable[[Record], str]]
TRAINING_COLUMNS: Columns = {
    "record": lambda record: record["id"],
    "corpus, budget": lambda record: f"{record['settings'].get('corpus', NOTHING)}, {record['settings'].get('budget')}",
    "model": model,
    "tokens": tokens,
    "held-out score": score,
    "machine": device,
    "date": day,
}
OTHER_COLUMNS: Columns = {
    "record": lambda record: record["id"],
    "what": about,
    "command": lambda record: command(record) or NOTHING,
    "date": day,
}
NOTEBOOK_COLUMNS: Columns = {
    "notebook": lambda row: row["name"],
    "code cells": lambda row: row["cells"],
    "compared": lambda row: row["compared"],
    "seconds": lambda row: row["seconds"],
    "same with": lambda row: row["settings"],
    "on": lambda row: row["passed"],
}


def table(columns: Columns, rows: Iterable[Record]) -> nodes.Node:
    """A docutils table; wide ones scroll inside their own box on a phone."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in columns), cols=len(columns))
    head = nodes.row("", *(nodes.entry("", nodes.paragraph(text=name)) for name in columns))
    body = [nodes.row("", *(nodes.entry("", cell(name, make(row))) for name, make in columns.items())) for row in rows]
    group += [nodes.thead("", head), nodes.tbody("", *body)]
    return nodes.table("", group, classes=["stored"])


def cell(column: str, text: str) -> nodes.Node:
    """Names and commands as code, the rest as text."""
    if column in ("record", "command", "notebook") and text != NOTHING:
        return nodes.paragraph(
            "", "", *(part for line in text.split("; ") for part in (nodes.literal(text=line), nodes.Text(" ")))
        )
    return nodes.paragraph(text=text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both directives."""
    app.add_directive("run-table", RunTable)
    app.add_directive("notebook-table", NotebookTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
