"""The kernel's events, handles and limits, as they are understood."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from turnkeep.watch import fanotify
from turnkeep.watch.overlay_events import why_not_seen

HANDLE = struct.pack("=Ii", 8, 1) + (1234).to_bytes(4, "little") + b"abcd"


def record(kind: int, handle: bytes, name: bytes | None = None) -> bytes:
    """Return a record of an event, as the kernel makes it."""
    body = b"fsid-of8" + handle + (b"" if name is None else name + b"\0")
    body += b"\0" * (-len(body) % 4)
    return struct.pack("=BBH", kind, 0, 4 + len(body)) + body


def event(mask: int, *records: bytes, version: int = 3) -> bytes:
    """Return an event, as the kernel makes it."""
    body = b"".join(records)
    return struct.pack("=IBBHQii", 24 + len(body), version, 0, 24, mask, -1, 77) + body


def test_events_are_parsed() -> None:
    other = HANDLE[:-1] + b"x"
    data = b"".join(
        [
            event(fanotify.MODIFY, record(2, HANDLE, b"name"), record(1, other)),
            event(fanotify.OVERFLOW),
            event(fanotify.ATTRIB, record(1, other)),
            event(fanotify.ATTRIB | fanotify.ON_FOLDER, record(3, HANDLE)),
            event(fanotify.CREATE, record(9, HANDLE), record(2, HANDLE, b"n" * 255), record(1, b"\0" * 8)),
        ]
    )
    assert fanotify.parse(data) == [
        (fanotify.MODIFY, HANDLE, b"name", other),
        (fanotify.OVERFLOW, b"", b"", b""),
        (fanotify.ATTRIB, b"", b"", other),
        (fanotify.ATTRIB | fanotify.ON_FOLDER, HANDLE, b".", b""),
        (fanotify.CREATE, HANDLE, b"n" * 255, b"\0" * 8),
    ]
    assert fanotify.parse(b"") == []


def test_another_version_is_refused() -> None:
    with pytest.raises(OSError, match="version 4"):
        fanotify.parse(event(fanotify.MODIFY, version=4))


@pytest.mark.parametrize(
    ("kind", "body", "inode"),
    [
        (1, struct.pack("=II", 1234, 9), 1234),
        (0x81, struct.pack("=QI", 1 << 40, 9), 1 << 40),
        (0x4D, struct.pack("=QQI", 257, 5, 9), 257),
        (1, struct.pack("=III", 9, 1234, 0), None),
        (0x42, b"whatever", None),
    ],
    ids=["ext4", "xfs", "btrfs", "tmpfs", "unknown"],
)
def test_inode_numbers_of_handles(kind: int, body: bytes, inode: int | None) -> None:
    assert fanotify.inode_of(struct.pack("=Ii", len(body), kind) + body) == inode


@pytest.fixture
def group(disk: Path) -> Iterator[int]:
    group = fanotify.open_group()
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECTORY)
    fanotify.mark_file_system(group, fd)
    yield group
    os.close(fd)
    os.close(group)


def handle_of(path: Path) -> bytes:
    fd = os.open(path, os.O_PATH)
    try:
        return fanotify.handle_of(fd)
    finally:
        os.close(fd)


def test_what_the_kernel_reports(disk: Path, group: int) -> None:
    (disk / "file").write_bytes(b"content")
    seen: dict[bytes, int] = {}
    for each in fanotify.parse(os.read(group, 65536)):
        if each.folder == handle_of(disk) and each.file == handle_of(disk / "file"):
            seen[each.name] = seen.get(each.name, 0) | each.mask
    wanted = fanotify.CREATE | fanotify.MODIFY | fanotify.CLOSE_WRITE
    assert seen == {b"file": wanted}


def test_handles_of_what_is_there_and_gone(disk: Path) -> None:
    folder = disk / "folder"
    folder.mkdir()
    mount = os.open(disk, os.O_RDONLY | os.O_DIRECTORY)
    handle = handle_of(folder)
    fd = fanotify.open_handle(mount, handle)
    assert os.path.samestat(os.fstat(fd), folder.stat())
    os.close(fd)
    assert fanotify.inode_of(handle) in (folder.stat().st_ino, None)
    folder.rmdir()
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        fanotify.open_handle(mount, handle)
    os.close(mount)


def test_trying_it_out_leaves_nothing(disk: Path) -> None:
    scratch = disk / "scratch"
    assert why_not_seen(str(scratch)) == ""
    assert os.listdir(scratch) == []
