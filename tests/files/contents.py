"""What a sandbox may hold: functions that fill a root file system with all that is hard to bring back."""

from __future__ import annotations

import os
import random
import stat
import struct
from collections.abc import Callable
from pathlib import Path

MIB = 1024 * 1024
SECOND = 10**9

Fill = Callable[[Path], None]

DEEP_LEVELS = 1200
DEEP_NAME = "level-with-a-name"
WIDE_NAMES = 5000
"""With names of more than 200 bytes each: the folder's record is larger than any buffer."""

_NOISE = random.Random(7).randbytes(MIB)


def names(root: Path) -> None:
    base = os.fsencode(root)
    for name in (
        b"\xff\xfe not UTF-8",
        b"new\nline",
        b"n" * 255,
        "\U0001f600".encode(),
        b"-rf *",
        b" ",
        b"\\x41",
        b"%2f",
    ):
        with open(os.path.join(base, name), "wb") as file:
            file.write(name)
        os.mkdir(os.path.join(base, name[:200] + b"\x01"))


def sparse_files(root: Path) -> None:
    """Holes at the beginning, in the middle, at the end, and nothing else."""
    for name, size, offsets in (
        ("begin", 5 * MIB, [4 * MIB]),
        ("middle", 3 * MIB, [0, 2 * MIB]),
        ("end", 3 * MIB, [0]),
        ("all", 100 * MIB, []),
        ("odd", 7 * MIB + 13, [4096 * 3, 130 * 4096, 7 * MIB]),
        ("page", 1 * MIB, [5 * 4096]),
    ):
        with open(root / name, "wb") as file:
            file.truncate(size)
            for offset in offsets:
                file.seek(offset)
                file.write(b"data" * 3)


def large_file(root: Path) -> None:
    with open(root / "large", "wb") as file:
        for number in range(70):
            if number not in (20, 21, 50):
                file.seek(number * MIB)
                file.write(number.to_bytes(4, "big") + _NOISE[4:])


def symlinks(root: Path) -> None:
    for number, text in enumerate(("dangling", "/etc/passwd", "../" * 50, "t" * 4095, "\udcff", ".")):
        os.symlink(text, root / f"link{number}")
        os.utime(root / f"link{number}", ns=(0, number * SECOND + 1), follow_symlinks=False)
    os.chown(root / "link0", 1000, 1001, follow_symlinks=False)
    os.setxattr(root / "link1", "trusted.on-a-link", b"1", follow_symlinks=False)


def special_files(root: Path) -> None:
    for name, kind, device in (
        ("fifo", stat.S_IFIFO, 0),
        ("socket", stat.S_IFSOCK, 0),
        ("null", stat.S_IFCHR, os.makedev(1, 3)),
        ("far", stat.S_IFCHR, os.makedev(300, 70_000)),
        ("block", stat.S_IFBLK, os.makedev(8, 1)),
    ):
        os.mknod(root / name, kind | 0o640, device)
        os.chown(root / name, 1000, 2000)
        os.utime(root / name, ns=(0, SECOND))
    os.link(root / "fifo", root / "fifo2")
    os.link(root / "null", root / "null2")


def modes_and_owners(root: Path) -> None:
    for mode in (0, 0o1, 0o777, 0o4755, 0o2755, 0o6711, 0o1644):
        (root / f"file{mode:o}").write_bytes(b"x")
        (root / f"folder{mode:o}").mkdir()
        (root / f"folder{mode:o}" / "inside").write_bytes(b"y")
        for kind in ("file", "folder"):
            os.chown(root / f"{kind}{mode:o}", 4_000_000_000, 1000)
            os.chmod(root / f"{kind}{mode:o}", mode)
    (root / "shared").mkdir()
    os.chown(root / "shared", 0, 1000)
    os.chmod(root / "shared", 0o3777)
    (root / "shared/inherits").mkdir()
    (root / "shared/not").mkdir()
    os.chown(root / "shared/not", 0, 0)
    os.chmod(root / "shared/not", 0o755)


