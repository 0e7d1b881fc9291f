"""Fetch the browser code that the book needs without a network, into book/_static/vendor (committed; needs npm).

    python tools/vendor_assets.py

MathJax: the TeX-to-HTML component, its fonts and the extensions that load on demand; not its speech, menus' SVG output
or MathML input. Widgets: require.js and the Jupyter html-manager. `make book` itself needs no Node.
"""

import base64
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "book" / "_static" / "vendor"
PACKAGES = {"mathjax": "3.2.2", "requirejs": "2.3.7", "@jupyter-widgets/html-manager": "1.0.15"}
COPIES = [
    ("mathjax", "es5/tex-chtml.js", "mathjax/tex-chtml.js"),
    ("mathjax", "es5/output/chtml/fonts", "mathjax/output/chtml/fonts"),
    ("mathjax", "es5/input/tex/extensions", "mathjax/input/tex/extensions"),
    ("mathjax", "LICENSE", "mathjax/LICENSE"),
    ("requirejs", "require.js", "widgets/require.js"),
    ("@jupyter-widgets/html-manager", "dist/embed-amd.js", "widgets/embed-amd.js"),
]
LICENCES = Path(__file__).with_name("vendor_licences.txt")  # not all packages carry theirs
UNUSED = ["mathjax/input/tex/extensions/all-packages.js"]


def main() -> None:
    """Replace the vendored folder."""
    shutil.rmtree(TARGET, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        folders = {package: unpack(package, version, Path(name)) for package, version in PACKAGES.items()}
        for package, source, target in COPIES:
            copy(folders[package] / source, TARGET / target)
        mend_widgets(TARGET / "widgets" / "embed-amd.js", folders["@jupyter-widgets/html-manager"] / "dist")
    for path in UNUSED:
        (TARGET / path).unlink()
    shutil.copyfile(LICENCES, TARGET / "LICENCES.txt")
    print(f"{sum(path.stat().st_size for path in TARGET.rglob('*') if path.is_file()) / 1e6:.1f} MB in {TARGET.name}/")


def unpack(package: str, version: str, folder: Path) -> Path:
    """Download one package from the npm registry, without its dependencies."""
    command = ["npm", "pack", "--silent", f"{package}@{version}"]
    archive = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
    target = folder / archive.removesuffix(".tgz")
    with tarfile.open(folder / archive) as tar:
        tar.extractall(target, filter="data")
    return target / "package"


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def mend_widgets(script: Path, folder: Path) -> None:
    """Let widgets typeset with MathJax 3, and embed their icon fonts, whose addresses are relative to the page."""
    text = script.read_text(encoding="utf-8")
    text, calls = re.subn(
        r'MathJax\.Hub\.Queue\(\["Typeset",MathJax\.Hub,(\w)\]\)', r"MathJax.typesetPromise?.([\1])", text
    )

    def embedded(found: re.Match[str]) -> str:
        return f'"data:font/woff2;base64,{base64.b64encode((folder / found[1]).read_bytes()).decode()}"'

    text, fonts = re.subn(r'\b\w\.p\+"(\w+\.woff2)"', embedded, text)
    if not calls or not fonts:
        raise SystemExit("html-manager has changed: there is nothing to mend where it used to be.")
    script.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
