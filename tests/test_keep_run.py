"""A run that goes into git: half the bytes, everything else as it was, and never an unfinished one."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from course_lib import models
from course_lib.errors import CourseError
from course_lib.record import Run
from tools import keep_run


def test_weights_are_rounded_once_and_the_rest_of_the_folder_stays(tiny_model, tmp_path):
    folder = tmp_path / "model"
    tiny_model.save_pretrained(folder)
    (folder / "README.md").write_text("a card", encoding="utf-8")
    before = {path.name for path in folder.iterdir()}
    for _ in range(2):  # again changes nothing
        keep_run.halve(folder)
        stored = load_file(folder / "model.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
        for name, weight in tiny_model.state_dict().items():
            if name in stored:
                assert torch.equal(stored[name], weight.half())
    assert {path.name for path in folder.iterdir()} == before
    assert AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).dtype == torch.float32
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_unfinished_run_is_refused(tmp_path, monkeypatch):
    run = Run.create(tmp_path / "it", {})
    run.update(status="running")
    monkeypatch.setattr("sys.argv", ["keep_run", str(run.folder), "movie_reviews"])
    with pytest.raises(SystemExit, match="running; the command in its run.json goes on"):
        keep_run.main()


def test_what_predicts_no_tokens_is_left_alone(tmp_path, monkeypatch):
    shape = models.Size(hidden=32, layers=2, heads=2, vocab=64, context=32)
    network = models.build("modernbert", shape, models.Tokens(64))
    kind = AutoModelForTokenClassification.from_config(network.config)
    kind.save_pretrained(tmp_path / "it" / "model")
    Run.create(tmp_path / "it", {}).update(status="finished")
    before = (tmp_path / "it" / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr("sys.argv", ["keep_run", str(tmp_path / "it"), "movie_reviews"])
    with pytest.raises(CourseError, match="which predicts no tokens"):
        keep_run.main()
    assert (tmp_path / "it" / "model" / "model.safetensors").read_bytes() == before
