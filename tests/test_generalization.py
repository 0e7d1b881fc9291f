"""Augmentation, regularizers, averaging, attacks and search: each against a closed form, or by hand."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import finetune, models, recipes
from course_lib import tokenizer as tokenizers
from course_lib.config import Tuning
from course_lib.data import corpora
from course_lib.data.clean import document_hash, split_of
from course_lib.data.labelled import Labelled
from course_lib.errors import CourseError
from course_lib.objectives import Classification, Regression
from course_lib.record import Run
from course_lib.robust import attack, augment, regularize, search, thesaurus
from tests.conftest import make_text
from tests.test_finetune import pretrained, quiet, table, tuning  # noqa: F401 (table is a fixture)
from tests.test_training import weights_from
from tools import bench_search

NEAR = {"good": ["fine", "great"], "film": ["movie"], "bad": ["poor"]}


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.json"
    path.write_text(json.dumps(NEAR), encoding="utf-8")
    return path


@pytest.fixture(params=["qwen3", "modernbert"])
def model(request, tmp_path):
    """A classifier in float64 whose output layer is no longer zero."""
    torch.manual_seed(0)
    folder = pretrained(tmp_path / "m", request.param) / "model"
    found = finetune.new_model(folder, ["a", "b", "c"], Tuning()).double().train()
    found.config.pad_token_id = 2
    for name, p in found.named_parameters():
        if p.ndim == 2 and "embed" not in name:
            torch.nn.init.normal_(p, std=0.3)
    return found


def batch(rows=4, length=7):
    ids = torch.randint(5, 300, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = 2, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(rows) % 3}


def part(found, rows):
    return {key: value[rows] for key, value in found.items()}


# Two passes should agree


def test_the_divergence_is_the_symmetric_kullback_leibler_divergence():
    """Equation eq-rdrop."""
    one, two = torch.randn(2, 5, 4, dtype=torch.float64).unbind()
    p, q = one.log_softmax(-1), two.log_softmax(-1)
    kl = lambda a, b: F.kl_div(b, a, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(regularize.divergence(one, two), (kl(p, q) + kl(q, p)) / 2, rtol=1e-10, atol=1e-12)
    assert regularize.divergence(one, one).abs().max() == 0


def test_without_dropout_two_passes_are_one(model):
    plain, found = Classification(), regularize.Consistent(Classification(), 3.0)
    losses = found(model, batch())
    assert found.weights == {"classification": 1.0, "divergence": 3.0}
    assert found.counts(batch()) == {"classification": 4, "divergence": 4}
    torch.testing.assert_close(losses["classification"], plain(model, batch())["classification"])
    assert losses["divergence"].item() < 1e-20


def test_with_dropout_both_terms_are_those_of_the_two_passes(model):
    objective = regularize.around(model, Classification(), "dropout:rate=0.2+rdrop")
    seen = []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(output.logits.detach()))
    losses = objective(model, batch())
    handle.remove()
    one, two = seen[0].chunk(2)
    nll = (F.cross_entropy(one, batch()["labels"]) + F.cross_entropy(two, batch()["labels"])) / 2
    p, q = one.softmax(-1), two.softmax(-1)
    apart = ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
    assert apart > 1e-4
    assert losses["classification"].item() / 4 == pytest.approx(nll.item(), rel=1e-6)  # logits become float32
    assert losses["divergence"].item() == pytest.approx(apart.item(), rel=1e-3)
    (found,) = torch.autograd.grad(losses["divergence"], model.get_input_embeddings().weight)
    assert found.abs().sum() > 0


def test_dropout_acts_while_it_trains_and_leaves_a_mean_unchanged(model):
    before = model.eval()(**part(batch(), slice(0, 1))).logits
    regularize.around(model, Classification(), "dropout:rate=0.5")
    torch.testing.assert_close(model(**part(batch(), slice(0, 1))).logits, before)
    writes = {"qwen3": ("self_attn.o_proj", "mlp.down_proj"), "modernbert": ("attn.Wo", "mlp.Wo")}
    embeds = {"qwen3": "model.embed_tokens", "modernbert": "model.embeddings.tok_embeddings"}
    kind = model.config.model_type
    hooked = {name for name, module in model.named_modules() if module._forward_hooks}
    assert hooked == {embeds[kind], *(f"model.layers.{i}.{name}" for i in (0, 1) for name in writes[kind])}
    layer = model.get_input_embeddings()
    ids = torch.randint(5, 300, (2000,))
    whole, thin = layer(ids), layer.train()(ids)
    gone = (thin == 0).double().mean().item()
    assert gone == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(thin[thin != 0], 2 * whole[thin != 0])


# A step against the loss


class Exact(Classification):
    """The same without a cast of the logits to float32."""

    def __call__(self, model, batch):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return {"classification": F.cross_entropy(logits, batch["labels"], reduction="sum")}


def test_the_step_is_along_the_gradient_by_finite_differences(model):
    """Equation eq-adversarial."""
    objective, rows = Exact(), batch()
    embed = model.get_input_embeddings()
    with regularize.moved(embed) as shift:
        loss = objective(model, rows)["classification"]
        start = shift.delta
        shift.climb(loss, 0.3, 0.3)
        found = shift.delta.detach()
        assert torch.allclose(found.norm(dim=(1, 2)), torch.tensor(0.3).double())
        assert not found[1, 5:].any(), "padding pulls nowhere"
        for text, place, unit in [(0, 2, 3), (1, 0, 7), (3, 6, 1)]:
            slopes = []
            for sign in (1, -1):
                shift.delta = torch.zeros_like(start)
                shift.delta[text, place, unit] = sign * 1e-3
                slopes.append(objective(model, rows)["classification"].item())
            gradient = (slopes[0] - slopes[1]) / 2e-3
            norm = torch.autograd.grad(loss, start, retain_graph=True)[0][text].norm().item()
            assert gradient / norm * 0.3 == pytest.approx(found[text, place, unit].item(), rel=5e-3, abs=1e-4)


@pytest.mark.parametrize("text", ["fgm:epsilon=0.05", "pgd:epsilon=0.05,step=0.03,steps=4"])
def test_an_adversarial_loss_is_higher_and_nothing_of_the_step_stays(model, text):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    objective = regularize.around(model, Classification(), text)
    losses = objective(model, batch())
    torch.testing.assert_close(losses["classification"], Classification()(model, batch())["classification"])
    assert losses["adversarial_classification"] > losses["classification"]
    sum(losses.values()).backward()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not model.get_input_embeddings()._forward_hooks
    assert objective.counts(batch()) == {"classification": 4, "adversarial_classification": 4}


def test_one_step_to_the_edge_is_what_both_names_say(model):
    fgm, pgd = (
        regularize.around(model, Classification(), text)(model, batch())
        for text in ("fgm:epsilon=0.1", "pgd:epsilon=0.1,step=0.1,steps=1")
    )
    assert torch.equal(fgm["adversarial_classification"], pgd["adversarial_classification"])


def test_more_steps_of_one_size_climb_higher(model):
    text = "pgd:epsilon=0.2,step=0.03,steps={}"
    found = [regularize.around(model, Classification(), text.format(steps))(model, batch()) for steps in (1, 2, 4)]
    losses = [loss["adversarial_classification"].item() for loss in found]
    assert losses == sorted(losses)
    assert losses[0] * 1.001 < losses[1]
    assert losses[1] * 1.001 < losses[2]


def test_every_text_stays_in_its_ball(model):
    with regularize.moved(model.get_input_embeddings()) as shift:
        for _ in range(5):
            shift.climb(Classification()(model, batch())["classification"], 0.4, 0.7)
            assert shift.delta.norm(dim=(1, 2)).max() <= 0.7 * (1 + 1e-9)


def test_parts_of_a_batch_move_as_in_the_whole(model):
    """Micro-batches give the big batch's gradient, as with every objective."""
    objective = regularize.around(model, Classification(), "fgm")
    whole = objective(model, batch())
    parts = [objective(model, part(batch(), rows)) for rows in (slice(0, 1), slice(1, 4))]
    for term, value in whole.items():
        torch.testing.assert_close(sum(found[term] for found in parts), value, rtol=1e-5, atol=1e-6)


