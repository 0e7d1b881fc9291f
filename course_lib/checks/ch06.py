"""Graders of chapter 6, pretraining."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from course_lib import models
from course_lib.checks.grading import Properties, close, equal, grader, written

BOS = 50


@grader
def ex06_1(pack: Callable[[list[list[int]], int, int], Tensor], holds: Properties) -> None:
    """Documents end to end, in rows of `length` + 1 tokens."""

    def solve(documents: list[list[int]], length: int) -> Tensor:
        found = pack([list(document) for document in documents], BOS, length)
        written(found)
        return found

    short = [[1, 2, 3], [4, 5], [6, 7, 8, 9]]  # 50 1 2 3 50 4 5 50 6 7 8 9
    with holds("rows are whole numbers, one more of them than `length`"):
        found = solve(short, 5)
        equal(found.dtype, torch.int64, "dtype")
        equal(found.size(1), 6, "tokens in a row")
    with holds("each document follows a BOS, and nothing follows the last one"):
        found = solve(short, 11)
        equal(tuple(found.shape), (1, 12), "shape")
        equal(found, torch.tensor([[50, 1, 2, 3, 50, 4, 5, 50, 6, 7, 8, 9]]))
    with holds("a row goes on where a document ends, and nothing is padding"):
        equal(solve(short, 5)[0], torch.tensor([50, 1, 2, 3, 50, 4]))
    with holds("a row begins with the last token of the row before: once a target, once an input"):
        equal(solve(short, 5)[1], torch.tensor([4, 5, 50, 6, 7, 8]))
    with holds("what does not fill a row is left out"):
        equal(len(solve(short, 5)), 2, "rows")
        equal(len(solve(short, 6)), 1, "rows")
        equal(tuple(solve([[1, 2]], 5).shape), (0, 6), "shape, for too little text")


@grader
def ex06_2(whole_words: Callable[[Tensor, Tensor], Tensor], holds: Properties) -> None:
    """All tokens of every word of which one was chosen."""
    begins = torch.tensor([[1, 1, 0, 0, 1, 0, 1], [0, 0, 1, 1, 0, 0, 0]]).bool()

    def solve(*chosen: tuple[int, int]) -> Tensor:
        marks = torch.zeros_like(begins)
        for row, place in chosen:
            marks[row, place] = True
        found = whole_words(begins.clone(), marks)
        written(found)
        return found.bool()

    def row(*places: int) -> Tensor:
        return torch.tensor([place in places for place in range(7)])

    with holds("a word of one token is hidden alone"):
        equal(solve((0, 0))[0], row(0))
        equal(solve((0, 6))[0], row(6))
    with holds("its first token hides a whole word"):
        equal(solve((0, 1))[0], row(1, 2, 3))
    with holds("any later token hides the whole word, too, what stands before it included"):
        equal(solve((0, 3))[0], row(1, 2, 3))
        equal(solve((1, 5))[1], row(3, 4, 5, 6))
    with holds("a word that the row cuts off at its left edge ends where the next begins"):
        equal(solve((1, 1))[1], row(0, 1))
    with holds("several words at once, and none where nothing was chosen"):
        equal(solve((0, 2), (0, 4)), torch.stack([row(1, 2, 3, 4, 5), row()]))
    with holds("rows do not see each other"):
        equal(solve((1, 0))[0], row())


@grader
def ex06_3(nucleus: Callable[[Tensor, float, float], Tensor], holds: Properties) -> None:
    """Probabilities after temperature and top-p."""
    logits = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.4, 0.1, 0.2, 0.3]], dtype=torch.float64).log()

    def solve(temperature: float, p: float, given: Tensor = logits) -> Tensor:
        found = nucleus(given.clone(), temperature, p)
        written(found)
        return found

    with holds("temperature 1 and p = 1 are the softmax"):
        close(solve(1.0, 1.0), logits.softmax(-1))
    with holds("a temperature of one half squares the probabilities, and they sum to one again"):
        close(solve(0.5, 1.0), logits.exp() ** 2 / (logits.exp() ** 2).sum(-1, keepdim=True))
    with holds("the likeliest tokens stay until their sum reaches p; the one that crosses p is the last to stay"):
        close(solve(1.0, 0.6)[0], [0, 2 / 3, 0, 1 / 3])
        close(solve(1.0, 0.6)[1], [4 / 7, 0, 0, 3 / 7])
    with holds("where the sum reaches p exactly, nothing more is kept"):
        close(solve(1.0, 0.5, torch.tensor([[0.25, 0.5, 0.25]], dtype=torch.float64).log()), [[0.0, 1, 0]])
    with holds("one token always stays"):
        close(solve(1.0, 0.01), [[0.0, 1, 0, 0], [1.0, 0, 0, 0]])
    with holds("the temperature comes first: p is measured on what it leaves"):
        close(solve(0.25, 0.9)[0], [0.0, 1, 0, 0])  # 0.5⁴ is more than 0.9 of all fourth powers


def small_decoder() -> Any:
    """A decoder in float64 whose every weight matters, so that forgetting the past changes what it says."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build("qwen3", models.Size(16, 2, 2, 48, 32), models.Tokens(48)).double().eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.6)
    return model


