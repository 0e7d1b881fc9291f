"""The book as the browser tests see it: built from the present sources with one page more, and served on loopback."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
EXTRA = ROOT / "tests" / "fixtures" / "99_everything.ipynb"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def pages() -> list[str]:
    """The documents of the table of contents, and the fixture."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    return [contents["root"], *chapters, "notebooks/99_everything"]


def build(folder: Path) -> Path:
    """Build the book with every warning an error, as `make book` does; returns the folder of its pages."""
    source = folder / "source"
    for name in ("book", "notebooks", "tools"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for record in ROOT.glob("runs/*/run.json"):
        (source / "runs" / record.parent.name).mkdir(parents=True)
        shutil.copy(record, source / "runs" / record.parent.name)
    shutil.copy(ROOT / "_config.yml", source)
    shutil.copy(EXTRA, source / "notebooks")
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    contents["parts"][-1]["chapters"].append({"file": f"notebooks/{EXTRA.stem}"})
    (source / "_toc.yml").write_text(yaml.safe_dump(contents), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", ".", "-W", "-n", "--keep-going"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return source / "_build" / "html"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server that does not write to the terminal."""

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of the loopback interface; yields its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def browser_path() -> str | None:
    """Where Chromium is, or None; `CHROMIUM` names another."""
    return os.environ.get("CHROMIUM") or next((path for name in BROWSERS if (path := shutil.which(name))), None)
