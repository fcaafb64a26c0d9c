"""What trees of real sandboxes share, with each other and with the outside, and what CRIU refuses."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from turnkeep.errors import SandboxGone
from turnkeep.process.descriptors import MAX_DESCRIPTORS
from turnkeep.process.findings import Blocks, Finding, Findings, Kind
from turnkeep.process.sharing import examine

from tests.process.boxes import Box, exec_trees, init_tree, make_box

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def shared_box(engine: docker.DockerClient) -> Iterator[Box]:
    """One sandbox for tests that end what they start; it may do what tests of namespaces need."""
    options = ["seccomp=unconfined", "apparmor=unconfined"]
    with make_box(engine, security_opt=options, cap_add=["SYS_ADMIN", "SYS_PTRACE"]) as box:
        yield box


@pytest.fixture
def box(shared_box: Box) -> Iterator[Box]:
    """A sandbox in which nothing runs but its own command."""
    yield shared_box
    shared_box.clear()


def look(box: Box) -> Findings:
    """Examine a sandbox while it is frozen."""
    with box.frozen():
        return examine(box.forest().trees, box.init_pid)


def only(findings: Findings) -> Finding:
    """Return the one finding there is."""
    (finding,) = findings.findings
    return finding


BETWEEN_TREES = {
    "pipe": (Kind.PIPE, "r, w = os.pipe()", "os.close(w)", "os.close(r)"),
    "named pipe": (
        Kind.PIPE,
        "os.system('rm -f /tmp/fifo; mkfifo /tmp/fifo')",
        "fd = os.open('/tmp/fifo', os.O_RDWR)",
        "fd = os.open('/tmp/fifo', os.O_RDWR)",
    ),
    "socket pair": (Kind.SOCKET, "a, b = socket.socketpair()", "a.close()", "b.close()"),
    "datagram pair": (Kind.SOCKET, "a, b = socket.socketpair(1, 2)", "a.close()", "b.close()"),
    "one socket": (Kind.SOCKET, "a = socket.socket()", "pass", "pass"),
    "unix server": (
        Kind.SOCKET,
        "server = socket.socket(socket.AF_UNIX); server.bind('\\0turnkeep'); server.listen()",
        "a = socket.socket(socket.AF_UNIX); a.connect('\\0turnkeep'); server.close()",
        "b = server.accept()[0]; server.close()",
    ),
    "connection not accepted": (
        Kind.SOCKET,
        "server = socket.socket(socket.AF_UNIX); server.bind('\\0turnkeep'); server.listen()",
        "a = socket.socket(socket.AF_UNIX); a.connect('\\0turnkeep'); server.close()",
        "pass",
    ),
    "anonymous memory": (Kind.SHARED_MEMORY, "memory = mmap.mmap(-1, 4096)", "pass", "pass"),
    "memory file": (
        Kind.DELETED_FILE,
        "fd = os.memfd_create('x')",
        "pass",
        "os.open(f'/proc/self/fd/{fd}', 2); os.close(fd)",
    ),
    "mapped memory file": (
        Kind.SHARED_MEMORY,
        "fd = os.memfd_create('x'); os.truncate(fd, 4096)",
        "memory = mmap.mmap(os.open(f'/proc/self/fd/{fd}', os.O_RDWR), 4096); os.close(fd)",
        "pass",
    ),
    "deleted file": (
        Kind.DELETED_FILE,
        "os.close(os.open('/root/x', os.O_RDWR | os.O_CREAT))",
        "fd = os.open('/root/x', os.O_RDWR)",
        "fd = os.open('/root/x', os.O_RDWR); os.unlink('/root/x')",
    ),
    "mapped deleted file": (
        Kind.DELETED_FILE,
        "fd = os.open('/root/x', os.O_RDWR | os.O_CREAT); os.truncate(fd, 4096)",
        "memory = mmap.mmap(os.open('/root/x', os.O_RDWR), 4096); os.close(fd); os.unlink('/root/x')",
        "pass",
    ),
    "POSIX shared memory": (
        Kind.DELETED_FILE,
        "fd = os.open('/dev/shm/x', os.O_RDWR | os.O_CREAT); os.truncate(fd, 4096); os.close(fd)",
        "memory = mmap.mmap(os.open('/dev/shm/x', os.O_RDWR), 4096)",
        "memory = mmap.mmap(os.open('/dev/shm/x', os.O_RDWR), 4096); os.unlink('/dev/shm/x')",
    ),
    "offset": (Kind.OPEN_FILE, "fd = os.open('/root/log', os.O_WRONLY | os.O_CREAT)", "pass", "pass"),
    "event counter": (Kind.OPEN_FILE, "fd = os.eventfd(0)", "pass", "pass"),
    "epoll": (Kind.OPEN_FILE, "fd = select.epoll()", "pass", "pass"),
    "inotify": (Kind.OPEN_FILE, "fd = libc.inotify_init()", "pass", "pass"),
    "terminal": (Kind.TERMINAL, "a, b = os.openpty()", "os.close(b)", "os.close(a)"),
    "controlling terminal": (
        Kind.TERMINAL,
        "import fcntl, termios; a, b = os.openpty()",
        "fcntl.ioctl(b, termios.TIOCSCTTY, 0); os.close(a); os.close(b)",
        "os.close(b)",
    ),
    "watched process": (Kind.WATCHED, "me = os.getpid()", "fd = os.pidfd_open(me)", "pass"),
    "session": (Kind.SESSION, "SETSID = False", "pass", "pass"),
    "working folder": (
        Kind.ADDRESS_SPACE,
        "os.fork = lambda: libc.syscall(56, 0x200 | 17, 0, 0, 0, 0)",
        "pass",
        "pass",
    ),
}


@pytest.mark.parametrize("what", BETWEEN_TREES)
def test_what_two_trees_share_is_found(box: Box, what: str) -> None:
    kind, setup, child, parent = BETWEEN_TREES[what]
    box.two_trees(setup=setup, child=child, parent=parent)
    with box.frozen():
        forest = box.forest()
        findings = examine(forest.trees, box.init_pid)
    found = findings.of(kind)
    assert found, findings
    (exec_tree,) = exec_trees(forest)
    roots = {box.init_pid, exec_tree.root_pid}
    assert kind is Kind.WATCHED or all(set(finding.trees) == roots for finding in found)
    assert all(finding.blocks is Blocks.BOTH for finding in found)
    assert findings.blocking_in_sandbox() == findings.blocking_in_sandbox({exec_tree.root_pid, box.init_pid})
    others = [finding for finding in findings.findings if finding.kind is not kind]
    assert kind is Kind.ADDRESS_SPACE or not others, others


def test_a_table_of_descriptors_may_be_shared(box: Box) -> None:
    box.python(
        """
