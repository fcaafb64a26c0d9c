"""Packs: files of blobs.

A pack is written once, from front to back: a header, the blobs, each with a
header and checksum of its own, and a table of contents with a checksum over
everything that says what lies where. Its name is that checksum, so a pack that
was cut short, changed or exchanged for another is known from its last bytes.
`docs/format.md` has the byte layout.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from blake3 import blake3

from turnkeep_store.backend import Area, Backend
from turnkeep_store.codec import MAX_RAW_BYTES, Codec, decompress
from turnkeep_store.durable import Bytes
from turnkeep_store.errors import Damaged, UnsupportedFormat
from turnkeep_store.ids import ID_BYTES, BlobId, blob_id
from turnkeep_store.kinds import BlobKind

VERSION = 1
MAX_BLOBS = 65536
"""Most blobs in one pack; bounds what a reader holds of its table."""

_MAGIC = b"TURNPACK"
_END_MAGIC = b"KCAPNRUT"
_SALT_BYTES = 16
_HEADER = struct.Struct(f"<8sI{_SALT_BYTES}s")
_CHECKSUM_BYTES = 16
_BLOB = struct.Struct(f"<BBHII{ID_BYTES}s{_CHECKSUM_BYTES}s")
BLOB_HEADER_BYTES = _BLOB.size
_ROW = struct.Struct(f"<Q{_BLOB.size}s")
_TRAILER = struct.Struct(f"<I{ID_BYTES}s8s")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobHeader:
    """What a pack says of one blob, before its bytes and in the table of contents."""

    id: BlobId
    kind: BlobKind
    codec: Codec
    raw_length: int
    stored_length: int
    checksum: bytes

    @property
    def footprint(self) -> int:
        """How many bytes of a pack the blob takes, with header and row of the table."""
        return _BLOB.size + self.stored_length + _ROW.size

    def pack(self) -> bytes:
        return self._fields() + self.checksum

    def _fields(self) -> bytes:
        whole = _BLOB.pack(
            self.kind, self.codec, 0, self.raw_length, self.stored_length, self.id, bytes(_CHECKSUM_BYTES)
        )
        return whole[:-_CHECKSUM_BYTES]

    @classmethod
    def unpack(cls, data: bytes) -> BlobHeader:
        """Read a header.

        Raises:
            Damaged: no writer makes such a header.
        """
        kind, codec, zero, raw_length, stored_length, blob, checksum = _BLOB.unpack(data)
        if zero or max(raw_length, stored_length) > MAX_RAW_BYTES:
            raise Damaged("blob header out of range")
        try:
            return cls(
                id=BlobId(blob),
                kind=BlobKind(kind),
                codec=Codec(codec),
                raw_length=raw_length,
                stored_length=stored_length,
                checksum=checksum,
            )
        except ValueError as error:
            raise Damaged(f"blob header: {error}") from error

    @classmethod
    def of(cls, blob: BlobId, kind: BlobKind, codec: Codec, raw_length: int, stored: Bytes) -> BlobHeader:
        """Make the header for a blob whose stored bytes are `stored`."""
        bare = cls(
            id=blob,
            kind=kind,
            codec=codec,
            raw_length=raw_length,
            stored_length=len(stored),
            checksum=b"",
        )
        checksum = _checksum(bare._fields(), stored)
        return cls(
            id=blob,
            kind=kind,
            codec=codec,
            raw_length=raw_length,
            stored_length=len(stored),
            checksum=checksum,
        )

    def verify(self, stored: bytes) -> None:
        """Check stored bytes against the checksum.

        Raises:
            Damaged: they are not what was written.
        """
        if len(stored) != self.stored_length or _checksum(self._fields(), stored) != self.checksum:
            raise Damaged(f"blob {self.id.hex()}: its checksum does not match")


@dataclass(frozen=True, slots=True)
class Located:
    """A blob's header and the offset of that header in its pack."""

    offset: int
    header: BlobHeader


class PackWriter:
    """One pack under construction. For one thread at a time."""

    def __init__(self, backend: Backend, salt: bytes | None = None) -> None:
        self._file = backend.create(Area.PACKS)
        # Two packs of equal content must not share a name: one may be on its
        # way out while the other comes in.
        self._header = _HEADER.pack(_MAGIC, VERSION, salt or secrets.token_bytes(_SALT_BYTES))
        self._rows: list[Located] = []
        try:
            self._file.write(self._header)
        except BaseException:
            self._file.discard()
            raise

    @property
    def size(self) -> int:
        return self._file.size

    @property
    def contents(self) -> list[Located]:
        """What was appended, in the order of the file."""
        return self._rows

    def append(self, header: BlobHeader, stored: Bytes) -> Located:
        """Append a blob's stored bytes."""
        row = Located(self._file.size, header)
        self._file.write(header.pack())
        self._file.write(stored)
        self._rows.append(row)
        return row

    def read(self, row: Located) -> bytes:
        """Return a blob appended before, verified."""
        stored = self._file.read(row.offset + _BLOB.size, row.header.stored_length)
        row.header.verify(stored)
        return _open(row.header, stored)

    def finish(self) -> str:
        """Append the table of contents and return the name the pack has to get."""
        table = b"".join(_ROW.pack(row.offset, row.header.pack()) for row in self._rows)
        checksum = _table_checksum(self._header, table)
        self._file.write(table)
        self._file.write(_TRAILER.pack(len(self._rows), checksum, _END_MAGIC))
        return checksum.hex()

    def publish(self, name: str) -> None:
        """Make the finished pack durable and visible."""
        self._file.publish(name)

    def discard(self) -> None:
        self._file.discard()


