"""Answers to the exercises of chapter 8."""

from collections import Counter

from seqeval.metrics import f1_score
from seqeval.metrics.sequence_labeling import get_entities

from tests.exercises import Answers

NO = -100


# 8.1


def no_special_tokens(sizes, labels):
    return [v for n, y in zip(sizes, labels, strict=True) for v in [y] + [NO] * (n - 1)][: sum(sizes)]


def as_in_the_source(sizes, labels):
    return (labels + [0] * (sum(sizes) + 2))[: sum(sizes) + 2]


def specials_are_o(sizes, labels):
    return [0, *aligned(sizes, labels)[1:-1], 0]


def on_every_piece(sizes, labels):
    return [NO, *(y for n, y in zip(sizes, labels, strict=True) for _ in range(n)), NO]


def on_the_last_piece(sizes, labels):
    return [NO, *(v for n, y in zip(sizes, labels, strict=True) if n for v in [NO] * (n - 1) + [y]), NO]


def empty_words_count(sizes, labels):
    return [NO, *(v for n, y in zip(sizes, labels, strict=True) for v in [y] + [NO] * (n - 1)), NO]


def pieces_are_o(sizes, labels):
    return [NO, *(v for n, y in zip(sizes, labels, strict=True) if n for v in [y] + [0] * (n - 1)), NO]


def aligned(sizes, labels):
    return [NO, *(v for n, y in zip(sizes, labels, strict=True) if n for v in [y] + [NO] * (n - 1)), NO]


def by_place(sizes, labels):
    found, at = [NO] * (sum(sizes) + 2), 1
    for size, label in zip(sizes, labels, strict=True):
        if size:
            found[at] = label
        at += size
    return found


# 8.2


def score(gold, found, read):
    true, said = ({(i, *e) for i, tags in enumerate(side) for e in read(tags)} for side in (gold, found))
    total = len(true) + len(said)
    return 2 * len(true & said) / total if total else 0.0


