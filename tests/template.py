"""The parts of a chapter and their order (book/contributing.md). Used by test_notebooks_policy.py."""

import re
from pathlib import Path
from typing import Any

OBJECTIVES = "**After this {kind} you can**\n\n- "
TIME = ":::{admonition} Time and hardware\n:class: note\n\n"
SOURCE = ":::{admonition} From the source\n:class: source\n\n"
CLOSING = {"Summary": (5, 7), "Exercises": (4, 6), "Further reading": (3, 6)}
MOST_CELLS = 70


def is_chapter(path: Path) -> bool:
    """Notebooks numbered 00 are appetisers: they need no source, exercises or further reading."""
    return not path.stem.startswith("00")


def mistakes(notebook: dict[str, Any], path: Path) -> list[str]:
    """What a notebook lacks, or has in the wrong place."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    texts = [text for kind, text in cells if kind == "markdown"]
    wrong = head(texts[0], int(path.stem[:2]), is_chapter(path))
    prose = re.sub(r"^```.*?^```$", "", "\n\n".join(texts), flags=re.S | re.M)
    titles = re.findall(r"^## (.+)$", prose, re.M)
    wrong += ["more than one heading of level 1"] * (len(re.findall(r"^# ", prose, re.M)) != 1)
    if is_chapter(path):
        wrong += closing(prose, titles)
        wrong += [
            f"section '{title}' asks nothing" for title in titles if title not in CLOSING and not title.endswith("?")
        ]
        wrong += ["'## Exercises' is not alone in its cell"] * ("## Exercises" not in [text.strip() for text in texts])
    else:
        wrong += ["no summary"] * ("Summary" not in titles)
    if counted(cells) > MOST_CELLS:
        wrong.append(f"{counted(cells)} cells without the exercises, more than {MOST_CELLS}")
    return wrong


def head(text: str, number: int, chapter: bool) -> list[str]:
    """The first cell: title, paragraph, objectives, time and hardware, source, in this order."""
    kind = "chapter" if chapter else "notebook"
    parts = [f"# {number} · ", "\n\n", OBJECTIVES.format(kind=kind), TIME, *([SOURCE] if chapter else [])]
    places = [text.find(part) for part in parts]
    missing = [part.strip() or "a paragraph" for part, place in zip(parts, places, strict=True) if place < 0]
    if missing:
        return [f"the first cell lacks '{part}'" for part in missing]
    return [] if places == sorted(places) and places[0] == 0 else ["the parts of the first cell are out of order"]


def closing(prose: str, titles: list[str]) -> list[str]:
    """Summary, exercises and further reading: last, in this order, each with its number of items."""
    if titles[-len(CLOSING) :] != list(CLOSING):
        return [f"the last sections are {titles[-len(CLOSING) :]}, not {list(CLOSING)}"]
    wrong = []
    for title, (least, most) in CLOSING.items():
        section = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", prose, re.S | re.M)
        item = r"^:::\{exercise\}" if title == "Exercises" else r"^- "
        items = len(re.findall(item, section[1], re.M)) if section else 0
        if title == "Summary" and section and len(re.findall(r"^- .*\]\(#[\w-]+\)\)?\.$", section[1], re.M)) != items:
            wrong.append("Summary: each statement ends with a link to its section")
        if not least <= items <= most:
            wrong.append(f"{title}: {items} items, not {least}–{most}")
    return wrong


def counted(cells: list[tuple[str, str]]) -> int:
    """Cells that are not part of an exercise."""
    number, inside = 0, False
    for kind, text in cells:
        inside = inside or (kind == "raw" and text.startswith("# BEGIN QUESTION"))
        number += not inside and kind != "raw"
        inside = inside and not (kind == "raw" and text.startswith("# END QUESTION"))
    return number
