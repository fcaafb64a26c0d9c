"""Directory nodes: how a file tree is written down.

A tree is a Merkle tree: the root directory's id fixes every name, attribute
and byte beneath. Where the tree describes the writable layer of an overlay, it
holds only what differs from the layers below: an absent name means "as the
image has it", and a `WHITEOUT` means "the image has it, the sandbox does not".

Two hashes are kept of a directory. Its *id* is the hash of all it holds. Its
*digest* is the hash of its normal form, in which modification times of
directories are left out, because two ways to the same state (a live and a cold
restore, say) leave different ones. `docs/format.md` has the byte layout.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import msgpack
from blake3 import blake3

from turnkeep_store.errors import Damaged, LimitExceeded
from turnkeep_store.ids import ID_BYTES, BlobId, Digest, TreeId

_COLUMNS = 13
_TYPE, _MTIME, _SUBTREE = 1, 5, 11

MAX_DIRECTORY_BYTES = 256 * 1024 * 1024
MAX_NAME_BYTES = 255
MAX_TARGET_BYTES = 4096
MAX_LINK_PATH_BYTES = 1024 * 1024
"""A path from a tree's root may be longer than any one system call takes."""


class NodeType(enum.IntEnum):
    """What an entry is. The numbers are part of the format."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    CHAR_DEVICE = 5
    BLOCK_DEVICE = 6
    SOCKET = 7
    HARDLINK = 8
    WHITEOUT = 9


class ExtentKind(enum.IntEnum):
    """What a stretch of a file is made of. The numbers are part of the format."""

    HOLE = 0
    DATA = 1
    LIST = 2


NO_BLOB = BlobId(b"")


@dataclass(frozen=True, slots=True)
class Extent:
    """A stretch of a file: a hole, one chunk, or a blob listing further extents."""

    kind: ExtentKind
    length: int
    blob: BlobId = NO_BLOB


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One name in a directory, with everything that is kept of it.

    `mode` holds the twelve permission bits. `rdev` is a device number as in
    `os.stat`. `target` is a symlink's text, or for a hardlink the path, from the
    tree's root, of the name under which the inode's attributes and content are
    kept. `subtree` and `digest` are set for directories only.
    """

    name: bytes
    type: NodeType
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    rdev: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    target: bytes = b""
    content: tuple[Extent, ...] = ()
    subtree: TreeId | None = None
    digest: Digest | None = None

    @property
    def is_directory(self) -> bool:
        return self.type is NodeType.DIRECTORY

    def holding(self, content: tuple[Extent, ...], name: bytes | None = None) -> Entry:
        """Return the same, no directory, with this content, and under another name if that is given."""
        return Entry(
            name=self.name if name is None else name,
            type=self.type,
            mode=self.mode,
            uid=self.uid,
            gid=self.gid,
            mtime_ns=self.mtime_ns,
            size=self.size,
            rdev=self.rdev,
            xattrs=self.xattrs,
            target=self.target,
            content=content,
        )

    def same_state(self, other: Entry | None) -> bool:
        """Whether both describe one state in normal form (names not compared)."""
        if other is None:
            return False
        return _normal_row(_to_list(self))[1:] == _normal_row(_to_list(other))[1:]


