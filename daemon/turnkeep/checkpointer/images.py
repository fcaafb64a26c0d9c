"""Process images as part of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from turnkeep_store.blobcache import CachingSink
from turnkeep_store.ids import TreeId
from turnkeep_store.kinds import BlobKind
from turnkeep_store.tree import Directory, Entry, NodeType
from turnkeep_store.writer import BlobWriter

from turnkeep.model import Fidelity, ProcessImage, TurnNumber
from turnkeep.process import archive
from turnkeep.process.dumping import BOTH, IN_SANDBOX, WHOLE, WHOLE_KIND, Dump
from turnkeep.process.quiet import TreePrint

_FILES, _PROCESSES = b"files", b"processes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a checkpoint's snapshot record is to hold: one root, and what is where."""

    root: TreeId
    files: TreeId
    image: ProcessImage | None
    prints: Mapping[int, TreePrint]

    def metadata(self) -> dict[str, Any]:
        """Return what the record says of it, for `checkpoint_of`."""
        image = self.image.to_json() if self.image is not None else None
        return {"files": self.files.hex(), "processes": image}


def commit_images(
    writer: BlobWriter,
    files: TreeId,
    dump: Dump | None,
    earlier: ProcessImage | None,
    prints: Mapping[int, TreePrint],
    turn: TurnNumber,
) -> Kept:
    """Store what was dumped, or take the earlier dump again when none was needed.

    Raises:
        StoreError, OSError: storing or reading failed.
    """
    image = earlier if dump is None else _store(writer, dump, turn)
    if dump is not None:
        prints = {tree.root: tree.print() for tree in dump.trees}
    if image is None or not image.trees:
        return Kept(root=files, files=files, image=image, prints={})
    trees = {
        str(index).encode(): TreeId(bytes.fromhex(tree.images)) for index, tree in enumerate(image.trees)
    }
    root = _directory(writer, {_FILES: files, _PROCESSES: _directory(writer, trees)})
    return Kept(root=root, files=files, image=image, prints=prints)


def fidelity_of(image: ProcessImage | Dump | None, *, stateful: bool) -> Fidelity:
    """Return what a restore brings back, by what was dumped and whether there was anything to dump."""
    if not stateful:
        return Fidelity.COMPLETE
    if image is None or not image.trees:
        return Fidelity.FILES_ONLY
    return Fidelity.PARTIAL if image.missing else Fidelity.COMPLETE


def _store(writer: BlobWriter, dump: Dump, turn: TurnNumber) -> ProcessImage:
    before = writer.stats.stored_bytes
    trees, total = [], 0
    for each in dump.trees:
        entry, size = archive.store(CachingSink(writer, dump.cache), each.images)
        assert entry.subtree is not None
        total += size
        trees.append(replace(each.record, images=entry.subtree.hex(), image_bytes=size))
    return ProcessImage(
        engine=_engine_of(dump),
        trees=tuple(trees),
        criu=dump.criu,
        boot_id=boot_id(),
        turn=turn,
        reason=dump.reason,
        missing=tuple(dump.missing),
        image_bytes=total,
        stored_bytes=writer.stats.stored_bytes - before,
    )


def _engine_of(dump: Dump) -> str:
    kinds = {tree.record.kind == WHOLE_KIND for tree in dump.trees}
    return BOTH if len(kinds) == 2 else WHOLE if True in kinds else IN_SANDBOX


def boot_id() -> str:
    """Return what tells this boot of the kernel from every other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _directory(writer: BlobWriter, folders: Mapping[bytes, TreeId]) -> TreeId:
    """Store a directory of directories that are stored already."""
    entries = {
        name: Entry(
            name=name,
            type=NodeType.DIRECTORY,
            mode=0o700,
            subtree=tree,
            digest=writer.read_directory(tree).digest(),
        )
        for name, tree in folders.items()
    }
    return TreeId(writer.put(Directory(entries).encode(), BlobKind.TREE))
