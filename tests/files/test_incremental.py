"""What changed since the last checkpoint is found, however well it hides."""

from __future__ import annotations

import mmap
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from turnkeep.checkpointer import inspection
from turnkeep.checkpointer.view import Baseline
from turnkeep.config import Limits
from turnkeep.errors import ResourceExhausted
from turnkeep.model import Mount, MountKind
from turnkeep.runtime.places import Place
from turnkeep.watch import scan
from turnkeep.watch.reading import Read, read_path
from turnkeep.watch.table import WHITEOUT
from turnkeep_store.beneath import Descent
from turnkeep_store.diff import walk
from turnkeep_store.tree import NodeType

from .conftest import MakeSandbox
from .contents import SECOND
from .overlays import mount_tmpfs, unmount
from .sandboxes import Sandbox, Saved


def _fill(root: Path) -> None:
    (root / "folder").mkdir()
    for name in ("file", "folder/other"):
        (root / name).write_bytes(b"before")
        os.utime(root / name, ns=(0, SECOND))
    os.symlink("before", root / "link")


@pytest.fixture
def box(make_sandbox: MakeSandbox) -> Sandbox:
    """A sandbox whose upper layer holds a few files, with a checkpoint of them."""
    box = make_sandbox()
    _fill(box.root)
    box.checkpoint()
    return box


def _assert_found(box: Sandbox) -> Saved:
    """The change is seen at the end of the turn, and the checkpoint is all there is."""
    looked = box.inspect()
    assert looked.decision.changed_path_count > 0
    looked.drop()
    saved = box.checkpoint()
    assert saved.digest == box.full_state().digest
    return saved


def replaced_with_the_same_time(root: Path) -> None:
    (root / "new").write_bytes(b"after!")
    os.utime(root / "new", ns=(0, SECOND))
    os.rename(root / "new", root / "file")


def rewritten_with_its_time_reset(root: Path) -> None:
    (root / "file").write_bytes(b"after!")
    os.utime(root / "file", ns=(0, SECOND))


def attribute_of_a_file(root: Path) -> None:
    os.setxattr(root / "file", "user.only", b"this")


def attribute_of_a_folder(root: Path) -> None:
    os.setxattr(root / "folder", "user.only", b"this")


def name_of_an_inode(root: Path) -> None:
    os.link(root / "file", root / "folder/added")


def time_alone(root: Path) -> None:
    os.utime(root / "file", ns=(0, SECOND + 1))


def symlink_of_the_same_length(root: Path) -> None:
    status = (root / "link").lstat()
    (root / "link").unlink()
    os.symlink("after!", root / "link")
    os.utime(root / "link", ns=(0, status.st_mtime_ns), follow_symlinks=False)


def names_exchanged(root: Path) -> None:
    os.rename(root / "file", root / "aside")
    os.rename(root / "folder/other", root / "file")
    os.rename(root / "aside", root / "folder/other")
    os.chmod(root / "file", 0o600)


def hole_for_data(root: Path) -> None:
    os.truncate(root / "file", 0)
    os.truncate(root / "file", 6)
    os.utime(root / "file", ns=(0, SECOND))


