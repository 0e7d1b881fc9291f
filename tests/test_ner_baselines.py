"""The gazetteer and the CRF, on sentences small enough to read."""

import json
from types import SimpleNamespace

import pytest

from course_lib import cli
from course_lib.data import tags
from tests.test_heads import pretrained
from tools import ablate_ner, ner_baselines
from tools.ner_baselines import Gazetteer, features, field

SENTENCES = [list("王明在北京"), list("北京大学在北京"), list("明天见")]
LABELS = [
    ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"],
    ["B-ORG", "I-ORG", "I-ORG", "I-ORG", "O", "B-LOC", "I-LOC"],
    ["O", "O", "O"],
]


def test_the_longest_name_wins_and_is_typed_by_majority():
    book = Gazetteer(SENTENCES, LABELS, 0.5)
    assert book.find(list("见王明在北京大学")) == ["O", "B-PER", "I-PER", "O", "B-ORG", "I-ORG", "I-ORG", "I-ORG"]
    assert book.find(list("北京北京")) == ["B-LOC", "I-LOC"] * 2


def test_a_string_that_is_seldom_a_name_is_no_entry():
    common = [*SENTENCES, list("北京人"), list("北京人")]  # 北京 stands five times, twice as a name on its own
    labels = [*LABELS, ["O"] * 3, ["O"] * 3]
    assert Gazetteer(common, labels, 0.3).find(list("北京")) == ["B-LOC", "I-LOC"]
    assert Gazetteer(common, labels, 0.5).find(list("北京")) == ["O", "O"]


def test_the_gazetteer_finds_what_it_learnt_if_nothing_is_ambiguous():
    book = Gazetteer(SENTENCES, LABELS, 0.0)
    assert [book.find(words) for words in SENTENCES] == LABELS


def test_features_see_two_words_to_each_side_and_the_edge():
    found = set(features(list("北京大学"), 1))
    assert {"-1=北", "0=京", "2=学", "-2=^", "-1,0=北 京", "skip=北 大"} <= found


def test_the_field_learns_a_rule_that_needs_the_neighbour(tmp_path):
    sentences = [list(text) for text in ("在京", "从京", "在沪", "从沪", "京剧", "沪剧")] * 5
    labels = [["O", "B-LOC"], ["O", "B-LOC"], ["O", "B-LOC"], ["O", "B-LOC"], ["O", "O"], ["O", "O"]] * 5
    tagger = field(sentences, labels, 0.01, tmp_path / "crf")
    said = [tagger.tag([features(words, at) for at in range(len(words))]) for words in sentences]
    assert said == labels


def test_spans_of_a_gazetteer_never_overlap():
    book = Gazetteer(SENTENCES, LABELS, 0.0)
    spans = tags.spans(book.find(list("北京大学北京王明王")))
    assert [(s.start, s.end, s.kind) for s in spans] == [(0, 4, "ORG"), (4, 6, "LOC"), (6, 8, "PER")]


def test_both_baselines_choose_on_dev_and_report_test():
    classes = ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"]
    places = lambda words: [(i, i + 1) for i in range(len(words))]
    texts = [SimpleNamespace(text="".join(words), places=places(words)) for words in SENTENCES]
    side = SimpleNamespace(texts=texts, labels=[[classes.index(tag) for tag in found] for found in LABELS])
    task = SimpleNamespace(train=side, dev=side, test=side, classes=classes)
    for name in ("gazetteer", "crf"):
        found = ner_baselines.chosen(name, task)
        assert found["trials"] == 3
        assert found["f1"] == found["dev_f1"] == 1.0


# The ablation's bookkeeping.


LOW, MIDDLE, *_, HIGH = ablate_ner.USUAL


def a_run(name, lr, seed, dev, test=0.5):
    return {"name": name, "lr": lr, "seed": seed, "dev_f1": dev, "f1": test, "seen_f1": test, "unseen_f1": 0.0}


def test_the_rate_is_chosen_on_dev_by_seed_0_and_only_when_all_are_there():
    runs = [a_run("full", lr, 0, 0.8) for lr in reversed(ablate_ner.USUAL[1:])]
    assert ablate_ner.best(runs, "full") is None
    runs += [a_run("full", LOW, 0, 0.7, test=0.99), a_run("full", LOW, 1, 0.9), a_run("other", LOW, 0, 1.0)]
    assert ablate_ner.best(runs, "full") == MIDDLE  # the lowest of equals; no other seed and no test score counts
    assert [run["lr"] for run in ablate_ner.chosen(runs, "full")] == [MIDDLE]
    assert ablate_ner.best(runs, "full, 250 labels") == MIDDLE  # a point of the curve takes its arm's
    others = [run | {"name": "gradual"} for run in runs]
    assert ablate_ner.best(others, "gradual") is None, "it has rates of its own"
    others.append(a_run("gradual", 2 * HIGH, 0, 0.75))
    assert ablate_ner.best(others, "gradual") == MIDDLE


