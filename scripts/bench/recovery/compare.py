"""What differs between listings, and what differs by nature. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from bench.recovery.listing import Listing, Node

PRESENCE = "presence"
THERE, GONE = "there", "gone"
MOST_EXCUSED = 0.02
"""Of all paths: if more differ between fault-free runs, nothing can be told from them."""

_ATTRIBUTES = tuple(field.name for field in dataclasses.fields(Node))


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Difference:
    """One attribute of one path. Whether it is there is an attribute, too."""

    path: str
    attribute: str
    wanted: str
    found: str

    def __str__(self) -> str:
        return f"{self.path}: {self.attribute} {self.wanted} → {self.found}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Natural:
    """What differs between runs to which nothing happened.

    `attributes` are (path, attribute), `absent` the paths that some runs have and others
    do not. They are names that are drawn anew each time, of temporary files perhaps; in
    their `folders` yet another name is nothing new.
    """

    attributes: frozenset[tuple[str, str]]
    absent: frozenset[str]
    folders: frozenset[str]
    total: int
    """How many paths there are."""

    @property
    def paths(self) -> frozenset[str]:
        """Whatever is excused in anything."""
        return self.absent | {path for path, _ in self.attributes}

    @property
    def is_small(self) -> bool:
        """Whether few enough paths are excused for a comparison to mean something."""
        return len(self.paths) <= MOST_EXCUSED * self.total


def differences(wanted: Listing, found: Listing) -> list[Difference]:
    """Return everything in which a tree is not as it was to be."""
    all_: list[Difference] = []
    for path in sorted(wanted.keys() | found.keys()):
        before, after = wanted.get(path), found.get(path)
        if before is None or after is None:
            words = (THERE, GONE) if after is None else (GONE, THERE)
            all_.append(Difference(path=path, attribute=PRESENCE, wanted=words[0], found=words[1]))
        elif before != after:
            all_.extend(_attributes(path, before, after))
    return all_


def _attributes(path: str, before: Node, after: Node) -> Iterable[Difference]:
    for name in _ATTRIBUTES:
        values = getattr(before, name), getattr(after, name)
        if values[0] != values[1]:
            yield Difference(path=path, attribute=name, wanted=str(values[0]), found=str(values[1]))


def without(all_: Iterable[Difference], caches: Iterable[str]) -> list[Difference]:
    """Return the differences outside of folders with these names."""
    names = frozenset(caches)
    return [each for each in all_ if names.isdisjoint(PurePosixPath(each.path).parts)]


def natural(runs: Sequence[Listing]) -> Natural:
    """Return what is not the same in all runs, of two or more."""
    first, *others = runs
    found = [difference for other in others for difference in differences(first, other)]
    absent = frozenset(each.path for each in found if each.attribute == PRESENCE)
    return Natural(
        attributes=frozenset((each.path, each.attribute) for each in found if each.attribute != PRESENCE),
        absent=absent,
        folders=frozenset(_parent(path) for path in _topmost(absent)),
        total=len(frozenset().union(*runs)),
    )


def unexcused(wanted: Listing, found: Listing, excused: Natural) -> list[Difference]:
    """Return the differences that do not occur without a fault.

    `wanted` is one of the runs that `excused` is of.
    """
    all_ = differences(wanted, found)
    added = frozenset(each.path for each in all_ if each.attribute == PRESENCE and each.wanted == GONE)
    allowed = {path for path in _topmost(added) if _parent(path) in excused.folders}

    def is_excused(each: Difference) -> bool:
        if each.attribute != PRESENCE:
            return (each.path, each.attribute) in excused.attributes
        return each.path in excused.absent or not allowed.isdisjoint((each.path, *_folders_of(each.path)))

    return [each for each in all_ if not is_excused(each)]


def _topmost(paths: frozenset[str]) -> Iterable[str]:
    """Return those that lie below none of the others."""
    return (path for path in paths if paths.isdisjoint(_folders_of(path)))


def _parent(path: str) -> str:
    return str(PurePosixPath(path).parent)


def _folders_of(path: str) -> Iterable[str]:
    return (str(folder) for folder in PurePosixPath(path).parents)
