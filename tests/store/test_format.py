"""The format is what docs/format.md says.

`PageReader` is written from that page alone and shares no code with the store.
"""

from __future__ import annotations

import hmac
import json
import shutil
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from turnkeep_store.backend_memory import MemoryBackend
from turnkeep_store.check import check
from turnkeep_store.codec import Codec
from turnkeep_store.errors import UnsupportedFormat
from turnkeep_store.ids import blob_id
from turnkeep_store.kinds import BlobKind
from turnkeep_store.pack import BlobHeader, PackWriter
from turnkeep_store.repository import Repository

from .golden_tree import GOLDEN_KEY, METADATA, PARENT, SPARSE, SPARSE_SIZE, TEXT, commit_golden
from .trees import SMALL, get_tree

GOLDEN = Path(__file__).parent / "golden" / "v1"
ENCRYPTED = GOLDEN.with_name("v2")
FILES = {b"text": TEXT}


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


class PageReader:
    """Reads a repository as docs/format.md describes it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        config = (home / "config" / "repository").read_bytes()
        assert len(config) == 60
        assert config[:8] == b"TURNREPO"
        assert _number(config[8:12]) in (1, 2)
        assert config[28:] == blake3(config[:28]).digest()
        self.id = config[12:28].hex()
        self.blobs: dict[bytes, tuple[int, bytes]] = {}
        for path in (home / "packs").iterdir():
            if len(path.name) == 64:
                self._pack(path.name, path.read_bytes())

    def _pack(self, name: str, data: bytes) -> None:
        assert data[:8] == b"TURNPACK"
        assert _number(data[8:12]) == 1
        trailer = data[-44:]
        assert trailer[36:] == b"KCAPNRUT"
        count = _number(trailer[:4])
        table = data[len(data) - 44 - 68 * count : -44]
        assert trailer[4:36] == blake3(data[:28] + table).digest()
        assert trailer[4:36].hex() == name
        position = 28
        for row in range(0, len(table), 68):
            assert _number(table[row : row + 8]) == position
            header = table[row + 8 : row + 68]
            assert data[position : position + 60] == header
            kind, codec, zero = header[0], header[1], header[2:4]
            length, stored_length = _number(header[4:8]), _number(header[8:12])
            stored = data[position + 60 : position + 60 + stored_length]
            assert zero == b"\0\0"
            assert header[44:] == blake3(header[:44] + stored).digest()[:16]
            content = zstandard.decompress(stored) if codec == 1 else stored
            assert len(content) == length
            assert blake3(content).digest() == header[12:44]
            self.blobs[header[12:44]] = (kind, content)
            position += 60 + stored_length
        assert position == len(data) - 44 - len(table)

    def records(self) -> dict[str, dict[str, Any]]:
        found = {}
        for path in (self.home / "snapshots").iterdir():
            data = path.read_bytes()
            assert blake3(data).hexdigest() == path.name
            assert data[:8] == b"TURNSNAP"
            assert _number(data[8:12]) == 1
            text = data[121:]
            assert len(text) == _number(data[117:121])
            found[path.name] = {
                "tree": data[12:44],
                "digest": data[44:76],
                "created_ns": int.from_bytes(data[76:84], "little", signed=True),
                "parent": data[85:117].hex() if data[84] else None,
                "metadata": json.loads(text),
            }
        return found

    def directory(self, tree: bytes) -> list[list[Any]]:
        kind, data = self.blobs[tree]
        assert kind == 2
        rows: list[list[Any]] = msgpack.unpackb(data)
        assert msgpack.packb(rows) == data
        assert [row[0] for row in rows] == sorted({row[0] for row in rows})
        assert {len(row) for row in rows} <= {13}
        return rows

    def digest(self, tree: bytes) -> bytes:
        rows = self.directory(tree)
        for row in rows:
            if row[1] == 2:
                assert self.digest(row[11]) == row[12]
                row[5], row[11] = 0, None
        return bytes(blake3(msgpack.packb(rows)).digest())

    def content(self, extents: list[Any]) -> bytes:
        parts = []
        for kind, length, blob in extents:
            if kind == 0:
                part = bytes(length)
            else:
                blob_kind, part = self.blobs[blob]
                assert blob_kind == {1: 1, 2: 3}[kind]
                if kind == 2:
                    part = self.content(msgpack.unpackb(part))
            assert len(part) == length > 0
            parts.append(part)
        return b"".join(parts)


def _sparse() -> bytes:
    content = bytearray(SPARSE_SIZE)
    for offset, data in SPARSE.items():
        content[offset : offset + len(data)] = data
    return bytes(content)


def _verify_by_page(home: Path) -> None:
    reader = PageReader(home)
    ((_, record),) = reader.records().items()
    assert record["metadata"] == METADATA
    assert record["parent"] == PARENT
    assert record["digest"] == reader.digest(record["tree"])
    rows = {row[0]: row for row in reader.directory(record["tree"])}
    folder, sparse, text = rows[b"folder"], rows[b"sparse \xfe"], rows[b"text"]
    assert folder[1:11] == [2, 0o755, 0, 0, -1, 0, 0, [], b"", []]
    assert sparse[1:9] == [1, 0o4755, 1000, 2**32 - 1, 1_700_000_000_123_456_789, SPARSE_SIZE, 0, []]
    assert [kind for kind, _, _ in sparse[10]] == [2]
    assert reader.content(sparse[10]) == _sparse()
    assert text[8] == [[b"user.a", b"\0\1"]]
    assert reader.content(text[10]) == TEXT
    below = {row[0]: row[1:] for row in reader.directory(folder[11])}
    assert {name: row[0] for name, row in below.items()} == {
        b"fifo": 4,
        b"gone": 9,
        b"hard": 8,
        b"link": 3,
        b"null": 5,
    }
    assert below[b"link"][8] == b"/nowhere/\xff"
    assert below[b"hard"][8] == b"text"
    assert below[b"null"][6] == 0x103


def test_golden_repository_reads_as_the_page_says() -> None:
    _verify_by_page(GOLDEN)


def test_what_is_written_today_reads_as_the_page_says(tmp_path: Path) -> None:
    with Repository.create(tmp_path / "repo", options=SMALL) as repo:
        commit_golden(repo)
    _verify_by_page(tmp_path / "repo")


def _hkdf(key: bytes, salt: bytes, information: bytes) -> bytes:
    """32 bytes by HKDF-SHA256, as RFC 5869 has it."""
    extracted = hmac.digest(salt, key, "sha256")
    return hmac.digest(extracted, information + b"\1", "sha256")


def _decrypt(home: Path, master: bytes, plain: Path) -> None:
    """Write the contents of an encrypted repository as the page describes it."""
    shutil.copytree(home / "config", plain / "config")
    repository = (home / "config" / "repository").read_bytes()
    assert _number(repository[8:12]) == 2
    keys = (home / "config" / "keys").read_bytes()
    assert keys[:12] == b"TURNKEYS" + bytes.fromhex("01000000")
    wanted = blake3(master, derive_key_context="turnkeep 2026 master key id").digest()[:8]
    assert keys[12:20] == wanted
    rows = AESGCM(master).decrypt(keys[20:32], keys[32:], keys[:32] + repository[12:28])
    ring = {rows[at : at + 16]: rows[at + 24 : at + 56] for at in range(0, len(rows), 56)}
    for path in (*(home / "packs").iterdir(), *(home / "snapshots").iterdir()):
        data = path.read_bytes()
        header, body = data[:60], data[60:]
        assert header[:12] == b"TURNSEAL" + bytes.fromhex("01000000")
        cipher = AESGCM(_hkdf(ring[header[12:28]], header[28:], b"turnkeep file"))
        stream = b""
        for number, at in enumerate(range(0, len(body), 16400)):
            last = at + 16400 >= len(body)
            nonce = number.to_bytes(8, "little") + bytes([0, 0, 0, last])
            stream += cipher.decrypt(nonce, body[at : at + 16400], header)
        length = _number(stream[-8:])
        assert stream[length:-8] == bytes(len(stream) - length - 8)
        exponent = len(stream).bit_length() - 1
        assert len(stream) % (1 << exponent - exponent.bit_length()) == 0
        (plain / path.parent.name).mkdir(exist_ok=True)
        (plain / path.parent.name / path.name).write_bytes(stream[:length])


def test_golden_encrypted_repository_reads_as_the_page_says(tmp_path: Path) -> None:
    _decrypt(ENCRYPTED, GOLDEN_KEY.secret, tmp_path / "plain")
    _verify_by_page(tmp_path / "plain")


def test_what_is_encrypted_today_reads_as_the_page_says(tmp_path: Path) -> None:
    with Repository.create(tmp_path / "repo", options=SMALL, master=GOLDEN_KEY) as repo:
        commit_golden(repo)
    _decrypt(tmp_path / "repo", GOLDEN_KEY.secret, tmp_path / "plain")
    _verify_by_page(tmp_path / "plain")


@pytest.mark.parametrize("version", [3, 2**32 - 1])
def test_a_newer_version_is_refused(tmp_path: Path, version: int) -> None:
    shutil.copytree(GOLDEN, tmp_path / "repo")
    config = tmp_path / "repo" / "config" / "repository"
    data = config.read_bytes()[:28]
    data = data[:8] + version.to_bytes(4, "little") + data[12:]
    config.write_bytes(data + blake3(data).digest())
    with pytest.raises(UnsupportedFormat, match=f"format {version}, this Turnkeep knows 2; upgrade"):
        Repository.open(tmp_path / "repo")


@pytest.mark.parametrize("encrypted", [False, True])
def test_golden_repository_opens(tmp_path: Path, encrypted: bool) -> None:
    shutil.copytree(ENCRYPTED if encrypted else GOLDEN, tmp_path / "repo")
    with Repository.open(tmp_path / "repo", master=GOLDEN_KEY if encrypted else None) as repo:
        assert check(repo).ok
        (snapshot,) = repo.snapshots()
        assert (snapshot.metadata, snapshot.parent) == (METADATA, PARENT)
        assert get_tree(repo, snapshot.tree) == {b"text": TEXT, b"sparse \xfe": _sparse()}
        again = commit_golden(repo)
        assert (again.tree, again.digest) == (snapshot.tree, snapshot.digest)
        assert repo.size().packs == PACKS_IN_GOLDEN


PACKS_IN_GOLDEN = 1


def test_pack_bytes() -> None:
    """A pack of one blob, byte by byte."""
    backend = MemoryBackend()
    writer = PackWriter(backend, salt=bytes(range(16)))
    header = BlobHeader.of(blob_id(b"hello"), BlobKind.DATA, Codec.RAW, 5, b"hello")
    writer.append(header, b"hello")
    name = writer.finish()
    writer.publish(name)
    blob = bytes.fromhex("010000000500000005000000") + blake3(b"hello").digest()
    blob += blake3(blob + b"hello").digest(length=16)
    head = b"TURNPACK" + bytes.fromhex("01000000") + bytes(range(16))
    table = bytes.fromhex("1c00000000000000") + blob
    checksum = blake3(head + table).digest()
    (data,) = backend.files.values()
    assert data == head + blob + b"hello" + table + bytes.fromhex("01000000") + checksum + b"KCAPNRUT"
    assert name == checksum.hex()


@pytest.mark.parametrize("area", ["packs", "snapshots"])
def test_strangers_are_ignored(tmp_path: Path, area: str) -> None:
    shutil.copytree(GOLDEN, tmp_path / "repo")
    for name in ("README", "ab" * 31, "zz" * 32):
        (tmp_path / "repo" / area / name).write_bytes(b"no")
    with Repository.open(tmp_path / "repo") as repo:
        assert check(repo).ok
        assert len(repo.snapshots()) == 1
    assert (tmp_path / "repo" / area / "README").exists()
