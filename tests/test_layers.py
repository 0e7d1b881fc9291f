"""The house rules that a reader relies on: arrows downward, small files, small functions, a light import."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = sorted((ROOT / "course_lib").rglob("*.py"))

# From the ground up; a module may import only from rows above its own (or its own row, further left).
LAYERS = [
    ["errors"],
    ["budget", "storage", "spec", "config", "ladder", "progress", "loggers", "show", "bootstrap"],
    ["device", "assets"],
    ["tokenizer", "models"],
    ["data.clean", "data.filters", "data.files", "data.docs", "data.registry", "data.library", "data.card"],
    ["data.pretrained", "data.corpora", "data.pack", "data.prepare", "data.report", "data.labelled"],
    ["data.tags", "data.annotated"],
    [
        "schedule",
        "objectives",
        "distributed",
        "precision",
        "freezing",
        "optim",
        "batches",
        "recipes",
        "examples",
        "cooccurrence",
        "numerics",
        "crossentropy",
    ],
    ["record", "checkpoint", "loop", "compress.losses"],
    ["metrics", "evaluate", "pairs", "baselines", "sample", "judge", "plan", "training"],
    ["heads.base", "heads.classify", "heads.windows", "heads.tokens", "heads.spans", "heads.registry"],
    ["peft.base", "peft.lora", "peft.adalora", "peft.bottleneck", "peft.bitfit", "peft.prefix", "peft.prompt"],
    ["peft.methods", "peft.adapters", "peft.files"],
    ["robust.thesaurus", "robust.augment", "robust.regularize", "robust.attack", "robust.search"],
    ["recorder", "pretrain", "finetune"],
    ["compress.affine", "compress.quantized", "compress.structure", "compress.files"],
    ["compress.base", "compress.int8", "compress.int4", "compress.qat", "compress.magnitude", "compress.movement"],
    ["compress.units", "compress.layers", "compress.distill", "compress.recipes"],
    ["compress.export", "compress.measure", "compress.work", "compress.command"],
    ["report", "cram", "doctor"],
    ["checks.grading", "checks.chNN"],
    ["cli"],
    ["__main__"],
]
ORDER = [name for layer in LAYERS for name in layer]


def module_name(path):
    name = ".".join(path.relative_to(ROOT / "course_lib").with_suffix("").parts).removesuffix(".__init__")
    return re.sub(r"^checks\.ch\d\d$", "checks.chNN", name)  # one file a chapter, all in one place


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("course_lib"):
            inner = node.module.removeprefix("course_lib").removeprefix(".")
            for alias in node.names:
                joined = f"{inner}.{alias.name}".strip(".")
                yield joined if joined in ORDER else inner


@pytest.mark.parametrize("path", LIBRARY, ids=module_name)
def test_arrows_point_downward(path):
    name = module_name(path)
    if path.name == "__init__.py":
        assert list(imports(path)) == []
        return
    above = [other for other in imports(path) if other and ORDER.index(other) >= ORDER.index(name)]
    assert above == [], f"{name} imports upward"


@pytest.mark.parametrize("path", LIBRARY, ids=module_name)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            allowed = 60 if (path.name, node.name) == ("loop.py", "train") else 40
            assert length <= allowed, f"{path.name}: {node.name} has {length} lines"


def code_lines(text):
    """Lines without blank ones, comments and docstrings."""
    tree, documented = ast.parse(text), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") and at not in documented for at, line in lines)


def test_the_library_is_thin():
    """What every chapter stands on; corpora, heads, methods and graders are one file each, and counted apart."""
    engine = [p for p in LIBRARY if p.parent.name == "course_lib"]
    assert sum(code_lines(p.read_text(encoding="utf-8")) for p in engine) <= 4_100


def test_a_parameter_efficient_method_is_one_short_file():
    mechanism = ("__init__", "base", "methods", "adapters", "files")
    files = [p for p in LIBRARY if p.parent.name == "peft" and p.stem not in mechanism]
    assert len(files) >= 6
    assert all(len(p.read_text(encoding="utf-8").splitlines()) <= 150 for p in files)


def test_importing_the_package_and_asking_for_help_loads_nothing_heavy():
    code = (
        "import sys, course_lib, course_lib.cli as c\n"
        "try: c.main(['cram', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
