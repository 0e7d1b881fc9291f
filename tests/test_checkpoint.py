import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import checkpoint, storage
from course_lib.errors import CourseError

STATE = {
    "step": 3,
    "model": {"w": torch.arange(6.0).reshape(2, 3), "tied": torch.ones(2)},
    "optimizers": [
        {"state": {0: {"exp_avg": torch.zeros(2), "step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
    ],
    "budget": {"spent": 1 / 3},
    "rng": torch.get_rng_state(),
}


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_what_is_saved_comes_back_exactly(tmp_path):
    checkpoint.save(tmp_path, 3, STATE)
    assert equal(checkpoint.load(tmp_path, print), STATE)


numbers = st.floats(allow_nan=False) | st.integers() | st.booleans() | st.none() | st.text()


@settings(deadline=None, max_examples=25)
@given(st.recursive(numbers, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner)))
def test_any_tree_survives(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("tree")
    checkpoint.save(folder, 1, {"tree": tree})
    assert checkpoint.load(folder, print) == {"tree": tree}


def test_two_are_kept_and_the_newest_is_used(tmp_path):
    for step in (1, 2, 3, 20):
        checkpoint.save(tmp_path, step, {**STATE, "step": step})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000020"]
    assert checkpoint.load(tmp_path, print)["step"] == 20


@pytest.mark.parametrize("damage", ["truncate", "flip", "no json", "bad json"])
def test_a_damaged_checkpoint_is_said_and_the_older_one_used(tmp_path, damage):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {**STATE, "step": step})
    tensors, state = (tmp_path / "step-00000002" / name for name in ("tensors.safetensors", "state.json"))
    content = bytearray(tensors.read_bytes())
    if damage == "truncate":
        tensors.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif damage == "no json":
        state.unlink()
    else:
        state.write_text('{"sha256": ')
    said = []
    assert checkpoint.load(tmp_path, said.append)["step"] == 1
    assert "step-00000002 is damaged" in said[0]


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.load(tmp_path / "nowhere", print) is None


def test_the_last_state_of_a_step_counts(tmp_path):
    checkpoint.save(tmp_path, 1, STATE)
    checkpoint.save(tmp_path, 1, STATE | {"step": 4})
    assert checkpoint.load(tmp_path, print)["step"] == 4
    (tmp_path / "step-00000001+" / "tensors.safetensors").write_bytes(b"cut")
    assert checkpoint.load(tmp_path, lambda message: None)["step"] == 3, "the one before it"
    checkpoint.save(tmp_path, 1, STATE | {"step": 5})
    assert checkpoint.load(tmp_path, print)["step"] == 5
    assert len(list(tmp_path.iterdir())) == 2
    checkpoint.save(tmp_path, 2, STATE | {"step": 6})
    assert checkpoint.load(tmp_path, print)["step"] == 6


def test_a_kill_while_a_step_is_written_again_leaves_what_was_there(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, STATE)

    def killed(folder):
        raise SystemExit

    monkeypatch.setattr(storage, "sync", killed)
    with pytest.raises(SystemExit):
        checkpoint.save(tmp_path, 1, STATE | {"step": 4})
    assert checkpoint.load(tmp_path, print)["step"] == 3


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, STATE)

    def full(*arguments, **keywords):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CourseError, match="No space left on device"):
        checkpoint.save(tmp_path, 2, STATE)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.load(tmp_path, print)["step"] == 3


def test_a_real_limit_on_a_files_size_is_said_in_a_sentence(tmp_path):
    """What safetensors raises is no OSError."""
    code = (
        "import resource, signal, sys, torch; from pathlib import Path; from course_lib import checkpoint, errors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: checkpoint.save(Path(sys.argv[1]), 1, {'w': torch.zeros(100_000)})\n"
        "except errors.CourseError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], capture_output=True, text=True, check=True)
    assert "Could not write" in done.stdout
    assert "Nothing was changed" in done.stdout
    assert list((tmp_path / "c").iterdir()) == []


def test_a_folder_is_complete_or_absent(tmp_path):
    target = tmp_path / "deep" / "target"

    def fail():
        with storage.new_folder(target) as scratch:
            (scratch / "half").write_text("x")
            raise RuntimeError("killed here")

    with pytest.raises(RuntimeError):
        fail()
    assert list((tmp_path / "deep").iterdir()) == []
    with storage.new_folder(target) as scratch:
        (scratch / "whole").write_text("x")
    with storage.new_folder(target) as scratch:  # the first one stays
        (scratch / "late").write_text("x")
    assert [p.name for p in target.iterdir()] == ["whole"]
    assert [p.name for p in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number):
    before = signal.getsignal(number)
    with checkpoint.stoppable() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


@pytest.mark.skipif(os.name != "posix", reason="asks the system how a file was opened")
def test_what_is_synced_may_be_written(tmp_path, monkeypatch):
    """Windows refuses to sync a file that was opened for reading."""
    import fcntl

    modes = []
    monkeypatch.setattr(os, "fsync", lambda file: modes.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE))
    with storage.new_folder(tmp_path / "m") as scratch:
        (scratch / "a").write_text("x")
    assert modes[0] == os.O_RDWR


def test_a_folder_that_cannot_be_made_is_an_error_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    made = storage.new_folder(tmp_path / "file" / "m")
    with (
        pytest.raises(CourseError, match="Could not write .*: (Not a directory|File exists). Nothing was changed"),
        made,
    ):
        pass
