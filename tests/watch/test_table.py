"""A table and its sights, against dicts that are copied for every change."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from turnkeep.errors import InternalError
from turnkeep.watch.table import NEVER, WHITEOUT, Sight, Status, Table

Files = dict[bytes, Status]
Changes = dict[bytes, Status | None]

NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
INODES = st.integers(1, 5)


def file(inode: int, links: int = 1, size: int = 0) -> Status:
    """Return the status of a regular file."""
    return (stat.S_IFREG, inode, 0, 0, size, 0, 0, 0, links)


def folder(inode: int) -> Status:
    """Return the status of a folder."""
    return (stat.S_IFDIR, inode, 0, 0, 0, 0, 0, 0, 2)


STATUSES = st.one_of(
    st.builds(file, INODES, st.integers(1, 3), st.integers(0, 1)),
    st.builds(folder, INODES),
    st.just(WHITEOUT),
    st.just(NEVER),
)
FILES = st.dictionaries(PATHS, STATUSES, max_size=12)
CHANGES = st.dictionaries(PATHS, st.none() | STATUSES, max_size=8)


def changed(files: Files, changes: Mapping[bytes, Status | None]) -> Files:
    """Return files with changes."""
    merged = {**files, **changes}
    return {path: status for path, status in merged.items() if status is not None}


def names(files: Files, inode: int) -> set[bytes]:
    return {path for path, status in files.items() if status[1] == inode and not stat.S_ISDIR(status[0])}


def beneath(files: Files, top: bytes) -> set[bytes]:
    """Return what a walk from a folder meets."""
    inside = {path for path in files if path.rpartition(b"/")[0] == top}
    return inside.union(*(beneath(files, path) for path in inside))


def first_name(files: Files, path: bytes) -> bytes | None:
    status = files.get(path)
    if status is None or stat.S_ISDIR(status[0]) or status[8] < 2:
        return None
    others = names(files, status[1])
    return min(others) if len(others) > 1 else None


def named_elsewhere(files: Files) -> set[int]:
    links: dict[int, list[int]] = {}
    for status in files.values():
        if status[1] > 0 and not stat.S_ISDIR(status[0]):
            links.setdefault(status[1], []).append(status[8])
    return {inode for inode, each in links.items() if max(each) > len(each)}


ALL_PATHS = [b"/".join(parts) for parts in [(b"a",), (b"b", b"c"), (b"a", b"b", b"c"), (b"c", b"a"), (b"b",)]]


def check(sight: Sight, files: Files) -> None:
    """See that a sight shows just these files."""
    assert dict(sight.items()) == files
    assert sorted(sight) == sorted(files)
    assert len(sight) >= len(files)
    for path in {*ALL_PATHS, *files}:
        assert sight.get(path) == files.get(path)
        assert (path in sight) == (path in files)
        assert sight.first_name(path) == first_name(files, path)
        assert sorted(sight.beneath(path)) == sorted(beneath(files, path))
    assert sorted(sight.beneath(b"")) == sorted(beneath(files, b""))
    for inode in range(6):
        assert sight.names(inode) == (names(files, inode) if inode else set())
    assert sight.named_elsewhere() == named_elsewhere(files)


@given(FILES, CHANGES, CHANGES)
def test_changes_upon_changes(files: Files, some: Changes, more: Changes) -> None:
    base = Sight(files)
    one = base.changed(some)
    other = one.changed(more)
    check(base, files)
    check(one, changed(files, some))
    check(other, changed(changed(files, some), more))
    check(one, changed(files, some))


@given(FILES, st.lists(CHANGES, max_size=4))
def test_a_table_that_changes(files: Files, many: list[Changes]) -> None:
    table = Table(files)
    for changes in many:
        table.change(changes.items())
        files = changed(files, changes)
        assert {path: table.get(path) for path in table} == files
        assert len(table) == len(files)
        check(Sight(table), files)


@dataclass
class _Seen:
    sight: Sight
    files: Files
    ended: bool = False


@settings(max_examples=40, stateful_step_count=12)
class Sights(RuleBasedStateMachine):
    """Sights of one table, of which any may become part of it; then the others have ended."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = [_Seen(Sight({b"a": folder(1), b"a/b": file(2, 2), b"c": file(2, 2)}), {})]
        self.seen[0].files = dict(self.seen[0].sight.items())

    def _one(self, number: int) -> _Seen:
        going_on = [each for each in self.seen if not each.ended]
        return going_on[number % len(going_on)]

    def _others_end(self, one: _Seen) -> None:
        for each in self.seen:
            each.ended = each is not one

    @rule(number=st.integers(0, 9), more=CHANGES.filter(bool))
    def change(self, number: int, more: Changes) -> None:
        one = self._one(number)
        self.seen.append(_Seen(one.sight.changed(more), changed(one.files, more)))

    @rule(number=st.integers(0, 9))
    def fold(self, number: int) -> None:
        one = self._one(number)
        before = [each for each in self.seen if not each.ended]
        one.sight.fold()
        try:
            for each in before:
                each.sight.get(b"")
        except InternalError:
            self._others_end(one)

    @rule(number=st.integers(0, 9), changes=CHANGES.filter(bool))
    def accept(self, number: int, changes: Changes) -> None:
        one = self._one(number)
        one.sight.accept(changes)
        one.files = changed(one.files, changes)
        self._others_end(one)

    @invariant()
    def all_is_as_expected(self) -> None:
        for each in self.seen:
            if not each.ended:
                check(each.sight, each.files)
                continue
            for use in (
                lambda sight: sight.get(b"unchanged"),
                lambda sight: list(sight),
                lambda sight: list(sight.items()),
                lambda sight: list(sight.beneath(b"")),
                lambda sight: sight.names(1),
                lambda sight: sight.named_elsewhere(),
                lambda sight: sight.changed({}),
                lambda sight: sight.accept({}),
                lambda sight: len(sight),
            ):
                with pytest.raises(InternalError):
                    use(each.sight)


test_sights = Sights.TestCase


def test_nothing_to_fold_ends_nothing() -> None:
    sight = Sight({b"a": file(1)})
    other = sight.changed({b"b": file(2)})
    sight.fold()
    check(other, {b"a": file(1), b"b": file(2)})


def test_what_is_folded_is_kept_once() -> None:
    table = Table({b"a": file(1)})
    sight = Sight(table).changed({b"b": file(2), b"a": None})
    sight.fold()
    assert {path: table.get(path) for path in table} == {b"b": file(2)}
    check(sight, {b"b": file(2)})
