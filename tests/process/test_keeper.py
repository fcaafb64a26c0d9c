"""Giving a tree's root another pid: what changes in the images, and what must not."""

from __future__ import annotations

from pathlib import Path

import pytest
from turnkeep.errors import BadImages, InvalidRequest
from turnkeep.process.imageformat import criu_pb2 as pb
from turnkeep.process.images import FileType, Images, TaskState, open_images
from turnkeep.process.keeper import renumber_root

from tests.process.dumps import INIT, SLEEP, change, names, read, unpack, write

KEEPER = 20_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return unpack(tmp_path / "images")


def _with(folder: Path) -> Images:
    renumber_root(str(folder), pid=KEEPER, without={SLEEP})
    return open_images(str(folder))


def _child(folder: Path) -> int:
    """Return a process whose parent is init, and is not to be left out."""
    entries = read(folder, "pstree.img")
    return next(int(each.pid) for each in entries if each.ppid == INIT and each.pid != SLEEP)


def _edit_tree(folder: Path, pid: int, **fields: int) -> None:
    entries = read(folder, "pstree.img")
    for entry in entries:
        if entry.pid == pid:
            for name, value in fields.items():
                setattr(entry, name, value)
    write(folder, "pstree.img", entries)


def test_the_tree_hangs_on_the_keeper(folder: Path) -> None:
    before = {entry.pid: entry for entry in open_images(str(folder)).tree}
    images = _with(folder)
    after = {entry.pid: entry for entry in images.tree}
    assert images.root.pid == KEEPER
    assert (images.root.ppid, images.root.pgid, images.root.sid) == (0, KEEPER, KEEPER)
    assert list(images.root.threads) == [KEEPER]
    assert after.keys() - {KEEPER} == before.keys() - {INIT, SLEEP}
    for pid, entry in after.items():
        if pid != KEEPER:
            was = before[pid]
            assert entry.ppid == (KEEPER if was.ppid == INIT else was.ppid)
            assert (entry.pgid, entry.sid, entry.threads) == (was.pgid, was.sid, was.threads)


def test_no_image_is_named_by_the_old_numbers(folder: Path) -> None:
    before = names(folder)
    images = _with(folder)
    gone = {f"{kind}-{pid}.img" for kind in ("core", "ids", "mm", "fs", "pagemap") for pid in (INIT, SLEEP)}
    assert not names(folder) & gone
    assert names(folder) >= {f"{kind}-{KEEPER}.img" for kind in ("core", "ids", "mm", "fs", "pagemap")}
    used = {pages.pages_id for pages in (*images.page_maps.values(), *images.shared_page_maps.values())}
    assert used == set(images.pages)
    assert names(folder) - before == {
        f"{kind}-{KEEPER}.img" for kind in ("core", "ids", "mm", "fs", "pagemap")
    }


def test_the_keeper_has_nothing_and_never_runs(folder: Path) -> None:
    init = open_images(str(folder)).cores[INIT]
    images = _with(folder)
    core = images.cores[KEEPER]
    assert core.tc.task_state == TaskState.STOPPED
    assert core.thread_core.creds == init.thread_core.creds
    assert core.thread_core.seccomp_mode == init.thread_core.seccomp_mode
    assert images.descriptors[images.ids[KEEPER].files_id] == ()


def test_a_file_that_nobody_has_goes(folder: Path) -> None:
    """CRIU takes an open pipe that is in no table for a defect of its own."""
    before = open_images(str(folder))
    images = _with(folder)
    held = {each.id for table in images.descriptors.values() for each in table}
    pipes = {number for number, file in images.files.items() if file.type == FileType.PIPE}
    assert pipes <= held
    assert {number for number, file in before.files.items() if file.type != FileType.PIPE} <= set(
        images.files
    )


def test_a_unix_socket_stays_with_the_keeper(folder: Path) -> None:
    """Its other end may be another process's, and cannot come back without it."""
    images = open_images(str(folder))
    socket = next(file for file in images.files.values() if file.type == FileType.UNIXSK and file.usk.peer)
    for table in images.descriptors:
        name = f"fdinfo-{table}.img"
        write(folder, name, [each for each in read(folder, name) if each.id != socket.id])
    own = f"fdinfo-{images.ids[SLEEP].files_id}.img"
    entry = pb.Descriptor(id=socket.id, flags=0, type=FileType.UNIXSK, fd=9)
    write(folder, own, [*read(folder, own), entry])
    after = _with(folder)
    (held,) = after.descriptors[after.ids[KEEPER].files_id]
    assert (held.id, held.type) == (socket.id, FileType.UNIXSK)
    assert socket.id in after.files


def test_a_table_that_others_share_stays_whole(folder: Path) -> None:
    images = open_images(str(folder))
    child = _child(folder)
    table = images.ids[INIT].files_id
    change(folder, f"ids-{child}.img", lambda ids: setattr(ids, "files_id", table))
    assert _with(folder).descriptors[table] == images.descriptors[table]


def test_other_threads_of_init_go(folder: Path) -> None:
    entries = read(folder, "pstree.img")
    next(entry for entry in entries if entry.pid == INIT).threads.append(12)
    write(folder, "pstree.img", entries)
    (folder / "core-12.img").write_bytes((folder / f"core-{INIT}.img").read_bytes())
    assert 12 not in _with(folder).cores


