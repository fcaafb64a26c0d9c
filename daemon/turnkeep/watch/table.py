"""The status of every path beneath a root, kept from turn to turn.

A turn changes few of many files. So what is kept is never copied: a `Sight` is
a `Table` and the few changes that are not part of it yet, and they become part
of it once nothing refers to the state before.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Mapping

from turnkeep.errors import InternalError

Status = tuple[int, int, int, int, int, int, int, int, int]
"""(mode, inode, ctime_ns, mtime_ns, size, uid, gid, rdev, links)."""

WHITEOUT: Status = (stat.S_IFCHR, 0, 0, 0, 0, 0, 0, 0, 0)
"""Of every whiteout. They share one inode, whose ctime and link count say nothing of any of them."""

NEVER: Status = (0, -1, -1, -1, -1, -1, -1, -1, -1)
"""Of no file, of whatever kind: what is recorded with it counts as changed."""

_INODE, _LINKS = 1, 8

_FOLDER_WEIGHT = 4
"""How often the path of a folder counts: what it holds is noted by that, too, in several places."""


def is_folder(status: Status) -> bool:
    """Whether it is a folder's."""
    return stat.S_ISDIR(status[0])


def is_linked(status: Status) -> bool:
    """Whether it is of an inode that may have several names, and be read under the first."""
    return status[_LINKS] > 1 and not stat.S_ISDIR(status[0])


def has_inode(status: Status) -> bool:
    """Whether its inode number is of a file of its own: not of a folder, a whiteout, or nothing."""
    return not stat.S_ISDIR(status[0]) and status[_INODE] > 0


def weight_of(path: bytes, status: Status) -> int:
    """Return what a path counts towards how much memory paths may take (`scan.PATH_BYTES`)."""
    return len(path) * (_FOLDER_WEIGHT if is_folder(status) else 1)


def folder_of(path: bytes) -> bytes:
    """Return the folder that a path lies in; the root is empty, and lies in itself."""
    return path.rpartition(b"/")[0]


class _Index:
    """Which paths lie in a folder, and which are names of one inode.

    Most inodes have one name: that is kept as it is, without a set around it.
    """

    __slots__ = ("inside", "names")

    def __init__(self) -> None:
        self.inside: dict[bytes, set[bytes]] = {}
        self.names: dict[int, bytes | set[bytes]] = {}

    def add(self, path: bytes, status: Status | None) -> None:
        self.inside.setdefault(folder_of(path), set()).add(path)
        if status is None or not has_inode(status):
            return
        names = self.names.setdefault(status[_INODE], path)
        if isinstance(names, set):
            names.add(path)
        elif names != path:
            self.names[status[_INODE]] = {names, path}

    def remove(self, path: bytes, status: Status) -> None:
        folder = folder_of(path)
        inside = self.inside[folder]
        inside.discard(path)
        if not inside:
            del self.inside[folder]
        if not has_inode(status):
            return
        names = self.names.get(status[_INODE])
        if isinstance(names, set):
            names.discard(path)
        if names == path or not names:
            self.names.pop(status[_INODE], None)

    def shares(self, status: Status) -> bool:
        """Whether a status is of an inode that has several names, here or elsewhere."""
        return is_linked(status) or (has_inode(status) and isinstance(self.names.get(status[_INODE]), set))

    def names_of(self, inode: int) -> set[bytes]:
        names = self.names.get(inode, ())
        return {names} if isinstance(names, bytes) else set(names)


class Table:
    """The status of every path beneath a root, at about one time.

    `version` grows with every change: a `Sight` of an earlier one is of no use.
    `weight` is what its paths count together (`weight_of`).
    """

    __slots__ = ("_files", "_index", "_named_elsewhere", "version", "weight")

    def __init__(self, files: Mapping[bytes, Status] | None = None) -> None:
        self._files: dict[bytes, Status] = dict(files or {})
        self._index = _Index()
        self.version = 0
        self.weight = sum(weight_of(path, status) for path, status in self._files.items())
        for path, status in self._files.items():
            self._index.add(path, status)
        self._named_elsewhere: set[int] = set()
        self._count_names({status[_INODE] for status in self._files.values() if is_linked(status)})

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._files)

    def get(self, path: bytes) -> Status | None:
        """Return a path's status; None if there is no such path."""
        return self._files.get(path)

    def inside(self, folder: bytes) -> Iterable[bytes]:
        """Return the paths directly in a folder."""
        return self._index.inside.get(folder, ())

    def names(self, inode: int) -> set[bytes]:
        """Return the names of a file by its inode."""
        return self._index.names_of(inode)

    def shares(self, status: Status) -> bool:
        """Whether a status is of an inode that has several names, here or elsewhere."""
        return self._index.shares(status)

    def named_elsewhere(self) -> frozenset[int]:
        """Return the inodes of files that have more names than those here."""
        return frozenset(self._named_elsewhere)

    def change(self, changes: Iterable[tuple[bytes, Status | None]]) -> None:
        """Set the status of paths; None takes a path away."""
        self.version += 1
        linked: set[int] = set()
        for path, status in changes:
            before = self._files.pop(path, None)
            if before is not None:
                self.weight -= weight_of(path, before)
                if self._index.shares(before):
                    linked.add(before[_INODE])
                self._index.remove(path, before)
            if status is not None:
                self.weight += weight_of(path, status)
                self._files[path] = status
                self._index.add(path, status)
                if self._index.shares(status):
                    linked.add(status[_INODE])
        self._count_names(linked)

    def _count_names(self, inodes: Iterable[int]) -> None:
        for inode in inodes:
            if _lacks_names(map(self.get, self.names(inode))):
                self._named_elsewhere.add(inode)
            else:
                self._named_elsewhere.discard(inode)