def test_regularizers_say_what_does_not_go(model):
    with pytest.raises(CourseError, match="class probabilities"):
        regularize.around(model, Regression(), "rdrop")
    with pytest.raises(CourseError, match="below 1"):
        regularize.around(model, Classification(), "dropout:rate=1.0")
    with pytest.raises(CourseError, match="no regularizer called 'drop'"):
        regularize.parse("fgm+drop")
    assert regularize.parse("") == []
    for text, what in (("dropout+rdrop+rdrop", "rdrop"), ("fgm+pgd", "an attack"), ("fgm+fgm", "an attack")):
        with pytest.raises(CourseError, match=f"asks for {what} twice"):
            regularize.parse(text)
    for text in ("fgm:epsilon=0", "fgm:epsilon=-0.1", "pgd:step=0", "pgd:steps=0"):
        with pytest.raises(CourseError, match=f"{text.partition('=')[0]} is above 0"):
            regularize.around(model, Classification(), text)


class SimpleModule(torch.nn.Module):
    """As our LoRA: a rate, and no module for it."""

    def __init__(self, rate):
        super().__init__()
        self.dropout = rate


def test_two_equal_passes_are_refused_and_any_dropout_makes_them_differ(model):
    with pytest.raises(CourseError, match="Ask for dropout"):
        regularize.around(model, Classification(), "rdrop")
    for change in (
        lambda: setattr(model.config, "attention_dropout", 0.1),
        lambda: model.add_module("thin", torch.nn.Dropout(0.1)),
        lambda: model.add_module("thin", SimpleModule(0.1)),
        lambda: regularize.Dropout().around(model, Classification()),
    ):
        change()
        regularize.around(model, Classification(), "rdrop")
        model.config.attention_dropout = 0.0
        if hasattr(model, "thin"):
            del model.thin


