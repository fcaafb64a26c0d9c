"""Directories that were read lately."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterable

from turnkeep_store.blobs import BulkSource
from turnkeep_store.errors import StoreError
from turnkeep_store.ids import BlobId, TreeId
from turnkeep_store.tree import Directory

CACHE_BYTES = 8 * 1024 * 1024
"""Most encoded bytes whose decoded directories are kept."""


class DirectoryCache:
    """Reads directories and keeps the latest. Safe for use by many threads at once."""

    def __init__(self, source: BulkSource, limit: int = CACHE_BYTES) -> None:
        self._source = source
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: OrderedDict[TreeId, tuple[int, Directory]] = OrderedDict()
        self._bytes = 0

    def get(self, tree: TreeId) -> Directory:
        """Return a directory. Raises as `Repository.get` and `Directory.decode`."""
        with self._lock:
            kept = self._kept.get(tree)
            if kept is not None:
                self._kept.move_to_end(tree)
                return kept[1]
        data = self._source.get(BlobId(tree))
        directory = Directory.decode(data)
        self.add(tree, directory, len(data))
        return directory

    def fetch(self, trees: Iterable[TreeId]) -> None:
        """Have directories kept that will be read soon, in this order, as many as half of the room holds.

        What is wrong with one, reading it says.
        """
        with self._lock:
            missing = [BlobId(tree) for tree in trees if tree not in self._kept]
        for blob, data in self._source.get_many(missing, self._limit // 2).items():
            with contextlib.suppress(StoreError):
                self.add(TreeId(blob), Directory.decode(data), len(data))

    def add(self, tree: TreeId, directory: Directory, length: int) -> None:
        """Keep a directory, whose encoding is so long. Nobody may change it any more."""
        with self._lock:
            if tree not in self._kept:
                self._kept[tree] = (length, directory)
                self._bytes += length
            while self._bytes > self._limit:
                _, (dropped, _) = self._kept.popitem(last=False)
                self._bytes -= dropped