def token_accuracy(gold, found):
    pairs = [(a, b) for x, y in zip(gold, found, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def token_f1(gold, found):
    return score(gold, found, lambda tags: [(i, tag[2:]) for i, tag in enumerate(tags) if tag != "O"])


def without_types(gold, found):
    return score(gold, found, lambda tags: [entity[1:] for entity in get_entities(tags)])


def b_is_i(gold, found):
    return score(gold, found, lambda tags: get_entities([tag.replace("B-", "I-") for tag in tags]))


def recall_only(gold, found):
    true, said = ({(i, *e) for i, t in enumerate(side) for e in get_entities(t)} for side in (gold, found))
    return len(true & said) / len(true) if true else 0.0


def mean_of_sentences(gold, found):
    return sum(by_sets([a], [b]) for a, b in zip(gold, found, strict=True)) / len(gold)


def forgets_the_sentence(gold, found):
    true, said = (Counter(e for tags in side for e in get_entities(tags)) for side in (gold, found))
    return 2 * (true & said).total() / (true.total() + said.total())


def one_set_for_all(gold, found):
    true, said = ({e for tags in side for e in get_entities(tags)} for side in (gold, found))
    return 2 * len(true & said) / (len(true) + len(said) or 1)


def empty_is_perfect(gold, found):
    return by_sets(gold, found) if any(tag != "O" for tags in gold + found for tag in tags) else 1.0


def by_sets(gold, found):
    return score(gold, found, get_entities)


def by_seqeval(gold, found):
    return float(f1_score(gold, found, zero_division=0))


# 8.3


def untouched(tags):
    return list(tags)


def drops_broken(tags):
    return ["O" if tag[0] == "I" and (not i or tags[i - 1][2:] != tag[2:]) else tag for i, tag in enumerate(tags)]


def only_after_o(tags):
    return ["B" + tag[1:] if tag[0] == "I" and i and tags[i - 1] == "O" else tag for i, tag in enumerate(tags)]


def every_entity_word(tags):
    return ["B" + tag[1:] if tag != "O" else tag for tag in tags]


def in_place(tags):
    for i in range(len(tags)):
        if tags[i][0] == "I" and (not i or tags[i - 1][2:] != tags[i][2:]):
            tags[i] = "B" + tags[i][1:]
    return tags


def short_types(tags):
    kind = lambda tag: tag.split("-")[1] if tag != "O" else ""
    return [
        "B" + tag[1:] if tag[0] == "I" and (not i or kind(tags[i - 1]) != kind(tag)) else tag
        for i, tag in enumerate(tags)
    ]


def compared(tags):
    return [
        "B" + tag[1:] if tag.startswith("I-") and before[2:] != tag[2:] else tag
        for before, tag in zip(["O", *tags], tags, strict=False)
    ]


def rewritten(tags):
    found = ["O"] * len(tags)
    for kind, start, end in get_entities(tags):
        found[start : end + 1] = [f"B-{kind}"] + [f"I-{kind}"] * (end - start)
    return found


# 8.4


def words_not_characters(places, tags):
    return [(start, end + 1, kind) for kind, start, end in get_entities(tags)]


def first_word_only(places, tags):
    return [(*places[start], kind) for kind, start, _ in get_entities(tags)]


def lengths_and_one_blank(places, tags):
    found = []
    for kind, start, end in get_entities(tags):
        size = sum(b - a for a, b in places[start : end + 1]) + end - start
        found.append((places[start][0], places[start][0] + size, kind))
    return found


def with_the_b(places, tags):
    return [(start, end, f"B-{kind}") for start, end, kind in by_entities(places, tags)]


def merges_neighbours(places, tags):
    return by_entities(places, [tag.replace("B-", "I-") for tag in tags])


def forgets_the_last(places, tags):
    found, start = [], None
    for i, tag in enumerate(tags):
        if start is not None and tag[0] != "I":
            found.append((places[start][0], places[i - 1][1], tags[start][2:]))
            start = None
        if tag[0] == "B":
            start = i
    return found


def runs_of_o(places, tags):
    return by_entities(places, tags) or [(0, 0, "O")]


def by_entities(places, tags):
    return [(places[start][0], places[end][1], kind) for kind, start, end in get_entities(tags)]


def one_pass(places, tags):
    found = []
    for (start, end), tag in zip(places, tags, strict=True):
        if tag.startswith("B-"):
            found.append([start, end, tag[2:]])
        elif tag.startswith("I-"):
            found[-1][1] = end
    return [tuple(entity) for entity in found]


# 8.5


def side_by_side(length, room, shared):
    return [(at, min(at + room, length)) for at in range(0, length, room)]


def too_many(length, room, shared):
    return [(at, min(at + room, length)) for at in range(0, length, room - shared)]


def head_only(length, room, shared):
    return [(0, min(length, room))]


def one_more(length, room, shared):
    return stepped(length, room + 1, shared)


def whole_ones_only(length, room, shared):
    return [(at, at + room) for at in range(0, length - room + 1, room - shared)] or [(0, length)]


def shifted_back(length, room, shared):
    return [(max(0, end - room), end) for _, end in stepped(length, room, shared)]


def stepped(length, room, shared):
    found = [(0, min(room, length))]
    while found[-1][1] < length:
        start = found[-1][1] - shared
        found.append((start, min(start + room, length)))
    return found


def counted(length, room, shared):
    step = room - shared
    number = 1 + max(0, -(-(length - room) // step))
    return [(i * step, min(i * step + room, length)) for i in range(number)]


ANSWERS = {
    "ex08_1": Answers(
        wrong={
            "there is a label": [no_special_tokens],
            "the special tokens have none": [as_in_the_source, specials_are_o],
            "a word's label stands": [as_in_the_source, on_the_last_piece],
            "its other pieces": [on_every_piece, pieces_are_o],
            "a word without pieces": [empty_words_count],
        },
        right=[aligned, by_place],
    ),
    "ex08_2": Answers(
        wrong={
            "everything right": [lambda gold, found: 100.0],
            "half of an entity": [token_f1],
            "the right words": [without_types],
            "B begins": [b_is_i, token_f1],
            "precision and recall": [recall_only],
            "entities are counted": [mean_of_sentences],
            "an entity counts": [one_set_for_all, forgets_the_sentence],
            "an O that is right": [token_accuracy, empty_is_perfect, forgets_the_sentence],
        },
        right=[by_sets, by_seqeval],
    ),
    "ex08_3": Answers(
        wrong={
            "sound tags": [every_entity_word],
            "an I at the very": [untouched, only_after_o],
            "an I after O": [drops_broken, untouched, in_place],
            "an I after another type": [only_after_o],
            "types with a hyphen": [short_types],
        },
        right=[compared, rewritten],
    ),
    "ex08_4": Answers(
        wrong={
            "an entity of one word": [words_not_characters],
            "an entity of several words": [first_word_only, lengths_and_one_blank],
            "the type comes third": [with_the_b],
            "neighbours stay apart": [merges_neighbours],
            "one that the text's end": [forgets_the_last],
            "without blanks": [lengths_and_one_blank],
            "no entity": [runs_of_o],
        },
        right=[by_entities, one_pass],
    ),
    "ex08_5": Answers(
        wrong={
            "what fits": [too_many],
            "no window holds more": [one_more],
            "neighbours share": [side_by_side, shifted_back],
            "every token": [head_only, whole_ones_only],
            "none is without": [too_many],
        },
        right=[stepped, counted],
    ),
}
