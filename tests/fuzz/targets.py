"""What is fuzzed: everything that reads bytes which somebody else may have made.

A target is given any bytes. It fails if what reads them raises anything but its
documented errors, hangs, or takes what it read for something else when it is
written and read again.
"""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3
from turnkeep.config import load
from turnkeep.errors import BadImages, ImagesRefused, InvalidRequest, ResourceExhausted, StoreDamaged
from turnkeep.journal import Head, Journal
from turnkeep.process import archive
from turnkeep.process.images import open_images
from turnkeep.runtime.mountinfo import parse_mountinfo, split_layers
from turnkeep.watch import fanotify
from turnkeep_store import config as store_config
from turnkeep_store import pack, snapshot
from turnkeep_store.backend import Area
from turnkeep_store.backend_memory import MemoryBackend
from turnkeep_store.backend_sealed import SealedBackend
from turnkeep_store.codec import Codec, decompress
from turnkeep_store.errors import (
    BlobNotFound,
    Damaged,
    LimitExceeded,
    StoreError,
    UnsupportedFormat,
    WrongKey,
)
from turnkeep_store.ids import BlobId
from turnkeep_store.index import Index
from turnkeep_store.keys import DataKey, Keyring, MasterKey
from turnkeep_store.tree import Directory, decode_extents, encode_extents

Target = Callable[[bytes], None]

_MOST_RAW = 1 << 20


def fuzz_pack(data: bytes) -> None:
    """A pack as it lies there, and one whose seal fits its table of contents."""
    for name, content in ((_name_of(data), data), _sealed(data)):
        backend = MemoryBackend()
        backend.files[Area.PACKS, name] = content
        rows = []
        with contextlib.suppress(Damaged, UnsupportedFormat):
            rows = pack.read_contents(backend, name, len(content))
        for row in [*rows, *pack.scan(backend, name, len(content))]:
            if row.header.raw_length > _MOST_RAW:
                continue
            with contextlib.suppress(Damaged):
                pack.read_stored(backend, name, row)
            with contextlib.suppress(Damaged):
                pack.read_blob(backend, name, row.offset, row.header.id, row.header.stored_length)


def _name_of(data: bytes) -> str:
    return data[-40:-8].hex().ljust(64, "0")