def test_in_float16_a_text_learnt_by_heart_still_moves(model):
    """Its gradient, e⁻¹⁴ times the usual one, is below what float16 holds."""

    class Sure:
        weights = {"classification": 1.0}

        def __call__(self, model, batch):
            return {"classification": torch.exp(torch.tensor(-14.0)) * Exact()(model, batch)["classification"]}

    def direction(dtype):
        with regularize.moved(model.get_input_embeddings()) as shift, torch.autocast("cpu", dtype, dtype is not None):
            shift.climb(Sure()(model, batch())["classification"], 1.0, 1.0)
        return shift.delta.detach().double().flatten(1)

    exact, half = direction(None), direction(torch.float16)
    assert F.cosine_similarity(exact, half).min() > 0.9


# More texts


TEXTS = st.lists(st.lists(st.sampled_from(["good", "bad", "film", "the", "x"]), min_size=1, max_size=12), min_size=1)


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(0, 5))
def test_edits_do_what_their_names_say(texts, seed):
    for text in texts:
        draw = lambda: np.random.default_rng(seed)
        swapped = augment.swap(text, 2, NEAR, draw())
        assert Counter(swapped) == Counter(text)
        left = iter(text)
        kept = augment.delete(text, 3, NEAR, draw())
        assert len(kept) == max(1, len(text) - 3)
        assert all(word in left for word in kept), "in their order"
        grown = augment.insert(text, 2, NEAR, draw())
        assert len(grown) == len(text) + 2 * any(word in NEAR for word in text)
        replaced = augment.replace(text, 1, NEAR, draw())
        differing = [(a, b) for a, b in zip(text, replaced, strict=True) if a != b]
        assert len(differing) == any(word in NEAR for word in text)
        assert all(b in NEAR[a] for a, b in differing)


@pytest.mark.parametrize("method", ["eda", "synonym"])
def test_new_texts_follow_the_old_ones_with_the_same_labels(words, method):
    side = Labelled(["good film", "bad", "x y z"], [1, 0, 2])
    text = f"{method}:copies=3,share=0.5,thesaurus={words}"
    found = augment.enlarge(side, text, seed=4)
    assert found.texts[:3] == side.texts
    assert found.labels == [1, 0, 2] * 4
    assert len(found.texts) == 12
    assert all(new.strip() for new in found.texts)
    assert augment.enlarge(side, text, seed=4) == found
    assert augment.enlarge(side, text, seed=5) != found
    assert augment.enlarge(side, "", seed=4) is side
    with pytest.raises(CourseError, match="single texts"):
        augment.enlarge(Labelled([("a", "b")], [0]), text, 0)
    with pytest.raises(CourseError, match="no augmentation called 'edda'"):
        augment.enlarge(side, "edda", 0)
    for copies in (0, -1):
        with pytest.raises(CourseError, match=f"are at least 1, not {copies}"):
            augment.enlarge(side, f"{method}:copies={copies}", 0)