import ctypes, os, signal
clone = lambda: ctypes.CDLL(None).syscall(56, 0x400 | signal.SIGCHLD, 0, 0, 0, 0)
if clone() == 0:
    if clone() == 0:
        os.setsid()
        signal.pause()
    os._exit(0)
os.wait()
while True:
    with open("/proc/1/task/1/children") as file:
        adopted = file.read().split()[1:]
    if adopted and os.getsid(int(adopted[0])) == int(adopted[0]):
        break
print("ready", flush=True)
signal.pause()"""
    )
    findings = look(box)
    assert [finding.what.partition(" is ")[0] for finding in findings.of(Kind.ADDRESS_SPACE)] == [
        "a table of descriptors"
    ]


@pytest.mark.parametrize(
    "own",
    [
        "fd = os.open('/root/own', os.O_RDWR | os.O_CREAT)",
        "fd = os.open('/dev/urandom', 0)",
        "r, w = os.pipe(); e = select.epoll(); f = os.eventfd(0)",
        "a, b = socket.socketpair()",
        "a, b = os.openpty()",
        "memory = mmap.mmap(-1, 4096); fd = os.memfd_create('x')",
        "fd = os.open('/root/m', 66); os.truncate(fd, 4096); m = mmap.mmap(fd, 4096)",
    ],
)
def test_what_two_trees_have_each_for_itself_is_no_finding(box: Box, own: str) -> None:
    box.two_trees(child=own, parent=own)
    assert look(box).findings == ()


def test_what_one_tree_shares_within_itself_is_no_finding(box: Box) -> None:
    box.one_tree(
        """
