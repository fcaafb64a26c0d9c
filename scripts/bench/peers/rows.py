"""The rows of the part about peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.figures import Measure, Sections

TURNKEEP = "Turnkeep"
_QUANTITIES = {"keep": "keep a turn", "back": "go back", "stored": "stored for a turn"}


def key(what: str, way: str, files: int) -> str:
    """Return the name of what a way costs with so many files."""
    return f"{what}_{way}_{files}"


def sections(files: Sequence[int], ways: Mapping[str, str]) -> Sections:
    """Return the rows; `ways` are the others' titles."""
    found = {}
    for count in files:
        for what, title in _QUANTITIES.items():
            found[f"{title}, {count:,} files"] = _rows(what, count, ways)
    return found


def _rows(what: str, files: int, ways: Mapping[str, str]) -> dict[str, Measure]:
    ours = key(what, "turnkeep", files)
    rows = {ours: _measure(what, files, TURNKEEP, short="Turnkeep")}
    if what == "stored":
        grown = key("grown", "turnkeep", files)
        rows[grown] = Measure("  its state folder, journal included", unit="bytes")
    for way, title in ways.items():
        rows[key(what, way, files)] = _measure(what, files, title, short=way, peer=ours)
    return rows


def _measure(what: str, files: int, title: str, *, short: str, peer: str = "") -> Measure:
    return Measure(
        title,
        # Turned round: how many times Turnkeep's it is says the last column.
        floor=peer,
        unit="bytes" if what == "stored" else "ns",
        short=short,
        axes={"quantity": what, "files": files, "tool": title},
    )
