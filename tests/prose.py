"""The rule for numbers in prose (book/contributing.md): printed, cited, or recorded. Used by test_prose.py."""

import itertools
import json
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUMBER = r"(?<![\w.])[-−+]?\d[\d,\u202f\u2009]*(?:\.\d+)?(?:\s?%)?"
REFERENCE = re.compile(r"<!-- run:(\S+) ([\w.-]+?)(?:([*/])([\d.e+-]+))? -->")
SENTENCES = r"\n|(?<=[.!?])\s+|\|"
CITED, FIRST, LAST = "\ue000", 0xE001, 0xF000  # private characters: for a citation, for the references in order
WORDS = r"(?:sections?|chapters?|eq\.|equations?|exercises?|figures?|steps?|§|parts?|notebooks?|appendix)"
NAMED = WORDS + r"\s(?:\d[\d., –and]*)?\d"
VERSIONED = r"(?:torch|PyTorch|transformers|datasets|Python|CUDA|version|Sphinx|v)[ ~≥>=]*\d+(?:\.\d+)*"
UNCHECKED = [
    re.compile(pattern, re.M | re.I)
    for pattern in (
        r"^(`{3,}|~{3,})[\s\S]*?^\1",  # fenced code
        r"^:::\{admonition\} Time and hardware[\s\S]*?^:::$",
        r"^\*(?:Derive|Implement|Experiment) · .*$",
        r"^:::\{exercise\}.*$",
        r"^#{1,6} .*$",
        r"^:\w+: .*$",  # options of a directive
        r"\$\$[\s\S]*?\$\$(?: \([\w-]+\))?",
        r"\$[^$\n]+\$",
        r"`+[^`]*`+",
        r"\]\([^)]*\)",
        r"<[^>]*>",
        NAMED,
        VERSIONED,
        r"\b\d+\.\d+\.\d+\b",  # 3.11.7
        r"(?<![\w.,])(?:19|20)\d\d(?![\w%]|[.,]\d| ?%)",  # years
        r"\b\d*[A-Za-z_][\w.-]*\d[\w.-]*",  # GPT-3.5, A100
        r"\b\d+(?:\.\d+)?[A-Za-z][\w-]*",  # 0.6B, 2x
    )
]


@dataclass
class Claim:
    """A number in a sentence, and the record it names, if any."""

    text: str
    sentence: str
    reference: re.Match[str] | None = None


def claims(markdown: str) -> list[Claim]:
    """The numbers of a text that the rule is about, without those in sentences that cite."""
    references: list[re.Match[str]] = []

    def hidden(found: re.Match[str]) -> str:
        references.append(found)
        return chr(FIRST + len(references) - 1)

    text = REFERENCE.sub(hidden, re.sub(r"\{cite(?::[tp])?\}`[^`]+`", CITED, markdown))
    for pattern in UNCHECKED:
        text = pattern.sub(lambda found: CITED if CITED in found[0] else " ", text)
    sentences = [part for part in re.split(SENTENCES, text) if CITED not in part]
    return [claim for sentence in sentences for claim in in_sentence(sentence, references)]


def in_sentence(sentence: str, references: list[re.Match[str]]) -> list[Claim]:
    """Checked numbers of one sentence, each with the reference that stands between it and the next one."""
    found, places = (
        [],
        [place for place in re.finditer(NUMBER, sentence) if is_checked(place[0], sentence[place.end() :])],
    )
    for place, after in itertools.zip_longest(places, places[1:]):
        between = sentence[place.end() : after.start() if after else None]
        mark = next((character for character in between if FIRST <= ord(character) < LAST), None)
        found.append(Claim(place[0], sentence.strip(), references[ord(mark) - FIRST] if mark else None))
    return found


def is_checked(number: str, after: str) -> bool:
    """A decimal point, three digits, a percent sign, or a reference at once behind it."""
    named = re.match(r"[ *)%]*(.)", after)
    digits = sum(character.isdigit() for character in number)
    return "." in number or "%" in number or digits >= 3 or bool(named and FIRST <= ord(named[1]) < LAST)


def value(number: str) -> Decimal:
    """The number without separators, sign variants and percent."""
    return Decimal(re.sub(r"[,\s%\u202f\u2009]", "", number).replace("−", "-").lstrip("+"))


def printed(notebook: dict) -> set[Decimal]:
    """Every number in a text output that nbval compares, signs both ways: prose may say `lower by 0.3`."""
    numbers = set()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and "nbval-ignore-output" not in cell["metadata"].get("tags", []):
            for output in cell["outputs"]:
                plain = output.get("text") or output.get("data", {}).get("text/plain", "")
                found = re.findall(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?", "".join(plain))
                numbers |= {Decimal(text.replace(",", "")) for text in found}
    return numbers


def recorded(reference: re.Match[str], runs: Path = ROOT / "runs") -> Decimal:
    """The value that a reference names, in the unit it asks for."""
    run, key, sign, factor = reference.groups()
    stored = json.loads((runs / run / "run.json").read_text(encoding="utf-8"))
    for part in key.split("."):
        stored = stored[int(part)] if isinstance(stored, list) else stored[part]
    number = Decimal(str(stored))
    return number * Decimal(factor) if sign == "*" else number / Decimal(factor) if sign == "/" else number


def mistakes(markdown: str, outputs: set[Decimal], runs: Path = ROOT / "runs") -> list[str]:
    """What is wrong with the numbers of a text; an empty list if all are printed, cited or recorded."""
    wrong = []
    for claim in claims(markdown):
        number = value(claim.text)
        if claim.reference:
            stored = recorded(claim.reference, runs)
            if round(stored, max(0, -number.as_tuple().exponent)) != number:
                wrong.append(f"'{claim.text}' is {stored} in the record: {claim.sentence}")
        elif abs(number) not in outputs:
            wrong.append(f"'{claim.text}' is neither printed, cited nor recorded: {claim.sentence}")
    return wrong