def _sealed(data: bytes) -> tuple[str, bytes]:
    """Make a pack of any bytes that gets past its checksum: header, blobs, rows, trailer."""
    header = struct.pack("<8sI16s", b"TURNPACK", 1, bytes(16))
    row_bytes = 8 + pack.BLOB_HEADER_BYTES
    count = min(len(data) // row_bytes, 16)
    table, blobs = data[: count * row_bytes], data[count * row_bytes :]
    checksum = blake3(header + table).digest()
    trailer = struct.pack("<I32s8s", count, checksum, b"KCAPNRUT")
    return checksum.hex(), header + blobs + table + trailer


def fuzz_codec(data: bytes) -> None:
    """A compressed blob, of any claimed length."""
    length = int.from_bytes(data[:3], "little")
    for codec in Codec:
        with contextlib.suppress(Damaged):
            assert len(decompress(codec, data[3:], length)) == length


def fuzz_tree(data: bytes) -> None:
    """An encoded directory."""
    try:
        directory = Directory.decode(data)
        entries = list(directory)
    except (Damaged, LimitExceeded):
        return
    directory.digest()
    again = Directory({entry.name: entry for entry in entries})
    assert list(Directory.decode(again.encode())) == entries


def fuzz_extents(data: bytes) -> None:
    """A list of extents."""
    with contextlib.suppress(Damaged):
        extents = decode_extents(data)
        assert decode_extents(encode_extents(extents)) == extents


def fuzz_snapshot(data: bytes) -> None:
    """A snapshot's record, under its own name."""
    with contextlib.suppress(Damaged, UnsupportedFormat):
        snapshot.decode(snapshot.identify(data), data)


def fuzz_store_config(data: bytes) -> None:
    """The repository's own config."""
    with contextlib.suppress(Damaged, UnsupportedFormat):
        store_config.decode("/repository", data)


_MASTER = MasterKey(bytes(32))
_KEYRING = Keyring(bytes(16), (DataKey(b"k" * 16, 0, bytes(32)),))


def fuzz_sealed(data: bytes) -> None:
    """A file of an encrypted repository, as it lies there and with a header that fits: none gets through."""
    header = b"TURNSEAL" + struct.pack("<I", 1) + b"k" * 16 + bytes(32)
    for content in (data, header + data):
        inner = MemoryBackend()
        inner.files[Area.PACKS, "name"] = content
        backend = SealedBackend(inner, _KEYRING)
        ((_, length),) = backend.list(Area.PACKS)
        assert length <= len(content)
        for offset in (0, len(content) // 2):
            with contextlib.suppress(Damaged):
                assert backend.read(Area.PACKS, "name", offset, 100) == b""


def fuzz_keys(data: bytes) -> None:
    """The data keys of an encrypted repository."""
    for content in (data, b"TURNKEYS" + struct.pack("<I", 1) + _MASTER.id + data):
        with contextlib.suppress(Damaged, UnsupportedFormat, WrongKey):
            Keyring.unseal(content, _MASTER, bytes(16))
            raise AssertionError("nobody has the key")
    with contextlib.suppress(WrongKey):
        assert MasterKey.parse(str(MasterKey.parse(data))) == MasterKey.parse(data)


class _NoPacks:
    def sizes(self) -> dict[str, int]:
        return {}

    def contents(self, name: str, size: int) -> None:
        return None


def fuzz_index(data: bytes) -> None:
    """The index's file: it heals itself."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        path = os.path.join(folder, "index.sqlite")
        Path(path).write_bytes(data)
        with contextlib.suppress(StoreError):
            index = Index(path, _NoPacks())
            with contextlib.suppress(BlobNotFound):
                assert index.lookup(BlobId(bytes(32))) == []
            index.close()


def fuzz_journal(data: bytes) -> None:
    """The journal's file, and a head."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        path = Path(folder, "journal.sqlite")
        path.write_bytes(data)
        with contextlib.suppress(StoreDamaged, ResourceExhausted), Journal(path) as journal:
            journal.verify()
            journal.events()
    with contextlib.suppress(InvalidRequest):
        Head.parse(data.decode("utf-8", "replace"))


def fuzz_config(data: bytes) -> None:
    """A configuration file."""
    with tempfile.NamedTemporaryFile(dir=_memory()) as file:
        file.write(data)
        file.flush()
        with contextlib.suppress(InvalidRequest):
            load(file.name, {})


def fuzz_mountinfo(data: bytes) -> None:
    """What /proc says of a sandbox's mounts."""
    for mount in parse_mountinfo(data):
        mount.super_option(b"lowerdir")
        split_layers(mount.source)


def fuzz_fanotify(data: bytes) -> None:
    """Events of the kernel."""
    with contextlib.suppress(OSError):
        for event in fanotify.parse(data):
            assert len(event.name) <= len(data)


def fuzz_process_images(data: bytes) -> None:
    """What CRIU wrote of a process that can be anybody's: an image's kind by its number, and content."""
    kinds = (
        "inventory",
        "pstree",
        "core-1",
        "mm-1",
        "ids-1",
        "fdinfo-2",
        "files",
        "pagemap-1",
        "fs-1",
        "tty-info",
    )
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        for number, part in enumerate(data.split(b"\xff\xfe\xfd")[:8]):
            kind = kinds[part[0] % len(kinds)] if part else kinds[number]
            Path(folder, f"{kind}.img").write_bytes(part[1:])
        with contextlib.suppress(BadImages, ImagesRefused):
            open_images(folder).tasks()
    with contextlib.suppress(ValueError, struct.error):
        archive.read_pagemap(data)


def _memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


TARGETS: dict[str, Target] = {
    name.removeprefix("fuzz_"): target for name, target in list(globals().items()) if name.startswith("fuzz_")
}
"""Everything that is fuzzed, by name."""