class Entries(MutableMapping[bytes, Entry]):
    """Entries by name, as rows of the encoding: an entry is made of one only when it is asked for.

    Most of a large directory is only passed on from one tree to the next.
    """

    __slots__ = ("_known", "_rows")

    def __init__(self, entries: Mapping[bytes, Entry] | None = None) -> None:
        self._rows: dict[bytes, list[Any]] = {}
        self._known: dict[bytes, Entry] = {}
        for name, entry in (entries or {}).items():
            self[name] = entry

    @classmethod
    def of_rows(cls, rows: Iterable[list[Any]]) -> Entries:
        """Take rows as they were decoded; raises ValueError, TypeError, Damaged where one is none."""
        made = cls()
        for row in rows:
            if len(row) != _COLUMNS:
                raise ValueError(f"an entry of {len(row)} columns")
            made._rows[check_name(row[0])] = row
        return made

    def __getitem__(self, name: bytes) -> Entry:
        """Return an entry. Raises KeyError, and Damaged if it is none that can be written."""
        known = self._known.get(name)
        if known is None:
            row = self._rows[name]
            try:
                known = self._known[name] = _from_list(row)
            except (ValueError, TypeError) as error:
                raise Damaged(f"entry {name!r} does not decode: {error}") from error
        return known

    def __setitem__(self, name: bytes, entry: Entry) -> None:
        self._rows[name] = _to_list(entry)
        self._known[name] = entry

    def __delitem__(self, name: bytes) -> None:
        del self._rows[name]
        self._known.pop(name, None)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Entries):
            return self._rows == other._rows
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def copy(self) -> Entries:
        """Return entries that can be changed by themselves."""
        made = Entries()
        made._rows, made._known = dict(self._rows), dict(self._known)
        return made

    def rows(self) -> list[list[Any]]:
        """Return the rows in the order of their names' bytes. Do not change them."""
        return [self._rows[name] for name in sorted(self._rows)]

    def differing(self, other: Entries) -> list[bytes]:
        """Return the names that only one of the two has, or that differ, in order."""
        mine, its = self._rows, other._rows
        return sorted(name for name in mine.keys() | its.keys() if mine.get(name) != its.get(name))


class Directory:
    """The entries of one directory, by name."""

    __slots__ = ("entries",)

    def __init__(self, entries: Mapping[bytes, Entry] | None = None) -> None:
        self.entries = entries if isinstance(entries, Entries) else Entries(entries)

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries in the order of their names' bytes."""
        return (self.entries[name] for name in sorted(self.entries))

    def __eq__(self, other: object) -> bool:
        return self.entries == other.entries if isinstance(other, Directory) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def copy(self) -> Directory:
        """Return one that can be changed by itself."""
        return Directory(self.entries.copy())

    def encode(self) -> bytes:
        """Return the bytes that are stored. Equal directories give equal bytes."""
        return _pack(self.entries.rows())

    def digest(self) -> Digest:
        """Return the hash of the normal form."""
        return Digest(blake3(_pack([_normal_row(row) for row in self.entries.rows()])).digest())

    @classmethod
    def decode(cls, data: bytes) -> Directory:
        """Read stored bytes. What an entry holds besides its name is looked at when it is asked for.

        Raises:
            Damaged: the bytes are not an encoded directory.
            LimitExceeded: they are longer than any directory may be.
        """
        if len(data) > MAX_DIRECTORY_BYTES:
            raise LimitExceeded(f"directory of {len(data)} bytes: the limit is {MAX_DIRECTORY_BYTES}")
        try:
            rows = msgpack.unpackb(data, raw=True, use_list=True, strict_map_key=True)
            entries = Entries.of_rows(rows)
        except (ValueError, TypeError, IndexError, msgpack.exceptions.UnpackException) as error:
            raise Damaged(f"directory of {len(data)} bytes does not decode: {error}") from error
        if not set(map(type, entries)) <= {bytes}:
            raise Damaged(f"directory of {len(data)} bytes does not decode: a name is no bytes")
        if len(entries) != len(rows) or any(a >= b for a, b in pairwise(entries)):
            raise Damaged("directory's names are not in order")
        return cls(entries)


def encode_extents(extents: Iterable[Extent]) -> bytes:
    """Return the bytes of a blob that lists extents."""
    return _pack([_extent_to_list(extent) for extent in extents])


def decode_extents(data: bytes) -> tuple[Extent, ...]:
    """Read a blob that lists extents.

    Raises:
        Damaged: the bytes are not such a list.
    """
    try:
        return tuple(_extent(row) for row in msgpack.unpackb(data, raw=True))
    except (ValueError, TypeError, IndexError, msgpack.exceptions.UnpackException) as error:
        raise Damaged(f"extent list of {len(data)} bytes does not decode: {error}") from error


