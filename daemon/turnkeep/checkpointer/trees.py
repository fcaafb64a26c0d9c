"""The tree of a whole sandbox, from the readings of its places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from turnkeep_store.archiver import Archived, Keep, TreeSource, Upsert, archive
from turnkeep_store.blobs import BlobSink
from turnkeep_store.ids import BlobId, Digest, TreeId
from turnkeep_store.kinds import BlobKind
from turnkeep_store.tree import Directory, Entry

from turnkeep.checkpointer.changes import changes
from turnkeep.checkpointer.inspection import PlaceReading, baseline_after
from turnkeep.checkpointer.view import Baseline, ContainerView, PlaceBaseline


@dataclass(frozen=True, slots=True)
class Tree:
    """A whole sandbox's state as one tree: a folder with an entry for each place."""

    tree: TreeId
    digest: Digest


def archive_places(
    sink: BlobSink,
    source: TreeSource,
    readings: list[PlaceReading],
    baseline: Baseline,
    view: ContainerView,
    others: Directory | None = None,
    keep: Keep | None = None,
) -> Tree:
    """Return the tree of a whole sandbox from readings of its places; `others` holds those not read."""
    old = source.read_directory(baseline.tree) if baseline.tree is not None else Directory()
    top = others or Directory()
    for reading in readings:
        # A place that was never scanned may have lost paths that nothing now
        # speaks of: its tree is built from what is there alone.
        scanned = reading.place.slot in baseline.places
        entry = old.entries.get(reading.place.slot) if scanned else None
        top.entries[reading.place.slot] = _archive_place(
            sink, source, reading, entry, baseline.place(reading.place.slot), view, keep
        )
    return Tree(TreeId(sink.put(top.encode(), BlobKind.TREE)), top.digest())


def _archive_place(
    sink: BlobSink,
    source: TreeSource,
    reading: PlaceReading,
    old: Entry | None,
    baseline: PlaceBaseline,
    view: ContainerView,
    keep: Keep | None,
) -> Entry:
    if reading.place.is_file:
        read = reading.reads.get(b"")
        if read is None or read.change.entry is None:
            return replace(reading.root, content=old.content if old is not None else ())
        wanted = Upsert(reading.place.slot, read.change.entry, read.change.segments)
        built = archive(sink, source, None, [wanted])
        return Directory.decode(sink.get(BlobId(built.tree))).entries[reading.place.slot]
    parent = old.subtree if old is not None else None
    image = view.image_view(reading.place)
    changed = changes(reading, image, baseline, source, parent)
    if changed or parent is None:
        built = archive(sink, source, parent, changed, image, keep)
    else:
        assert old is not None
        assert old.digest is not None
        built = Archived(parent, old.digest)
    return replace(reading.root, subtree=built.tree, digest=built.digest)


def baselines_after(readings: Iterable[PlaceReading], baseline: Baseline) -> dict[bytes, PlaceBaseline]:
    """Return the baselines of the places that were read, by their slots."""
    return {
        reading.place.slot: baseline_after(reading, baseline.place(reading.place.slot))
        for reading in readings
    }