@pytest.mark.parametrize(
    "change",
    [
        replaced_with_the_same_time,
        rewritten_with_its_time_reset,
        attribute_of_a_file,
        attribute_of_a_folder,
        name_of_an_inode,
        time_alone,
        symlink_of_the_same_length,
        names_exchanged,
        hole_for_data,
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["before the inspection", "before the freeze"])
def test_a_change_is_found(box: Sandbox, change: Callable[[Path], None], late: bool) -> None:
    if not late:
        change(box.root)
        _assert_found(box)
        return
    looked = box.inspect()
    change(box.root)
    saved = box.commit(box.capture(looked, busy=True))
    assert saved.decision.changed_path_count == 0, "the inspection was before"
    assert saved.digest == box.full_state().digest


def test_a_folder_renamed_above_the_first_of_several_names(make_sandbox: MakeSandbox) -> None:
    """The other names' own status stays the same, and what the tree says of them does not."""
    box = make_sandbox()
    (box.root / "folder").mkdir()
    (box.root / "folder/a").write_bytes(b"x")
    os.link(box.root / "folder/a", box.root / "z")
    saved = box.checkpoint()
    os.rename(box.root / "folder", box.root / "renamed")
    moved = _assert_found(box)
    targets = [
        entry.target for _, entry in walk(box.repository, moved.tree) if entry.type is NodeType.HARDLINK
    ]
    assert targets == [b"renamed/a"]
    box.restore_live(saved)
    box.restore_cold(moved)


@pytest.mark.parametrize("kind", ["file", "folder", "link", "pipe"])
def test_what_is_too_fresh_is_read_again(box: Sandbox, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """On kernels with coarse times, a change right after the scan leaves the status as it was."""
    monkeypatch.setattr(scan, "TICK_NS", 3600 * SECOND)
    os.mkfifo(box.root / "pipe")
    box.baseline = Baseline(box.baseline.tree)
    box.checkpoint()
    status = os.lstat(box.overlay.upper / kind)
    os.setxattr(box.root / kind, "trusted.new", b"1", follow_symlinks=False)
    place = box.baseline.places[box.view.place.slot]
    assert place.sight.get(kind.encode()) == scan.status_of(status)
    # The kernel at hand tells the two apart; make it forget.
    place.sight.accept({kind.encode(): scan.status_of(os.lstat(box.overlay.upper / kind))})
    _assert_found(box)


def test_whiteouts_are_never_too_fresh() -> None:
    now = 5 * SECOND
    status = (stat.S_IFREG, 1, now, 0, 0, 0, 0, 0, 1)
    assert scan.too_fresh({b"w": WHITEOUT, b"f": status}, now) == {b"f"}


_MAPPER = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
pages = mmap.mmap(fd, 0)
os.close(fd)
pages[0:1] = b"1"  # the page is dirty from now on
print("mapped", flush=True)
for line in sys.stdin:
    pages[0:1] = line[:1].encode()
    print("stored", flush=True)
"""


@contextmanager
def _mapped(path: Path) -> Iterator[tuple[int, Callable[[str], None]]]:
    """Start a process that maps a file shared; give its pid and a way to make it store a byte."""
    process = subprocess.Popen(
        [sys.executable, "-c", _MAPPER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    commands, answers = process.stdin, process.stdout

    def store(byte: str) -> None:
        commands.write(byte + "\n")
        commands.flush()
        assert answers.readline() == "stored\n"

    try:
        assert answers.readline() == "mapped\n"
        yield process.pid, store
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


NAMES = {
    "plain": "file",
    "with a newline": "new\nline",
    "like an escape": "a\\012b",
    "like one deleted": "x (deleted)",
}


# A store to a page that is dirty already changes no status at all. The kernel
# may write pages back at any time, so that no test can insist on that.


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_stores_through_a_mapping_are_found(box: Sandbox, name: str) -> None:
    path = box.root / name
    path.write_bytes(b"0" * mmap.PAGESIZE)
    with _mapped(path) as (pid, store):
        box.view.processes = [pid]
        looked = box.inspect()
        store("2")
        saved = box.commit(box.capture(looked))
        assert saved.digest == box.full_state().digest
        before = os.lstat(box.overlay.upper / name)
        store("3")
        assert os.lstat(box.overlay.upper / name).st_ctime_ns > before.st_ctime_ns, "pages were written back"
        _assert_found(box)


def test_stores_through_another_name_are_found(box: Sandbox) -> None:
    """The content stands under the first name, and the mapping under the last."""
    (box.root / "a").write_bytes(b"0" * mmap.PAGESIZE)
    os.link(box.root / "a", box.root / "z")
    with _mapped(box.root / "z") as (pid, store):
        box.view.processes = [pid]
        looked = box.inspect()
        store("2")
        saved = box.commit(box.capture(looked))
        assert saved.digest == box.full_state().digest


@pytest.fixture
def memory(box: Sandbox, tmp_path: Path) -> Iterator[Path]:
    """A tmpfs that belongs to the sandbox's state."""
    folder = tmp_path / "memory"
    folder.mkdir()
    mount_tmpfs(folder)
    mount = Mount(target=str(folder), kind=MountKind.TMPFS, covered=True)
    box.view.further.append(Place(slot=b"memory", mount=mount, host_path=str(folder)))
    yield folder
    unmount(folder)


def test_stores_in_memory_leave_no_trace_and_are_found(box: Sandbox, memory: Path) -> None:
    path = memory / "mapped"
    path.write_bytes(b"1" * mmap.PAGESIZE)
    os.utime(path, ns=(0, SECOND))
    box.checkpoint()
    with _mapped(path) as (pid, store):
        os.utime(path, ns=(0, SECOND))  # the first store to each page does change it
        box.view.processes = [pid]
        looked = box.inspect()
        assert looked.decision.changed_path_count == 0
        box.checkpointer.settle(looked, box.baseline)
        before = scan.status_of(path.lstat())
        store("2")
        assert scan.status_of(path.lstat()) == before, "no trace"
    box.view.processes = []  # it went, and its mapping with it
    _assert_found(box)


def test_what_is_away_for_a_moment_is_not_lost(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is a symlink just when its file is read, and is back before the freeze."""
    (box.root / "folder/other").write_bytes(b"after!")
    folder, aside = box.root / "folder", box.root / "aside"

    def read_at_the_wrong_time(way: Descent, path: bytes, **options: object) -> Read:
        if path != b"folder/other":
            return read_path(way, path, **options)  # type: ignore[arg-type]
        os.rename(folder, aside)
        os.symlink("/etc", folder)
        try:
            return read_path(way, path, **options)  # type: ignore[arg-type]
        finally:
            folder.unlink()
            os.rename(aside, folder)

    with monkeypatch.context() as patch:
        patch.setattr(inspection, "read_path", read_at_the_wrong_time)
        looked = box.inspect()
    saved = box.commit(box.capture(looked, busy=True))
    assert saved.digest == box.full_state().digest
    assert b"folder/other" in saved.listing


def test_a_file_of_another_folder_is_not_taken_for_what_was_looked_at(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folders change places just while a file is read: that is neither's status that was seen."""
    folder, twin, aside = (box.root / name for name in ("folder", "twin", "aside"))
    twin.mkdir()
    (folder / "other").write_bytes(b"own")
    (twin / "other").write_bytes(b"not")

    def exchange() -> None:
        os.rename(folder, aside)
        os.rename(twin, folder)
        os.rename(aside, twin)

    def read_at_the_wrong_time(way: Descent, path: bytes, **options: object) -> Read:
        if path != b"folder/other":
            return read_path(way, path, **options)  # type: ignore[arg-type]
        way.close()
        exchange()
        try:
            return read_path(way, path, **options)  # type: ignore[arg-type]
        finally:
            exchange()

    with monkeypatch.context() as patch:
        patch.setattr(inspection, "read_path", read_at_the_wrong_time)
        looked = box.inspect()
    saved = box.commit(box.capture(looked, busy=True))
    assert saved.digest == box.full_state().digest


def test_a_file_that_changes_while_it_is_read_is_read_again(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    (box.root / "file").write_bytes(b"one")

    def write_behind(way: Descent, path: bytes, **options: object) -> Read:
        read = read_path(way, path, **options)  # type: ignore[arg-type]
        if path == b"file":
            (box.root / "file").write_bytes(b"two")
        return read

    with monkeypatch.context() as patch:
        patch.setattr(inspection, "read_path", write_behind)
        looked = box.inspect()
    saved = box.commit(box.capture(looked, busy=True))
    assert saved.digest == box.full_state().digest


@pytest.mark.parametrize("shape", ["wide", "deep"])
def test_what_a_scan_keeps_in_memory_is_bounded(make_sandbox: MakeSandbox, shape: str) -> None:
    box = make_sandbox(limits=Limits(max_paths=60))
    folder = box.root
    for number in range(61 if shape == "wide" else 30):
        path = folder / (f"{number:02}" + "n" * 60)
        path.mkdir()
        folder = folder if shape == "wide" else path
    with pytest.raises(ResourceExhausted):
        box.checkpoint()