r, w = os.pipe()
a, b = socket.socketpair()
c, d = os.openpty()
memory = mmap.mmap(-1, 4096)
fd = os.eventfd(0)
file = tempfile.TemporaryFile()
epoll = select.epoll()
if not os.fork():
    os.setsid()
    signal.pause()"""
    )
    assert look(box).findings == ()


def test_ties_to_trees_without_state_count(box: Box) -> None:
    box.one_tree("a, b = socket.socketpair()")
    with box.frozen():
        forest = box.forest()
        trees = [tree for tree in forest.trees if tree.to_dump]
        assert examine(forest.trees, box.init_pid).findings == ()
        assert len(trees) == 1


def test_standard_streams_of_an_exec_lead_out(box: Box) -> None:
    box.one_tree("pass")
    with box.frozen():
        forest = box.forest()
        findings = examine(forest.trees, box.init_pid)
    (tree,) = exec_trees(forest)
    assert findings.findings == ()
    assert [(tie.descriptors, tie.reads, tie.writes) for tie in findings.ties_of(tree.root_pid)] == [
        (((tree.root_pid, fd),), fd == 0, fd != 0) for fd in (0, 1, 2)
    ]
    assert all(
        tie.inherit == os.readlink(f"/proc/{tree.root_pid}/fd/{fd}") for fd, tie in enumerate(findings.ties)
    )
    assert all(tie.init_fd is None and not tie.external for tie in findings.ties)


def test_a_detached_exec_has_the_hosts_null_device(box: Box) -> None:
    box.container.exec_run(["sleep", "1000"], detach=True)
    # The engine answers before it has handed over to the program.
    while [tree.names for tree in exec_trees(box.forest())] != [("sleep",)]:
        os.sched_yield()
    with box.frozen():
        forest = box.forest()
        findings = examine(forest.trees, box.init_pid)
    (tree,) = exec_trees(forest)
    (tie,) = (tie for tie in findings.ties if tie.descriptors == ((tree.root_pid, 0),))
    assert (tie.kind, tie.null) == (Kind.OUTSIDE_FILE, True)
    assert tie.external == tie.inherit
    assert tie.inherit.startswith("file[")
    assert findings.findings == ()


def test_the_log_of_the_sandbox_can_be_told_by_inits_descriptors(box: Box) -> None:
    box.one_tree("fd = os.open('/proc/1/fd/2', os.O_WRONLY)")
    assert {tie.descriptors[0][1] > 2: tie.init_fd for tie in look(box).ties} == {False: None, True: 2}


def test_a_terminal_of_a_client_leads_out(box: Box) -> None:
    box.one_tree("pass", options=("-t",))
    with box.frozen():
        forest = box.forest()
        findings = examine(forest.trees, box.init_pid)
    (tree,) = exec_trees(forest)
    (tie,) = findings.ties_of(tree.root_pid)
    status = os.stat(f"/proc/{tree.root_pid}/fd/0")
    assert tie.kind is Kind.TERMINAL
    assert tie.external == tie.inherit == f"tty[{status.st_rdev:x}:{status.st_dev:x}]"
    assert [fd for _, fd in tie.descriptors] == [0, 1, 2]
    assert findings.findings == ()


def test_a_console_of_the_sandbox_leads_out(engine: docker.DockerClient) -> None:
    with make_box(engine, init=False, tty=True, stdin_open=True, command=["bash"]) as box, box.frozen():
        forest = box.forest()
        findings = examine(forest.trees, box.init_pid)
        # Its init counts as reproducible here: nothing is to be dumped, nothing is said.
        assert findings == Findings()


def test_a_pipe_whose_other_end_is_closed_leads_nowhere(box: Box) -> None:
    box.one_tree("r, w = os.pipe(); os.close(r); a, b = os.pipe(); os.close(b)")
    assert [tie.descriptors[0][1] for tie in look(box).ties] == [0, 1, 2]


def test_a_unix_socket_may_lead_out(engine: docker.DockerClient, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        server.bind(str(path))
        server.listen()
        log.bind(str(tmp_path / "d"))
        with make_box(engine, volumes={str(tmp_path): {"bind": "/host", "mode": "rw"}}) as box:
            box.one_tree("a = socket.socket(socket.AF_UNIX); a.connect('/host/s')")
            connection, _ = server.accept()
            with connection:
                finding = only(look(box))
            assert (finding.kind, finding.blocks) == (Kind.OUTSIDE_SOCKET, Blocks.BOTH)
            box.clear()
            box.one_tree("a = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); a.connect('/host/d')")
            finding = only(look(box))
            assert (finding.kind, finding.blocks) == (Kind.OUTSIDE_SOCKET, Blocks.NONE)


def test_tcp_connections_are_told(box: Box) -> None:
    box.two_trees(
        setup="server = socket.create_server(('127.0.0.1', 8000))",
        child="a = socket.create_connection(('127.0.0.1', 8000)); server.close()",
        parent="b = server.accept()[0]; server.close()",
    )
    findings = look(box)
    assert {finding.blocks for finding in findings.findings} == {Blocks.NONE}
    assert len(findings.of(Kind.CONNECTION)) == 2
    assert "to 127.0.0.1:8000" in findings.of(Kind.CONNECTION)[0].what


def test_connections_that_nobody_accepted_are_told(box: Box) -> None:
    box.one_tree(
        """
