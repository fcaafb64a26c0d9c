"""What would become of real processes at a capture: which engine takes them, and why no better one."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import pytest
from turnkeep.config import ProcessSettings
from turnkeep.process.prospects import OWN_STATE, Prospect, prospects
from turnkeep.process.sharing import examine
from turnkeep.process.trees import Forest, TreeKind, partition

from tests.process.boxes import Box, make_box

pytestmark = pytest.mark.docker

# It goes with the last process that has it attached.
SEGMENT = """
libc.shmat.restype = ctypes.c_void_p
segment = libc.shmget(0, 4096, 0o1600)
libc.shmat(segment, None, 0)
libc.shmctl(segment, 0, None)"""
CONNECTION = """
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
accepted, _ = server.accept()"""


@pytest.fixture(scope="module")
def shared_box(engine: docker.DockerClient) -> Iterator[Box]:
    """One sandbox for all tests; they end what they start."""
    with make_box(engine) as box:
        yield box


@pytest.fixture
def box(shared_box: Box) -> Iterator[Box]:
    """A sandbox in which nothing runs but its own command."""
    yield shared_box
    shared_box.clear()


def look(box: Box, forest: Forest | None = None, **settings: object) -> tuple[Prospect, ...]:
    """Look at a sandbox while it is frozen."""
    with box.frozen():
        forest = forest or box.forest()
        findings = examine(forest.trees, box.init_pid)
        return prospects(forest, findings, ProcessSettings(**settings))  # type: ignore[arg-type]


def kind_of(prospect: Prospect) -> TreeKind:
    return TreeKind.EXEC if prospect.processes.endswith("(from docker exec)") else TreeKind.INIT


def test_nothing_holds_state(box: Box) -> None:
    assert look(box) == ()


def test_a_client_waits_for_it(box: Box) -> None:
    box.one_tree("pass")
    (found,) = look(box)
    assert (kind_of(found), found.engine, found.why) == (TreeKind.EXEC, "in the sandbox", ())
    assert any("/dev/null stands for them" in note for note in found.notes)
    for policy in ("record", "fail"):
        (found,) = look(box, exec_sessions=policy)
        assert (found.engine, found.notes) == ("", ())
        assert found.why[0].endswith(f"process.exec_sessions = {policy}")


def test_two_trees_of_which_nothing_is_shared(box: Box) -> None:
    box.two_trees()
    assert {kind_of(each): each.engine for each in look(box)} == dict.fromkeys(TreeKind, "in the sandbox")


def test_what_ties_two_trees_keeps_both_out(box: Box) -> None:
    box.two_trees(setup="r, w = os.pipe()", child="os.close(w)", parent="os.close(r)")
    for found in look(box):
        assert found.engine == ""
        assert any("a pipe is shared" in why for why in found.why)


def test_what_only_the_whole_container_takes(box: Box) -> None:
    box.two_trees(child=SEGMENT)
    found = {kind_of(each): each for each in look(box)}
    assert found[TreeKind.INIT].whole
    assert any("System V" in why for why in found[TreeKind.INIT].why)
    assert found[TreeKind.EXEC].engine == ""
    assert "leaves out what docker exec started" in found[TreeKind.EXEC].why[-1]
    assert found[TreeKind.EXEC].hints == ()


def test_an_init_with_state(box: Box) -> None:
    forest = partition(box.cgroup.pids(), box.init_pid, lambda pid: False)
    (found,) = look(box, forest)
    assert found.whole
    assert found.why == (OWN_STATE,)


def test_connections_are_reset_unless_kept(box: Box) -> None:
    box.one_tree(CONNECTION)
    (found,) = look(box)
    assert found.engine == "in the sandbox"
    assert any("the processes see their end" in note for note in found.notes)
    (found,) = look(box, keep_connections=True)
    assert not any("reset" in note for note in found.notes)


def test_what_is_being_started_is_told(box: Box) -> None:
    box.one_tree("import pathlib; pathlib.Path('/proc/self/comm').write_text('runc:[2:INIT]')")
    (found,) = look(box)
    assert (found.engine, found.why) == ("", ("it is being started",))
    assert "runc:[2:INIT]" in found.processes
