"""What other processes do is found, also what is reported only when they close the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .followed import Followed
from .operations import append
from .tasks import go_on, task

SPLICES = """
fd = os.open(path, os.O_WRONLY)
reading, writing = os.pipe()
for _ in range(2):
    os.write(writing, b"spliced")
    os.splice(reading, fd, 7)
    wait()
"""

SENDS = """
fd = os.open(path, os.O_WRONLY)
with open(sys.executable, "rb") as source:
    for _ in range(2):
        os.sendfile(fd, source.fileno(), 0, 7)
        wait()
"""

STORES = """
fd = os.open(path, os.O_RDWR)
mapping = mmap.mmap(fd, 0)
os.close(fd)
for number in range(2):
    os.sync()
    mapping[number] = 0
    wait()
"""

STORES_WITH_BOTH = STORES.replace("os.close(fd)", "")


CODES = [SPLICES, SENDS, STORES, STORES_WITH_BOTH]


@pytest.mark.parametrize("code", CODES, ids=["spliced", "sent", "stored", "stored and open"])
@pytest.mark.parametrize("name", ["own/file", "low/file", "own/linked"])
def test_not_reported_while_it_is_open(box: Followed, name: str, code: str) -> None:
    with task(box.root / name, code) as process:
        box.look([process.pid])
        go_on(process)
        box.look([process.pid])
    box.look()


def test_opened_before_anybody_followed(box: Followed) -> None:
    code = """
fd = os.open(path, os.O_WRONLY | os.O_APPEND)
wait()
for _ in range(2):
    os.write(fd, b"+")
    wait()
"""
    with task(box.root / "own/file", code) as process:
        box.begin_again()
        for _ in range(2):
            go_on(process)
            assert b"own/file" in box.look().paths


@pytest.mark.parametrize("code", CODES, ids=["spliced", "sent", "stored", "stored and open"])
def test_by_a_name_that_is_lost(box: Followed, code: str) -> None:
    with task(box.root / "own/linked", code) as process:
        os.unlink(box.root / "own/linked")
        box.look([process.pid])
        go_on(process)
        box.look([process.pid])


def test_spliced_into_a_file_without_a_name_that_was_linked(box: Followed) -> None:
    code = """
fd = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_WRONLY)
libc.linkat(fd, b"", -100, path, 0x1000)
reading, writing = os.pipe()
wait()
for _ in range(2):
    os.write(writing, b"spliced")
    os.splice(reading, fd, 7)
    wait()
"""
    with task(box.root / "own/new", code) as process:
        box.look([process.pid])
        for _ in range(2):
            go_on(process)
            box.look([process.pid])


def test_in_a_thread_with_files_of_its_own(box: Followed) -> None:
    code = """
def splice():
    assert libc.unshare(0x400) == 0
    fd = os.open(path, os.O_WRONLY)
    reading, writing = os.pipe()
    for _ in range(2):
        os.write(writing, b"spliced")
        os.splice(reading, fd, 7)
        wait()
threading.Thread(target=splice).start()
"""
    with task(box.root / "own/file", code) as process:
        box.look([process.pid])
        go_on(process)
        box.look([process.pid])


def test_after_the_first_thread_has_ended(box: Followed) -> None:
    code = """
fd = os.open(path, os.O_WRONLY)
reading, writing = os.pipe()
def splice():
    while open(f"/proc/{os.getpid()}/stat").read().split()[2] != "Z":
        os.sched_yield()
    for _ in range(2):
        os.write(writing, b"spliced")
        os.splice(reading, fd, 7)
        wait()
threading.Thread(target=splice).start()
libc.syscall(60 if os.uname().machine == "x86_64" else 93, 0)
"""
    with task(box.root / "own/file", code) as process:
        box.look([process.pid])
        go_on(process)
        box.look([process.pid])


def test_in_another_mount_namespace(box: Followed, disk: Path) -> None:
    (disk / "elsewhere").mkdir()
    code = f"""
assert libc.unshare(0x20000) == 0
elsewhere = {os.fsencode(disk / "elsewhere")!r}
assert libc.mount(None, b"/", None, 0x44000, None) == 0
assert libc.mount(path, elsewhere, None, 0x1000, None) == 0
for _ in range(2):
    with open(elsewhere + b"/own/file", "ab") as file:
        file.write(b"+")
    with open(elsewhere + b"/low/file", "ab") as file:
        file.write(b"+")
    os.rename(elsewhere + b"/own/folder", elsewhere + b"/folder")
    os.rename(elsewhere + b"/folder", elsewhere + b"/own/folder")
    wait()
"""
    with task(box.root, code) as process:
        box.look([process.pid])
        go_on(process)
        box.look([process.pid])
    append(box.root / "own/file")
    box.look()


def test_a_path_too_long_to_tell(box: Followed) -> None:
    code = """
os.chdir(path)
for _ in range(20):
    os.mkdir("n" * 250)
    os.chdir("n" * 250)
fd = os.open("file", os.O_WRONLY | os.O_CREAT)
reading, writing = os.pipe()
for _ in range(3):
    os.write(writing, b"spliced")
    os.splice(reading, fd, 7)
    wait()
"""
    with task(box.root, code) as process:
        box.look([process.pid])
        for _ in range(2):
            go_on(process)
            box.look([process.pid])
    box.look()
