"""Looking again at a few paths of a root whose every path's status is known."""

from __future__ import annotations

import operator
import os
import stat
from collections.abc import Collection, Iterable

from turnkeep_store.beneath import Descent
from turnkeep_store.errors import UnsafePath

from turnkeep.watch.scan import PATH_BYTES, Excluded, status_of, too_many, walk
from turnkeep.watch.table import NEVER, WHITEOUT, Sight, Status, folder_of, is_folder, is_linked, weight_of

_INODE = 1
_BY_FOLDER = operator.methodcaller("rpartition", b"/")


def look_again(
    root_fd: int,
    known: Sight,
    touched: Iterable[bytes],
    deep: Collection[bytes] = (),
    inodes: Iterable[int] = (),
    *,
    overlay: bool,
    exclude: Collection[bytes] = (),
    max_paths: int = 2_000_000,
) -> dict[bytes, Status | None]:
    """Return the status now of paths that may have changed; None for those that are gone.

    If nothing but `touched`, what lies beneath `deep`, and files known by
    `inodes` has changed since `known`, then `known` with this is what a scan
    would find now. Looked at are these paths, the folders they lie in (whose
    times change with their names), all beneath what became a folder, or another
    one, or ceased to be one, every other name of an inode among them, and files
    that have names outside of the root.

    Raises:
        ResourceExhausted: there are more than `max_paths` paths now.
    """
    work = _Work(root_fd, known, frozenset(deep), overlay=overlay, exclude=exclude, max_paths=max_paths)
    try:
        paths = set(touched)
        for inode in known.named_elsewhere().union(inodes):
            paths |= known.names(inode)
        paths |= {folder_of(path) for path in paths}
        work.look(paths)
        work.look_at_other_names()
    finally:
        work.close()
    return work.found


class _Work:
    def __init__(
        self,
        root_fd: int,
        known: Sight,
        deep: frozenset[bytes],
        *,
        overlay: bool,
        exclude: Collection[bytes],
        max_paths: int,
    ) -> None:
        self.found: dict[bytes, Status | None] = {}
        self._root = root_fd
        self._known = known
        self._deep = deep
        self._overlay = overlay
        self._exclude = exclude
        self._excluded = Excluded(exclude)
        self._max_paths = max_paths
        self._way = Descent(root_fd)
        self._linked: set[int] = set()

    def close(self) -> None:
        """Close the folders that are open."""
        self._way.close()

    def look(self, paths: Iterable[bytes]) -> None:
        """Look at paths, and at all beneath them where that is in doubt."""
        # A folder before what lies in it, and that at one go.
        for path in sorted(paths, key=_BY_FOLDER):
            if not path or path in self.found or path in self._excluded:
                continue
            before, now = self._known.get(path), self._status(path)
            self._note(path, now)
            was_folder = _may_be_folder(before)
            if now is not None and is_folder(now):
                same = was_folder and before is not None and before[_INODE] == now[_INODE]
                if not same or path in self._deep:
                    self._walk(path)
                    self._look_for_gone(path)
            elif was_folder:
                self._look_for_gone(path)
        weight = self._known.weight + sum(weight_of(path, each) for path, each in self.found.items() if each)
        most = 2 * self._max_paths
        if len(self._known) + len(self.found) > most or weight > most * PATH_BYTES:
            raise too_many(self._max_paths)

    def look_at_other_names(self) -> None:
        """Look at the further names of every inode met so far that has several, or had."""
        while self._linked:
            linked, self._linked = self._linked, set()
            others = {name for inode in linked for name in self._known.names(inode)}
            self.look(others - self.found.keys())

    def _note(self, path: bytes, status: Status | None) -> None:
        self.found[path] = status
        for each in (status, self._known.get(path)):
            if each is not None and is_linked(each):
                self._linked.add(each[_INODE])

    def _walk(self, path: bytes) -> None:
        files: dict[bytes, Status] = {}
        walk(
            self._root,
            path,
            files,
            overlay=self._overlay,
            exclude=self._exclude,
            max_paths=self._max_paths,
        )
        for found, status in files.items():
            self._note(found, status)

    def _look_for_gone(self, folder: bytes) -> None:
        """Note what is no more of all that was beneath a folder; the folder was walked, if it is one."""
        for path in self._known.beneath(folder):
            if path not in self.found:
                self._note(path, None)

    def _status(self, path: bytes) -> Status | None:
        if not self._is_seen(folder_of(path)):
            return None
        try:
            folder, name = self._way.parent(path)
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError, UnsafePath):
            return None
        if self._overlay and stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            return WHITEOUT
        return status_of(status)

    def _is_seen(self, folder: bytes) -> bool:
        """Whether a folder is one in what is found. One that came since then was not touched yet.

        So that nothing is ever known to lie in what is not known to be a folder:
        nobody would look for it there again.
        """
        if not folder:
            return True
        status = self.found[folder] if folder in self.found else self._known.get(folder)
        return _may_be_folder(status)


def _may_be_folder(status: Status | None) -> bool:
    return status is not None and (is_folder(status) or status == NEVER)
