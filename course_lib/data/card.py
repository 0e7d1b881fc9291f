"""The data cards of the book, generated from the registry so that they cannot be out of date."""

from course_lib import assets
from course_lib.data import library

HEAD = """\
# Data cards

Every dataset of this book, where it comes from and what is known of its licence.
`python -m course_lib data fetch NAME` downloads and verifies one; `course_lib.data.library.load(NAME)` reads it.
This page is generated: `python -m course_lib data card > book/data_cards.md`.
"""
SPLITS = {
    "hash": "90/5/5 by a hash of `{key}`",
    "blocks": "contiguous blocks 80/10/10, 50 rows dropped between them",
    "time": "80/10/10 in the order of `{key}`",
    "all": "none",
}


def page() -> str:
    """All cards as one Markdown page."""
    return "\n".join([HEAD, *(_dataset(name) for name in library.DATASETS), *_models()])


def _dataset(name: str) -> str:
    entry = library.DATASETS[name]
    columns = ", ".join(f"`{column}`" for column in entry.features)
    splits = SPLITS[entry.splits].format(key=", ".join(entry.key))
    lines = [f"## {name}", "", entry.about, "", f"- Columns: {columns}", f"- Splits: {splits}"]
    if not entry.assets:
        lines += ["- Source: installed packages, nothing is downloaded", f"- Licence: {entry.licence()}"]
    for asset in entry.assets:
        lines += _asset(assets.get(asset))
    return "\n".join([*lines, ""])


def _asset(asset: assets.Asset) -> list[str]:
    hub = [f"- Hub counterpart (not run here): {', '.join(asset.hub)}"] if asset.hub else []
    return [
        f"- Source: package `{asset.package}` {asset.version}, {asset.size / 1e6:.1f} MB, sha256 `{asset.sha256}`",
        f"- Licence: package {asset.package_licence}; content {asset.content_licence}",
        f"- Cite: {asset.citation}",
        *hub,
    ]


def _models() -> list[str]:
    used = {asset for entry in library.DATASETS.values() for asset in entry.assets}
    rest = [asset for name, asset in assets.registry().items() if name not in used]
    return ["\n".join([f"## {asset.name} (model)", "", f"{asset.about}.", "", *_asset(asset), ""]) for asset in rest]