@pytest.mark.parametrize("method", ["eda", "synonym"])
def test_texts_without_spaces_have_no_words_to_exchange(method):
    side = Labelled(["这部电影很好看", "太差了", "一般 般"], [1, 0, 0])
    with pytest.raises(CourseError, match="these texts have none. Try masked"):
        augment.enlarge(side, method, 0)


@pytest.mark.parametrize(
    "pieces", [["Ġfilm", "ing", "."], ["▁film", "ing", "."], ["film", "##ing", "."]], ids=["bytes", "sentence", "word"]
)
def test_every_kind_of_vocabulary_says_where_a_word_begins(pieces):
    class Vocabulary(list):
        def convert_ids_to_tokens(self, ids):
            return [self[i] for i in ids]

    begins, goes_on = augment._words(Vocabulary(pieces))
    assert (begins.tolist(), goes_on.tolist()) == ([True, False, False], [False, True, False])


@pytest.mark.parametrize(("share", "count"), [(0.25, 2), (0.5, 4)])
def test_the_share_is_that_of_the_changed_words_and_eda_makes_all_its_edits(words, share, count):
    text = ["good", "film", "bad", "good", "film", "bad", "good", "film"]
    side = Labelled([" ".join(text)] * 40, [0] * 40)
    made = lambda method: augment.enlarge(side, f"{method}:copies=1,share={share},thesaurus={words}", 0).texts[40:]
    for new in made("synonym"):
        assert sum(a != b for a, b in zip(text, new.split(), strict=True)) == count
    edited = [new.split() for new in made("eda")]
    assert {len(new) for new in edited} == {8 - count, 8, 8 + count}, "deleted, swapped or replaced, inserted"
    assert {sorted(new) == sorted(text) for new in edited if len(new) == 8} == {True, False}


