"""The comparison of fine-tuning with the Trainer: the same work for all, and bucketing pads less."""

import random

from course_lib import progress
from tests.test_heads import pretrained, sentence
from tools import bench_ner


def test_all_contestants_read_the_same_tokens_and_buckets_pad_less(tmp_path, monkeypatch):
    progress.hush_transformers()
    monkeypatch.setattr(bench_ner, "ROWS", 4)
    draw, task = random.Random(0), tmp_path / "names.conll"
    columns = lambda count: (pair for _ in range(count) for pair in zip(*sentence(draw), strict=True))
    blocks = [list(columns(1 + i % 3)) for i in range(300)]
    task.write_text("\n".join("".join(f"{w} {t}\n" for w, t in block) for block in blocks), encoding="utf-8")
    found = bench_ner.measure(str(pretrained(tmp_path)), str(task), sentences=60, repeats=1)
    assert found["rows"] == 60
    assert {len(took) for took in found["seconds"].values()} == {1}
    padding = found["padding"]
    for side in ("ours", "trainer"):
        assert 0 <= padding[f"{side} bucketed"] < padding[f"{side} shuffled"] < 1
    assert found["trainer_over_ours"]["bucketed"]["median"] > 0
