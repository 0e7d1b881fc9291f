"""The record of parameter-efficient methods: what is asked, what a run leaves, and what its tables say."""

import json
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from course_lib import cli, metrics, models
from course_lib.data import labelled
from course_lib.peft import methods
from tests.conftest import ROOT
from tests.test_heads import pretrained
from tools import ablate_peft

TASK, OTHER = ablate_peft.TASKS
LOW, MIDDLE, HIGH, HIGHEST = ablate_peft.RATES["lora"]


def a_run(arm="lora", lr=LOW, seed=0, dev=0.5, correct="10", **more):
    cell = ablate_peft.cell(TASK, arm, ablate_peft.ARMS[arm][0], ablate_peft.MANY) | more
    test = sum(map(int, correct)) / len(correct)
    return cell | {"lr": lr, "seed": seed, "dev": dev, "test": test, "correct": correct}


def trials(arm, *dev):
    return [a_run(arm, lr, dev=score) for lr, score in zip(ablate_peft.RATES[arm], dev, strict=True)]


def test_the_rate_is_chosen_on_dev_by_seed_0_and_only_when_all_are_there():
    wanted = ablate_peft.cell(TASK, "lora", "lora:rank=8", 100, 20.0)  # another size with few labels takes its arm's
    runs = [run for run in trials("lora", 0.7, 0.8, 0.8, 0.6) if run["lr"] != HIGHEST]
    runs += [a_run(lr=HIGH, seed=1, dev=0.9), a_run(lr=HIGH, dev=0.9, texts=100), a_run(lr=HIGH, dev=0.9, task=OTHER)]
    assert ablate_peft.best(runs, wanted) is None
    assert ablate_peft.best([*runs, a_run(lr=HIGHEST, correct="11")], wanted) == MIDDLE
    assert ablate_peft.best([*runs, a_run(lr=0.5, dev=1.0)], wanted) is None, "a rate that is no longer asked"


def test_rates_come_before_what_needs_them_and_the_claim_before_the_grid():
    record = {"runs": []}
    begun = list(ablate_peft.plan(SimpleNamespace(record=record)))
    assert len(begun) == sum(map(len, ablate_peft.RATES.values())) * len(ablate_peft.TASKS)
    assert {run["seed"] for run in begun} == {0}
    record["runs"] = [run | {"dev": -run["lr"]} for run in begun]  # the lowest rate of each is its best
    whole = [json.dumps(run) for run in ablate_peft.plan(SimpleNamespace(record=record))]
    rest = [json.loads(run) for run in whole if json.loads(run) not in begun]
    claims = len(ablate_peft.COMPARED) * len(ablate_peft.TASKS) * ablate_peft.SEEDS
    assert all(run["texts"] == ablate_peft.ALL[run["task"]] for run in rest[:claims])
    assert all(run["texts"] < ablate_peft.ALL[run["task"]] for run in rest[claims:])
    assert all(run["lr"] == min(ablate_peft.RATES[run["arm"]]) for run in rest)
    for cell in ablate_peft.grid(OTHER):
        seeds = sorted(run["seed"] for run in map(json.loads, set(whole)) if cell.items() <= run.items()
                       and run["lr"] == min(ablate_peft.RATES[run["arm"]]))  # fmt: skip
        assert seeds == list(range(ablate_peft.SEEDS)), cell


def test_every_command_is_one_that_the_command_line_understands(tmp_path):
    for task in ablate_peft.TASKS:
        for cell in (*ablate_peft.compared(task), *ablate_peft.grid(task)):
            line = ablate_peft.command(cell | {"lr": 0.01, "seed": 3}, str(tmp_path))
            options = cli.parser().parse_args(line[2:])
            assert (options.task, options.labels, options.epochs) == (task, cell["texts"], cell["epochs"])
            assert (options.lr, options.seed, options.json) == (0.01, 3, True)
            assert options.freeze == ("body" if cell["arm"] == "head" else "none")
            assert options.method == cell["method"]
            assert not options.method or methods.parse(options.method)


def test_a_table_takes_whole_cells_at_their_best_rates(monkeypatch):
    monkeypatch.setattr(ablate_peft, "counted", lambda task, arm: 99)
    full = ablate_peft.RATES["full"][0]
    runs = [*trials("full", 0.9, 0.1, 0.1, 0.1), *trials("lora", 0.1, 0.1, 0.1, 0.9)]
    runs += [a_run("full", full, seed, correct="1100") for seed in range(1, 5)]
    runs += [a_run("lora", LOW, seed, correct="1111") for seed in range(1, 5)]  # not its best rate
    ours = ["1000", "1010", "1011", "1111"]
    runs += [a_run("lora", HIGHEST, seed, correct=ours[seed - 1], trained=7) for seed in (4, 3, 2)]
    runs = [run | {"correct": "1100", "test": 0.5} if run["seed"] == 0 else run for run in runs]
    (row,) = ablate_peft.summary(runs)
    assert (row["arm"], row["lr"], row["weights"], row["seeds"], row["mean"]) == ("full", full, 99, 5, 0.5)
    runs.append(a_run("lora", HIGHEST, 1, correct=ours[0]))
    _, row = ablate_peft.summary(runs)
    assert (row["lr"], row["seeds"], row["least"], row["most"]) == (HIGHEST, 5, 0.25, 1.0)
    assert row["mean"] == pytest.approx((0.5 + 0.25 + 0.5 + 0.75 + 1.0) / 5)
    hits = lambda *texts: np.array([[float(hit) for hit in text] for text in texts])
    expected = metrics.compare(hits("1100", *ours), hits(*["1100"] * 5))
    assert row["against_full"] == expected.describe()