def _lacks_names(statuses: Iterable[Status | None]) -> bool:
    """Whether an inode has more names than those with the given statuses."""
    links = [status[_LINKS] for status in statuses if status is not None]
    return max(links, default=0) > len(links)


class Sight:
    """A table as it would be with some changes; None stands for a path that is gone.

    It is good as long as nobody else changes the table (`accept`, `fold`).

    Raises (every method):
        InternalError: somebody did.
    """

    __slots__ = ("_changes", "_firsts", "_index", "_table", "_version")

    def __init__(
        self,
        table: Table | Mapping[bytes, Status] | None = None,
        changes: Mapping[bytes, Status | None] | None = None,
    ) -> None:
        self._table = table if isinstance(table, Table) else Table(table)
        self._version = self._table.version
        self._changes: dict[bytes, Status | None] = dict(changes or {})
        self._index: _Index | None = None
        self._firsts: dict[int, bytes] = {}

    def __len__(self) -> int:
        """Return how many paths there are, within the number of the changes."""
        return len(self._base()) + len(self._changes)

    @property
    def weight(self) -> int:
        """What its paths count together (`weight_of`), at most."""
        changed = (weight_of(path, status) for path, status in self._changes.items() if status is not None)
        return self._base().weight + sum(changed)

    def __contains__(self, path: bytes) -> bool:
        return self.get(path) is not None

    def __iter__(self) -> Iterator[bytes]:
        yield from (path for path in self._base() if path not in self._changes)
        yield from (path for path, status in self._changes.items() if status is not None)

    def items(self) -> Iterator[tuple[bytes, Status]]:
        """Yield every path with its status."""
        for path in self:
            status = self.get(path)
            assert status is not None
            yield path, status

    def get(self, path: bytes) -> Status | None:
        """Return a path's status; None if there is no such path."""
        if path in self._changes:
            return self._changes[path]
        return self._base().get(path)

    def beneath(self, folder: bytes) -> Iterator[bytes]:
        """Yield every path beneath a folder."""
        pending = [folder]
        while pending:
            for path in self._inside(pending.pop()):
                yield path
                pending.append(path)

    def names(self, inode: int) -> set[bytes]:
        """Return the names of a file by its inode."""
        kept = {path for path in self._base().names(inode) if path not in self._changes}
        return kept | self._changed().names_of(inode)

    def named_elsewhere(self) -> set[int]:
        """Return the inodes of files that have more names than those beneath the root.

        What is done to them by those is seen nowhere beneath it.
        """
        table = self._base()
        inodes = set(table.named_elsewhere())
        for path, status in self._changes.items():
            for each in (status, table.get(path)):
                if each is not None and (table.shares(each) or self._changed().shares(each)):
                    inodes.add(each[_INODE])
        return {inode for inode in inodes if _lacks_names(map(self.get, self.names(inode)))}

    def first_name(self, path: bytes) -> bytes | None:
        """Return the first name of a path's inode, if it has several beneath the root; else None."""
        status = self.get(path)
        if status is None or not is_linked(status):
            return None
        inode = status[_INODE]
        if inode not in self._firsts:
            names = self.names(inode)
            self._firsts[inode] = min(names) if len(names) > 1 else b""
        return self._firsts[inode] or None

    def changed(self, more: Mapping[bytes, Status | None]) -> Sight:
        """Return a sight with more changes."""
        self._base()
        return Sight(self._table, {**self._changes, **more}) if more else self

    def accept(self, changes: Mapping[bytes, Status | None]) -> None:
        """Make some changes part of the table at once. Every other sight of it ends."""
        self._base().change(changes.items())
        for path in changes:
            self._changes.pop(path, None)
        self._renew()

    def fold(self) -> None:
        """Make the changes part of the table. Every other sight of it ends."""
        if self._changes:
            self._base().change(self._changes.items())
            self._changes = {}
            self._renew()

    def _renew(self) -> None:
        self._version = self._table.version
        self._index = None
        self._firsts = {}

    def _base(self) -> Table:
        if self._version != self._table.version:
            raise InternalError("the state that this was compared with has moved on")
        return self._table

    def _changed(self) -> _Index:
        if self._index is None:
            self._index = _Index()
            for path, status in self._changes.items():
                self._index.add(path, status)
        return self._index

    def _inside(self, folder: bytes) -> Iterator[bytes]:
        yield from (path for path in self._base().inside(folder) if path not in self._changes)
        changed = self._changed().inside.get(folder, ())
        yield from (path for path in changed if self._changes[path] is not None)
