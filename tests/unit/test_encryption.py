"""Where the key comes from, and exchanging keys of a whole state."""

from __future__ import annotations

import shlex
import sqlite3
import sys
from pathlib import Path

import pytest
from turnkeep import encryption
from turnkeep.config import Config
from turnkeep.errors import Conflict, InvalidRequest, StoreDamaged
from turnkeep.journal import Journal
from turnkeep_store.keys import MasterKey
from turnkeep_store.repository import Repository

from tests.store.trees import commit, get_tree

KEY = MasterKey.new()
FILES = {b"a": b"content " * 1000}


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def config(tmp_path: Path, key_file: Path) -> Config:
    """A state with a snapshot and an event."""
    made = Config(state_dir=str(tmp_path / "state"), encryption_key=f"file:{key_file}")
    made.state_path.mkdir()
    with Repository.create(made.store_path, master=KEY) as repo:
        commit(repo, FILES)
        with Journal(made.journal_path, encryption.journal_keys(repo.keyring)) as journal:
            journal.append("told", "a secret message")
    return made


def _all_there(config: Config) -> None:
    master = encryption.read_key(config.encryption_key)
    with Repository.open(config.store_path, master=master) as repo:
        (snapshot,) = repo.snapshots()
        assert get_tree(repo, snapshot.tree) == FILES
        with Journal(config.journal_path, encryption.journal_keys(repo.keyring)) as journal:
            assert [event.message for event in journal.events()] == ["a secret message"]
            assert journal.verify() == []


def test_a_key_of_a_file(key_file: Path) -> None:
    assert encryption.read_key(f"file:{key_file}") == KEY
    assert encryption.read_key("") is None
    key_file.chmod(0o640)
    with pytest.raises(InvalidRequest, match="read or written by others"):
        encryption.read_key(f"file:{key_file}")
    key_file.chmod(0o600)
    key_file.write_text("not a key")
    with pytest.raises(InvalidRequest, match="no key"):
        encryption.read_key(f"file:{key_file}")
    key_file.unlink()
    with pytest.raises(InvalidRequest, match="cannot be read"):
        encryption.read_key(f"file:{key_file}")


def test_a_key_that_systemd_hands_over(key_file: Path) -> None:
    environment = {"CREDENTIALS_DIRECTORY": str(key_file.parent)}
    assert encryption.read_key("credential:key", environment) == KEY
    for source, given in (
        ("credential:key", {}),
        ("credential:../key", environment),
        ("credential:x", environment),
    ):
        with pytest.raises(InvalidRequest):
            encryption.read_key(source, given)


def test_a_key_that_a_command_prints(key_file: Path, tmp_path: Path) -> None:
    assert encryption.read_key(f"command:cat {shlex.quote(str(key_file))}") == KEY
    script = f"{shlex.quote(sys.executable)} -c"
    for command in (f"{script} 'import sys; sys.exit(3)'", f"{script} pass", "/nonexistent", "'"):
        with pytest.raises(InvalidRequest):
            encryption.read_key(f"command:{command}")
    with pytest.raises(InvalidRequest, match="names no key"):
        encryption.read_key(str(key_file))


def test_the_journal_is_encrypted(config: Config) -> None:
    path = config.journal_path
    assert b"secret" not in path.read_bytes()
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(path).execute("SELECT * FROM events")
    with pytest.raises(StoreDamaged):
        Journal(path)
    _all_there(config)


def test_the_key_is_exchanged(config: Config, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text(str(MasterKey.new()))
    other.chmod(0o600)
    encryption.change(config, f"file:{other}")
    with pytest.raises(InvalidRequest):
        encryption.change(config, "")
    _all_there(Config(state_dir=config.state_dir, encryption_key=f"file:{other}"))


@pytest.mark.parametrize("rewrite", [False, True])
def test_data_keys_are_exchanged(config: Config, rewrite: bool) -> None:
    for _ in range(2):
        done = encryption.rotate(config, rewrite=rewrite, progress=lambda at, total: None)
        assert (done.resealed, done.dropped, done.damaged) == ((2, 1, ()) if rewrite else (0, 0, ()))
        _all_there(config)


def test_a_rotation_that_was_cut_off_is_repeated(config: Config) -> None:
    def stop(at: int, total: int) -> None:
        if at == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encryption.rotate(config, rewrite=True, progress=stop)
    _all_there(config)
    done = encryption.rotate(config, rewrite=True, progress=lambda at, total: None)
    assert (done.resealed, done.dropped) == (2, 2)
    _all_there(config)


def test_not_while_a_daemon_has_it(config: Config) -> None:
    with Repository.open(config.store_path, master=KEY), pytest.raises(Conflict):
        encryption.rotate(config, rewrite=False, progress=lambda at, total: None)


def test_where_there_is_nothing_to_exchange(tmp_path: Path, config: Config) -> None:
    nothing = Config(state_dir=str(tmp_path / "none"), encryption_key=config.encryption_key)
    plain = Config(state_dir=str(tmp_path / "plain"))
    plain.state_path.mkdir()
    Repository.create(plain.store_path).close()
    for each, said in ((nothing, "no state yet"), (plain, "not encrypted")):
        with pytest.raises(InvalidRequest, match=said):
            encryption.rotate(each, rewrite=True, progress=lambda at, total: None)