server = socket.create_server(("127.0.0.1", 8000))
client = socket.create_connection(("127.0.0.1", 8000))"""
    )
    finding = only(look(box))
    assert (finding.kind, finding.blocks) == (Kind.CONNECTION, Blocks.NONE)
    assert "1 not accepted yet at 127.0.0.1:8000" in finding.what


def test_a_server_that_only_listens_is_no_finding(box: Box) -> None:
    box.one_tree("server = socket.create_server(('127.0.0.1', 8000)); udp = socket.socket(2, 2)")
    assert look(box).findings == ()


REFUSED = {
    "io_uring": (
        Kind.IO_URING,
        "params = ctypes.create_string_buffer(120); assert libc.syscall(425, 4, params) > 0",
    ),
    "userfaultfd": (Kind.USERFAULTFD, "assert libc.syscall(323, 1) > 0"),
    "message queue": (Kind.MESSAGE_QUEUE, "assert libc.mq_open(b'/turnkeep', 0o102, 0o600, None) > 0"),
    "performance counter": (
        Kind.DESCRIPTOR,
        "what = struct.pack('<II', 1, 128).ljust(128, b'\\0')\n"
        "assert libc.syscall(298, what, 0, -1, -1, 0) > 0",
    ),
    "vsock": (Kind.PROTOCOL, "a = socket.socket(socket.AF_VSOCK)"),
    "multipath TCP": (Kind.PROTOCOL, "a = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)"),
    "mount namespace": (Kind.NAMESPACE, "assert libc.unshare(0x20000) == 0"),
    "network namespace": (Kind.NAMESPACE, "assert libc.unshare(0x40000000) == 0"),
    "traced": (Kind.TRACED, "pid = os.fork() or signal.pause()\nassert libc.ptrace(0x4206, pid, 0, 0) == 0"),
    "spawning": (
        Kind.ADDRESS_SPACE,
        "if libc.syscall(56, 0x4100 | 17, 0, 0, 0, 0) == 0:\n"
        "    print('ready', flush=True)\n    signal.pause()",
    ),
    "attached memory": (
        Kind.SYSV_IPC,
        "libc.shmat.restype = ctypes.c_void_p\nlibc.shmat(libc.shmget(0, 4096, 0o600), None, 0)",
    ),
    "semaphores": (Kind.SYSV_IPC, "assert libc.semget(0, 1, 0o600) >= 0"),
    "messages": (Kind.SYSV_IPC, "assert libc.msgget(0, 0o600) >= 0"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_criu_refuses_is_found(box: Box, what: str) -> None:
    kind, body = REFUSED[what]
    try:
        box.one_tree(body)
        findings = look(box)
        assert {finding.kind for finding in findings.findings} == {kind}
        expected = Blocks.IN_SANDBOX if kind is Kind.SYSV_IPC else Blocks.BOTH
        assert {finding.blocks for finding in findings.findings} == {expected}
        assert findings.blocking_in_sandbox()
    finally:
        box.container.exec_run(["sh", "-c", "rm -f /dev/mqueue/*; ipcrm -a"])


def test_a_program_that_is_just_being_started_passes(box: Box) -> None:
    box.one_tree(REFUSED["spawning"][1])
    assert only(look(box)).passing


def test_a_stopped_process_is_found_where_the_freezer_keeps_it_from_criu(box: Box) -> None:
    box.one_tree("p = os.fork() or signal.pause(); os.kill(p, signal.SIGSTOP); os.waitpid(p, os.WUNTRACED)")
    found = [finding.kind for finding in look(box).findings]
    assert found == ([Kind.STOPPED] if box.cgroup.version == 1 else [])


def test_a_device_is_found(engine: docker.DockerClient) -> None:
    with make_box(engine, devices=["/dev/fuse"]) as box:
        box.one_tree("fd = os.open('/dev/fuse', os.O_RDWR)")
        finding = only(look(box))
        assert (finding.kind, finding.blocks) == (Kind.DEVICE, Blocks.BOTH)
        assert "/dev/fuse" in finding.what


# A program for 32 bits: pause(), again and again.
_PROGRAM = bytes.fromhex(
    "7f454c46010101000000000000000000"
    "0200030001000000548004083400000000000000000000003400200001000000"
    "00000000"
    "0100000000000000008004080080040860000000600000000500000000100000"
    "b81d000000cd80ebf7"
)


def test_a_32_bit_process_is_told(box: Box) -> None:
    box.python(
        f"""
