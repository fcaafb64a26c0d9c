"""Making a directory equal to a tree by touching only what differs.

The directory is known to hold the tree `have`. Where it is a running
container's merged view, a name that the wanted tree leaves out has to become
the image's again. Nothing here opens a path except through `beneath`.

See `synchroniser` for the other way, which knows nothing of what is there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from turnkeep_store.beneath import Descent
from turnkeep_store.chunks import changed_extents, read_extents
from turnkeep_store.diff import Delta, walk
from turnkeep_store.ids import BlobId, TreeId
from turnkeep_store.layers import LayerView
from turnkeep_store.nodes import (
    create_node,
    is_solid,
    overwrite,
    read_segments,
    remove_tree,
    set_attributes,
    set_attributes_of,
    shape_of,
    write_segments,
)
from turnkeep_store.tree import Directory, Entries, Entry, NodeType

_OVERWRITE_BYTES = 1024 * 1024
"""Content up to this size is read before the file it goes to is opened."""


class Source(Protocol):
    """Where trees and blobs are read; a repository is one."""

    def get(self, blob: BlobId) -> bytes: ...

    def read_directory(self, tree: TreeId) -> Directory: ...


@dataclass(slots=True)
class Written:
    """What a restore did to a directory."""

    paths: int = 0
    bytes: int = 0


def apply_difference(
    root_fd: int,
    source: Source,
    want: TreeId,
    deltas: Iterable[Delta],
    image: LayerView | None = None,
) -> Written:
    """Bring what lies under `root_fd` to the tree `want`.

    `deltas` is `diff(source, have, want)`. Afterwards every path that differed
    has the type, content, attributes and links of `want`, and so have the
    modification times of the folders above them. Files are rewritten in place
    where they stay files, so that whoever has them open reads the restored
    content, unless they are being executed. After an error the directory is somewhere between the two trees.

    Raises:
        UnsafePath: what lies there is not what `have` says, and leads elsewhere.
        OSError, StoreError: the file system or the repository failed.
    """
    work = _Difference(root_fd, source, want, image)
    pending = list(deltas)
    try:
        work.unlink_regrouped(pending)
        skip: bytes | None = None
        for delta in pending:
            if skip is not None and delta.path.startswith(skip):
                continue
            skip = None if work.bring(delta) else delta.path + b"/"
        work.finish()
    finally:
        work.close()
    return work.written


class _Difference:
    def __init__(self, root_fd: int, source: Source, want: TreeId, image: LayerView | None) -> None:
        self._way = Descent(root_fd)
        self._target_way = Descent(root_fd)
        self._source = source
        self._want = want
        self._image = image
        self._links: list[tuple[bytes, Entry]] = []
        self._folders: dict[bytes, Entry | None] = {}
        self._new_inodes: set[bytes] = set()
        self.written = Written()

    def close(self) -> None:
        """Close the folders that are open."""
        self._way.close()
        self._target_way.close()

    def unlink_regrouped(self, deltas: list[Delta]) -> None:
        """Take names out of hardlink groups that they have to leave.

        What is left of each group then has one content in the wanted state too,
        and can be rewritten in place.
        """
        for delta in deltas:
            before, after = delta.before, delta.after
            linked = [each is not None and each.type is NodeType.HARDLINK for each in (before, after)]
            if linked[0] and (not linked[1] or before.target != after.target):  # type: ignore[union-attr]
                self._remove(delta.path)

    def bring(self, delta: Delta) -> bool:
        """Bring one path to its wanted state. False if that settled all beneath it, too."""
        path, want = delta.path, self._wanted(delta.path, delta.after)
        have = self._present(path)
        if want is None:
            self._note_parent(path)
            if have is not None:
                self._remove(path)
            return False
        if want.is_directory and have is not None and have.is_directory:
            self._folders[path] = want
            self.written.paths += 1
            return True
        if have is not None and have.is_directory != want.is_directory:
            self._remove(path)
            have = None
        if want.is_directory:
            self._materialise(path, delta.after)
            return False
        self._place(path, want, have, delta)
        return False

    def finish(self) -> None:
        """Make the hardlinks, then give the folders their attributes, deepest first."""
        if self._new_inodes:
            # Their further names are still those of the old inodes, also where
            # the trees do not differ.
            for path, each in walk(self._source, self._want):
                if each.type is NodeType.HARDLINK and each.target in self._new_inodes:
                    self._links.append((path, each))
                    self._note_parent(path)
        for path, link in self._links:
            self._link(path, link)
        for path in sorted(self._folders, key=lambda each: (each.count(b"/"), each), reverse=True):
            known = self._folders[path]
            entry = known if known is not None else self._wanted_at(path)
            if entry is None or not entry.is_directory or not path:
                continue
            parent, name = self._way.parent(path)
            set_attributes(parent, name, entry)

    def _wanted(self, path: bytes, entry: Entry | None) -> Entry | None:
        if entry is not None:
            return None if entry.type is NodeType.WHITEOUT else entry
        return self._image.lookup(path) if self._image is not None else None

    def _wanted_at(self, path: bytes) -> Entry | None:
        """Return what the wanted state has at any path."""
        folder: TreeId | None = self._want
        entry: Entry | None = None
        for name in path.split(b"/"):
            # Below a file or a whiteout there is nothing, whatever the image has.
            if folder is None:
                return None
            entry = self._source.read_directory(folder).entries.get(name)
            if entry is None:
                break
            folder = entry.subtree
        return self._wanted(path, entry)

    def _present(self, path: bytes) -> Entry | None:
        """Return type and size of what is at a path."""
        try:
            parent, name = self._way.parent(path)
            return shape_of(parent, name)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _note_parent(self, path: bytes) -> None:
        """Remember that the folder's times have to be put right at the end."""
        self._folders.setdefault(path.rpartition(b"/")[0], None)

    def _remove(self, path: bytes) -> None:
        self._note_parent(path)
        try:
            parent, name = self._way.parent(path)
            self.written.paths += remove_tree(parent, name)
        except (FileNotFoundError, NotADirectoryError):
            pass
        self._way.forget(path)

    def _materialise(self, path: bytes, entry: Entry | None) -> None:
        """Make a folder that is not there, with all that the wanted state has beneath it."""
        self._note_parent(path)
        pending: list[tuple[bytes, Entry | None]] = [(path, entry)]
        while pending:
            path, entry = pending.pop()
            want = self._wanted(path, entry)
            if want is None:
                continue
            if not want.is_directory:
                self._place(path, want, None, Delta(path, None, entry))
                continue
            parent, name = self._way.parent(path)
            create_node(parent, name, want)
            self.written.paths += 1
            self._folders[path] = want
            inside = (
                self._source.read_directory(entry.subtree).entries if entry and entry.subtree else Entries()
            )
            names = set(inside) | set(self._image.names(path) if self._image is not None else ())
            pending.extend((path + b"/" + name, inside.get(name)) for name in names)

    def _place(self, path: bytes, want: Entry, have: Entry | None, delta: Delta) -> None:
        """Make a name that is no folder what it has to be; `have` is what is there."""
        self.written.paths += 1
        if delta.before is None or delta.before.type is not want.type or have is None:
            self._note_parent(path)
        if want.type is NodeType.HARDLINK:
            self._links.append((path, want))
            return
        parent, name = self._way.parent(path)
        same_type = have is not None and have.type is want.type
        if have is not None and not (same_type and want.type is NodeType.FILE):
            self._unlink(parent, name, path)
            have = None
        if want.type is NodeType.FILE:
            if have is None or not self._patch(parent, name, have, delta):
                from_image = delta.after is None
                self._write(parent, name, path, want, in_place=have is not None, from_image=from_image)
        else:
            create_node(parent, name, want)
            set_attributes(parent, name, want)

    def _unlink(self, parent: int, name: bytes, path: bytes) -> None:
        """Take away a name that will be another inode's."""
        self._note_parent(path)
        if os.stat(name, dir_fd=parent, follow_symlinks=False).st_nlink > 1:
            self._new_inodes.add(path)
        os.unlink(name, dir_fd=parent)

    def _patch(self, parent: int, name: bytes, have: Entry, delta: Delta) -> bool:
        """Write the chunks of a large file that differ; return False where that does not do."""
        before, after = delta.before, delta.after
        if before is None or after is None or before.type is not NodeType.FILE:
            return False
        if min(before.size, after.size) <= _OVERWRITE_BYTES or have.size != before.size:
            return False
        changed = changed_extents(self._source, before.content, after.content)
        if changed is None:
            return False
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=parent)
        except OSError as error:
            if error.errno == errno.ETXTBSY:
                return False
            raise
        try:
            pieces = ((offset, self._source.get(extent.blob)) for offset, extent in changed)
            self.written.bytes += overwrite(fd, pieces, after.size)
            set_attributes_of(fd, after, opened=True)
        finally:
            os.close(fd)
        return True

    def _write(
        self, parent: int, name: bytes, path: bytes, want: Entry, *, in_place: bool, from_image: bool
    ) -> None:
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        segments: Iterable[tuple[int, bytes]] = self._content(path, want, from_image)
        solid = False
        if in_place and want.size <= _OVERWRITE_BYTES:
            segments = tuple(segments)
            solid = is_solid(segments, want.size)
        if in_place:
            try:
                fd = os.open(name, flags if solid else flags | os.O_TRUNC, dir_fd=parent)
            except OSError as error:
                if error.errno != errno.ETXTBSY:
                    raise
                self._unlink(parent, name, path)
                in_place = False
        if not in_place:
            fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=parent)
        try:
            self.written.bytes += (overwrite if solid else write_segments)(fd, segments, want.size)
            set_attributes_of(fd, want, opened=True)
        finally:
            os.close(fd)

    def _content(self, path: bytes, want: Entry, from_image: bool) -> Iterator[tuple[int, bytes]]:
        if not from_image:
            yield from read_extents(self._source, want.content)
        elif self._image is not None:
            with self._image.content(path) as fd:
                yield from read_segments(fd, want.size)

    def _link(self, path: bytes, entry: Entry) -> None:
        target_parent, target = self._target_way.parent(entry.target)
        parent, name = self._way.parent(path)
        link_to(target_parent, target, parent, name)


def link_to(target_parent: int, target: bytes, parent: int, name: bytes) -> None:
    """Make `name` another name of `target`, unless it is one already."""
    wanted = os.stat(target, dir_fd=target_parent, follow_symlinks=False)
    try:
        present = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        present = None
    if present is not None:
        if (present.st_dev, present.st_ino) == (wanted.st_dev, wanted.st_ino):
            return
        if stat.S_ISDIR(present.st_mode):
            remove_tree(parent, name)
        else:
            os.unlink(name, dir_fd=parent)
    os.link(target, name, src_dir_fd=target_parent, dst_dir_fd=parent, follow_symlinks=False)
