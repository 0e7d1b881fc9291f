import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import tokenizer
from course_lib.errors import CourseError
from tests.conftest import make_text

ENGLISH = [make_text(i) for i in range(60)]
CHINESE = ["这部电影很好看，我喜欢。", "演员不错，故事一般。", "音乐很好听！"] * 5
MADE = {
    "byte-bpe": tokenizer.train("byte-bpe", ENGLISH, 320, 64),
    "wordpiece": tokenizer.train("wordpiece", ENGLISH, 120, 64),
    "characters": tokenizer.train("characters", CHINESE, 100, 64, exact=False),
}


@pytest.mark.parametrize("call", [{"truncation": True, "max_length": 4}, {"padding": "max_length", "max_length": 900}])
def test_whole_texts_are_encoded_whatever_the_tokenizer_did_before(call):
    made, texts = MADE["byte-bpe"], [make_text(1), make_text(2, 1)]
    expected = tokenizer.encode(made, texts)
    before = made(texts, **call)["input_ids"]
    assert before != expected
    assert tokenizer.encode(made, texts) == expected
    assert made(texts, **call)["input_ids"] == before
    made(texts, padding=False, truncation=False)


@settings(deadline=None, max_examples=60)
@given(st.text())
def test_byte_level_bpe_gives_every_text_back(text):
    made = MADE["byte-bpe"]
    (ids,) = tokenizer.encode(made, [text])
    assert ids[0] == made.bos_token_id
    assert made.decode(ids[1:]) == text


@pytest.mark.parametrize("kind", list(MADE))
def test_special_tokens_serve_both_objectives(kind):
    made = MADE[kind]
    assert [made.convert_tokens_to_ids(t) for t in tokenizer.SPECIAL] == [0, 1, 2, 3]
    assert made.bos_token_id == made.cls_token_id == made.eos_token_id == 0
    assert (made.sep_token_id, made.pad_token_id, made.mask_token_id) == (1, 2, 3)
    pair = made("The film", "the plot" if kind != "characters" else "很好")
    assert pair.input_ids[0] == 0
    assert pair.input_ids.count(1) == 1
    padded = made(["The film", "The"], padding=True)
    assert len({len(ids) for ids in padded.input_ids}) == 1


@pytest.mark.parametrize("kind", list(MADE))
def test_special_tokens_typed_in_a_text_are_text(kind):
    (ids,) = tokenizer.encode(MADE[kind], ["a <|mask|> b <|bos|>"])
    assert 3 not in ids
    assert ids.count(0) == 1


@pytest.mark.parametrize("kind", list(MADE))
def test_a_fresh_process_loads_the_same_tokenizer(kind, tmp_path):
    text = CHINESE[0] if kind == "characters" else ENGLISH[0]
    MADE[kind].save_pretrained(tmp_path)
    code = (
        "import sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "e = t(sys.argv[2]); print(e.input_ids, e.word_ids(), t.mask_token, t.model_max_length)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path, text], capture_output=True, text=True, check=True)
    encoded = MADE[kind](text)
    assert done.stdout.strip() == f"{encoded.input_ids} {encoded.word_ids()} <|mask|> 64"


def test_chinese_is_cut_into_characters():
    made = MADE["characters"]
    assert made.convert_ids_to_tokens(made("电影好").input_ids)[1:] == ["电", "影", "好"]
    assert made.decode(made(CHINESE[0]).input_ids, skip_special_tokens=True) == CHINESE[0]
    assert made("龘").input_ids[1] == made.unk_token_id


def test_offsets_do_not_count_the_leading_space():
    made = MADE["byte-bpe"]
    encoded = made("The film bores", return_offsets_mapping=True)
    cut = ["The film bores"[a:b] for a, b in encoded.offset_mapping]
    assert all(not piece.startswith(" ") for piece in cut)


def test_too_large_a_vocabulary_names_the_largest_possible():
    with pytest.raises(CourseError, match="at most") as error:
        tokenizer.train("byte-bpe", ENGLISH, 50_000, 64)
    largest = int(str(error.value).split("at most ")[1].split()[0])
    assert len(tokenizer.train("byte-bpe", ENGLISH, largest, 64)) == largest
    with pytest.raises(CourseError, match="at least 260 tokens"):
        tokenizer.train("byte-bpe", ENGLISH, 100, 64)


def test_unknown_kinds_name_the_nearest():
    with pytest.raises(CourseError, match="Did you mean wordpiece"):
        tokenizer.train("word-piece", ENGLISH, 100, 64)


def test_the_report_counts_by_hand():
    found = tokenizer.report(MADE["characters"], ["电影 好", "龘"])
    assert found.bytes_per_token == pytest.approx(13 / 5)
    assert found.fertility == pytest.approx(5 / 3)
    assert found.unknown == pytest.approx(2 / 5)  # the space was never seen, either
    with pytest.raises(CourseError, match="no text"):
        tokenizer.report(MADE["characters"], [])
