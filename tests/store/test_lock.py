"""One process at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from turnkeep_store.errors import RepositoryExists, RepositoryLocked, RepositoryNotFound, UnsupportedFormat
from turnkeep_store.repository import Repository

from .trees import commit

HOLD = """
import sys
from turnkeep_store.repository import Repository
repo = Repository.open(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


def test_second_process_is_refused_and_death_frees(tmp_path: Path) -> None:
    home = tmp_path / "repo"
    Repository.create(home).close()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(RepositoryLocked, match=f"process {holder.pid}"):
            Repository.open(home)
        with pytest.raises(RepositoryLocked):
            Repository.create(home)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with Repository.open(home) as repo:
        commit(repo, {b"a": b"b"})


def test_second_open_in_one_process_is_refused(tmp_path: Path) -> None:
    with (
        Repository.create(tmp_path / "repo"),
        pytest.raises(RepositoryLocked, match=f"process {os.getpid()}"),
    ):
        Repository.open(tmp_path / "repo")
    Repository.open(tmp_path / "repo").close()


def test_failed_open_frees_the_lock(tmp_path: Path) -> None:
    home = tmp_path / "repo"
    Repository.create(home).close()
    config = home / "config" / "repository"
    data = config.read_bytes()
    config.write_bytes(_of_version(3, data))
    with pytest.raises(UnsupportedFormat):
        Repository.open(home)
    config.write_bytes(data)
    Repository.open(home).close()


def _of_version(version: int, data: bytes) -> bytes:
    from blake3 import blake3

    bare = data[:8] + version.to_bytes(4, "little") + data[12:28]
    return bare + blake3(bare).digest()


def test_where_there_is_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "file" / "below"):
        (tmp_path / "file").touch()
        with pytest.raises(RepositoryNotFound):
            Repository.open(path)


def test_create_refuses_what_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryExists):
        Repository.create(tmp_path)
    Repository.create(tmp_path / "repo").close()
    with pytest.raises(RepositoryExists):
        Repository.create(tmp_path / "repo")


def test_create_after_a_crash_in_the_middle(tmp_path: Path) -> None:
    home = tmp_path / "repo"
    (home / "config").mkdir(parents=True)
    (home / "config" / "tmp-0123").touch()
    with Repository.open_or_create(home) as repo:
        commit(repo, {b"a": b"b"})
    assert not list(home.rglob("tmp-*"))


def test_modes_keep_others_out(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with Repository.create(tmp_path / "repo") as repo:
            commit(repo, {b"a": b"b"})
            for path in [tmp_path / "repo", *(tmp_path / "repo").rglob("*")]:
                assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    finally:
        os.umask(old)
