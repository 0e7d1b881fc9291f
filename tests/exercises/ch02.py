"""Wrong and right answers to the exercises of chapter 2."""

import torch
import torch.nn.functional as F

from tests.exercises import Answers


# 2.1 WordPiece
def pieces_by(word, vocab, lengths, mark="##", unknown=lambda pieces: ["<unk>"]):
    pieces, start = [], 0
    while start < len(word):
        for end in lengths(start, len(word)):
            piece = (mark if start else "") + word[start:end]
            if piece in vocab:
                break
        else:
            return unknown(pieces)
        pieces.append(piece)
        start = end
    return pieces


def longest(start, length):
    return range(length, start, -1)


def shortest(start, length):
    return range(start + 1, length + 1)


def wordpiece(word, vocab):
    return pieces_by(word, vocab, longest)


def wordpiece_recursive(word, vocab, mark=""):
    for end in range(len(word), 0, -1):
        if mark + word[:end] in vocab:
            rest = wordpiece_recursive(word[end:], vocab, "##") if word[end:] else []
            return ["<unk>"] if "<unk>" in rest else [mark + word[:end], *rest]
    return ["<unk>"]


def shortest_first(word, vocab):
    return pieces_by(word, vocab, shortest)


def without_marks(word, vocab):
    return pieces_by(word, {piece.removeprefix("##") for piece in vocab}, longest, mark="")


def either_mark(word, vocab):
    return pieces_by(word, vocab | {"##" + piece for piece in vocab}, longest)


def keeps_the_beginning(word, vocab):
    return pieces_by(word, vocab, longest, unknown=lambda pieces: [*pieces, "<unk>"])


def from_the_right(word, vocab):
    pieces, end = [], len(word)
    while end:
        for start in range(end):
            piece = ("##" if start else "") + word[start:end]
            if piece in vocab:
                break
        else:
            return ["<unk>"]
        pieces.insert(0, piece)
        end = start
    return pieces


def goes_back(word, vocab, mark=""):
    if not word:
        return []
    for end in range(len(word), 0, -1):
        rest = goes_back(word[end:], vocab, "##") if mark + word[:end] in vocab else ["<unk>"]
        if "<unk>" not in rest:
            return [mark + word[:end], *rest]
    return ["<unk>"]


# 2.2 a window
def window_by_distance(length, window):
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return (distance >= 0) & (distance < window)


def window_by_triangles(length, window):
    return torch.ones(length, length, dtype=torch.bool).tril().triu(1 - window)


def only_causal(length, window):
    return torch.ones(length, length, dtype=torch.bool).tril()


def one_too_many(length, window):
    return window_by_triangles(length, window + 1)


def both_sides(length, window):
    return torch.ones(length, length, dtype=torch.bool).tril(window - 1).triu(1 - window)


def not_itself(length, window):
    return torch.ones(length, length, dtype=torch.bool).tril(-1).triu(-window)


def sees_the_beginning(length, window):
    seen = torch.zeros(length, length, dtype=torch.bool)
    seen[:, : window - 1] = True
    return (seen | torch.eye(length, dtype=torch.bool)).tril()


def additive(length, window):
    return torch.zeros(length, length).masked_fill(~window_by_triangles(length, window), float("-inf"))


# 2.3 rotary layouts
def halves_by_view(weight, heads):
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def halves_by_index(weight, heads):
    d = weight.size(0) // heads
    order = [*range(0, d, 2), *range(1, d, 2)]
    return weight[[h * d + i for h in range(heads) for i in order]]


def unchanged(weight, heads):
    return weight


def back_again(weight, heads):
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def across_heads(weight, heads):
    return torch.cat([weight[::2], weight[1::2]])


def even_rows_twice(weight, heads):
    parts = weight.unflatten(0, (heads, -1))
    return torch.cat([parts[:, ::2], parts[:, ::2]], dim=1).flatten(0, 1)


# 2.4 grouped queries
def grouped_by_repeating(q, k, v):
    share = q.size(1) // k.size(1)
    k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def grouped_by_broadcasting(q, k, v):
    q = q.unflatten(1, (k.size(1), -1))  # (batch, kv heads, share, length, d)
    scores = q @ k[:, :, None].mT / q.size(-1) ** 0.5
    future = torch.ones(q.size(-2), q.size(-2), dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, float("-inf")).softmax(-1) @ v[:, :, None]).flatten(1, 2)


def tiled(q, k, v):
    share = q.size(1) // k.size(1)
    return F.scaled_dot_product_attention(q, k.repeat(1, share, 1, 1), v.repeat(1, share, 1, 1), is_causal=True)


def sees_the_future(q, k, v):
    share = q.size(1) // k.size(1)
    return F.scaled_dot_product_attention(q, k.repeat_interleave(share, 1), v.repeat_interleave(share, 1))


def not_scaled(q, k, v):
    return grouped_by_repeating(q * q.size(-1) ** 0.5, k, v)


def first_head_only(q, k, v):
    return grouped_by_repeating(q, k[:, :1], v[:, :1])


def needs_equal_heads(q, k, v):
    if k.size(1) == 1:
        raise RuntimeError("heads do not match")
    return grouped_by_repeating(q, k, v)


# 2.5 reach
def reach(layers, window):
    return 1 + layers * (window - 1)


def reach_by_steps(layers, window):
    seen = {0}
    for _ in range(layers):
        seen = {position - step for position in seen for step in range(window)}
    return len(seen)


ANSWERS = {
    "ex02_1": Answers(
        wrong={
            "the longest piece": [shortest_first],
            "pieces are taken from the left": [from_the_right],
            "inside a word only": [either_mark, without_marks],
            "a word with a hole": [keeps_the_beginning],
            "a piece that was taken": [goes_back],
            "it agrees with": [shortest_first, from_the_right],
        },
        right=[wordpiece, wordpiece_recursive],
    ),
    "ex02_2": Answers(
        wrong={
            "it is a square": [additive],
            "no position sees the future": [both_sides],
            "position i sees": [only_causal, one_too_many],
            "every position sees itself": [not_itself],
            "with a window of two": [sees_the_beginning],
        },
        right=[window_by_distance, window_by_triangles],
    ),
    "ex02_3": Answers(
        wrong={
            "only rows move": [even_rows_twice],
            "a head's rows": [across_heads],
            "the scores are": [unchanged, back_again],
        },
        right=[halves_by_view, halves_by_index],
    ),
    "ex02_4": Answers(
        wrong={
            "with a key head": [sees_the_future, not_scaled, first_head_only],
            "neighbouring query heads": [tiled],
            "one key head serves": [needs_equal_heads],
        },
        right=[grouped_by_repeating, grouped_by_broadcasting],
    ),
    "ex02_5": Answers(
        wrong={
            "one layer reaches": [lambda layers, window: 1 + layers * window],
            "a window of one": [lambda layers, window: layers * window, lambda layers, window: layers + window - 1],
            "it is what passing": [lambda layers, window: window**layers, lambda layers, window: window],
        },
        right=[reach, reach_by_steps],
    ),
}
