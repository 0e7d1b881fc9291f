"""More training texts out of the given ones, with the same labels: random edits, neighbours, a masked model's words.

`eda:copies=4,share=0.1` · `synonym:thesaurus=words.json` · `masked:model=runs/ID`. Adding one: a frozen dataclass with
`copies` and `rewrite` below, a line in `METHODS`, a test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from course_lib import progress, spec
from course_lib.data.labelled import Labelled
from course_lib.data.pretrained import locate
from course_lib.errors import CourseError
from course_lib.robust import thesaurus
from course_lib.robust.thesaurus import Thesaurus

Random = np.random.Generator
LONGEST = 128  # tokens at the start of a text in which a masked model exchanges words


class Method(Protocol):
    """What `enlarge` needs to know."""

    @property
    def copies(self) -> int:
        """New texts for each one."""
        ...

    def rewrite(self, texts: list[str], random: Random) -> list[str]:
        """One new text for each."""
        ...


def replace(words: list[str], count: int, near: Thesaurus, random: Random) -> list[str]:
    """Put a neighbour in the place of `count` words that have any."""
    words, known = list(words), [i for i, word in enumerate(words) if near.get(word)]
    for i in random.permutation(known)[:count] if known else ():
        words[i] = str(random.choice(near[words[i]]))
    return words


def insert(words: list[str], count: int, near: Thesaurus, random: Random) -> list[str]:
    """Put a neighbour of some word at a random place, `count` times."""
    known = [word for word in words if near.get(word)]
    for _ in range(count if known else 0):
        new = str(random.choice(near[known[random.integers(len(known))]]))
        at = int(random.integers(len(words) + 1))
        words = [*words[:at], new, *words[at:]]
    return words


def swap(words: list[str], count: int, near: Thesaurus, random: Random) -> list[str]:
    """Let two random words change places, `count` times."""
    words = list(words)
    for _ in range(count if len(words) > 1 else 0):
        i, j = random.choice(len(words), 2, replace=False)
        words[i], words[j] = words[j], words[i]
    return words


def delete(words: list[str], count: int, near: Thesaurus, random: Random) -> list[str]:
    """Take `count` random words out, but leave one."""
    gone = set(random.permutation(len(words))[: min(count, len(words) - 1)].tolist())
    return [word for i, word in enumerate(words) if i not in gone]


EDITS: tuple[Callable[[list[str], int, Thesaurus, Random], list[str]], ...] = (replace, insert, swap, delete)


@dataclass(frozen=True)
class EDA:
    """One of four random edits a text, on this share of its words, at least one (Wei and Zou 2019)."""

    copies: int = 4
    share: float = 0.1
    thesaurus: str = ""  # a JSON file; empty: neighbours in film reviews

    def rewrite(self, texts: list[str], random: Random) -> list[str]:
        """Words are what stands between spaces. Raises CourseError where most texts have none."""
        if sum(" " in text.strip() for text in texts) <= len(texts) / 2:
            raise CourseError("eda and synonym exchange words between spaces, and these texts have none. Try masked.")
        near = thesaurus.load(self.thesaurus)
        return [" ".join(self._edit(text.split(), near, random)) for text in texts]

    def _edit(self, words: list[str], near: Thesaurus, random: Random) -> list[str]:
        count = max(1, round(self.share * len(words)))
        return EDITS[random.integers(len(EDITS))](words, count, near, random)


@dataclass(frozen=True)
class Synonym(EDA):
    """Replaced words only."""

    def _edit(self, words: list[str], near: Thesaurus, random: Random) -> list[str]:
        return replace(words, max(1, round(self.share * len(words))), near, random)


@dataclass(frozen=True)
class Masked:
    """Words that a masked language model finds likely in the same place, drawn from its `top` (Kumar et al. 2020)."""

    copies: int = 4
    share: float = 0.15
    model: str = ""  # a run of `pretrain --objective mlm`, or any folder with a masked model
    top: int = 20

    def rewrite(self, texts: list[str], random: Random) -> list[str]:
        """Only whole words are hidden and put in: tokens that start a word which no other token continues."""
        model, tokenizer = self._load()
        start, goes_on = _words(tokenizer)
        if not 1 <= self.top <= len(start):
            raise CourseError(f"masked:top is 1 to {len(start):,}, the size of the vocabulary, not {self.top}.")
        whole, length = torch.from_numpy(start), min(LONGEST, tokenizer.model_max_length)
        new = []
        for text in texts:
            ids = np.array(tokenizer(text, split_special_tokens=True, verbose=False).input_ids)
            read = ids[:length]  # a view: what is put in here is put into `ids`
            ends = ~np.append(goes_on[ids[1:]], False)[: len(read)]  # nothing continues this token
            places = random.permutation(np.flatnonzero(start[read] & ends))
            places = places[: max(1, round(self.share * len(read)))]
            if len(places):
                read[places] = self._fill(model.eval(), read, places, tokenizer.mask_token_id, whole, random)
            new.append(tokenizer.decode(ids, skip_special_tokens=True).strip() if len(places) else text)
        return new

    def _load(self) -> tuple[Any, Any]:
        """(model, tokenizer)"""
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        if not self.model:
            raise CourseError("Which masked model? For example masked:model=runs/ID, after `pretrain --objective mlm`.")
        progress.hush_transformers()
        folder = locate(self.model)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        try:
            model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)  # files may be in slow float16
        except ValueError as error:
            raise CourseError(f"{self.model} is no masked model. Give one of `pretrain --objective mlm`.") from error
        return model, tokenizer

    @torch.no_grad()
    def _fill(self, model: Any, ids: Any, places: Any, mask: int, whole: torch.Tensor, random: Random) -> list[int]:
        """A word for every place, by its probability among the best `top`; never the one that stood there."""
        hidden = torch.tensor(ids)[None]  # (1, length)
        hidden[0, places] = mask
        logits = model(input_ids=hidden).logits[0, places].float().masked_fill(~whole, -torch.inf)  # (places, vocab)
        logits[torch.arange(len(places)), torch.tensor(ids[places])] = -torch.inf
        best, words = logits.topk(self.top)
        chances = best.double().softmax(-1).numpy()
        return [int(w[random.choice(self.top, p=p / p.sum())]) for w, p in zip(words, chances, strict=True)]


def _words(tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens begin a word and are letters only, and which continue one; both (vocab,)."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    # Byte-level BPE and SentencePiece mark what begins a word, WordPiece what continues one.
    mark = next((mark for mark in "Ġ▁" if any(piece.startswith(mark) for piece in pieces)), "")
    starts = [(p[1:] if p.startswith(mark) else "") if mark else p for p in pieces]
    goes_on = [p[:1].isalpha() and p[:1] != mark if mark else p.startswith("##") for p in pieces]
    return np.array([p.isalpha() for p in starts]), np.array(goes_on)


METHODS: dict[str, Any] = {"eda": EDA, "synonym": Synonym, "masked": Masked}


def parse(text: str) -> Method:
    """`eda` or `eda:copies=2,share=0.2` → settings."""
    made: Method = spec.parse(text, "augmentation", METHODS)
    if made.copies < 1:
        raise CourseError(f"The copies of '{text}' are at least 1, not {made.copies}.")
    return made


def enlarge(side: Labelled, method: str, seed: int) -> Labelled:
    """The given texts, then `copies` rewritten ones of each under the same labels; as it is if `method` is empty.

    The same for the same seed. A text that a method empties stays what it was. Raises CourseError for pairs of texts
    and for labels of words, which rewriting would move.
    """
    if not method:
        return side
    settings = parse(method)
    if not all(isinstance(text, str) for text in side.texts):
        raise CourseError("Only single texts with labels for the whole text can be augmented.")
    texts = list(side.texts)
    for copy in range(settings.copies):
        random = np.random.default_rng([seed, copy])
        texts += [new.strip() or old for new, old in zip(settings.rewrite(side.texts, random), side.texts, strict=True)]
    return Labelled(texts, list(side.labels) * (settings.copies + 1))
