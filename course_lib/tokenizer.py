"""Tokenizers trained from scratch and saved so that `AutoTokenizer` loads them.

Three kinds: byte-level BPE (any text, exact round trip), WordPiece (words and their pieces, as BERT) and single
characters (for Chinese, where a character is about a word's half). All share the same special tokens, for both
objectives.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from course_lib.errors import CourseError, unknown

BOS = "<|bos|>"  # starts every document; a decoder also ends with it, an encoder classifies from it
SEP, PAD, MASK, UNK = "<|sep|>", "<|pad|>", "<|mask|>", "<|unk|>"
SPECIAL = [BOS, SEP, PAD, MASK]  # ids 0 to 3; UNK follows where a tokenizer can meet what it does not know
Texts = Iterable[str] | Iterable[list[str]]


def _byte_bpe() -> tuple[Tokenizer, dict[str, object]]:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return bpe, {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "special_tokens": SPECIAL}


def _wordpiece() -> tuple[Tokenizer, dict[str, object]]:
    pieces = Tokenizer(models.WordPiece(unk_token=UNK, max_input_chars_per_word=100))
    pieces.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece()
    return pieces, {"special_tokens": [*SPECIAL, UNK]}


def _characters() -> tuple[Tokenizer, dict[str, object]]:
    single = Tokenizer(models.WordLevel(unk_token=UNK))
    single.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    single.decoder = decoders.Fuse()
    return single, {"special_tokens": [*SPECIAL, UNK]}


KINDS = {
    "byte-bpe": (_byte_bpe, trainers.BpeTrainer),
    "wordpiece": (_wordpiece, trainers.WordPieceTrainer),
    "characters": (_characters, trainers.WordLevelTrainer),
}


def train(kind: str, texts: Texts, vocab_size: int, context: int, exact: bool = True) -> PreTrainedTokenizerFast:
    """Learn a vocabulary of `vocab_size` tokens, special ones included. `context` is stored as `model_max_length`.

    A small corpus may not support so many: with `exact` that is an error naming the largest possible size, without it
    `len(tokenizer)` is smaller. Sources: BPE Sennrich et al. (2016), on bytes Radford et al. (2019); WordPiece
    Schuster and Nakajima (2012).
    """
    if kind not in KINDS:
        raise unknown("tokenizer", kind, KINDS)
    make, trainer = KINDS[kind]
    tokenizer, options = make()
    tokenizer.train_from_iterator(texts, trainer(vocab_size=vocab_size, show_progress=False, **options))
    size = tokenizer.get_vocab_size()
    if size > vocab_size:
        raise CourseError(f"A {kind} vocabulary needs at least {size} tokens here; {vocab_size} are too few.")
    if exact and size < vocab_size:
        raise CourseError(f"The text supports a {kind} vocabulary of at most {size} tokens; {vocab_size} are too many.")
    trim = [processors.ByteLevel(trim_offsets=True)] if kind == "byte-bpe" else []  # offsets without leading spaces
    template = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {SEP} $B:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (BOS, SEP)],
    )
    tokenizer.post_processor = processors.Sequence([*trim, template])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=BOS,
        cls_token=BOS,
        sep_token=SEP,
        pad_token=PAD,
        mask_token=MASK,
        unk_token=UNK if tokenizer.token_to_id(UNK) is not None else None,
        padding_side="left" if kind == "byte-bpe" else "right",
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Ids of each text after its BOS, on all cores. `<|bos|>` typed in a text is seven characters, not the token.

    Whole texts and nothing else: a tokenizer remembers the truncation and padding of its last call, and stores them.
    """
    backend = tokenizer.backend_tokenizer
    before, cut, padded = backend.encode_special_tokens, backend.truncation, backend.padding
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    try:
        return [encoding.ids for encoding in backend.encode_batch_fast(texts)]
    finally:
        backend.encode_special_tokens = before
        if cut:
            backend.enable_truncation(**cut)
        if padded:
            backend.enable_padding(**padded)


def beginning(tokenizer: Any) -> int:
    """The token that stands before a document; where there is none, the end of the one before."""
    marks = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id)
    found = next((mark for mark in marks if mark is not None), None)
    if found is None:
        raise CourseError("The tokenizer marks neither begin nor end of a text, so documents cannot be told apart.")
    return int(found)


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Ids of each text after its `beginning`, which tokenizers such as GPT-2's do not set."""
    bos = beginning(tokenizer)
    return [ids if ids[:1] == [bos] else [bos, *ids] for ids in encode(tokenizer, texts)]


@dataclass(frozen=True)
class Report:
    """How a tokenizer cuts a text. `fertility`: tokens per white-space word. `unknown`: share of unknown tokens."""

    vocabulary: int
    bytes_per_token: float
    fertility: float
    unknown: float


def report(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Report:
    """Measure on `texts` (best not the ones it was trained on)."""
    tokens = n_bytes = words = unseen = 0
    for text in texts:
        (ids,) = encode(tokenizer, [text])
        tokens += len(ids) - 1
        unseen += ids.count(tokenizer.unk_token_id) if tokenizer.unk_token else 0
        n_bytes += len(text.encode())
        words += len(text.split())
    if not tokens or not words:
        raise CourseError("There is no text to measure the tokenizer on.")
    return Report(len(tokenizer), n_bytes / tokens, tokens / words, unseen / tokens)
