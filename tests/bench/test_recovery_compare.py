"""What counts as a difference after a recovery, and what is excused."""

from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from bench.recovery import compare
from bench.recovery.listing import Listing, Node, listing

FILE = Node(type="file", mode=0o644, uid=0, gid=0, size=1, mtime_ns=1, sha256="aa")
FOLDER = Node(type="folder", mode=0o755, uid=0, gid=0)


def tree(**more: Node) -> Listing:
    found = {"/tmp": FOLDER, "/a": FILE, "/b": FILE}
    found.update({"/" + name.replace("__", "/"): node for name, node in more.items()})
    return found


def later(node: Node = FILE) -> Node:
    return dataclasses.replace(node, mtime_ns=node.mtime_ns + 1)


def described(found: list[compare.Difference]) -> list[tuple[str, str]]:
    return [(each.path, each.attribute) for each in found]


def test_each_attribute_is_a_difference_of_its_own() -> None:
    changed = dataclasses.replace(FILE, mode=0o600, names=("/a", "/b"))
    found = compare.differences(tree(), tree(a=changed, c=FILE))
    assert described(found) == [("/a", "mode"), ("/a", "names"), ("/c", "presence")]
    assert str(found[2]) == "/c: presence gone → there"


def test_caches_are_left_out_by_the_names_of_their_folders() -> None:
    after = {**tree(c=FILE), "/src/__pycache__": FOLDER, "/src/__pycache__/y.pyc": FILE}
    found = compare.without(compare.differences(tree(), after), ["__pycache__"])
    assert described(found) == [("/c", "presence")]


def test_what_differs_between_fault_free_runs_is_excused_for_that_attribute_only() -> None:
    excused = compare.natural([tree(), tree(a=later())])
    assert compare.unexcused(tree(), tree(a=later(later())), excused) == []
    wrong = dataclasses.replace(later(), sha256="bb")
    assert described(compare.unexcused(tree(), tree(a=wrong), excused)) == [("/a", "sha256")]


def test_names_that_are_drawn_anew_are_excused_where_others_were() -> None:
    excused = compare.natural([tree(tmp__x1=FOLDER, tmp__x1__f=FILE), tree(tmp__y7=FOLDER)])
    assert excused.folders == {"/tmp"}
    assert (
        compare.unexcused(
            tree(tmp__x1=FOLDER, tmp__x1__f=FILE), tree(tmp__z9=FOLDER, tmp__z9__g=FILE), excused
        )
        == []
    )


def test_what_all_fault_free_runs_have_may_not_be_missing_anywhere() -> None:
    both = {"tmp__kept": FOLDER, "tmp__kept__f": FILE}
    excused = compare.natural([tree(tmp__x=FILE, **both), tree(tmp__y=FILE, **both)])
    lost = tree(tmp__z=FILE, tmp__kept=FOLDER)
    found = compare.unexcused(tree(tmp__x=FILE, **both), lost, excused)
    assert described(found) == [("/tmp/kept/f", "presence")]
    added = tree(tmp__z=FILE, tmp__kept__new=FILE, **both)
    found = compare.unexcused(tree(tmp__x=FILE, **both), added, excused)
    assert described(found) == [("/tmp/kept/new", "presence")]


def test_too_many_excuses_are_said_to_be() -> None:
    many = {f"f{number}": FILE for number in range(97)}
    one = compare.natural([tree(**many), tree(**many, tmp__x=FILE)])
    assert (one.total, len(one.paths), one.is_small) == (101, 1, True)
    three = compare.natural([tree(**many), tree(**{**many, "f1": later(), "f2": later(), "f3": later()})])
    assert not three.is_small


@pytest.mark.skipif(os.geteuid() != 0, reason="looks through another process's root")
def test_a_listing_says_everything_about_every_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"x")
    os.chmod(tmp_path / "folder" / "file", 0o4711)
    os.utime(tmp_path / "folder" / "file", ns=(1, 1234567890123456789))
    os.link(tmp_path / "folder" / "file", tmp_path / "other")
    os.setxattr(tmp_path / "other", "user.a", b"\1")
    os.symlink("folder/../x", tmp_path / "link")
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    (tmp_path / os.fsdecode(b"\xff")).touch()
    found = _beneath(tmp_path)
    file = found["/folder/file"]
    assert (file.type, file.mode, file.size, file.mtime_ns) == ("file", 0o4711, 1, 1234567890123456789)
    assert file.names == ("/folder/file", "/other")
    assert found["/other"].xattrs == (("user.a", "01"),)
    assert (found["/link"].type, found["/link"].target) == ("symlink", "folder/../x")
    assert found["/fifo"].type == "fifo"
    assert found["/device"].device == os.makedev(1, 3)
    assert found["/folder"].mtime_ns == 0
    assert "/" + os.fsdecode(b"\xff") in found


def _beneath(folder: Path) -> Listing:
    """List a folder as the root of a process that waits in it."""
    program = "import os, sys; os.chroot(sys.argv[1]); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        found = listing(process.pid)
        process.stdin.close()
    return found