def check_name(name: bytes) -> bytes:
    """Return `name` if a directory may hold it.

    Names come from disk formats a hostile writer may have shaped: one with a
    slash, or "..", would lead out of the directory being restored.

    Raises:
        Damaged: it may not.
    """
    if not name or len(name) > MAX_NAME_BYTES or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise Damaged(f"not a file name: {name[:64]!r}")
    return name


def directory_entry(entry: Entry, subtree: TreeId, digest: Digest) -> Entry:
    """Return `entry` pointing to the given subtree."""
    return replace(entry, subtree=subtree, digest=digest)


_packers = threading.local()


def _pack(value: Any) -> bytes:
    packer = getattr(_packers, "packer", None)
    if packer is None:
        # A new one allocates a large buffer, which takes longer than to pack a folder.
        packer = _packers.packer = msgpack.Packer(use_bin_type=True)
    packed = packer.pack(value)
    assert isinstance(packed, bytes)
    return packed


def _extent_to_list(extent: Extent) -> list[Any]:
    return [int(extent.kind), extent.length, extent.blob]


def _to_list(entry: Entry) -> list[Any]:
    return [
        entry.name,
        int(entry.type),
        entry.mode,
        entry.uid,
        entry.gid,
        entry.mtime_ns,
        entry.size,
        entry.rdev,
        [list(pair) for pair in entry.xattrs],
        entry.target,
        [_extent_to_list(extent) for extent in entry.content],
        entry.subtree,
        entry.digest,
    ]


def _normal_row(row: list[Any]) -> list[Any]:
    """Return a row without what does not count: a directory's time and the id of what is beneath."""
    if row[_TYPE] != NodeType.DIRECTORY:
        return row
    return [*row[:_MTIME], 0, *row[_MTIME + 1 : _SUBTREE], None, *row[_SUBTREE + 1 :]]


def _extent(row: Any) -> Extent:
    kind, length, blob = row
    if not isinstance(length, int) or length < 0:
        raise ValueError(f"extent of length {length!r}")
    kind = ExtentKind(kind)
    if not isinstance(blob, bytes) or len(blob) != (0 if kind is ExtentKind.HOLE else ID_BYTES):
        raise ValueError("extent with a blob id of the wrong length")
    return Extent(kind, length, BlobId(blob))


def _from_list(row: Any) -> Entry:
    name, kind, mode, uid, gid, mtime_ns, size, rdev, xattrs, target, content, subtree, digest = row
    for number in (mode, uid, gid, size, rdev):
        if not isinstance(number, int) or number < 0:
            raise ValueError(f"negative or non-integer attribute {number!r}")
    longest = MAX_LINK_PATH_BYTES if kind == NodeType.HARDLINK else MAX_TARGET_BYTES
    if not isinstance(mtime_ns, int) or not isinstance(target, bytes) or len(target) > longest:
        raise ValueError("time or target of the wrong type")
    if not isinstance(name, bytes):
        raise ValueError("name of the wrong type")
    # bytes(n) of a number n would allocate n bytes.
    if not all(isinstance(part, bytes) for pair in xattrs for part in pair):
        raise ValueError("extended attribute of the wrong type")
    node_type = NodeType(kind)
    is_directory = node_type is NodeType.DIRECTORY
    for value in (subtree, digest):
        if (value is not None) != is_directory:
            raise ValueError("subtree on what is no directory, or none on one")
        if is_directory and not (isinstance(value, bytes) and len(value) == ID_BYTES):
            raise ValueError("subtree or digest of the wrong length")
    return Entry(
        name=check_name(name),
        type=node_type,
        mode=mode & 0o7777,
        uid=uid,
        gid=gid,
        mtime_ns=mtime_ns,
        size=size,
        rdev=rdev,
        xattrs=tuple((key, value) for key, value in xattrs),
        target=target,
        content=tuple(_extent(part) for part in content),
        subtree=TreeId(subtree) if subtree is not None else None,
        digest=Digest(digest) if digest is not None else None,
    )


EMPTY_DIGEST = Directory().digest()