def times(root: Path) -> None:
    for number, mtime_ns in enumerate(
        (0, 1, 999_999_999, -1, -86_400 * SECOND - 5, 4_000_000_000 * SECOND + 123)
    ):
        (root / f"at{number}").write_bytes(b"x")
        os.utime(root / f"at{number}", ns=(0, mtime_ns))


def attributes(root: Path) -> None:
    (root / "kind").mkdir()
    for name in ("file", "kind", "capable", "listed"):
        if name != "kind":
            (root / name).write_bytes(b"x")
        os.setxattr(root / name, "user.\udcff name", b"\0binary\xff")
        os.setxattr(root / name, "user.empty", b"")
        os.setxattr(root / name, "trusted.secret", b"1")
        os.setxattr(root / name, "user.overlay.mine", b"not the overlay's")
    os.setxattr(root / "file", "user.long", b"v" * 3000)
    os.chown(root / "capable", 1000, 1000)
    os.setxattr(root / "capable", "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    acl = _acl((0x01, 7, -1), (0x02, 6, 1234), (0x04, 5, -1), (0x08, 4, 4321), (0x10, 6, -1), (0x20, 0, -1))
    os.setxattr(root / "listed", "system.posix_acl_access", acl)
    os.setxattr(root / "kind", "system.posix_acl_access", acl)
    os.setxattr(root / "kind", "system.posix_acl_default", acl)
    (root / "kind/inherits").write_bytes(b"x")
    (root / "kind/inherits-too").mkdir()
    (root / "kind/not").write_bytes(b"x")
    os.removexattr(root / "kind/not", "system.posix_acl_access")


def _acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


def empty_folders(root: Path) -> None:
    (root / "a/b/c").mkdir(parents=True)
    (root / "a/d").mkdir()
    (root / "empty").write_bytes(b"")


def deep_tree(root: Path) -> None:
    """So deep that no system call takes the path to its end."""
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for level in range(DEEP_LEVELS):
        os.mkdir(DEEP_NAME, 0o700 | level % 8, dir_fd=here)
        below = os.open(DEEP_NAME, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
        if level % 100 == 0 or level == DEEP_LEVELS - 1:
            with open(os.open("file", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=here), "wb") as file:
                file.write(b"%d" % level)
    os.close(here)


def wide_folder(root: Path) -> None:
    (root / "wide").mkdir()
    for number in range(WIDE_NAMES):
        os.mknod(root / "wide" / f"{number:05}-{'n' * (200 + number % 40)}", 0o600 | stat.S_IFREG)


def over_the_image(root: Path) -> None:
    """Changes of all that `image` holds."""
    (root / "folder/file").unlink()
    (root / "folder/link").unlink()
    (root / "folder/link").mkdir()
    os.rename(root / "program", root / "renamed")
    for name in ("x", "y"):
        (root / "hidden" / name).unlink()
    (root / "hidden").rmdir()
    (root / "hidden").mkdir()
    (root / "hidden/y").write_bytes(b"mine")
    os.chmod(root / "kept", 0o700)
    (root / "lone").unlink()


def image(root: Path) -> None:
    """What is there before a sandbox begins."""
    for folder in ("folder", "hidden", "kept"):
        (root / folder).mkdir()
        (root / folder / "x").write_bytes(folder.encode())
        (root / folder / "y").write_bytes(_NOISE[:200_000])
    (root / "folder/file").write_bytes(b"of the image")
    os.symlink("file", root / "folder/link")
    (root / "program").write_bytes(_NOISE[:5000])
    os.chmod(root / "program", 0o4755)
    os.mkfifo(root / "lone")
    os.setxattr(root / "kept", "user.of", b"the image")


CONTENTS: list[Fill] = [
    names,
    sparse_files,
    large_file,
    symlinks,
    special_files,
    modes_and_owners,
    times,
    attributes,
    empty_folders,
    deep_tree,
    wide_folder,
    over_the_image,
]
