"""Reading images: what a real dump says, and that nothing else is taken for one."""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from turnkeep.errors import BadImages
from turnkeep.process.imageformat import KINDS, Framing, ImageFolder, Limits, decode, encode, kind_of, name_of
from turnkeep.process.imageformat import criu_pb2 as pb
from turnkeep.process.images import PAGE_BYTES, FileType, TaskState, open_images

from tests.process.dumps import INIT, SLEEP, change, kind, names, read, unpack, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return unpack(tmp_path / "images")


def test_the_tree(folder: Path) -> None:
    images = open_images(str(folder))
    tasks = {task.pid: task for task in images.tasks()}
    assert images.root.pid == INIT
    assert tasks[INIT].name == "docker-init"
    assert (tasks[SLEEP].parent, tasks[SLEEP].session) == (INIT, INIT)
    server = next(task for task in tasks.values() if task.name == "python3" and len(task.threads) > 1)
    assert server.threads[0] == server.pid == server.session
    zombie = next(task for task in tasks.values() if task.state is TaskState.DEAD)
    assert zombie.parent == server.pid
    assert zombie.threads == (zombie.pid,)
    orphan = next(task for task in tasks.values() if task.session == zombie.pid and task is not zombie)
    assert orphan.parent == INIT
    assert all(task.parent in tasks or task.pid == INIT for task in tasks.values())


def test_files_and_memory(folder: Path) -> None:
    images = open_images(str(folder))
    types = {FileType(file.type) for file in images.files.values()}
    assert types >= {
        FileType.REG,
        FileType.PIPE,
        FileType.FIFO,
        FileType.INETSK,
        FileType.UNIXSK,
        FileType.EVENTPOLL,
        FileType.TTY,
        FileType.MEMFD,
    }
    assert any(file.reg.name == b"/tmp/locked" for file in images.files.values())
    assert len(images.terminals) == 2
    assert [remap.remap_id for remap in images.remaps] == list(images.ghosts)
    assert images.filters
    for pid, pages in images.page_maps.items():
        stored = sum(run.pages for run in pages.runs if run.offset is not None) * PAGE_BYTES
        assert stored == images.pages[pages.pages_id], pid


def test_pages_are_found_by_their_address(folder: Path) -> None:
    runs = open_images(str(folder)).page_maps[INIT].runs
    assert runs[0].offset == 0
    assert [run.address for run in runs] == sorted(run.address for run in runs)
    for run, following in itertools.pairwise(runs):
        assert following.offset == (run.offset or 0) + run.pages * PAGE_BYTES


def test_pages_without_content_have_no_offset(folder: Path) -> None:
    def leave_out(entry: pb.PagemapEntry) -> None:
        entry.flags = 2

    change(folder, f"pagemap-{INIT}.img", leave_out, 2)
    runs = open_images(str(folder)).page_maps[INIT].runs
    assert runs[1].offset is None
    assert runs[2].offset == runs[0].pages * PAGE_BYTES


def test_a_folder_by_its_descriptor_stays_open(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert open_images(fd) == open_images(str(folder))
        os.fstat(fd)
    finally:
        os.close(fd)


def test_every_image_is_written_as_it_was_read(folder: Path) -> None:
    for name in names(folder):
        this = kind(name)
        if this.framing in (Framing.ONE, Framing.MANY, Framing.HEADED):
            assert encode(this, read(folder, name)) == (folder / name).read_bytes(), name


def test_names_and_numbers() -> None:
    for each in KINDS.values():
        number = 255 if each.pattern.groups else 0
        assert kind_of(name_of(each, number)) == (each, number)
    for name in ("core-01.img", "core-.img", "core-1.img\n", "ghost-file-0A.img", "Core-1.img", "mm-1.imgx"):
        assert kind_of(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "apparmor.img",
        "bpfmap-file.img",
        "creds-1.img",
        "ipcns-shm-3.img",
        "iptables-2.img",
        "mountpoints-6.img",
        "netns-2.img",
        "pages-shmem-1.img",
        "reg-files.img",
        "tunfile.img",
        "userns-7.img",
        "utsns-4.img",
    ],
)
def test_images_we_do_not_know_are_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    with pytest.raises(BadImages, match="not an image that Turnkeep restores"):
        open_images(str(folder))


def test_other_files_are_no_images(folder: Path) -> None:
    (folder / "criu.log").write_text("log")
    open_images(str(folder))


def test_images_on_top_of_others_are_refused(folder: Path) -> None:
    (folder / "parent").symlink_to("/etc")
    with pytest.raises(BadImages, match="parent"):
        open_images(str(folder))


