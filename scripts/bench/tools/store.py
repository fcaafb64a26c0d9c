"""Turnkeep's store as a tool: the library alone, in a program of its own, without a daemon.

Run as a program this is that program: `keep REPOSITORY TREE` prints the snapshot's id,
`bring REPOSITORY SNAPSHOT TARGET` writes it into an empty folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from turnkeep_store import Repository
from turnkeep_store.archiver import Upsert, archive
from turnkeep_store.beneath import O_PATH_NOFOLLOW
from turnkeep_store.ids import SnapshotId
from turnkeep_store.keys import MasterKey
from turnkeep_store.nodes import entry_of, read_segments
from turnkeep_store.synchroniser import synchronise
from turnkeep_store.tree import Entry, NodeType

from bench.tools.base import call

_SMALL_BYTES = 1024 * 1024
"""The kernel reads ahead in longer files by itself."""

_KEY = "TURNKEEP_BENCH_KEY"
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Store:
    """`turnkeep_store`, called as a library."""

    key, title, program, in_place = "store", "turnkeep_store", "", True
    master: MasterKey | None = None

    def prepare(self, folder: Path) -> None:
        self._repository = folder / "repository"
        self._ids: dict[str, str] = {}
        Repository.create(self._repository, master=self.master).close()

    def keep(self, tree: Path, name: str) -> None:
        self._ids[name] = self._call("keep", str(tree)).strip()

    def bring(self, name: str, target: Path) -> None:
        self._call("bring", self._ids[name], str(target))

    def stored_folder(self) -> Path:
        return self._repository

    def _call(self, verb: str, *words: str) -> str:
        path = str(Path(__file__).parents[2])
        inherited = os.environ.get("PYTHONPATH")
        environment = {"PYTHONPATH": f"{path}:{inherited}" if inherited else path}
        if self.master is not None:
            environment[_KEY] = str(self.master)
        program = [sys.executable, "-m", "bench.tools.store", verb, str(self._repository), *words]
        return call(program, environment=environment)


class EncryptedStore(Store):
    """The same, encrypted, as restic does by itself."""

    key, title = "sealed", "turnkeep_store, encrypted"
    master = MasterKey.new()


def keep(repository: Repository, tree: bytes) -> str:
    """Store a folder as it is, and return the snapshot's id. It is durable then."""
    with repository.lease("bench") as lease:
        writer = repository.writer(lease)
        archived = archive(writer, repository, None, _changes(tree))
        made = repository.commit(writer, tree=archived.tree, digest=archived.digest, metadata={})
    return made.id


def bring(repository: Repository, name: str, target: bytes) -> None:
    """Write a snapshot into a folder. It is on the disk then."""
    found = repository.snapshot(SnapshotId(name))
    root = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        synchronise(root, repository, found.tree)
    finally:
        os.close(root)


def _changes(root: bytes) -> Iterator[Upsert]:
    """Yield all that is below a folder, as if all of it were new."""
    first_names: dict[tuple[int, int], bytes] = {}
    pending = [b""]
    while pending:
        folder = pending.pop()
        for found in sorted(os.scandir(os.path.join(root, folder)), key=lambda each: each.name):
            path = os.path.join(folder, found.name)
            yield _upsert(root, path, first_names)
            if found.is_dir(follow_symlinks=False):
                pending.append(path)


def _upsert(root: bytes, path: bytes, first_names: dict[tuple[int, int], bytes]) -> Upsert:
    full = os.path.join(root, path)
    fd = os.open(full, O_PATH_NOFOLLOW)
    try:
        entry = entry_of(fd, os.path.basename(path))
        status = os.fstat(fd)
    finally:
        os.close(fd)
    if entry.type is not NodeType.FILE:
        return Upsert(path, entry)
    if status.st_nlink > 1:
        first = first_names.setdefault((status.st_dev, status.st_ino), path)
        if first != path:
            return Upsert(path, Entry(name=entry.name, type=NodeType.HARDLINK, target=first))
    if entry.size <= _SMALL_BYTES:
        _read_ahead(full)
    return Upsert(path, entry, partial(_segments, full, entry.size))


def _read_ahead(path: bytes) -> None:
    """Have the kernel read a file while others are being stored."""
    fd = os.open(path, _READ)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
    finally:
        os.close(fd)


def _segments(path: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    fd = os.open(path, _READ)
    try:
        yield from read_segments(fd, size)
    finally:
        os.close(fd)


def main(arguments: list[str]) -> int:
    """Be the program that the module's docstring describes."""
    verb, path, *words = arguments
    master = MasterKey.parse(os.environ[_KEY]) if _KEY in os.environ else None
    with Repository.open(path, master=master) as repository:
        if verb == "keep":
            print(keep(repository, os.fsencode(words[0])))
        else:
            bring(repository, words[0], os.fsencode(words[1]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
