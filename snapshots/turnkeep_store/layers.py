"""The image under a sandbox: the read-only layers of an overlay, seen as one.

The semantics are the kernel's (Documentation/filesystems/overlayfs.rst): an
upper name hides a lower one, a whiteout hides it without replacing it, folders
merge unless the upper one is opaque.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from turnkeep_store.beneath import O_PATH_NOFOLLOW, open_beneath
from turnkeep_store.errors import UnsafePath
from turnkeep_store.nodes import entry_of, is_opaque
from turnkeep_store.tree import Entry, NodeType

_CACHED_FOLDERS = 4096


class LayerView:
    """A merged, read-only view of overlay layers, topmost first.

    Paths are relative to the layers' roots. The layers must not change while
    the view is open, which Docker guarantees for an image's. One thread at a
    time may use a view.
    """

    def __init__(self, layers: Sequence[str | bytes | os.PathLike[str]]) -> None:
        self._roots: list[int] = []
        self._folders: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        try:
            for layer in layers:
                self._roots.append(os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the layers' descriptors."""
        while self._roots:
            os.close(self._roots.pop())

    def lookup(self, path: bytes) -> Entry | None:
        """Return what the image has at `path`, without content, or None."""
        if not path:
            return self._entry(0, path)
        head = path.rpartition(b"/")[0]
        for index in self._layers_of(head):
            entry = self._entry(index, path)
            if entry is None:
                continue
            return None if entry.type is NodeType.WHITEOUT else entry
        return None

    def names(self, path: bytes) -> list[bytes]:
        """Return the names in the image's folder `path`, in order; none if it is no folder."""
        found: dict[bytes, bool] = {}
        for index in self._layers_of(path):
            with self._opened(index, path, os.O_RDONLY | os.O_DIRECTORY) as fd:
                if fd is None:
                    continue
                with os.scandir(fd) as listing:
                    for item in listing:
                        status = item.stat(follow_symlinks=False)
                        found.setdefault(os.fsencode(item.name), not _is_whiteout(status))
        return sorted(name for name, visible in found.items() if visible)

    @contextlib.contextmanager
    def content(self, path: bytes) -> Iterator[int]:
        """Yield a descriptor for reading the image's file at `path`.

        Raises:
            FileNotFoundError: the image has no file there.
        """
        head = path.rpartition(b"/")[0]
        for index in self._layers_of(head):
            with self._opened(index, path, O_PATH_NOFOLLOW) as fd:
                if fd is None:
                    continue
                # The topmost name counts. What is no file must not be opened: a
                # device would do something.
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    break
                content = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield content
            finally:
                os.close(content)
            return
        raise FileNotFoundError(os.fsdecode(path))

    def _layers_of(self, path: bytes) -> tuple[int, ...]:
        """Return the layers whose folder `path` is visible, topmost first."""
        known = self._folders.get(path)
        if known is not None:
            self._folders.move_to_end(path)
            return known
        # From the nearest known ancestor downwards, without recursion: paths can
        # be as deep as a hostile sandbox makes them.
        pending = []
        while path and path not in self._folders:
            pending.append(path)
            path = path.rpartition(b"/")[0]
        layers = self._folders.get(path) if path else tuple(range(len(self._roots)))
        for folder in reversed(pending):
            layers = self._narrow(layers or (), folder)
            self._folders[folder] = layers
            if len(self._folders) > _CACHED_FOLDERS:
                self._folders.popitem(last=False)
        return layers or ()

    def _narrow(self, layers: tuple[int, ...], path: bytes) -> tuple[int, ...]:
        """Return those of the parent's layers in which `path` is part of one merged folder."""
        merged = []
        for index in layers:
            with self._opened(index, path, O_PATH_NOFOLLOW) as fd:
                if fd is None:
                    continue
                if not stat.S_ISDIR(os.fstat(fd).st_mode):
                    break
                merged.append(index)
                if is_opaque(fd):
                    break
        return tuple(merged)

    def _entry(self, index: int, path: bytes) -> Entry | None:
        with self._opened(index, path, O_PATH_NOFOLLOW) as fd:
            return None if fd is None else entry_of(fd, path.rpartition(b"/")[2], overlay=True)

    @contextlib.contextmanager
    def _opened(self, index: int, path: bytes, flags: int) -> Iterator[int | None]:
        try:
            fd = open_beneath(self._roots[index], path, flags)
        except (FileNotFoundError, NotADirectoryError, UnsafePath):
            fd = None
        try:
            yield fd
        finally:
            if fd is not None:
                os.close(fd)


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