@pytest.mark.parametrize("kind", ["byte-bpe", "wordpiece"])
def test_a_masked_model_changes_whole_words_and_nothing_else(tmp_path, kind):
    texts = [make_text(i, 2).lower().replace(".", "") for i in range(60)]
    tokenizer = tokenizers.train(kind, texts, 400, 64, exact=False)
    torch.manual_seed(0)
    shape = models.Size(hidden=32, layers=1, heads=2, vocab=len(tokenizer), context=64)
    models.build("modernbert", shape, recipes.token_ids(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    side = Labelled(texts[:5], [0, 1, 0, 1, 0])
    found = augment.enlarge(side, f"masked:copies=2,share=0.2,model={tmp_path}", seed=0)
    assert found == augment.enlarge(side, f"masked:copies=2,share=0.2,model={tmp_path}", seed=0)
    for old, new in zip(side.texts * 2, found.texts[5:], strict=True):
        old, new = old.split(), new.split()
        assert len(old) == len(new)
        assert 1 <= sum(a != b for a, b in zip(old, new, strict=True)) <= 5
        assert all(word.isalpha() for word in new)
    with pytest.raises(CourseError, match="Which masked model"):
        augment.enlarge(side, "masked", 0)
    for top in (0, len(tokenizer) + 1):
        with pytest.raises(CourseError, match=f"masked:top is 1 to {len(tokenizer)}, .* not {top}"):
            augment.enlarge(side, f"masked:top={top},model={tmp_path}", 0)
    decoder = pretrained(tmp_path / "decoder", "qwen3")
    with pytest.raises(CourseError, match="is no masked model. Give one of `pretrain --objective mlm`"):
        augment.enlarge(side, f"masked:model={decoder}", 0)


def test_augmented_texts_reach_the_training_and_dev_stays(table, words, tmp_path):  # noqa: F811
    folder = pretrained(tmp_path / "m", "qwen3")
    more = {"augment": f"eda:copies=1,thesaurus={words}", "regularize": "dropout+rdrop+fgm:epsilon=0.02"}
    config = tuning(table, folder, **more)
    run = finetune.finetune(config, runs=tmp_path / "runs", log=quiet)
    plain = finetune.finetune(tuning(table, folder), runs=tmp_path / "runs", log=quiet)
    steps = lambda run: len(list(Run.open(run.folder / "seed-0").metrics()))
    assert abs(steps(run) - 2 * steps(plain)) <= 4
    assert run.info["task"] == plain.info["task"]
    assert run.info["result"]["accuracy"] > 0.95
    rows = list(Run.open(run.folder / "seed-0").metrics())
    row = rows[-1]
    terms = {"classification", "divergence", "adversarial_classification", "adversarial_divergence"}
    assert set(row["losses"]) == terms
    assert max(row["losses"]["divergence"] for row in rows) > 1e-3, "dropout acted"


# Words in each other's place


def test_words_in_the_same_company_are_neighbours():
    texts = [f"the {a} {b} it" for a in ("warm", "cold") for b in ("sea", "tea") for _ in range(30)]
    found = thesaurus.neighbours(texts + ["it was red and it was blue"] * 30, size=5)
    assert found["warm"][0] == "cold"
    assert found["tea"][0] == "sea"
    assert "warm" not in found["warm"]


def test_the_thesaurus_is_made_once_and_files_are_checked(monkeypatch, tmp_path):
    made = []
    told = [f"{make_text(i)} Nobody knows it." for i in range(400)]
    held_out = [text for text in told if split_of(document_hash(text)) != "train"]
    assert len(held_out) > 5
    documents = lambda: iter([*held_out, *(make_text(i) for i in range(200))])
    corpus = corpora.Corpus("x", documents, "x", "x")
    monkeypatch.setattr(corpora, "load", lambda name: made.append(name) or corpus)
    monkeypatch.setattr(thesaurus, "SIZE", 4)
    monkeypatch.setattr(thesaurus.neighbours, "__defaults__", (100, 4, 0))
    first = thesaurus.load()
    assert thesaurus.load() == first
    assert made == ["movie_reviews"]
    assert len(first["film"]) == thesaurus.NEAREST
    assert "nobody" not in first, "held-out texts take no part"
    for content in ("{", "[1]", '{"a": "b"}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(CourseError, match="is no thesaurus"):
            thesaurus.load(str(tmp_path / "bad.json"))


# Weights


def test_keep_average_ends_on_the_mean_of_the_second_half(table, tmp_path, monkeypatch):  # noqa: F811
    taken = weights_from(0.5, monkeypatch)
    config = tuning(table, pretrained(tmp_path / "m", "qwen3"), keep="average")
    run = finetune.finetune(config, runs=tmp_path / "runs", log=quiet)
    from transformers import AutoModelForSequenceClassification

    stored = AutoModelForSequenceClassification.from_pretrained(run.folder / "model")
    assert len(taken) > 5
    for name, p in stored.named_parameters():
        mean = torch.stack([weights[name] for weights in taken]).mean(0)
        torch.testing.assert_close(p.double(), mean, rtol=1e-5, atol=1e-6)
    with pytest.raises(CourseError, match="best, last or average"):
        finetune.finetune(tuning(table, tmp_path / "m", keep="mean"), runs=tmp_path / "again", log=quiet)


# Attacks


def by_words(texts):
    """A classifier that counts good and bad words: probabilities (texts, 2)."""
    points = [sum(text.split().count(w) * s for w, s in (("good", 1.5), ("fine", 1), ("bad", -2))) for text in texts]
    positive = 1 / (1 + np.exp(-np.array(points, dtype=float)))
    return np.stack([1 - positive, positive], 1)


def test_an_attack_finds_the_words_that_matter_and_stops_at_a_flip():
    texts, labels = ["the good film was good", "bad", "good", "nothing at all"], [1, 0, 0, 1]
    near = {"good": ["fine", "bad"], "the": ["a"]}
    done = attack.attack(by_words, texts, labels, attack.exchanged(near), most=1)
    assert done.texts == ["the bad film was good", "bad", "good", "nothing at all"]
    assert done.right.tolist() == [0, 1, 0, 0]  # at one half, the first class is given
    assert done.accuracy == 0.25
    assert done.queries == (1 + 5 + 2) + (1 + 1) + 1 + 1
    nothing = lambda texts: np.array([[1.0 - any(map(bool, texts)), 0.5]] * len(texts))  # fails for no text at all
    assert attack.attack(nothing, ["", " "], [0, 1], attack.letters).right.tolist() == [1, 0], "no word can change"
    unchanged = attack.attack(by_words, texts, labels, attack.exchanged(near), most=0)
    assert unchanged.texts == texts
    assert unchanged.right.tolist() == [1, 1, 0, 0]


def test_no_more_words_are_changed_than_allowed():
    near = {"good": ["fine"]}
    for most in (1, 2, 3):
        done = attack.attack(by_words, ["good good good good"], [1], attack.exchanged(near), most)
        assert done.texts[0].split().count("fine") == most
        assert done.accuracy == 1


@settings(max_examples=50, deadline=None)
@given(st.text("abcdefg", min_size=1, max_size=9))
def test_misspelt_words_keep_their_ends(word):
    found = attack.letters(word)
    assert word not in found
    assert len(set(found)) == len(found)
    for new in found:
        assert (new[0], new[-1]) == (word[0], word[-1])
        assert Counter(new) == Counter(word) or not Counter(new) - Counter(word)
    assert attack.letters("it's") == []


# Search


@pytest.fixture(scope="module")
def problem():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(150, 6))
    y = (x[:, 0] + 0.5 * draw.normal(size=150) > 0).astype(int)
    cut = lambda rows: (torch.from_numpy(x[rows]), torch.from_numpy(y[rows]))
    sides = {"train": cut(slice(60)), "dev": cut(slice(60, 100)), "test": cut(slice(100, 150))}
    return search.Problem(sides, 3)  # no text has the last class


def test_searches_spend_the_same_epochs_and_pruned_ones_try_more(problem):
    found = {}
    for method in search.METHODS:
        study = search.study(method, 0)
        search.run(study, problem, 15 * search.EPOCHS)
        assert 0 <= search.spent(study) - 15 * search.EPOCHS < search.EPOCHS
        found[method] = study
        losses = [loss for _, loss in search.trace(study)]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] == study.best_value or "pruning" in method
    assert len(found["random"].trials) == 15 < len(found["random+pruning"].trials)
    with pytest.raises(CourseError, match="no search called"):
        search.study("grid")


def test_a_stored_study_goes_on(problem, tmp_path):
    import optuna

    backend = lambda: optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
    )
    search.run(search.study("random", 0, backend()), problem, 2 * search.EPOCHS)
    again = search.study("random", 1, backend())
    search.run(again, problem, 4 * search.EPOCHS)
    assert [trial.number for trial in again.trials] == [0, 1, 2, 3]
    whole = search.study("random", 0)
    search.run(whole, problem, 2 * search.EPOCHS)
    assert [t.value for t in whole.trials] == [t.value for t in again.trials[:2]]


def test_the_net_repeats_and_its_hits_are_counted(problem):
    setting = {"lr": 0.05, "weight_decay": 0.01, "dropout": 0.1, "smoothing": 0.0, "hidden": 16, "rows": 16}
    one, two = (list(problem.train(setting)) for _ in range(2))
    assert [loss for loss, _ in one] == [loss for loss, _ in two]
    assert len(one) == search.EPOCHS
    right = problem.correct(one[-1][1])
    assert right.shape == (50,)
    assert right.mean() > 0.6


def test_the_net_that_is_tested_is_that_of_the_best_epoch(problem):
    study = search.study("random", 3)
    search.run(study, problem, 6 * search.EPOCHS)
    epoch = lambda trial: min(trial.intermediate_values, key=trial.intermediate_values.get)
    trial = next(trial for trial in study.trials if 1 < epoch(trial) < search.EPOCHS)
    found = bench_search.epochs_to_the_best(problem, trial)
    loss, net = found[-1]
    x, y = problem.sides["dev"]
    assert len(found) == epoch(trial)
    assert F.cross_entropy(net.eval()(x), y).item() == loss == trial.value
