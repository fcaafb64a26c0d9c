"""A followed overlay, and the comparison of what is reported of it with a scan."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from turnkeep.watch.look import look_again
from turnkeep.watch.open_files import mapped_files, writable_files
from turnkeep.watch.scan import scan
from turnkeep.watch.table import Sight, Status
from turnkeep.watch.tracker import Touched, Tracker, Watch

from tests.files.overlays import Overlay


class Followed:
    """An overlay whose upper layer is followed, and what is known of that layer.

    `root` is the merged view, in which tests do what a sandbox does.
    """

    def __init__(self, tracker: Tracker, overlay: Overlay) -> None:
        self.root = overlay.merged
        self.upper = overlay.upper
        self.tracker = tracker
        self.watch = self._begun()
        self.known = Sight()
        self._fd = os.open(overlay.upper, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.start_over()

    def close(self) -> None:
        """Stop following it."""
        self.watch.close()
        os.close(self._fd)

    def begin_again(self) -> None:
        """Follow it anew."""
        self.watch.close()
        self.watch = self._begun()
        self.start_over()

    def start_over(self) -> None:
        """Know what a scan finds."""
        self.watch.collect()
        self.known = Sight(self.scan())

    def scan(self) -> dict[bytes, Status]:
        """Return the status of everything in the upper layer."""
        return scan(self._fd, overlay=True).files

    def look(self, pids: Iterable[int] = ()) -> Touched:
        """Look again at what was touched, while everything stands still: nothing else may differ."""
        touched = self.watch.collect()
        assert touched.complete, touched.why
        self._look_at(touched, pids)
        return touched

    def look_or_start_over(self, pids: Iterable[int] = ()) -> Touched:
        """Do as whoever uses a tracker: look again if all is known that was touched, else scan."""
        touched = self.watch.collect()
        if touched.complete:
            self._look_at(touched, pids)
        else:
            self.known = Sight(self.scan())
        return touched

    def glance(self) -> bool:
        """Look again while things happen, so that what is known is of no one moment; say if it could."""
        touched = self.watch.collect()
        if touched.complete:
            found = self._found(touched.paths, touched.deep, touched.inodes)
            self.known = self.known.changed(found)
            self.known.fold()
        else:
            self.known = Sight(self.scan())
        return touched.complete

    def drain(self) -> None:
        """Have all read that the kernel queued, as the thread does every now and then."""
        with self.watch._group.lock:
            self.watch._group.drain()

    @contextmanager
    def undrained(self) -> Iterator[None]:
        """Keep the thread from reading what the kernel queues."""
        with self.watch._group.lock:
            yield

    def _begun(self) -> Watch:
        watch = self.tracker.watch(str(self.upper))
        assert watch is not None, self.tracker.why_not(str(self.upper))
        return watch

    def _look_at(self, touched: Touched, pids: Iterable[int]) -> None:
        pids = list(pids)
        opened = writable_files(pids)
        mapped = mapped_files(pids)
        paths = {*touched.paths, *self._inside(opened.paths), *self._inside(mapped.paths)}
        found = self._found(paths, touched.deep, touched.inodes | opened.inodes | mapped.inodes)
        now = self.known.changed(found)
        actual = self.scan()
        missed = differences(dict(now.items()), actual)
        assert not missed, f"not found: {missed}\n{touched}"
        now.fold()
        self.known = now

    def _found(
        self, paths: Iterable[bytes], deep: frozenset[bytes], inodes: Iterable[int]
    ) -> dict[bytes, Status | None]:
        return look_again(self._fd, self.known, paths, deep, inodes, overlay=True)

    def _inside(self, paths: Iterable[bytes]) -> set[bytes]:
        prefix = os.fsencode(self.root) + b"/"
        return {path.removeprefix(prefix) for path in paths if path.startswith(prefix)}


def differences(
    one: dict[bytes, Status], other: dict[bytes, Status]
) -> dict[bytes, tuple[Status | None, Status | None]]:
    """Return what differs, by path."""
    return {
        path: (one.get(path), other.get(path))
        for path in one.keys() | other.keys()
        if one.get(path) != other.get(path)
    }


@contextmanager
def compared(watch: Watch, root: Path) -> Iterator[Callable[[], None]]:
    """Give a function that looks again at a followed folder, and compares that with a scan."""
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    watch.collect()
    known = Sight(scan(fd, overlay=False).files)

    def look() -> None:
        nonlocal known
        touched = watch.collect()
        assert touched.complete, touched.why
        found = look_again(fd, known, touched.paths, touched.deep, touched.inodes, overlay=False)
        now = known.changed(found)
        missed = differences(dict(now.items()), scan(fd, overlay=False).files)
        assert not missed, f"not found: {missed}\n{touched}"
        now.fold()
        known = now

    try:
        yield look
    finally:
        os.close(fd)
