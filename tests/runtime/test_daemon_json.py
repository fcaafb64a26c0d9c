"""The engine's configuration file: changed by our entry alone, or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from turnkeep.errors import Conflict, InvalidRequest, TurnkeepError
from turnkeep.runtime import replace
from turnkeep.runtime.daemon_json import BACKUP, add_runtime, remove_runtime, tidy

ENTRY = {"path": "/usr/local/lib/turnkeep/turnkeep-runtime"}
TEXT = """{
    "log-level": "warn",
    "storage-opts": ["x=1",   "y=2"],
    "limit": 1e3
}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "daemon.json"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def remove(path: Path) -> bool:
    changed = remove_runtime(path, "turnkeep", ENTRY)
    # Until the engine has read it, it says that there are none.
    assert read(path)["runtimes"] is not None
    tidy(path)
    return changed


def test_a_file_of_our_own_comes_and_goes(path: Path) -> None:
    assert add_runtime(path, "turnkeep", ENTRY) is True
    assert read(path) == {"runtimes": {"turnkeep": ENTRY}}
    assert path.stat().st_mode & 0o777 == 0o644
    assert add_runtime(path, "turnkeep", ENTRY) is False
    assert remove(path) is True
    assert list(path.parent.iterdir()) == []
    assert remove_runtime(path, "turnkeep", ENTRY) is False


@pytest.mark.parametrize(
    "text",
    [TEXT, "{}", "", " \n", '{"runtimes":{}}', '{"runtimes": {"a": {"path": "/a"}}, "z": [ ]}'],
    ids=repr,
)
def test_what_was_there_is_there_again(path: Path, text: str) -> None:
    write(path, text)
    assert add_runtime(path, "turnkeep", ENTRY) is True
    assert read(path)["runtimes"]["turnkeep"] == ENTRY
    assert path.with_name(path.name + BACKUP).read_text() == text
    assert remove(path) is True
    assert path.read_text() == text
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_only_our_entry_is_added(path: Path) -> None:
    write(path, TEXT)
    add_runtime(path, "turnkeep", ENTRY)
    kept = TEXT.rstrip().removesuffix("}").rstrip()
    assert path.read_text().startswith(kept + ',\n    "runtimes": {\n        "turnkeep": {')


def test_others_changes_meanwhile_are_kept(path: Path) -> None:
    write(path, TEXT)
    add_runtime(path, "turnkeep", ENTRY)
    path.write_text(path.read_text().replace('"warn"', '"debug"'))
    remove(path)
    assert path.read_text() == TEXT.replace('"warn"', '"debug"')


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "5",
        '{"debug": true,}',
        '{"runtimes": []}',
        '{"runtimes": {"a": "/path"}}',
        '{"runtimes": {}, "runtimes": {}}',
        '{"Runtimes": {}}',
        "\ufeff{}",
    ],
)
def test_damaged_files_are_not_touched(path: Path, text: str) -> None:
    write(path, text)
    before = path.stat()
    for change in (add_runtime, remove_runtime):
        with pytest.raises(InvalidRequest):
            change(path, "turnkeep", ENTRY)
    assert (path.read_text(), path.stat().st_mtime_ns) == (text, before.st_mtime_ns)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_bytes_that_are_no_text_are_not_touched(path: Path) -> None:
    write(path, "")
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InvalidRequest):
        add_runtime(path, "turnkeep", ENTRY)


@pytest.mark.parametrize("entry", [{"path": "/elsewhere"}, {**ENTRY, "runtimeArgs": ["--debug"]}])
def test_anothers_entry_is_not_touched(path: Path, entry: dict[str, Any]) -> None:
    text = json.dumps({"runtimes": {"turnkeep": entry}})
    write(path, text)
    for change in (add_runtime, remove_runtime):
        with pytest.raises(Conflict):
            change(path, "turnkeep", ENTRY)
    assert path.read_text() == text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_owner_and_mode_stay(path: Path) -> None:
    write(path, TEXT)
    os.chown(path, 12, 34)
    path.chmod(0o640)
    for change in (add_runtime, remove_runtime):
        change(path, "turnkeep", ENTRY)
        status = path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (12, 34, 0o640)


def test_a_symlink_is_followed(path: Path, tmp_path: Path) -> None:
    target = write(tmp_path / "real" / "docker.json", TEXT)
    path.parent.mkdir()
    path.symlink_to("../real/docker.json")
    add_runtime(path, "turnkeep", ENTRY)
    assert path.is_symlink()
    assert "runtimes" in read(target)
    remove(path)
    assert path.is_symlink()
    assert target.read_text() == TEXT


def test_a_full_disk_leaves_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, TEXT)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("turnkeep_store.durable.OsFile.sync", full)
    with pytest.raises(TurnkeepError, match="No space left"):
        add_runtime(path, "turnkeep", ENTRY)
    assert path.read_text() == TEXT
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_synced_leaves_a_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, TEXT)

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("turnkeep_store.durable.OsDisk.sync_directory", fails)
    with pytest.raises(TurnkeepError, match="Input/output"):
        replace.replace_file(path, b"{}", expected=TEXT.encode())
    assert path.read_text() == "{}"


def test_a_change_meanwhile_is_noticed(path: Path) -> None:
    write(path, TEXT)
    with pytest.raises(Conflict, match="meanwhile"):
        replace.replace_file(path, b"{}", expected=b"another")
    with pytest.raises(Conflict, match="meanwhile"):
        replace.replace_file(path, b"{}", expected=None)
    assert path.read_text() == TEXT
