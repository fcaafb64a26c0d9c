"""Processes of real sandboxes as trees."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from turnkeep.errors import SandboxGone
from turnkeep.process.proc import Folder, printable, read_process
from turnkeep.process.trees import Forest, TreeKind, partition

from tests.process.boxes import Box, exec_trees, init_tree, make_box

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def shared_box(engine: docker.DockerClient) -> Iterator[Box]:
    """One sandbox for tests that end what they start."""
    with make_box(engine) as box:
        yield box


@pytest.fixture
def box(shared_box: Box) -> Iterator[Box]:
    """A sandbox in which nothing runs but its own command."""
    yield shared_box
    shared_box.clear()


def frozen_forest(box: Box) -> Forest:
    with box.frozen():
        return box.forest()


def test_an_idle_sandbox_is_one_tree_without_state(box: Box) -> None:
    forest = frozen_forest(box)
    (tree,) = forest.trees
    assert tree.kind is TreeKind.INIT
    assert (tree.root_pid, tree.inner_root_pid) == (box.init_pid, 1)
    assert tree.names == ("docker-init", "sleep")
    assert not tree.to_dump
    assert forest.to_dump == ()


def test_each_exec_is_a_tree_and_what_it_leaves_behind_is_inits(box: Box) -> None:
    # A process has the name of its parent until it has begun its program.
    box.start("sh", "-c", "sleep 1000 & until grep -q sleep /proc/$!/comm; do :; done; echo ready; wait")
    box.two_trees()
    forest = frozen_forest(box)
    first, second = exec_trees(forest)
    assert first.names == ("sh", "sleep")
    assert second.names == ("python3",)
    assert init_tree(forest).names == ("docker-init", "sleep", "python3")
    assert forest.to_dump == forest.trees
    assert init_tree(forest).stateful == {init_tree(forest).pids[2]}
    told = {process.pid: process.inner[-1] for tree in forest.trees for process in tree.processes}
    assert all(read_process(pid).inner[-1] == inner for pid, inner in told.items())  # type: ignore[union-attr]


def test_parents_come_before_children(box: Box) -> None:
    box.start("sh", "-c", "(sleep 1000 & sh -c 'sleep 1001 & echo ready; wait'; wait) & wait")
    (tree,) = exec_trees(frozen_forest(box))
    seen = {tree.root.parent}
    for process in tree.processes:
        assert process.parent in seen
        seen.add(process.pid)
    assert len(tree.processes) == 5


def test_dead_processes_are_members_and_threads_are_none(box: Box) -> None:
    box.one_tree(
        """
for _ in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
pid = os.fork()
if not pid:
    os._exit(3)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)"""
    )
    (tree,) = exec_trees(frozen_forest(box))
    parent, child = tree.processes
    assert (parent.threads, parent.dead, child.dead) == (4, False, True)
    assert child.name == "python3"
    assert tree.stateful == {parent.pid}
    assert tree.problems == ()


def test_a_dead_process_of_a_reproducible_one_is_no_state(engine: docker.DockerClient) -> None:
    with make_box(engine, init=False) as box:
        # `sleep` as init never asks for what it adopts; the adopted one ends
        # once its parent has.
        box.start(
            "sh",
            "-c",
            "(sh -c 'until [ $(ps -o ppid= $$) = 1 ]; do :; done' & echo $! >/tmp/pid) ; echo ready",
        )
        box.execs[-1].wait()
        box.start(
            "sh", "-c", "until grep -q '^State:.Z' /proc/$(cat /tmp/pid)/status; do :; done; echo ready"
        )
        tree = init_tree(frozen_forest(box))
        assert [process.name for process in tree.processes if process.dead] == ["sh"]
        assert not tree.to_dump


def test_a_process_whose_main_thread_ended_is_a_problem(box: Box) -> None:
    box.python(
        """
