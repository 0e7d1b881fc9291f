"""The whole command: decoder, encoder, fine-tuning, comparison, report; stopped anywhere, it goes on."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from course_lib import cli, cram, recorder, report, sample
from course_lib.config import Config
from course_lib.errors import CourseError
from course_lib.record import Run
from tests.conftest import make_text
from tests.test_pretrain import config


@pytest.fixture
def labelled_corpus(tmp_path):
    path = tmp_path / "imdb.jsonl"  # as a task of the course is called
    word = lambda i: ("wonderful", "terrible")[i % 2]
    rows = [{"text": f"It is {word(i)}. {make_text(i, 6)}", "label": ("good", "bad")[i % 2]} for i in range(500)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(cram, "TUNING_SECONDS", 3)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.foreign, self.labels = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href") or "url(" in (value or ""):
                self.foreign.append(value)
            if name == "aria-label":
                self.labels.append(value)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_decoder_encoder_task_and_report(labelled_corpus, tmp_path):
    said = []
    run = cram.cram(config(labelled_corpus, tokens=40_000), runs=tmp_path / "runs", log=said.append)
    info = Run.open(run.folder).info
    assert info["status"] == "finished"
    assert {p.name for p in run.folder.iterdir() if p.is_dir()} == {
        "decoder", "encoder", "decoder-tuned", "encoder-tuned", "tuned", "scratch",
    }  # fmt: skip
    decoder, encoder = cram.part(run, "decoder").info, cram.part(run, "encoder").info
    assert [part["settings"]["objective"] for part in (decoder, encoder)] == ["clm", "mlm"]
    assert decoder["result"]["tokens"] == pytest.approx(20_000, abs=200)
    task = info["task"]
    assert task["better"] == max(task["dev"], key=task["dev"].get)
    assert task["accuracy"]["tfidf"]["accuracy"] > 0.9
    text = "\n".join(said)
    for shown in (
        "bits per byte",
        "masked loss",
        "TF-IDF",
        "random weights",
        "95 % interval",
        info["samples"][0]["prompt"][:9],
    ):
        assert shown in text
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.foreign == [], "self-contained"
    assert len(parsed.labels) == 3
    assert all(re.search(r"\d", label) for label in parsed.labels)
    for line in (
        *cram.verdicts(run),
        f"{decoder['result']['scores']['bits_per_byte']:.3f}",
        decoder["versions"]["torch"],
    ):
        assert line.replace("'", "&#39;") in page
    assert cli.main(["sample", f"--run={run.folder}/decoder", "--tokens=5"]) == 0


def test_without_labels_it_says_so(corpus_file, tmp_path):
    said = []
    run = cram.cram(config(corpus_file, tokens=12_000), runs=tmp_path, log=said.append)
    assert "task" not in run.info
    assert "no labels, so nothing was fine-tuned" in said[-1]
    assert "no labels" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_stopped_in_the_encoder_it_goes_on_there(corpus_file, tmp_path, monkeypatch):
    after, seen = recorder.Recorder.after, []

    def stop_in_the_encoder(self, step):
        if self.run.folder.name == "encoder":
            seen.append(1)
            if len(seen) == 10:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGINT)
        return after(self, step)

    monkeypatch.setattr(recorder.Recorder, "after", stop_in_the_encoder)
    settings = config(corpus_file, tokens=12_000)
    with pytest.raises(recorder.Interrupted):
        cram.cram(settings, runs=tmp_path, log=lambda message: None)
    (folder,) = (p.parent for p in tmp_path.glob("*/run.json"))
    decoder = (folder / "decoder" / "run.json").read_bytes()
    run = cram.cram(settings, runs=tmp_path, log=lambda message: None)
    assert run.folder == folder
    assert (folder / "decoder" / "run.json").read_bytes() == decoder
    assert run.info["status"] == "finished"


def test_verdicts_say_plainly_who_wins(tmp_path):
    difference = lambda mean, low, high: {"mean": mean, "low": low, "high": high, "seeds": 3}
    task = {
        "name": "t", "better": "encoder",
        "differences": {"scratch": difference(0.05, 0.01, 0.09), "tfidf": difference(-0.04, -0.06, -0.02)},
    }  # fmt: skip
    won, lost = cram.verdicts(Run(tmp_path, {"task": task}))
    assert "the encoder is ahead of the same network from random weights: +5.0 points" in won
    assert "(95 % interval +1.0 to +9.0, 3 seeds, too few for a verdict)" in won
    assert "the encoder is behind TF-IDF with logistic regression: -4.0 points" in lost
    task["differences"]["tfidf"] = difference(0.01, -0.01, 0.03)
    assert "not clearly ahead of or behind TF-IDF" in cram.verdicts(Run(tmp_path, {"task": task}))[1]
    task["differences"]["tfidf"] = difference(0.02, 0.01, 0.03) | {"seeds": 5}
    sure = cram.verdicts(Run(tmp_path, {"task": task}))[1]
    assert "better than TF-IDF" in sure
    assert sure.endswith("5 seeds).")


def test_halves_share_the_budget():
    decoder, encoder = (cram.half(Config(budget="5m", tokens=0), objective) for objective in ("clm", "mlm"))
    assert (decoder.budget, encoder.budget) == ("150.0s", "150.0s")
    assert (decoder.optimizer, encoder.optimizer, encoder.lr) == ("muon", "adamw", 0.002)
    assert cram.half(replace(Config(), optimizer="sgd"), "mlm").optimizer == "sgd", "what was asked for is kept"
    asked = Config(teacher="runs/a", metric="bits_per_byte")
    found = [(cram.half(asked, name).teacher, cram.half(asked, name).metric) for name in ("clm", "mlm")]
    assert found == [("runs/a", "bits_per_byte"), ("", "")], "an encoder has neither"


def test_a_hybrid_s_curve_leaves_out_the_steps_without_next_tokens(tmp_path):
    run = Run.create(tmp_path / "r", {})
    run.log([{"losses": {"clm": (3.0, 0.0)[i % 2], "mlm": (0.0, 9.0)[i % 2]}, "seconds": 1.0} for i in range(400)])
    assert "falls from 3.00 to 3.00 nats in 400 seconds" in report.curve("decoder", run, "red")["alt"]


def test_a_short_hybrid_may_have_masked_steps_only(tmp_path):
    run = Run.create(tmp_path / "r", {})
    run.log([{"losses": {"clm": 0.0, "mlm": 9.0}, "seconds": 1.0} for _ in range(40)])
    assert "falls from 9.00 to 9.00 nats in 40 seconds" in report.curve("decoder", run, "red")["alt"]


def test_a_report_that_cannot_be_written_leaves_a_run_to_go_on_with(corpus_file, tmp_path, monkeypatch):
    def fails(*arguments):
        raise CourseError("No space left")

    with monkeypatch.context() as patch:
        patch.setattr(report, "render", fails)
        with pytest.raises(CourseError, match="No space left"):
            cram.cram(config(corpus_file, tokens=3_000), runs=tmp_path / "runs", log=lambda m: None)
    again = cram.cram(config(corpus_file, tokens=3_000), runs=tmp_path / "runs", log=lambda m: None)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [again.folder.name]
    assert (again.folder / "report.html").exists()


def test_only_what_can_write_is_crammed(corpus_file):
    with pytest.raises(CourseError, match="use pretrain"):
        cram.cram(config(corpus_file, objective="mlm"))


def test_blanks_hide_one_whole_word(corpus_file, tmp_path, cpu):
    from course_lib.pretrain import pretrain

    run = pretrain(config(corpus_file, objective="mlm", tokens=30_000), runs=tmp_path, log=lambda message: None)
    text = "The film slowly charms the director."
    (found,) = sample.blanks(run.folder, [text, "x"], cpu)
    assert f"{found['before']} {found['truth']}{found['after']}" == text
    assert found["truth"] in text.split()
    assert len(found["guesses"]) == 4
    assert found["guesses"] == sorted(found["guesses"], key=lambda guess: -guess[1])


def test_cram_is_one_process(corpus_file, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CourseError, match="cram is one process. Use torchrun with pretrain"):
        cram.cram(config(corpus_file), runs=tmp_path)
    assert not list(tmp_path.glob("*/run.json"))