@pytest.mark.parametrize("what", ["symlink", "fifo", "folder"])
def test_only_regular_files(folder: Path, what: str) -> None:
    path = folder / "seccomp.img"
    content = path.read_bytes()
    path.unlink()
    match what:
        case "symlink":
            (folder / "elsewhere").write_bytes(content)
            path.symlink_to("elsewhere")
        case "fifo":
            os.mkfifo(path)
        case _:
            path.mkdir()
    with pytest.raises(BadImages, match="not a regular file"):
        open_images(str(folder))


@pytest.mark.parametrize("name", ["inventory.img", "pstree.img"])
def test_what_must_be_there(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BadImages, match=name):
        open_images(str(folder))


def test_no_number_twice(folder: Path) -> None:
    files = read(folder, "files.img")
    files[1].id = files[0].id
    write(folder, "files.img", files)
    with pytest.raises(BadImages, match="two things"):
        open_images(str(folder))
    unpack(folder)
    change(folder, "pstree.img", lambda entry: setattr(entry, "pid", INIT), 2)
    with pytest.raises(BadImages, match="two processes"):
        open_images(str(folder))


def _frame(*contents: bytes) -> bytes:
    frames = (struct.pack("<I", len(each)) + each for each in contents)
    return encode(KINDS["fs-%u"], []) + b"".join(frames)


_FS = pb.Fs(cwd_id=1, root_id=2, umask=18).SerializeToString()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (_frame(), "empty"),
        (_frame(_FS, _FS), "something follows"),
        (_frame(_FS)[:-1], "ends too early"),
        (_frame(_FS) + b"\x01", "something follows"),
        (b"", "ends too early"),
        (b"\x00" * 8, "first bytes"),
        (encode(KINDS["mm-%u"], []) + _frame(_FS)[8:], "first bytes"),
        (_frame(b"\xff\xff"), "no message"),
        (_frame(b"\x08\x01"), "required field"),
        # What another reader may understand otherwise: a field twice, in another order, a number
        # written longer than it need be or cut off, a field that we do not know.
        (_frame(_FS + b"\x08\x07"), "not encoded as CRIU does"),
        (_frame(b"\x10\x02\x08\x01\x18\x12"), "not encoded as CRIU does"),
        (_frame(b"\x08\x81\x00\x10\x02\x18\x12"), "not encoded as CRIU does"),
        (_frame(b"\x08\x81\x80\x80\x80\x10\x10\x02\x18\x12"), "not encoded as CRIU does"),
        (_frame(_FS + b"\x20\x01"), "not encoded as CRIU does"),
        (encode(KINDS["fs-%u"], []) + struct.pack("<I", 1 << 31) + _FS, "bytes"),
    ],
)
def test_malformed(content: bytes, why: str) -> None:
    with pytest.raises(BadImages, match=why):
        decode(KINDS["fs-%u"], "fs-1.img", content, Limits())


def test_unknown_fields_deep_inside_are_seen(folder: Path) -> None:
    core = read(folder, f"core-{INIT}.img")[0]
    hidden = pb.Creds()
    hidden.CopyFrom(core.thread_core.creds)
    hidden.ParseFromString(hidden.SerializeToString() + b"\xa2\x01\x00")
    core.thread_core.creds.CopyFrom(hidden)
    write(folder, f"core-{INIT}.img", [core])
    with pytest.raises(BadImages, match="field that Turnkeep does not know"):
        open_images(str(folder))


@pytest.mark.parametrize(
    "limits",
    [
        Limits(files=10),
        Limits(file_bytes=1000),
        Limits(total_bytes=10_000),
        Limits(message_bytes=100),
        Limits(messages=10),
        Limits(pages_bytes=100_000),
    ],
)
def test_limits(folder: Path, limits: Limits) -> None:
    with pytest.raises(BadImages):
        open_images(str(folder), limits)


def test_a_large_deleted_file_is_not_read(folder: Path) -> None:
    with open(folder / "ghost-file-1.img", "ab") as file:
        file.truncate(1 << 32)
    open_images(str(folder))


@given(data=st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_found_or_harmless(folder: Path, data: st.DataObject) -> None:
    """Whatever one byte becomes, wherever a file is cut: an error of ours, or images."""
    small = sorted(name for name in names(folder) if not name.startswith("pages-"))
    path = folder / data.draw(st.sampled_from(small))
    whole = path.read_bytes()
    content = bytearray(whole)
    if data.draw(st.booleans()) or not content:
        del content[data.draw(st.integers(0, len(content))) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        with contextlib.suppress(BadImages):
            open_images(str(folder)).tasks()
    finally:
        path.write_bytes(whole)


def test_replacing_leaves_shared_inodes_alone(folder: Path) -> None:
    os.link(folder / "fs-1.img", folder / "kept")
    before = (folder / "kept").read_bytes()
    with ImageFolder(str(folder)) as images:
        images.replace("fs-1.img", b"new")
        images.move("fs-1.img", "fs-9.img")
        images.remove("fs-1.img")
    assert (folder / "kept").read_bytes() == before
    assert (folder / "fs-9.img").read_bytes() == b"new"