def test_who_was_in_inits_session_and_group(folder: Path) -> None:
    child = _child(folder)
    _edit_tree(folder, child, sid=INIT, pgid=INIT)
    result = renumber_root(str(folder), pid=KEEPER, without={SLEEP})
    entry = next(each for each in open_images(str(folder)).tree if each.pid == child)
    assert (entry.sid, entry.pgid) == (KEEPER, KEEPER)
    assert len([note for note in result.notes if note.startswith(f"{child} ")]) == 2


def test_a_stopped_process_that_the_kernel_will_continue_is_named(folder: Path) -> None:
    child = _child(folder)
    _edit_tree(folder, child, sid=INIT)
    change(folder, f"core-{child}.img", lambda core: setattr(core.tc, "task_state", TaskState.STOPPED))
    result = renumber_root(str(folder), pid=KEEPER, without={SLEEP})
    assert any("SIGHUP" in note for note in result.notes)


def test_terminals_of_inits_session_are_nobodys(folder: Path) -> None:
    child = _child(folder)
    _edit_tree(folder, child, sid=INIT)
    change(folder, "tty-info.img", lambda terminal: setattr(terminal, "sid", INIT))
    others = [terminal.sid for terminal in read(folder, "tty-info.img")[1:]]
    result = renumber_root(str(folder), pid=KEEPER, without={SLEEP})
    first, *rest = read(folder, "tty-info.img")
    assert (first.sid, first.pgrp) == (0, 0)
    assert [terminal.sid for terminal in rest] == others
    assert any("controlling terminal" in note for note in result.notes)


def test_the_signal_at_a_parents_death_is_cleared_for_inits_children_only(folder: Path) -> None:
    child = _child(folder)
    grandchild = next(e.pid for e in read(folder, "pstree.img") if e.ppid not in (0, INIT) and e.sid != e.pid)
    for pid in (child, grandchild):
        change(folder, f"core-{pid}.img", lambda core: setattr(core.thread_core, "pdeath_sig", 9))
    result = renumber_root(str(folder), pid=KEEPER, without={SLEEP})
    images = open_images(str(folder))
    assert not images.cores[child].thread_core.pdeath_sig
    assert images.cores[grandchild].thread_core.pdeath_sig == 9
    assert [note for note in result.notes if "parent's death" in note] == [
        f"{child} {images.cores[child].tc.comm.decode()}: signal 9 at its parent's death is cleared"
    ]


def test_locks_of_init_stay_with_init(folder: Path) -> None:
    (lock,) = read(folder, "filelocks.img")
    theirs = type(lock)()
    theirs.CopyFrom(lock)
    theirs.pid = INIT
    write(folder, "filelocks.img", [lock, theirs])
    assert _with(folder).locks == (lock,)


def test_clocks_are_kept_when_asked(folder: Path, tmp_path: Path) -> None:
    assert not _with(folder).clocks
    other = unpack(tmp_path / "other")
    renumber_root(str(other), pid=KEEPER, without={SLEEP}, keep_clocks=True)
    assert open_images(str(other)).clocks


def test_the_same_gives_the_same(folder: Path, tmp_path: Path) -> None:
    other = unpack(tmp_path / "other")
    for each in (folder, other):
        renumber_root(str(each), pid=KEEPER, without={SLEEP})
    assert names(folder) == names(other)
    for name in names(folder):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


def test_all_threads_of_those_left_out_go(folder: Path) -> None:
    server = next(entry for entry in read(folder, "pstree.img") if len(entry.threads) > 1)
    children = {entry.pid for entry in read(folder, "pstree.img") if entry.ppid == server.pid}
    renumber_root(str(folder), pid=KEEPER, without={SLEEP, server.pid, *children})
    images = open_images(str(folder))
    assert not set(server.threads) & set(images.cores)
    assert not {server.pid, *children} & {entry.pid for entry in images.tree}


@pytest.mark.parametrize("pid", [0, INIT, SLEEP])
def test_the_number_must_be_free(folder: Path, pid: int) -> None:
    with pytest.raises(InvalidRequest):
        renumber_root(str(folder), pid=pid)


def test_a_number_that_a_dead_session_leader_holds_is_not_free(folder: Path) -> None:
    _edit_tree(folder, _child(folder), sid=4321)
    with pytest.raises(InvalidRequest, match="4321"):
        renumber_root(str(folder), pid=4321)


def test_who_has_children_cannot_be_left_out(folder: Path) -> None:
    parent = next(entry.ppid for entry in read(folder, "pstree.img") if entry.ppid not in (0, INIT))
    for without in ({parent}, {INIT}, {54321}):
        with pytest.raises(InvalidRequest):
            renumber_root(str(folder), pid=KEEPER, without=without)
    assert open_images(str(folder)).root.pid == INIT


def test_what_is_refused_changes_nothing(folder: Path) -> None:
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    with pytest.raises(InvalidRequest):
        renumber_root(str(folder), pid=SLEEP)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == before


def test_what_is_cut_off_has_no_tree(folder: Path) -> None:
    (folder / f"core-{_child(folder)}.img").unlink()
    with pytest.raises(BadImages):
        renumber_root(str(folder), pid=KEEPER, without={SLEEP})
    with pytest.raises(BadImages, match=r"pstree\.img"):
        open_images(str(folder))