class Fed:
    """How many tokens every forward of a model was given, from here on."""

    def __init__(self, model: Any):
        self.lengths: list[int] = []
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, model: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        ids = options.get("input_ids", arguments[0] if arguments else None)
        if ids is not None:
            self.lengths.append(ids.size(-1))


@torch.no_grad()
def read_again(model: Any, ids: Tensor, steps: int) -> Tensor:
    """What greedy decoding without a cache writes: (1, steps)."""
    for _ in range(steps):
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids[:, -steps:]


@grader
def ex06_4(continue_greedily: Callable[[Any, Tensor, int], Tensor], holds: Properties) -> None:
    """The likeliest continuation, with a cache of keys and values."""
    model = small_decoder()
    prompt = torch.tensor([[0, 7, 31, 12, 5]])
    want = read_again(model, prompt, 8)
    alone = read_again(model, prompt[:, :1], 4)

    def solve(ids: Tensor, steps: int) -> Tensor:
        with torch.no_grad():
            found = continue_greedily(model, ids.clone(), steps)
        written(found)
        return found

    with holds("it returns the new tokens, (1, steps), without the prompt"):
        equal(tuple(solve(prompt, 8).shape), (1, 8), "shape")
        equal(tuple(solve(prompt, 1).shape), (1, 1), "shape")
    with holds("they are those that reading the whole text again would give"):
        equal(solve(prompt, 8), want)
    with holds("a prompt of one token works"):
        equal(solve(prompt[:, :1], 4), alone)
    with holds("no token is given to the model twice"):
        fed = Fed(model)
        solve(prompt, 8)
        if sum(fed.lengths) > prompt.size(1) + 8:
            raise AssertionError(f"it read {sum(fed.lengths)} tokens in all; the prompt has 5, and 8 are written")


@grader
def ex06_5(replaced_tokens: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], holds: Properties) -> None:
    """A discriminator's input and its labels, from a generator's guesses."""
    original = torch.tensor([[0, 11, 12, 13, 14], [0, 21, 22, 23, 24]])
    positions, guesses = torch.tensor([[3, 1], [2, 4]]), torch.tensor([[99, 88], [22, 77]])

    def solve(given: Tensor = original) -> tuple[Tensor, Tensor]:
        found = replaced_tokens(given.clone(), positions.clone(), guesses.clone())
        written(found)
        if len(found) != 2:
            raise AssertionError("return two things: the filled tokens, and what was replaced")
        return found

    with holds("each guess stands at its position, in the order of `positions`"):
        filled, _ = solve()
        equal(filled.gather(1, positions), guesses)
    with holds("all other tokens are the original ones"):
        filled, _ = solve()
        equal(filled[:, [0]], original[:, [0]])
        equal(filled, torch.tensor([[0, 88, 12, 99, 14], [0, 21, 22, 23, 77]]))
    with holds("a wrong guess is a replaced token"):
        _, replaced = solve()
        close(replaced[0].float(), [0.0, 1, 0, 1, 0])
    with holds("a guess that happens to be right is an original token"):
        _, replaced = solve()
        close(replaced[1].float(), [0.0, 0, 0, 0, 1])
    with holds("the original is not written over"):
        kept = original.clone()
        replaced_tokens(kept, positions.clone(), guesses.clone())
        equal(kept, original)
