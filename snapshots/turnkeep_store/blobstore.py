"""All blobs of an open repository: found, verified, taken in, kept while leased."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from turnkeep_store.backend import Area, Backend
from turnkeep_store.bulk import read_many
from turnkeep_store.codec import Compressor
from turnkeep_store.errors import BlobNotFound, Damaged, Headless, StoreError
from turnkeep_store.ids import BlobId
from turnkeep_store.index import Index, Location
from turnkeep_store.lease import Lease, Leases
from turnkeep_store.pack import Located, PackWriter, is_pack_name, read_blob, read_contents, scan
from turnkeep_store.points import StorePoint, reached

_ATTEMPTS = 4

log = logging.getLogger(__name__)


class PacksOf:
    """The packs of a backend, without those that a prune is about to delete."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.doomed: set[str] = set()
        self.worthless: list[str] = []
        """Files under a pack's name that hold nothing at all: left by a crash."""

    def sizes(self) -> dict[str, int]:
        found = self._backend.list(Area.PACKS)
        return {name: size for name, size in found if is_pack_name(name) and name not in self.doomed}

    def contents(self, name: str, size: int) -> list[Located] | None:
        """Return what a pack holds; what can still be read where its table is damaged.

        None means that there is no such pack.
        """
        try:
            return read_contents(self._backend, name, size)
        except FileNotFoundError:
            return None
        except Damaged as error:
            rows = list(scan(self._backend, name, size))
            if not rows and not self._begins_as_pack(name):
                self.worthless.append(name)
                return None
            log.error(
                "pack damaged, its sound blobs are used; run check",
                extra={"pack": name, "cause": str(error), "blobs": len(rows)},
            )
            return rows

    def _begins_as_pack(self, name: str) -> bool:
        try:
            return self._backend.read(Area.PACKS, name, 0, 8) == b"TURNPACK"
        except Headless:
            return False
        except Damaged:
            return True


class BlobStore:
    """Blobs by id. Safe for use by many threads at once."""

    def __init__(
        self, backend: Backend, index_path: str, compressor: Compressor, index_keys: Sequence[bytes] = ()
    ) -> None:
        self.backend = backend
        self.compressor = compressor
        self.workers = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="store")
        """Compresses for writers."""
        self.leases = Leases()
        self.packs = PacksOf(backend)
        self.index = Index(index_path, self.packs, index_keys)
        if self.packs.worthless:
            self.backend.delete(Area.PACKS, self.packs.worthless)
        self._damaged: set[BlobId] = set()
        self._searched = False
        self._lock = threading.Lock()

    def get(self, blob: BlobId) -> bytes:
        """Return a blob, verified against its id.

        A prune may move it meanwhile: then it is looked up again.

        Raises:
            BlobNotFound: it is in no pack.
            Damaged: no sound copy of it is left.
        """
        for attempt in range(_ATTEMPTS):
            damage = None
            moved = False
            locations = self.index.lookup(blob)
            for place in locations:
                try:
                    return read_blob(self.backend, place.pack, place.offset, blob, place.stored_length)
                except FileNotFoundError:
                    moved = True
                except Damaged as error:
                    damage = error
            if moved:
                if attempt > 0:
                    self.index.reconcile()
                continue
            if damage is not None and not self._misled(blob, locations):
                self._damaged.add(blob)
                raise damage
            if damage is None and not self._search_packs():
                break
        raise BlobNotFound(f"blob {blob.hex()}: in no pack of this repository; run check")

    def get_many(self, blobs: Iterable[BlobId], room: int | None = None) -> dict[BlobId, bytes]:
        """Return what is found of many blobs at one go (see `bulk.read_many`)."""
        return read_many(self.index, self.backend, blobs, room)

    def has(self, blob: BlobId) -> bool:
        """Whether the blob is stored (its bytes are not read)."""
        return bool(self.index.lookup(blob))

    def locate(self, blob: BlobId) -> list[Location]:
        """Return where the copies of a blob lie."""
        return self.index.lookup(blob)

    def reuse(self, blob: BlobId, lease: Lease) -> bool:
        """Whether the blob is stored; if so, it stays at least as long as `lease`."""
        with self.leases.guard:
            lease.require()
            if blob in self._damaged:
                return False  # what is written again heals the snapshots that need it
            places = self.index.lookup(blob)
            if places:
                lease.packs.add(places[0].pack)
            return bool(places)

    def publish(self, pack: PackWriter, lease: Lease) -> int:
        """Make a pack durable and its blobs found; returns the file's length.

        Its blobs stay at least as long as `lease`.
        """
        name = pack.finish()
        size = pack.size
        with self.leases.guard:
            lease.require()
            # Before the pack can be seen: a prune must never meet it unleased.
            lease.packs.add(name)
        pack.publish(name)
        reached(StorePoint.PACK_PUBLISHED)
        try:
            self.index.add(name, size, pack.contents)
            reached(StorePoint.PACK_INDEXED)
        except StoreError:
            # The writer has failed and nothing refers to the pack: give the room back.
            with self.leases.guard, contextlib.suppress(StoreError):
                if self.index.count(name) is None:
                    self.backend.delete(Area.PACKS, [name])
            raise
        self._damaged.difference_update(row.header.id for row in pack.contents)
        return size

    def hide(self, names: Collection[str]) -> None:
        """Have no lookup find these packs, and no rebuild bring them back, until `reveal`."""
        with self.leases.guard:
            self.packs.doomed.update(names)
            self.index.drop(names)

    def reveal(self, names: Collection[str]) -> None:
        """Let packs be found by a rebuild that are still there after `hide`."""
        with self.leases.guard:
            self.packs.doomed.difference_update(names)

    def close(self) -> None:
        self.workers.shutdown()
        self.index.close()

    def _misled(self, blob: BlobId, locations: list[Location]) -> bool:
        """Whether the index pointed to wrong places; if so, it was built anew."""
        for place in locations:
            size = self.packs.sizes().get(place.pack)
            if size is None:
                return True
            try:
                rows = read_contents(self.backend, place.pack, size)
            except (Damaged, FileNotFoundError):
                continue
            if not any(
                (row.header.id, row.offset, row.header.stored_length)
                == (blob, place.offset, place.stored_length)
                for row in rows
            ):
                log.warning("index pointed to a wrong place, building it anew", extra={"blob": blob.hex()})
                self.index.rebuild()
                return True
        return False

    def _search_packs(self) -> bool:
        """Build the index anew, in case it lost a row; only once, as it reads all tables."""
        with self._lock:
            if self._searched:
                return False
            self._searched = True
            log.warning("a blob is in no known place, building the index from the packs")
            self.index.rebuild()
            return True