def is_pack_name(name: str) -> bool:
    """Whether a file of this name can be a pack."""
    return len(name) == 2 * ID_BYTES and all(digit in "0123456789abcdef" for digit in name)


def read_contents(backend: Backend, name: str, size: int) -> list[Located]:
    """Return a pack's table of contents.

    Raises:
        Damaged: the file is no complete pack, or not the one of this name.
        UnsupportedFormat: a newer version wrote it.
        FileNotFoundError: it is gone.
    """
    if size < _HEADER.size + _TRAILER.size:
        raise Damaged(f"pack {name}: only {size} bytes long")
    header = backend.read(Area.PACKS, name, 0, _HEADER.size)
    trailer = backend.read(Area.PACKS, name, size - _TRAILER.size, _TRAILER.size)
    if len(header) != _HEADER.size or len(trailer) != _TRAILER.size:
        raise Damaged(f"pack {name}: cut short")
    count, checksum, magic = _TRAILER.unpack(trailer)
    start = size - _TRAILER.size - count * _ROW.size
    if magic != _END_MAGIC or count > MAX_BLOBS or start < _HEADER.size:
        raise Damaged(f"pack {name}: no table of contents at its end")
    table = backend.read(Area.PACKS, name, start, count * _ROW.size)
    if _table_checksum(header, table) != checksum or checksum.hex() != name:
        raise Damaged(f"pack {name}: its table of contents is not what was written")
    version = _HEADER.unpack(header)[1]
    if version != VERSION:
        raise UnsupportedFormat(f"pack {name}: format {version}, this Turnkeep reads {VERSION}; upgrade")
    rows = [Located(offset, BlobHeader.unpack(blob)) for offset, blob in _ROW.iter_unpack(table)]
    position = _HEADER.size
    for row in rows:
        if row.offset != position:
            raise Damaged(f"pack {name}: blobs do not follow one another")
        position += _BLOB.size + row.header.stored_length
    if position != start:
        raise Damaged(f"pack {name}: {start - position} bytes belong to no blob")
    return rows


def scan(backend: Backend, name: str, size: int) -> Iterator[Located]:
    """Yield the sound blobs of a pack whose table of contents is damaged.

    Stops where the way from one blob to the next is lost.
    """
    position = _HEADER.size
    while position + _BLOB.size <= size:
        try:
            header = BlobHeader.unpack(backend.read(Area.PACKS, name, position, _BLOB.size))
        except (Damaged, struct.error):
            return
        if position + _BLOB.size + header.stored_length > size:
            return
        try:
            header.verify(backend.read(Area.PACKS, name, position + _BLOB.size, header.stored_length))
        except Damaged:
            pass
        else:
            yield Located(position, header)
        position += _BLOB.size + header.stored_length


def read_stored(backend: Backend, name: str, row: Located) -> bytes:
    """Return a blob as it is stored, after its checksum was verified.

    Raises:
        Damaged: the pack does not hold this blob there.
        FileNotFoundError: the pack is gone.
    """
    header, stored = _record(backend, name, row.offset, row.header.id, row.header.stored_length)
    if header != row.header:
        raise Damaged(f"pack {name}, offset {row.offset}: blob and table of contents disagree")
    return stored


def read_blob(backend: Backend, name: str, offset: int, blob: BlobId, stored_length: int) -> bytes:
    """Return a blob's bytes, verified against its id. Raises as `read_stored`."""
    header, stored = _record(backend, name, offset, blob, stored_length)
    return _open(header, stored)


def _record(
    backend: Backend, name: str, offset: int, blob: BlobId, stored_length: int
) -> tuple[BlobHeader, bytes]:
    record = backend.read(Area.PACKS, name, offset, _BLOB.size + stored_length)
    try:
        if len(record) != _BLOB.size + stored_length:
            raise Damaged("cut short")
        header = BlobHeader.unpack(record[: _BLOB.size])
        if header.id != blob:
            raise Damaged("another blob stands there")
        stored = record[_BLOB.size :]
        header.verify(stored)
    except Damaged as error:
        raise Damaged(f"blob {blob.hex()} in pack {name} at {offset}: {error}") from error
    return header, stored


def _open(header: BlobHeader, stored: bytes) -> bytes:
    data = decompress(header.codec, stored, header.raw_length)
    if blob_id(data) != header.id:
        raise Damaged(f"blob {header.id.hex()}: its bytes have another hash")
    return data


def _checksum(fields: bytes, stored: Bytes) -> bytes:
    hasher = blake3(fields)
    hasher.update(stored)
    return hasher.digest(length=_CHECKSUM_BYTES)


def _table_checksum(header: bytes, table: bytes) -> bytes:
    return blake3(header + table).digest()