import ctypes, os, select, threading
def state():
    with open(f"/proc/{os.getpid()}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
def outlive():
    while state() != "Z":
        os.sched_yield()
    print("ready", flush=True)
    select.select([], [], [])
threading.Thread(target=outlive).start()
ctypes.CDLL(None).pthread_exit(None)"""
    )
    (tree,) = exec_trees(frozen_forest(box))
    assert "main thread has ended" in tree.problems[0]
    assert tree.to_dump


def test_a_name_may_be_anything(box: Box) -> None:
    box.one_tree("""libc.prctl(15, b") R 1\\n\\x1b[31m\\xff", 0, 0, 0)""")
    (tree,) = exec_trees(frozen_forest(box))
    assert tree.root.parent != 1
    assert tree.names == (r") R 1\n\x1b[31m\xff",)
    assert "\n" not in str(tree.root)


def test_what_is_just_being_started_is_told_apart(box: Box) -> None:
    box.one_tree("""libc.prctl(15, b"runc:[2:INIT]", 0, 0, 0)""")
    forest = frozen_forest(box)
    assert exec_trees(forest) == []
    assert [process.name for process in forest.starting] == ["runc:[2:INIT]"]


def test_listed_processes_that_are_gone_are_left_out(box: Box) -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    with box.frozen():
        forest = box.forest([child])
    assert forest.gone == (child,)
    assert len(forest.trees) == 1


def test_without_init_there_is_no_sandbox() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    with pytest.raises(SandboxGone):
        partition([], child, lambda pid: False)
    os.waitpid(child, 0)
    with pytest.raises(SandboxGone):
        partition([], child, lambda pid: False)


def test_a_descendant_outside_of_the_cgroup_is_found(box: Box) -> None:
    box.start("sh", "-c", "sleep 1000 & echo ready; wait")
    (tree,) = exec_trees(frozen_forest(box))
    pid = tree.pids[1]
    top = Path(str(box.cgroup.freezer).removesuffix(str(box.container.id)))
    (top / "cgroup.procs").write_text(str(pid))
    try:
        forest = frozen_forest(box)
        assert [process.pid for process in forest.outside] == [pid]
        (tree,) = exec_trees(forest)
        assert pid in tree.pids
        assert "not in the sandbox's cgroup" in tree.problems[0]
    finally:
        (box.cgroup.freezer / "cgroup.procs").write_text(str(pid))


def test_pid_namespaces_inside_are_a_problem(engine: docker.DockerClient) -> None:
    options = {"cap_add": ["SYS_ADMIN"], "security_opt": ["seccomp=unconfined", "apparmor=unconfined"]}
    with make_box(engine, **options) as box:
        box.start("unshare", "--pid", "--fork", "sh", "-c", "echo ready; read line")
        (tree,) = exec_trees(frozen_forest(box))
        assert tree.names == ("unshare", "sh")
        assert "pid namespaces inside" in tree.problems[0]


def test_two_hundred_processes(box: Box) -> None:
    box.start("sh", "-c", "for i in $(seq 200); do sleep 1000 & done; echo ready; wait")
    forest = frozen_forest(box)
    (tree,) = exec_trees(forest)
    top: Any = box.container.top()
    listed = {int(row[top["Titles"].index("PID")]) for row in top["Processes"]}
    assert {pid for each in forest.trees for pid in each.pids} == listed
    assert len(tree.pids) == 201


def test_a_folder_is_of_one_process_only() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    with Folder(child) as folder:
        assert folder.process().dead
        assert folder.children() == []
        os.waitpid(child, 0)
        with pytest.raises(ProcessLookupError):
            folder.read("stat")
    assert read_process(child) is None


def test_a_file_that_is_too_large_is_refused() -> None:
    with Folder(os.getpid()) as folder, pytest.raises(OverflowError):
        folder.read("maps", 10)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"sleep", "sleep"),
        (b"a\nb", r"a\nb"),
        (b"\xff", r"\xff"),
        ("\udcff", r"\xff"),
        ("\u202ex", r"\u202ex"),
    ],
)
def test_names_for_people_are_one_line(name: bytes | str, text: str) -> None:
    assert printable(name) == text
