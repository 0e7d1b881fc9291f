"""Every dataset, read from the real file: counts, types, sides that do not mix."""

import json
from collections import Counter

import pytest
from datasets import Dataset

from course_lib import assets
from course_lib.data import card, clean, corpora, library, pretrained, report
from course_lib.errors import CourseError
from tests.conftest import ROOT, make_text

COUNTS = {
    "movie_reviews": {"train": 30_100, "valid": 1_663, "test": 1_669},
    "wiki_leads": {"train": 23_643, "valid": 1_265, "test": 1_319},
    "peoples_daily": {"train": 15_195, "valid": 1_849, "test": 1_850},
    "zh_reviews": {"train": 15_630, "valid": 881, "test": 852},
    "nyt_sentences": {"train": 21_295, "valid": 1_232, "test": 1_176},
    "ui_pairs": {"train": 5_490, "valid": 300, "test": 342},
    "ml100k": {"train": 80_000, "valid": 10_000, "test": 10_000},
    "ml100k_items": {"all": 1_682},
    "ml100k_users": {"all": 943},
    "ml100k_triples": {"all": 91_631},
    "countries": {"all": 252},
    "intents": {"train": 1_433, "valid": 63, "test": 66},
    "dialogues": {"train": 812, "valid": 43, "test": 44},
}


@pytest.fixture(autouse=True)
def shared_assets(cache, tmp_path_factory, monkeypatch):
    """Fetch each file once for all tests of this module."""
    shared = tmp_path_factory.getbasetemp() / "shared-assets"
    monkeypatch.setenv("COURSE_CACHE", str(shared))


@pytest.mark.parametrize("name", list(COUNTS))
def test_counts_and_types(name):
    tables = library.load(name)
    assert {side: len(table) for side, table in tables.items()} == COUNTS[name]
    for table in tables.values():
        assert isinstance(table, Dataset)
        assert table.features == library.DATASETS[name].features
    entry = library.DATASETS[name]
    if entry.splits == "hash":
        keys = {side: {json.dumps([row[k] for k in entry.key]) for row in table} for side, table in tables.items()}
        assert not keys["train"] & keys["test"]
        assert not keys["train"] & keys["valid"]


def test_every_dataset_has_its_counts_tested():
    assert set(COUNTS) | {"docs"} == set(library.DATASETS)


def test_docs_are_split_by_module_and_need_no_file():
    tables = library.load("docs")
    origins = {side: set(table["origin"]) for side, table in tables.items()}
    assert not origins["train"] & origins["test"]
    assert sum(map(len, tables.values())) > 1_000
    assert not (assets.cache_dir() / "assets" / "docs").exists()


def test_known_rows():
    reviews = library.load("movie_reviews", "train")
    assert Counter(reviews["source"])[0] > 20_000
    assert reviews.features["label"].names == ["negative", "positive"]
    assert not any("<br" in text for text in reviews["text"])
    france = next(row for row in library.load("countries", "all") if row["iso"] == "FR")
    assert (france["capital"], france["currency"], france["demonym"]) == ("Paris", "Euro", "French")
    assert "Spain" in france["neighbours"]
    toy_story = library.load("ml100k_items", "all")[0]
    assert toy_story == {
        "item": 1,
        "title": "Toy Story",
        "year": "1995",
        "genres": ["Animation", "Children's", "Comedy"],
    }
    rated = library.load("nyt_sentences", "train")
    assert -4 <= min(rated["rating"]) < max(rated["rating"]) <= 4
    topics = {topic for table in library.load("wiki_leads").values() for topic in table["topic"]}
    assert len(topics) == 12 or {"Arts", "Uncategorized"} <= topics


def test_peoples_daily_has_a_tag_for_every_character():
    tables = library.load("peoples_daily")
    names = tables["train"].features["tags"].feature.names
    entities = Counter()
    for table in tables.values():
        for row in table:
            assert len(row["tags"]) == len(row["text"]) == sum(map(len, row["words"]))
            entities.update(names[tag][2:] for tag in row["tags"] if names[tag].startswith("B-"))
    assert entities["PER"] == pytest.approx(20_000, rel=0.05)
    assert entities["LOC"] == pytest.approx(27_900, rel=0.05)
    assert entities["ORG"] == pytest.approx(3_600, rel=0.05)


def test_four_name_words_are_two_people():
    words, pos = ["江", "泽民", "李", "鹏", "访", "北京"], ["nr", "nr", "nr", "nr", "v", "ns"]
    assert library.entity_tags(words, pos) == ["B-PER", "I-PER", "I-PER", "B-PER", "I-PER", "O", "B-LOC", "I-LOC"]
    assert library.entity_tags(["克林顿", "说"], ["nr", "v"]) == ["B-PER", "I-PER", "I-PER", "O"]