def test_the_committed_grid_says_what_chapter_10_says():
    record = json.loads((ROOT / "runs" / "ablate-peft" / "run.json").read_text(encoding="utf-8"))
    rows = {(row["task"], row["method"] or row["arm"], row["texts"]): row for row in record["summary"]}
    assert len(rows) == sum(len([*ablate_peft.compared(t), *ablate_peft.grid(t)]) for t in ablate_peft.TASKS)
    assert all(row["seeds"] == ablate_peft.SEEDS for row in rows.values())
    hurt = {t: {m for (task, m, n), row in rows.items() if (task, n) == (t, 2000) and m != "full"
                and row["against_full"]["verdict"] == "hurts"} for t in (TASK, OTHER)}  # fmt: skip
    weak = {"head", "prompt:length=16", "prefix:length=16", "prefix:length=64"}
    everywhere = {f"lora:rank={rank},targets=all" for rank in (1, 3, 6, 16)}
    assert hurt[TASK] == weak
    assert hurt[OTHER] == {m for task, m, n in rows if (task, n) == (OTHER, 2000)} - everywhere - {"full"}
    for task in (TASK, OTHER):
        prefix, lora, bitfit = (rows[task, m, 2000] for m in ("prefix:length=64", ablate_peft.SMALL, "bitfit"))
        assert bitfit["weights"] * 10 < prefix["weights"] > lora["weights"]
        assert prefix["mean"] < min(lora["mean"], bitfit["mean"])
        assert all(rows[task, m, 100]["against_full"]["mean"] > 0 for m in (ablate_peft.SMALL, "bitfit"))
    ada, small = (rows[OTHER, m, 2000] for m in (ablate_peft.ARMS["adalora"][0], "lora:rank=3,targets=all"))
    assert ada["most"] < small["least"]
    assert ada["weights"] > small["weights"]
    helps = {key[:2] for key, row in rows.items() if row.get("against_full", {}).get("verdict") == "helps"}
    assert helps == {(OTHER, ablate_peft.SMALL)}


@cache
def few(name, whole=labelled.registered):
    """A task's first texts; all of them take seconds to read."""
    return {side: pairs[:80] for side, pairs in whole(name).items()}


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A tiny decoder in the place of the two-hour one, and few texts."""
    monkeypatch.setattr(labelled, "registered", few)
    folder = pretrained(tmp_path / "base", "qwen3", "byte-bpe")
    monkeypatch.setattr(ablate_peft, "MODEL", str(folder))
    monkeypatch.setattr(ablate_peft, "ALL", dict.fromkeys(ablate_peft.TASKS, 60))
    monkeypatch.setattr(ablate_peft, "RANKS", (0, 1, 32))
    monkeypatch.setattr(ablate_peft, "TASKS", dict.fromkeys(ablate_peft.TASKS, 16))
    return folder


def finished(place, arm, method="", texts=60, task=TASK):
    """A row, and the folder of its run."""
    asked = ablate_peft.cell(task, arm, method, texts, 2.0) | {"lr": 0.01, "seed": 0}
    assert cli.main([*ablate_peft.command(asked, str(place))[2:], "--device=cpu"]) == 0
    return asked | ablate_peft.observe(asked, place / "run", ""), place / "run" / "model"


def test_a_full_fine_tuning_is_cut_to_fewer_directions(base, tmp_path, capsys):
    row, folder = finished(tmp_path / "full", "full")
    assert row["test"] == pytest.approx(sum(map(int, row["correct"])) / len(row["correct"]), abs=1e-4)
    cut = row["change"]
    assert cut["test"][-1] == pytest.approx(row["test"], abs=2e-3), "all directions are the whole change"
    for share in cut["energy"].values():
        assert share[0] == 0 < share[1] < share[2] == 1
    assert row["bits_per_byte"]["tuned"] != row["bits_per_byte"]["base"]
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert ablate_peft.counted(TASK, "full") == models.count_parameters(model)
    ablate_peft.counted.cache_clear()


def test_an_adapter_is_counted_and_switched_off(base, tmp_path, capsys):
    row, _ = finished(tmp_path / "lora", "lora", "lora:rank=2,targets=all")
    model = AutoModelForSequenceClassification.from_pretrained(base / "model")
    shapes = [p.shape for name, p in model.named_parameters() if "proj" in name]
    assert row["trained"] == sum(2 * sum(shape) for shape in shapes) + 2 * 32  # and the new output layer
    assert row["bits_per_byte"]["off"] == row["bits_per_byte"]["base"] != row["bits_per_byte"]["tuned"]
    assert "change" not in row


def test_only_what_the_claim_needs_is_looked_at(base, tmp_path, capsys):
    row, _ = finished(tmp_path / "adalora", "adalora", "adalora:rank=4,target=2,targets=all", texts=40, task=OTHER)
    assert sum(row["ranks"].values()) == 2 * len(row["ranks"])
    assert not {"bits_per_byte", "change"} & row.keys()
    classes = len(labelled.load(OTHER).classes)
    assert ablate_peft.counted(OTHER, "head") == 32 * classes
    ablate_peft.counted.cache_clear()
