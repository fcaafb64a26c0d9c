"""The rows, grids and targets of the part about sizes."""

from __future__ import annotations

from collections.abc import Sequence

from bench.figures import Axis, Grid, Limit, Measure, Sections

MIB = 1024 * 1024
FSYNC = "floor_fsync"
OPERATIONS = {"appended": "64 KiB appended", "rewritten": "all of it rewritten", "truncated": "cut to half"}

# What the two floors and the quantities of a cell are called.
_FLOORS = {"read": "reading the same bytes", "zstd": "zstd -1 of the same bytes"}
_QUANTITIES = {
    "freeze": "freeze window of a turn",
    "captured": "EndTurn to captured",
    "durable": "EndTurn to durable",
    "stored": "stored for the turn",
    "rollback": "rollback of the turn, call to answer",
    "rollback_freeze": "freeze of the rollback, while writing",
    "cpu": "the daemon's processor time for a turn",
}
_LARGE = [each for each in _QUANTITIES if each != "cpu"]
_SMALL = 100
"""Up to so many small files a turn is held to the targets."""
_FREEZE_NS, _FREEZE_P95_NS, _CAPTURED_NS, _ROLLBACK_NS = 2_000_000, 10_000_000, 10_000_000, 5_000_000
_GROWTH = 1.5
_FEW_FILES = 1000
"""The targets' ratio is to the figures of so many files."""


def key(what: str, files: int, count: int | None = None) -> str:
    """Return the name of a quantity of turns that change `count` of so many files."""
    return f"{what}_{files}" if count is None else f"{what}_{count}_of_{files}"


def floor(what: str, count: int) -> str:
    """Return the name of a floor of so many changed files."""
    return f"floor_{what}_{count}"


def large(what: str, size: int, operation: str) -> str:
    """Return the name of a quantity of turns that change one file of so many bytes."""
    return f"large_{what}_{operation}_{size // MIB}"


def sections(cells: Sequence[tuple[int, int]]) -> Sections:
    """Return the rows for cells of (files, changed files)."""
    sizes = sorted({files for files, _ in cells})
    return {
        "what is promised": _promised(cells),
        "calls and decisions": {name: row for files in sizes for name, row in _calls(files).items()},
        "the machine": {FSYNC: Measure("append 4 KiB and fsync", short="fsync")},
    }


def _promised(cells: Sequence[tuple[int, int]]) -> dict[str, Measure]:
    """Return the rows of the largest upper layer that has a target."""
    most = max(files for files, _ in cells)
    found = {}
    for count in sorted({count for files, count in cells if files == most and count <= _SMALL}):
        of = f"{count:,} of {most:,} files"
        for what in ("freeze", "captured", "rollback"):
            name = key(what, most, count)
            found[name] = _measure(what, most, count, f"{_QUANTITIES[what].split(' of ')[0]}, {of}")
        short = key("freeze", _FEW_FILES, count)
        if (_FEW_FILES, count) in cells and most != _FEW_FILES:
            found[short] = _measure("freeze", _FEW_FILES, count, f"  freeze of {count:,} of {_FEW_FILES:,}")
    return found


def _limits(what: str, files: int, count: int) -> tuple[Limit, ...]:
    growth = (Limit(_GROWTH, key(what, _FEW_FILES, count)),) if files > _FEW_FILES else ()
    if count > _SMALL:
        return ()
    if what == "freeze":
        return (Limit(_FREEZE_NS), Limit(_FREEZE_P95_NS, tail="p95"), *growth)
    if what == "captured":
        return (Limit(_CAPTURED_NS), *growth)
    if what == "rollback" and count <= 5:
        return (Limit(_ROLLBACK_NS),)
    return ()


def _measure(what: str, files: int, count: int, title: str) -> Measure:
    return Measure(
        title,
        unit="bytes" if what == "stored" else "ns",
        floor="" if what in ("stored", "cpu") else floor("read", count),
        short=f"{files:,} files",
        limits=_limits(what, files, count),
        axes=_at(what, files=files, changed=count),
    )


def _calls(files: int) -> dict[str, Measure]:
    of = f"{files:,} files"
    return {
        key("end", files): Measure(f"EndTurn round trip, {of}", floor=FSYNC, axes=_at("end", files=files)),
        key("begin", files): Measure("  BeginTurn, gate open", floor=FSYNC, axes=_at("begin", files=files)),
        key("inspect", files, 0): Measure("  to the stateless decision", axes=_at("decision", files=files)),
    }


def _at(quantity: str, **varied: Axis) -> dict[str, Axis]:
    return {"quantity": quantity, **varied}


def grids(cells: Sequence[tuple[int, int]]) -> list[Grid]:
    """Return a grid for each quantity: changed files by all files."""
    sizes = sorted({files for files, _ in cells})
    counts = sorted({count for _, count in cells})
    found = []
    for what, title in _QUANTITIES.items():
        rows = {}
        for count in ([0] if what == "cpu" else []) + counts:
            row = {f"{files:,} files": key(what, files, count) for files in sizes}
            if what not in ("stored", "cpu"):
                row |= {"floor: read": floor("read", count), "floor: zstd -1": floor("zstd", count)}
            rows[f"{count:,} changed" if count else "nothing changed"] = row
        found.append(Grid(title=title, corner="small files", rows=rows))
    return found


def in_grids(cells: Sequence[tuple[int, int]]) -> dict[str, Measure]:
    """Return the measures of all cells."""
    found = {
        key(what, files, count): _measure(what, files, count, f"{title}, {count:,} of {files:,} files")
        for what, title in (*_QUANTITIES.items(), ("inspect", "inspection"))
        for files, count in cells
    }
    for files in {files for files, _ in cells}:
        found[key("cpu", files, 0)] = _measure("cpu", files, 0, f"{_QUANTITIES['cpu']}, none of {files:,}")
    for count in {count for _, count in cells}:
        for what, title in _FLOORS.items():
            axes = _at(f"floor {what}", changed=count)
            found[floor(what, count)] = Measure(f"{title}, {count:,} files", short=what, axes=axes)
    return found


def large_grids(sizes: Sequence[int]) -> list[Grid]:
    """Return a grid for each quantity: what happened to one file, by its size."""
    found = []
    for what in _LARGE:
        rows = {
            title: {f"{size // MIB:,} MiB": large(what, size, name) for size in sizes}
            for name, title in OPERATIONS.items()
        }
        if what != "stored":
            rows |= {
                f"floor: {title}": {f"{size // MIB:,} MiB": large("floor", size, name) for size in sizes}
                for name, title in (("read", "reading all of it"), ("zstd", "zstd -1 of all of it"))
            }
        found.append(Grid(title=f"{_QUANTITIES[what]}, one file", corner="one file", rows=rows))
    return found


def in_large_grids(sizes: Sequence[int]) -> dict[str, Measure]:
    """Return the measures of large files."""
    found = {}
    for size in sizes:
        for name, title in OPERATIONS.items():
            for what in _LARGE:
                found[large(what, size, name)] = Measure(
                    f"{_QUANTITIES[what]}, {size // MIB:,} MiB, {title}",
                    unit="bytes" if what == "stored" else "ns",
                    axes=_at(what, file_bytes=size, operation=name),
                )
        for name, title in _FLOORS.items():
            axes = _at(f"floor {name}", file_bytes=size)
            found[large("floor", size, name)] = Measure(f"{title}, {size // MIB:,} MiB", axes=axes)
    return found