def test_what_is_compared_has_five_seeds_and_a_setting_its_own_options():
    plan = ablate_ner.settings(half=2)
    assert plan["lower half frozen"] == {"freeze": "bottom-2", "labels": ablate_ner.LABELS}
    assert plan["random weights, 250 labels"] == {"scratch": True, "labels": 250}
    assert {name for name, setting in plan.items() if ablate_ner.seeds(setting) == 5} == {
        *ablate_ner.LAYERS, ablate_ner.goal("full"), ablate_ner.goal("random weights")
    }  # fmt: skip


def test_the_target_compares_the_same_recipe_with_and_without_pretraining():
    plan, goal, control = ablate_ner.settings(half=2), ablate_ner.goal("full"), ablate_ner.goal("random weights")
    assert plan[control] == plan[goal] | {"scratch": True}


@pytest.mark.parametrize("lr", sorted({lr for rates in ablate_ner.RATES.values() for lr in rates}))
def test_every_command_is_one_that_the_command_line_understands(lr, tmp_path):
    for setting in ablate_ner.settings(half=2).values():
        line = ablate_ner.command("runs/x", str(tmp_path), setting, lr, 3, "peoples_daily")
        options = cli.parser().parse_args(line[2:])
        assert (options.head, options.seed, options.json) == ("ner", 3, True)
        assert options.labels == setting["labels"]
        assert options.scratch == setting.get("scratch", False)
        assert options.lr == lr
        assert options.epochs * (options.labels or 15_195) >= 5000


def test_a_setting_with_missing_seeds_is_left_out_of_the_summary():
    plan = {"full, 250 labels": {"labels": 250}}
    runs = [a_run("full", lr, 0, 0.5 + lr) for lr in ablate_ner.USUAL]
    runs += [a_run("full, 250 labels", HIGH, seed, 0.8, test=0.6 + 0.1 * seed) for seed in range(2)]
    assert ablate_ner.summary(runs, plan) == []
    (row,) = ablate_ner.summary([*runs, a_run("full, 250 labels", HIGH, 2, 0.8, test=0.8)], plan)
    assert (row["mean"], row["least"], row["most"], row["lr"]) == (0.7, 0.6, 0.8, HIGH)


def test_a_run_becomes_a_row_from_which_ways_are_compared(tmp_path, capsys):
    base, setting = pretrained(tmp_path / "base", kind="byte-bpe"), {"labels": 60}
    rows = []
    for name, epochs in (("full", 30), ("random weights", 1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ablate_ner, "EPOCHS", {60: epochs})
            line = ablate_ner.command(str(base), str(tmp_path / name), setting, 3e-3, 0, "wiki_names")
        assert cli.main([*line[2:], "--stride=8", "--device=cpu"]) == 0
        printed = capsys.readouterr().out
        seen = ablate_ner.observe(tmp_path / name / "run", printed)
        rows.append({"name": name, "lr": LOW, "seed": 0} | seen)
        right, all_ = zip(*(map(float, pair.split("/")) for pair in seen["hits"].split()), strict=True)
        assert len(right) == 45
        assert sum(right) / sum(all_) == pytest.approx(json.loads(printed)["result"]["f1"], abs=1e-4)
    assert rows[0]["f1"] > rows[1]["f1"]
    assert rows[0]["test_hash"] == rows[1]["test_hash"]
    names = ablate_ner.learned("wiki_names", 60)
    assert names < ablate_ner.learned("wiki_names", 0)
    runs = [row | {"seed": seed} for row in rows for seed in range(5)]
    runs += [row | {"lr": lr, "dev_f1": -1} for row in rows for lr in ablate_ner.USUAL[1:]]
    verdict = ablate_ner.verdicts(runs)["full against random weights"]
    assert verdict["mean"] == pytest.approx(rows[0]["f1"] - rows[1]["f1"], abs=1e-3)
    assert ablate_ner.verdicts(runs[1:]) == {}, "a claim wants all its seeds"
    everything = [run | {"name": ablate_ner.goal(run["name"])} for run in runs]
    found = ablate_ner.verdicts([*runs, *everything])
    assert found[f"{ablate_ner.goal('full')} against {ablate_ner.goal('random weights')}"] == verdict
    assert len(found) == 2
