"""Cleaning as pure functions."""

import hashlib
import re
import unicodedata

# Kana and Chinese characters, for a character class: each is a word of its own.
CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_BREAKS = re.compile(r"[ \t]*(?:<br\s*/?>\s*)+", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u200b\ufeff]")


def clean(text: str) -> str:
    """HTML line breaks to newlines, NFC, no control characters (tab and newline stay), no outer white space."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _BREAKS.sub("\n", text) if "<" in text else text  # most texts have none, and looking for it takes time
    return unicodedata.normalize("NFC", _CONTROL.sub("", text)).strip()


def document_hash(text: str) -> int:
    """64 bits of SHA-256 of the cleaned text: identity for deduplication and for the split."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_of(digest: int) -> str:
    """`train` (90 %), `valid` (5 %) or `test` (5 %), from the document alone.

    The side does not depend on order, on other documents or on a seed, so no document ever changes it.
    """
    share = digest / 2**64
    return "valid" if share < 0.05 else "test" if share < 0.10 else "train"
