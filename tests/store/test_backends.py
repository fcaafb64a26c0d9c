"""What every backend has to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from turnkeep_store.backend import Area, Backend, save
from turnkeep_store.backend_local import LocalBackend
from turnkeep_store.backend_memory import MemoryBackend
from turnkeep_store.backend_sealed import SealedBackend
from turnkeep_store.durable import OsDisk, write_file_durably
from turnkeep_store.keys import Keyring

from .disks import FaultyDisk, PowerCutDisk


@pytest.fixture(params=["memory", "local", "faulty", "power cut", "sealed"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "memory":
        return MemoryBackend()
    if request.param == "sealed":
        return SealedBackend(MemoryBackend(), Keyring.new(bytes(16)))
    disk = {"local": OsDisk, "faulty": FaultyDisk, "power cut": PowerCutDisk}[request.param]()
    local = LocalBackend(str(tmp_path / "repo"), disk)
    local.make_folders()
    return local


def test_published_files_are_listed_and_read(backend: Backend) -> None:
    save(backend, Area.PACKS, "one", b"abcdef")
    save(backend, Area.SNAPSHOTS, "two", b"")
    assert backend.list(Area.PACKS) == [("one", 6)]
    assert backend.list(Area.SNAPSHOTS) == [("two", 0)]
    assert backend.read(Area.PACKS, "one", 0, 6) == b"abcdef"
    assert backend.read(Area.PACKS, "one", 2, 2) == b"cd"


def test_reading_stops_at_the_end(backend: Backend) -> None:
    save(backend, Area.PACKS, "one", b"abcdef")
    assert backend.read(Area.PACKS, "one", 4, 100) == b"ef"
    assert backend.read(Area.PACKS, "one", 6, 1) == b""
    assert backend.read(Area.PACKS, "one", 100, 1) == b""


def test_what_is_not_published_is_not_seen(backend: Backend) -> None:
    file = backend.create(Area.PACKS)
    file.write(b"abc")
    file.write(memoryview(b"def"))
    assert file.size == 6
    assert file.read(1, 4) == b"bcde"
    assert backend.list(Area.PACKS) == []
    file.publish("one")
    file.discard()
    assert backend.list(Area.PACKS) == [("one", 6)]


def test_discarded_files_leave_nothing(backend: Backend) -> None:
    file = backend.create(Area.PACKS)
    file.write(b"abc")
    file.discard()
    file.discard()
    assert backend.list(Area.PACKS) == []
    assert backend.remove_leftovers() == 0


def test_two_files_at_once(backend: Backend) -> None:
    one, two = backend.create(Area.PACKS), backend.create(Area.PACKS)
    one.write(b"1")
    two.write(b"22")
    two.publish("two")
    one.publish("one")
    assert sorted(backend.list(Area.PACKS)) == [("one", 1), ("two", 2)]


def test_a_name_can_be_published_again(backend: Backend) -> None:
    save(backend, Area.PACKS, "one", b"old")
    save(backend, Area.PACKS, "one", b"newer")
    assert backend.read(Area.PACKS, "one", 0, 10) == b"newer"


def test_what_is_set_aside_is_kept(backend: Backend) -> None:
    save(backend, Area.PACKS, "one", b"abcdef")
    assert backend.size(Area.PACKS, "one") == 6
    backend.set_aside(Area.PACKS, "one")
    assert backend.list(Area.PACKS) == [("one.damaged", 6)]
    assert backend.read(Area.PACKS, "one.damaged", 0, 9) == b"abcdef"
    for call in (backend.size, backend.set_aside):
        with pytest.raises(FileNotFoundError):
            call(Area.PACKS, "one")


def test_missing_files(backend: Backend) -> None:
    with pytest.raises(FileNotFoundError):
        backend.read(Area.PACKS, "none", 0, 1)
    backend.delete(Area.PACKS, ["none"])


def test_deleting(backend: Backend) -> None:
    for name in ("one", "two", "three"):
        save(backend, Area.PACKS, name, b"x")
    backend.delete(Area.PACKS, ["one", "none", "two"])
    assert backend.list(Area.PACKS) == [("three", 1)]
    with pytest.raises(FileNotFoundError):
        backend.read(Area.PACKS, "one", 0, 1)


def test_leftovers_go(backend: Backend) -> None:
    backend.create(Area.PACKS).write(b"x" * 1000)
    save(backend, Area.PACKS, "one", b"x")
    backend.remove_leftovers()
    assert backend.list(Area.PACKS) == [("one", 1)]
    assert backend.remove_leftovers() == 0


def test_a_file_whose_source_fails_leaves_nothing(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"first"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file_durably(OsDisk(), str(tmp_path), "file", chunks())
    assert list(tmp_path.iterdir()) == []
    write_file_durably(OsDisk(), str(tmp_path), "file", [b"a", bytearray(b"b"), memoryview(b"c")])
    assert (tmp_path / "file").read_bytes() == b"abc"
