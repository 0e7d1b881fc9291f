"""Entity tags and the files that hold them, against seqeval's scheme classes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import scheme as seqeval
from seqeval.metrics.sequence_labeling import get_entities

from course_lib.data import annotated, library, tags
from course_lib.data.tags import Span
from course_lib.errors import CourseError

ORACLE = {"IOB1": seqeval.IOB1, "IOB2": seqeval.IOB2, "BIOES": seqeval.IOBES}


@st.composite
def sentences(draw):
    """(spans, length): some gaps, some entities that touch, types with a hyphen."""
    at, found = 0, []
    for _ in range(draw(st.integers(0, 5))):
        start = at + draw(st.integers(0, 2))
        at = start + draw(st.integers(1, 3))
        found.append(Span(start, at, draw(st.sampled_from(["PER", "LOC", "MISC-X"]))))
    return found, at + draw(st.integers(0, 2))


@given(sentences(), st.sampled_from(tags.SCHEMES), st.sampled_from(tags.SCHEMES))
def test_spans_survive_every_scheme_and_seqeval_agrees(sentence, first, second):
    found, length = sentence
    once = tags.of_spans(found, length, first)
    assert tags.spans(once, first) == found
    assert tags.of_spans(tags.spans(once, first), length, second) == tags.of_spans(found, length, second)
    assert tags.convert(once, first) == tags.of_spans(found, length, "IOB2")
    theirs = seqeval.Entities([once], ORACLE[first]).entities[0] if once else []
    assert [(e.start, e.end, e.tag) for e in theirs] == [(s.start, s.end, s.kind) for s in found]
    assert tags.spans(once, tags.detect([once], ["x"])) == found


TAGS = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])


@settings(max_examples=300)
@given(st.lists(TAGS, max_size=8))
def test_broken_tags_are_read_as_by_seqevals_default(labels):
    ours = [(s.kind, s.start, s.end - 1) for s in tags.spans(labels)]
    assert ours == get_entities(labels)


@settings(max_examples=200)
@given(st.lists(sentences(), min_size=1, max_size=4), st.sampled_from(tags.SCHEMES))
def test_what_is_detected_gives_the_same_entities(all_of_them, scheme):
    labels = [tags.of_spans(found, length, scheme) for found, length in all_of_them]
    detected = tags.detect(labels, ["x"] * len(labels))
    assert [tags.spans(sentence, detected) for sentence in labels] == [found for found, _ in all_of_them]


def test_iob1_is_not_read_as_iob2():
    labels = ["I-PER", "I-PER", "B-PER", "O", "I-LOC"]
    assert tags.detect([labels], ["x"]) == "IOB1"
    assert tags.convert(labels, "IOB1") == ["B-PER", "I-PER", "B-PER", "O", "B-LOC"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["B-PER", "L-PER"], "line 7: the tags look like BILOU.*Convert"),
        (["U-PER"], "look like BILOU"),
        (["B-PER", "M-PER", "E-PER"], "look like BMEWO"),
        (["I-PER", "E-PER"], "look like IOE"),
        (["E-PER", "O"], "look like IOE"),
        (["PER"], "'PER' is no entity tag"),
        (["B"], "'B' is no entity tag"),
        (["B-PER", "I-LOC", "B-LOC", "O", "B-LOC"], "IOB2 at line 7 .I-LOC after B-PER. and IOB1 at line 7"),
        (["B-PER", "O", "S-PER"], "BIOES at line 7 .O after B-PER"),
    ],
)
def test_other_schemes_are_refused_with_their_line(labels, message):
    with pytest.raises(CourseError, match=message):
        tags.detect([["O"], labels], ["line 1", "line 7"])


def write(path, text, **how):
    path.write_bytes(text.encode("utf-8", **how))
    return path


def test_line_ends_marks_tabs_and_odd_characters(tmp_path):
    plain = "EU B-ORG\nrejects O\n\n🙂👩‍👩‍👧 O\n"
    expected, _ = annotated.read(write(tmp_path / "a.conll", plain))
    for name, text in {
        "crlf": plain.replace("\n", "\r\n"),
        "cr": plain.replace("\n", "\r"),
        "bom": "\ufeff" + plain,
        "tabs": plain.replace(" ", "\t"),
        "blanks": plain + "\n\n\n",
        "head": "-DOCSTART- O\n\n" + plain,
    }.items():
        assert annotated.read(write(tmp_path / f"{name}.conll", text))[0] == expected, name
    (first, labels), _ = expected
    assert (first.text, labels) == ("EU rejects", ["B-ORG", "O"])
    assert first.words() == ["EU", " rejects"]
    (odd, _), _ = (annotated.read(write(tmp_path / "nel.conll", "a\x85b O\nc O\n"))[0][0], None)
    assert odd.text == "a\x85b c", "U+0085 ends no line"


def test_wrong_columns_and_unequal_lists_are_named(tmp_path):
    with pytest.raises(CourseError, match=r"a\.conll, line 2: 1 columns, expected 2"):
        annotated.read(write(tmp_path / "a.conll", "EU B-ORG\nrejects\n"))
    with pytest.raises(CourseError, match=r"row 2: 2 tokens but 1 tags"):
        rows = [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a", "b"], "tags": ["O"]}]
        annotated.read(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    with pytest.raises(CourseError, match="is empty"):
        annotated.read(write(tmp_path / "b.conll", "\n\n"))
    with pytest.raises(CourseError, match=r"IOB2 at .*line 1 \(I-PER after O\) and IOB1 at .*line 3 \(B-LOC after O\)"):
        annotated.read(write(tmp_path / "c.conll", "a I-PER\n\nb B-LOC\nc O\n"))


def spans_file(tmp_path, *rows):
    return write(tmp_path / "s.jsonl", "\n".join(json.dumps(row) for row in rows))


def test_spans_in_json(tmp_path):
    text = "🙂 Ann-Lee Wu saw 北京市."
    entities = [
        {"start": text.index("Ann"), "end": text.index("Wu") + 2, "label": "PER"},
        {"start": text.index("北"), "end": text.index("市"), "label": "LOC"},
    ]
    rows = [{"text": text, "entities": entities}, {"text": "", "entities": []}]
    items, notes = annotated.read(spans_file(tmp_path, *rows))
    words, labels = items[0]
    marked = [(words.places[s.start][0], words.places[s.end - 1][1], s.kind) for s in tags.spans(labels)]
    assert marked == [(e["start"], e["end"], e["label"]) for e in entities]
    assert (items[1], notes) == ((annotated.Words("", []), []), [])
    half = {"start": text.index("nn-"), "end": text.index("Wu") + 1, "label": "PER"}
    widened, notes = annotated.read(spans_file(tmp_path, {"text": text, "entities": [half]}))
    assert widened[0][1].count("I-PER") == 3
    assert "1 entities end inside a word" in notes[0]


@pytest.mark.parametrize(
    ("entities", "message"),
    [
        ([{"start": 0, "end": 99, "label": "X"}], "row 1: there is no word at characters 0 to 99"),
        ([{"start": 3, "end": 4, "label": "X"}], "no word at characters 3 to 4"),
        ([{"start": 0, "label": "X"}], "needs start, end and label"),
        ([[0, 3, "X"]], "row 1: an entity needs start, end and label"),
        ([{"start": 0.9, "end": 3, "label": "X"}], "needs start, end and label, two whole numbers and a name"),
        ([{"start": 0, "end": 3, "label": " "}], "needs start, end and label"),
        ([{"start": 0, "end": 3, "label": None}], "needs start, end and label"),
        (5, "row 1: there is no list `entities`"),
        (None, "row 1: there is no list `entities`"),
        ([{"start": 0, "end": 7, "label": "X"}, {"start": 4, "end": 7, "label": "X"}], "overlaps the one before"),
    ],
)
def test_spans_that_cannot_be(tmp_path, entities, message):
    with pytest.raises(CourseError, match=message):
        annotated.read(spans_file(tmp_path, {"text": "Ann saw it", "entities": entities}))


def test_rows_that_do_not_say_where_their_entities_are(tmp_path):
    with pytest.raises(CourseError, match="row 1: there is no list `entities`; give a text that has none an empty one"):
        annotated.read(spans_file(tmp_path, {"text": "Ann", "entitys": []}))
    with pytest.raises(CourseError, match="row 1: the text is 5, not a string"):
        annotated.read(spans_file(tmp_path, {"text": 5, "entities": []}))
    row = {"text": "Ann saw", "tokens": ["Ann", "saw"], "tags": ["B-PER", "O"]}
    assert annotated.read(spans_file(tmp_path, row))[0] == [(annotated.join(["Ann", "saw"]), ["B-PER", "O"])]


def test_tokens_that_are_several_words_in_running_text_are_counted(tmp_path):
    _, notes = annotated.read(write(tmp_path / "a.conll", "U.S. B-LOC\nwell-known O\n\nAnn B-PER\n北京 B-LOC\n"))
    assert "2 tokens of entities, such as 'U.S.', are several words" in notes[1]
    assert len(annotated.read(write(tmp_path / "b.conll", "Ann B-PER\nwell-known O\n"))[1]) == 1


def test_peoples_daily_has_a_tag_a_character(monkeypatch):
    from datasets import Dataset, DatasetDict

    entry = library.DATASETS["peoples_daily"]
    row = {"text": "江泽民在北京", "words": ["江", "泽民", "在", "北京"], "pos": ["nr", "nr", "p", "ns"]}
    labels = library.entity_tags(row["words"], row["pos"])
    table = Dataset.from_list([row | {"tags": labels}], features=entry.features)
    monkeypatch.setattr(library, "load", lambda name: DatasetDict(dict.fromkeys(("train", "valid", "test"), table)))
    sides = annotated.TASKS["peoples_daily"]()
    ((words, found),) = sides["dev"]
    assert words.words() == list("江泽民在北京")
    assert found == labels == ["B-PER", "I-PER", "I-PER", "O", "B-LOC", "I-LOC"]


@given(st.lists(st.text("ab中文，.🙂", max_size=4), max_size=8))
def test_joined_tokens_are_found_again(tokens):
    joined = annotated.join(tokens)
    assert [joined.text[s:e] for s, e in joined.places] == tokens


def test_wiki_names_are_sound_and_every_side_has_every_type():
    items, notes = annotated.read(annotated.NAMES)
    assert notes[0] == f"{annotated.NAMES}: the tags are IOB2."
    sides = annotated.TASKS["wiki_names"]()
    assert {side: len(rows) for side, rows in sides.items()} == {"train": 90, "dev": 15, "test": 45}
    assert [item for rows in sides.values() for item in rows] == items
    assert len({words.text for words, _ in items}) == len(items) == 150
    spans = [tags.spans(found) for _, found in items]
    assert sum(map(len, spans)) == 175
    for side in ("train", "test"):
        kinds = {span.kind for _, found in sides[side] for span in tags.spans(found)}
        assert kinds == {"PER", "LOC", "ORG", "MISC"}


def test_no_title_or_article_begins_a_wiki_name_but_those_of_works():
    for words, found in annotated.read(annotated.NAMES)[0]:
        for span in tags.spans(found):
            first, *others = (words.text[s:e] for s, e in words.places[span.start : span.end])
            assert first not in {"King", "Imam", "President", "a", "an", "the"}
            assert first != "The" or (span.kind in {"MISC", "ORG"} and others)
            assert span.kind != "PER" or first[0].isupper()