def test_no_text_of_two_classes_is_left_in_zh_reviews():
    tables = library.load("zh_reviews")
    texts = [row["text"] for table in tables.values() for row in table]
    assert len(texts) == len(set(texts))


def test_pretraining_takes_the_same_sides():
    """A text held out in the labelled data is held out in pretraining, also when corpora are joined."""
    corpus = corpora.load("movie_reviews+wiki_leads")
    held_out = set(library.load("movie_reviews", "test")["text"])
    sides = Counter(clean.split_of(clean.document_hash(text)) for text in corpus.documents() if text in held_out)
    assert set(sides) == {"test"}
    blocks = set(library.load("peoples_daily", "test")["text"])
    assert not blocks & set(corpora.load("peoples_daily").documents())


def test_a_local_folder_in_the_hubs_layout_is_a_corpus(tmp_path):
    Dataset.from_dict({"id": [1, 2], "text": ["one", "two"]}).to_parquet(tmp_path / "train.parquet")
    assert list(corpora.load(f"hf:{tmp_path}").documents()) == ["one", "two"]
    with pytest.raises(CourseError, match="Could not load"):
        corpora.load("hf:nobody/nothing")


def test_wrong_names_and_splits():
    with pytest.raises(CourseError, match="Did you mean zh_reviews"):
        library.load("zh_review")
    with pytest.raises(CourseError, match="no split 'dev', only test, train, valid"):
        library.load("zh_reviews", "dev")


def test_the_data_cards_are_the_registry():
    assert (ROOT / "book" / "data_cards.md").read_text(encoding="utf-8") == card.page()
    for name in [*library.DATASETS, *pretrained.PRETRAINED]:
        assert f"\n## {name}" in card.page()


def test_minilm_is_a_sentence_encoder():
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = pretrained.folder("minilm")
    assert folder == pretrained.folder("minilm")
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = ["A man eats pasta.", "Someone is eating spaghetti.", "The stock market fell."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state  # (3, length, 384)
    mask = batch["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.6 > 0.3 > far


def test_smollm2_answers():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = pretrained.folder("smollm2")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() == pytest.approx(134.5e6, rel=0.01)
    assert tokenizer.padding_side == "left"
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0])


def test_the_hub_is_the_second_mirror_of_a_model(monkeypatch, cache):
    """hub: not run here; the client is replaced, the fall-back is real."""
    import huggingface_hub

    def refuse(name):
        raise CourseError("No index.")

    def download(repository, local_dir, allow_patterns):
        (local_dir / "config.json").write_text(repository)

    monkeypatch.setenv("COURSE_CACHE", str(cache))
    monkeypatch.setattr(assets, "fetch", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert (pretrained.folder("minilm") / "config.json").read_text() == "sentence-transformers/all-MiniLM-L6-v2"

    def offline(*arguments, **keywords):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CourseError, match="No index. The Hugging Face hub did not serve"):
        pretrained.folder("smollm2")
    assert [p.name for p in (cache / "models").iterdir()] == ["minilm"]


def test_a_report_finds_what_was_planted(tmp_path):
    held_out = library.load("movie_reviews", "test")["text"][:5]
    padded = [f"Somebody copied this: {text}" for text in held_out]
    texts = [make_text(i) for i in range(200)] + [make_text(3)] * 4 + padded + ["short"]
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    found = report.report(str(path), lambda line: None)
    assert found["length"].endswith("1 of 210 removed (0.5%)")
    assert "4 of 209 removed" in found["exact"]
    train = sum(clean.split_of(clean.document_hash(clean.clean(t))) == "train" for t in padded)
    assert (
        f"held out in movie_reviews: {train} of 1,669 texts at least half contained" in found["overlap movie_reviews"]
    )
    assert set(found) == {"length", "exact", "near"} | {
        f"overlap {n}" for n in ("movie_reviews", "docs", "wiki_leads", "peoples_daily", "zh_reviews", "nyt_sentences")
    }


def test_unknown_models_are_refused():
    with pytest.raises(CourseError, match="Did you mean minilm"):
        pretrained.folder("minilmm")


def test_rows_without_text_and_folders_without_a_slash(tmp_path, monkeypatch):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "one", "id": 1}\n{"text": null, "id": 2}\n')
    assert list(corpora.load(f"hf:{tmp_path / 'texts'}").documents()) == ["one", ""]
    (tmp_path / "texts" / "a.jsonl").unlink()
    (tmp_path / "texts" / "b.txt").write_text("two")
    monkeypatch.chdir(tmp_path)
    assert list(corpora.load("texts").documents()) == ["two"]