import os
with open("/tmp/small", "wb") as file:
    file.write(bytes.fromhex({_PROGRAM.hex()!r}))
os.chmod("/tmp/small", 0o755)
pid = os.fork() or os.execv("/tmp/small", ["small"])
def name():
    with open(f"/proc/{{pid}}/comm") as file:
        return file.read()
while name() != "small\\n":
    pass
print("ready", flush=True)
os.wait()"""
    )
    finding = only(look(box))
    assert (finding.kind, finding.blocks) == (Kind.ADDRESS_SIZE, Blocks.NONE)


def test_too_many_descriptors_are_said_not_to_be_known(box: Box) -> None:
    for _ in range(2):
        box.one_tree(f"for _ in range({MAX_DESCRIPTORS} * 2 // 3): os.dup(0)")
    finding = only(look(box))
    assert (finding.kind, finding.blocks) == (Kind.UNKNOWN, Blocks.BOTH)
    box.one_tree("r, w = os.pipe()")
    findings = look(box)
    assert len(findings.of(Kind.UNKNOWN)) == 1
    assert findings.blocking_in_sandbox()


def test_names_may_be_anything(box: Box) -> None:
    box.one_tree(
        """
import fcntl
libc.prctl(15, b"\\n\\x1b[2J\\xff", 0, 0, 0)
os.chdir("/tmp")
for name in (b"pipe:[1]", b"anon_inode:[io_uring]", b"\\n\\xff (deleted)", b"memfd:x (deleted)"):
    os.open(name, os.O_RDWR | os.O_CREAT)
os.makedirs("/memfd:", exist_ok=True)
os.open("/memfd:/x", os.O_RDWR | os.O_CREAT)"""
    )
    assert look(box).findings == ()


def test_processes_that_end_meanwhile_hold_nothing(box: Box) -> None:
    box.start("sh", "-c", "for i in $(seq 20); do sleep 1000 & done; echo ready; wait")
    forest = box.forest()
    box.clear()
    assert examine(forest.trees, box.init_pid).findings == ()


def test_without_init_there_is_no_sandbox(box: Box) -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(SandboxGone):
        examine(box.forest().trees, child)


def test_looking_leaves_this_process_where_it_is(box: Box) -> None:
    before = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("net", "ipc")}
    descriptors = set(os.listdir("/proc/self/fd"))
    box.one_tree("a, b = socket.socketpair(); server = socket.create_server(('127.0.0.1', 8000))")
    look(box)
    for thread in threading.enumerate():
        own = {name: os.readlink(f"/proc/self/task/{thread.native_id}/ns/{name}") for name in ("net", "ipc")}
        assert own == before
    process = box.execs[-1]
    assert process.stdin is not None
    assert process.stdout is not None
    ours = {str(process.stdin.fileno()), str(process.stdout.fileno())}
    assert set(os.listdir("/proc/self/fd")) - ours == descriptors - ours


def test_a_tree_left_out_is_no_longer_in_the_way(box: Box) -> None:
    box.two_trees(setup="r, w = os.pipe()")
    box.one_tree("pass")
    with box.frozen():
        forest = box.forest()
        findings = examine(forest.trees, box.init_pid)
    tied, free = exec_trees(forest)
    assert findings.blocking_in_sandbox({free.root_pid}) == ()
    assert findings.blocking_in_sandbox({tied.root_pid})
    assert init_tree(forest).to_dump
