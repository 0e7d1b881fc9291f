"""Graders of chapter 2, concepts."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from course_lib.checks.grading import Properties, close, equal, grader, written


@grader
def ex02_1(wordpiece: Callable[[str, set[str]], list[str]], holds: Properties) -> None:
    """Greedy longest match with `##` inside a word, as WordPiece encodes."""
    with holds("the longest piece is taken, not the first that fits"):
        equal(wordpiece("unaffable", {"un", "u", "##n", "##aff", "##a", "##able"}), ["un", "##aff", "##able"])
    with holds("pieces are taken from the left"):
        equal(wordpiece("abc", {"a", "ab", "##bc", "##c"}), ["ab", "##c"])
    with holds("inside a word only pieces with ## count"):
        equal(wordpiece("redo", {"re", "do"}), ["<unk>"])
    with holds("a word with a hole is one unknown token, not a part of it"):
        equal(wordpiece("playing!", {"play", "##ing"}), ["<unk>"])
    with holds("a piece that was taken is never given back for a shorter one"):
        equal(wordpiece("abc", {"a", "ab", "##bc"}), ["<unk>"])
    with holds("it agrees with the tokenizers library on many words"):
        vocab = {"a", "b", "ab", "ba", "##a", "##b", "##bb", "##aba"}
        words = [format(n, "b").translate({48: "a", 49: "b"}) for n in range(1, 64)]
        for word in [*words, "abc"]:
            equal(wordpiece(word, vocab), _library_pieces(word, vocab), word)


def _library_pieces(word: str, vocab: set[str]) -> list[str]:
    from tokenizers import models

    ids = {piece: i for i, piece in enumerate(sorted(vocab | {"<unk>"}))}
    return [token.value for token in models.WordPiece(ids, unk_token="<unk>").tokenize(word)]


@grader
def ex02_2(window_mask: Callable[[int, int], Tensor], holds: Properties) -> None:
    """Causal attention that sees the last `window` positions, itself included."""
    with holds("it is a square of truth values"):
        mask = window_mask(5, 2)
        written(mask)
        equal((tuple(mask.shape), mask.dtype), ((5, 5), torch.bool))
    with holds("no position sees the future"):
        equal(bool(window_mask(6, 3).triu(1).any()), False)
    with holds("position i sees min(i + 1, window) positions"):
        equal(window_mask(6, 3).sum(1).tolist(), [1, 2, 3, 3, 3, 3])
    with holds("every position sees itself"):
        equal(bool(window_mask(6, 1).diagonal().all()), True)
    with holds("with a window of two it sees itself and the one before"):
        written(window_mask(4, 2))
        equal(window_mask(4, 2).int().tolist(), [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]])


@grader
def ex02_3(to_halves: Callable[[Tensor, int], Tensor], holds: Properties) -> None:
    """Permute a projection trained with neighbouring rotary pairs for code that pairs halves."""
    draw = torch.Generator().manual_seed(0)
    wq, wk = torch.randn(2, 3 * 8, 12, generator=draw, dtype=torch.float64)  # 3 heads of width 8
    x = torch.randn(6, 12, generator=draw, dtype=torch.float64)  # (length, hidden)
    with holds("only rows move: each is still there, once"):
        moved = to_halves(wq, 3)
        written(moved)
        close(moved.sum(0), wq.sum(0))
        close(moved.square().sum(0), wq.square().sum(0))
    with holds("a head's rows stay in that head"):
        close(to_halves(wq, 3).view(3, 8, 12).sum(1), wq.view(3, 8, 12).sum(1))
    with holds("the scores are what they were"):
        theirs = _turn(x @ wq.T, paired=2) @ _turn(x @ wk.T, paired=2).mT  # (heads, length, length)
        ours = _turn(x @ to_halves(wq, 3).T, paired=1) @ _turn(x @ to_halves(wk, 3).T, paired=1).mT
        close(ours, theirs)


def _turn(x: Tensor, paired: int, heads: int = 3) -> Tensor:
    """Rotary positions, (length, heads · d) → (heads, length, d); pairs are neighbours (2) or halves (1)."""
    x = x.unflatten(-1, (heads, -1)).transpose(0, 1)  # (heads, length, d)
    half = x.size(-1) // 2
    a, b = (x[..., ::2], x[..., 1::2]) if paired == 2 else x.split(half, dim=-1)
    angle = torch.arange(x.size(1))[:, None] * 100.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


@grader
def ex02_4(grouped: Callable[[Tensor, Tensor, Tensor], Tensor], holds: Properties) -> None:
    """Causal attention whose query heads share key and value heads."""
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 5, 8, generator=draw, dtype=torch.float64)
    k, v = torch.randn(2, 2, 4, 5, 8, generator=draw, dtype=torch.float64)
    with holds("with a key head for each query head it is ordinary causal attention"):
        got = grouped(q, k, v)
        written(got)
        close(got, F.scaled_dot_product_attention(q, k, v, is_causal=True))
    with holds("neighbouring query heads share a key head"):
        want = F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], is_causal=True, enable_gqa=True)
        close(grouped(q, k[:, :2], v[:, :2]), want)
    with holds("one key head serves all"):
        wide = (k[:, :1].expand(-1, 4, -1, -1), v[:, :1].expand(-1, 4, -1, -1))
        close(grouped(q, k[:, :1], v[:, :1]), F.scaled_dot_product_attention(q, *wide, is_causal=True))


@grader
def ex02_5(reach: Callable[[int, int], int], holds: Properties) -> None:
    """How many positions, itself included, influence an output through layers that each see a window."""
    with holds("one layer reaches as far as its window"):
        written(reach(1, 4))
        equal([reach(1, window) for window in (1, 4, 128)], [1, 4, 128])
    with holds("a window of one position never reaches another, however deep"):
        equal([reach(layers, 1) for layers in (1, 3, 24)], [1, 1, 1])
    with holds("it is what passing the mask on, layer by layer, gives"):
        for layers, window in ((2, 3), (3, 2), (4, 5), (6, 4)):
            equal(reach(layers, window), _passed_on(layers, window), f"{layers} layers, window {window}")


def _passed_on(layers: int, window: int, length: int = 64) -> int:
    mask = torch.ones(length, length).tril().triu(1 - window)
    seen = torch.eye(length)
    for _ in range(layers):
        seen = mask @ seen
    return int((seen[-1] > 0).sum())
