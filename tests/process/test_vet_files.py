"""Vetting images: what a forger could ask for in open files and sockets is refused."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from turnkeep.errors import ImagesRefused
from turnkeep.process.allowance import CAPABILITY, Allowance
from turnkeep.process.confinement import Confinement
from turnkeep.process.imageformat import criu_pb2 as pb
from turnkeep.process.images import FileType, open_images
from turnkeep.process.vet import vet

from tests.process.allowances import Edit, allowance_of, change_one, refuse
from tests.process.dumps import SLEEP, read, unpack, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return unpack(tmp_path / "images")


@pytest.fixture(scope="module")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Allowance:
    return allowance_of(open_images(str(unpack(tmp_path_factory.mktemp("images")))))


def _is(kind: FileType) -> Callable[[Any], bool]:
    return lambda file: bool(file.type == kind)


def _named(name: bytes) -> Callable[[Any], bool]:
    return lambda file: bool(file.reg.name == name)


_FILE, _NULL = _named(b"/tmp/locked"), _named(b"/dev/null")
_TCP = _is(FileType.INETSK)
_UNIX = _is(FileType.UNIXSK)
_SELF = _is(FileType.EVENTPOLL)


def _reg(**fields: Any) -> Edit:
    def edit(file: pb.File) -> None:
        for name, value in fields.items():
            setattr(file.reg, name, value)

    return edit


def _isk(**fields: Any) -> Edit:
    def edit(file: pb.File) -> None:
        for name, value in fields.items():
            setattr(file.isk, name, value)

    return edit


def _become(kind: FileType) -> Edit:
    return lambda file: setattr(file, "type", kind)


FILES: list[tuple[str, Callable[[Any], bool], Edit]] = [
    *(
        (f"type {kind.name}", _FILE, _become(kind))
        for kind in (FileType.NS, FileType.TUNF, FileType.FANOTIFY, FileType.PACKETSK, FileType.EXT)
    ),
    ("type BPFMAP", _FILE, _become(FileType.BPFMAP)),
    ("type 0", _FILE, lambda file: setattr(file, "type", 0)),
    ("type 65535", _FILE, lambda file: setattr(file, "type", 65535)),
    ("fields", _FILE, _become(FileType.PIPE)),
    ("fields", _FILE, lambda file: setattr(file, "nsf", b"")),
    ("fields", _FILE, lambda file: file.ClearField("reg")),
    ("the id 99999 inside", _FILE, _reg(id=99999)),
    ("absolute", _FILE, _reg(name=b"tmp/locked")),
    ("absolute", _FILE, _reg(name=b"")),
    ("absolute", _FILE, _reg(name=b"/" + b"x" * 5000)),
    ("absolute", _FILE, _reg(name=b"/tmp\0/x")),
    (r"without \.\.", _FILE, _reg(name=b"/tmp/../../etc/shadow")),
    ("links of processes", _FILE, _reg(name=b"/proc/self/root/etc")),
    ("links of processes", _FILE, _reg(name=b"/proc/1/root/etc/passwd")),
    ("links of processes", _FILE, _reg(name=b"/proc/1/cwd/x")),
    ("links of processes", _FILE, _reg(name=b"/proc/thread-self/fd/3")),
    ("links of processes", _FILE, _reg(name=b"/proc/1/ns/mnt")),
    ("not in the images", _FILE, _reg(name=b"/proc/31337/status", mode=stat.S_IFREG | 0o444)),
    ("everyone may read", _FILE, _reg(name=b"/proc/kmsg", mode=stat.S_IFREG | 0o400, flags=0)),
    ("everyone may read", _FILE, _reg(name=b"/proc/1/mem", mode=stat.S_IFREG | 0o600, flags=2)),
    ("everyone may read", _FILE, _reg(name=b"/proc/sysrq-trigger", mode=stat.S_IFREG | 0o644, flags=1)),
    ("everyone may read", _FILE, _reg(name=b"/sys/kernel/uevent_helper", mode=stat.S_IFREG | 0o644, flags=1)),
    ("everyone may read", _FILE, _reg(name=b"/sys/fs/cgroup/cgroup.procs", mode=stat.S_IFREG | 0o644)),
    ("a device", _FILE, _reg(mode=stat.S_IFCHR | 0o666)),
    ("a device", _NULL, _reg(name=b"/dev/mem")),
    ("a device", _NULL, _reg(name=b"/dev/pts/1/x")),
    ("a device", _NULL, _reg(name=b"/tmp/null")),
    ("mode", _FILE, _reg(mode=stat.S_IFBLK | 0o666)),
    ("mode", _FILE, _reg(mode=stat.S_IFSOCK | 0o666)),
    ("no mode", _FILE, lambda file: file.reg.ClearField("mode")),
    ("from outside", _FILE, _reg(ext=True)),
    ("from outside", _FILE, _reg(ext=True, name=b"file[1b:21e025]")),
    ("absolute", _FILE, _reg(name=b"file[1b:21e025]")),
    ("a mount's id", _FILE, _reg(mnt_id=40)),
    ("open flags", _FILE, _reg(flags=0o101)),
    ("open flags", _FILE, _reg(flags=0o1001)),
    ("open flags", _FILE, _reg(flags=1 << 30)),
    ("signal 65", _FILE, lambda file: setattr(file.reg.fown, "signum", 65)),
    ("owner type", _FILE, lambda file: setattr(file.reg.fown, "pid_type", 3)),
    ("owner uids", _FILE, lambda file: setattr(file.reg.fown, "euid", 4)),
    ("family 17", _TCP, lambda file: setattr(file.isk, "family", 17)),
    ("an address", _TCP, lambda file: file.isk.src_addr.append(1)),
    ("type 10", _TCP, lambda file: setattr(file.isk, "type", 10)),
    ("protocol 132", _TCP, lambda file: setattr(file.isk, "proto", 132)),
    ("no port", _TCP, lambda file: setattr(file.isk, "src_port", 70000)),
    ("state 0", _TCP, lambda file: setattr(file.isk, "state", 0)),
    ("network namespace", _TCP, lambda file: setattr(file.isk, "ns_id", 40)),
    ("network device", _TCP, lambda file: setattr(file.isk, "ifname", b"../x")),
    ("network device", _TCP, lambda file: setattr(file.isk.opts, "so_bound_dev", b"x" * 16)),
    ("marked packets", _TCP, lambda file: setattr(file.isk.opts, "so_mark", 1)),
    ("priority 7", _TCP, lambda file: setattr(file.isk.opts, "so_priority", 7)),
    ("a buffer", _TCP, lambda file: setattr(file.isk.opts, "so_rcvbuf", 1 << 31)),
    ("shutdown", _TCP, lambda file: setattr(file.isk, "shutdown", 4)),
    ("flags 0x1", _UNIX, lambda file: setattr(file.usk, "uflags", 1)),
    ("flags 0x4", _UNIX, lambda file: setattr(file.usk, "uflags", 4)),
    ("type 3", _UNIX, lambda file: setattr(file.usk, "type", 3)),
    ("a long name", _UNIX, lambda file: setattr(file.usk, "name", b"/" + b"x" * 108)),
    ("without", _UNIX, lambda file: setattr(file.usk, "name", b"/tmp/../run/docker.sock\0")),
    ("no folder", _UNIX, lambda file: setattr(file.usk, "name", b"relative\0")),
    ("links of processes", _UNIX, lambda file: setattr(file.usk, "name_dir", b"/proc/self/cwd")),
    ("a mount's id", _UNIX, lambda file: setattr(file.usk, "mnt_id", 3)),
    ("network namespace", _UNIX, lambda file: setattr(file.usk, "ns_id", 40)),
    (
        "mode",
        _UNIX,
        lambda file: file.usk.file_perms.CopyFrom(pb.Permissions(mode=stat.S_IFSOCK | 0o4755, uid=0, gid=0)),
    ),
    (
        "mode",
        _UNIX,
        lambda file: file.usk.file_perms.CopyFrom(pb.Permissions(mode=stat.S_IFREG | 0o755, uid=0, gid=0)),
    ),
    ("terminal 99", _is(FileType.TTY), lambda file: setattr(file.tty, "tty_info_id", 99)),
    ("a terminal at file", _is(FileType.TTY), lambda file: setattr(file.tty, "regf_id", 9999)),
    ("a FIFO at file", _is(FileType.FIFO), lambda file: setattr(file.fifo, "regf_id", 1)),
    ("memory file 99", _is(FileType.MEMFD), lambda file: setattr(file.memfd, "inode_id", 99)),
]


@pytest.mark.parametrize(("what", "fits", "edit"), FILES)
def test_files(folder: Path, allowed: Allowance, what: str, fits: Callable[[Any], bool], edit: Edit) -> None:
    change_one(folder, "files.img", edit, fits)
    refuse(folder, allowed, what)


def test_low_ports_and_raw_sockets_need_their_capability(folder: Path, allowed: Allowance) -> None:
    for name, fields in (("NET_BIND_SERVICE", {"src_port": 80}), ("NET_RAW", {"type": 3, "proto": 255})):
        change_one(folder, "files.img", _isk(**fields), _TCP)
        vet(open_images(str(folder)), allowed)
        assert allowed.processes is not None
        bare = {pid: _without(each, name) for pid, each in allowed.processes.items()}
        images = open_images(str(folder))
        for core in images.cores.values():
            for words in (
                core.thread_core.creds.cap_prm,
                core.thread_core.creds.cap_eff,
                core.thread_core.creds.cap_bnd,
            ):
                words[:] = [word & ~CAPABILITY[name] for word in words]
        less = replace(allowed, processes=bare, capabilities=allowed.capabilities & ~CAPABILITY[name])
        with pytest.raises(ImagesRefused, match="a socket of port"):
            vet(images, less)
        unpack(folder)


def _without(process: Confinement, name: str) -> Confinement:
    own = process.credentials
    bit = CAPABILITY[name]
    sets = {each: getattr(own, each) & ~bit for each in ("permitted", "effective", "bounding")}
    return replace(process, credentials=replace(own, **sets))


def test_sockets_that_are_named_are_allowed(folder: Path, allowed: Allowance) -> None:
    def connect_outside(file: pb.File) -> None:
        file.usk.uflags, file.usk.name = 1, b"/dev/log\0"

    change_one(folder, "files.img", connect_outside, _UNIX)
    refuse(folder, allowed, "unix socket")
    vet(open_images(str(folder)), replace(allowed, external=frozenset({b"/dev/log\0"})))


def test_files_from_outside_that_are_replaced(folder: Path, allowed: Allowance) -> None:
    change_one(folder, "files.img", _reg(ext=True, name=b"file[1b:21e025]"), _FILE)
    images = open_images(str(folder))
    vet(images, replace(allowed, external=frozenset({b"file[1b:21e025]"})))
    refuse(folder, replace(allowed, external=frozenset({b"file[1b:21e026]"})), "from outside")


def test_terminals_from_outside_that_are_replaced(folder: Path, allowed: Allowance) -> None:
    def make_external(terminal: pb.TtyInfo) -> None:
        terminal.type, terminal.rdev, terminal.dev = 5, 0x8801, 0x37

    change_one(folder, "tty-info.img", make_external)
    number = read(folder, "tty-info.img")[0].id
    there = replace(allowed, external=frozenset({b"tty[8801:37]"}))
    refuse(folder, there, "a path for what is from outside")
    files = read(folder, "files.img")
    for file in files:
        if file.type == FileType.TTY and file.tty.tty_info_id == number:
            file.tty.ClearField("regf_id")
    write(folder, "files.img", files)
    vet(open_images(str(folder)), there)
    refuse(folder, replace(allowed, external=frozenset({b"tty[8801:38]"})), "type 5")


def _new_file(folder: Path, file: pb.File) -> None:
    write(folder, "files.img", [*read(folder, "files.img"), file])


OWNER = pb.Owner(uid=0, euid=0, signum=0, pid_type=0, pid=0)


def _watch(**handle: Any) -> pb.File:
    watch = pb.InotifyWatch(id=7777, i_ino=2, mask=2, ignored_mask=0, s_dev=1, wd=1)
    watch.f_handle.CopyFrom(pb.FileHandle(bytes=8, type=1, handle=[0] * 16, **handle))
    return pb.File(type=8, id=7777, ify=pb.Inotify(id=7777, flags=0, fown=OWNER, wd=[watch]))


def test_watches_by_file_handle_are_refused(folder: Path, allowed: Allowance) -> None:
    """A handle that a forger chooses can be any file of the host on that file system."""
    _new_file(folder, _watch())
    refuse(folder, allowed, "file handle")
    unpack(folder)
    _new_file(folder, _watch(path=b"/tmp", mnt_id=1))
    refuse(folder, allowed, "mount's id")
    unpack(folder)
    _new_file(folder, _watch(path=b"/proc/self/root"))
    refuse(folder, allowed, "links of processes")
    unpack(folder)
    _new_file(folder, _watch(path=b"/tmp"))
    vet(open_images(str(folder)), allowed)


def test_timers_that_wake_the_machine(folder: Path, allowed: Allowance) -> None:
    names = ("ticks", "settime_flags", "vsec", "vnsec", "isec", "insec")
    zeros = dict.fromkeys(names, 0)
    for clock in (1, 9):
        timer = pb.TimerFd(id=7777, flags=0, fown=OWNER, clockid=clock, **zeros)
        _new_file(folder, pb.File(type=17, id=7777, tfd=timer))
        if clock == 1:
            vet(open_images(str(folder)), allowed)
        else:
            refuse(folder, allowed, "clock 9")
        unpack(folder)


def test_netlink(folder: Path, allowed: Allowance) -> None:
    options = read(folder, "files.img")
    opts = next(file.isk.opts for file in options if file.type == FileType.INETSK)
    for protocol, groups, what in ((0, [1], ""), (9, [], "netlink 9"), (16, [1], "groups")):
        socket = pb.NetlinkSocket(
            id=7777, ino=1, protocol=protocol, state=7, flags=0, portid=1, groups=groups, dst_portid=0,
            dst_group=0, fown=OWNER, opts=opts,
        )  # fmt: skip
        _new_file(folder, pb.File(type=13, id=7777, nlsk=socket))
        if what:
            refuse(folder, allowed, what)
        else:
            vet(open_images(str(folder)), allowed)
        unpack(folder)


OTHERS: list[tuple[str, str, Edit]] = [
    ("setuid", "ghost-file-1.img", lambda ghost: setattr(ghost, "mode", stat.S_IFREG | 0o4755)),
    ("no device", "ghost-file-1.img", lambda ghost: setattr(ghost, "mode", stat.S_IFCHR | 0o666)),
    ("no device", "ghost-file-1.img", lambda ghost: setattr(ghost, "mode", stat.S_IFBLK | 0o666)),
    ("nobody has it", "remap-fpath.img", lambda remap: setattr(remap, "orig_id", 9999)),
    ("no content", "remap-fpath.img", lambda remap: setattr(remap, "remap_id", 9999)),
    ("that CRIU made", "remap-fpath.img", lambda remap: setattr(remap, "remap_type", 0)),
    ("number 65536", "tty-info.img", lambda terminal: setattr(terminal.pty, "index", 65536)),
    ("remap 3", "remap-fpath.img", lambda remap: setattr(remap, "remap_type", 3)),
    ("kind 32", "filelocks.img", lambda lock: setattr(lock, "flag", 32)),
    ("type 2", "tty-info.img", lambda terminal: setattr(terminal, "type", 2)),
    ("type 5", "tty-info.img", lambda terminal: setattr(terminal, "type", 5)),
    ("session", "tty-info.img", lambda terminal: setattr(terminal, "sid", 1 << 31)),
    ("setuid", "memfd.img", lambda inode: setattr(inode, "mode", 0o104755)),
    ("seals", "memfd.img", lambda inode: setattr(inode, "seals", 0x100)),
    ("root at file", f"fs-{SLEEP}.img", lambda fs: setattr(fs, "root_id", 9999)),
    ("working folder at file", f"fs-{SLEEP}.img", lambda fs: setattr(fs, "cwd_id", 1)),
    ("umask", f"fs-{SLEEP}.img", lambda fs: setattr(fs, "umask", 0o1000)),
]


@pytest.mark.parametrize(("what", "name", "edit"), OTHERS)
def test_what_stands_for_files(folder: Path, allowed: Allowance, what: str, name: str, edit: Edit) -> None:
    change_one(folder, name, edit)
    refuse(folder, allowed, what)


def test_names_that_criu_made_are_allowed(folder: Path, allowed: Allowance) -> None:
    """With --link-remap: it removes them when the file is open again."""
    change_one(folder, "files.img", _reg(name=b"/tmp/link_remap.7"), _FILE)
    number = next(file.id for file in read(folder, "files.img") if file.reg.name == b"/tmp/link_remap.7")

    def link(remap: pb.Remap) -> None:
        remap.remap_type, remap.remap_id = 0, number

    change_one(folder, "remap-fpath.img", link)
    vet(open_images(str(folder)), allowed)
    change_one(folder, "files.img", _reg(name=b"/etc/passwd"), _named(b"/tmp/link_remap.7"))
    refuse(folder, allowed, "that CRIU made")


def test_no_properties_of_control_groups(folder: Path, allowed: Allowance) -> None:
    controller = pb.CgroupController(cnames=[b"memory"])
    write(folder, "cgroup.img", [pb.Cgroups(controllers=[controller])])
    vet(open_images(str(folder)), allowed)
    controller.dirs.append(b"x")
    write(folder, "cgroup.img", [pb.Cgroups(controllers=[controller])])
    refuse(folder, allowed, "properties")


DESCRIPTORS: list[tuple[str, Edit]] = [
    ("file 9999", lambda each: setattr(each, "id", 9999)),
    ("one of its type", lambda each: setattr(each, "type", FileType.PIPE)),
    ("its number", lambda each: setattr(each, "fd", 1)),
    ("its number", lambda each: setattr(each, "fd", 1 << 30)),
    ("flags", lambda each: setattr(each, "flags", 2)),
    ("security label", lambda each: setattr(each, "xattr_security_selinux", b"x")),
]


@pytest.mark.parametrize(("what", "edit"), DESCRIPTORS)
def test_descriptors(folder: Path, allowed: Allowance, what: str, edit: Edit) -> None:
    table = f"fdinfo-{read(folder, f'ids-{SLEEP}.img')[0].files_id}.img"
    change_one(folder, table, edit)
    refuse(folder, allowed, what)


def test_a_process_without_a_table(folder: Path, allowed: Allowance) -> None:
    change_one(folder, f"ids-{SLEEP}.img", lambda ids: setattr(ids, "files_id", 9999))
    refuse(folder, allowed, "no table of files")


def test_large_pipes(folder: Path, allowed: Allowance) -> None:
    refuse(folder, replace(allowed, pipe_bytes=4096), "65536 bytes")


def test_open_connections_only_when_asked(folder: Path, allowed: Allowance) -> None:
    (folder / "tcp-stream-1a.img").write_bytes(b"")
    refuse(folder, allowed, "open TCP connections")
    vet(open_images(str(folder)), replace(allowed, open_connections=True))


def test_descriptors_in_flight(folder: Path, allowed: Allowance) -> None:
    packet = pb.SocketPacket(id_for=1, length=0, scm=[pb.ControlMessage(type=1, rights=[9999])])
    write(folder, "sk-queues.img", [packet])
    refuse(folder, allowed, "a descriptor of no file")
    packet.scm[0].type, packet.scm[0].rights[:] = 2, []
    write(folder, "sk-queues.img", [packet])
    refuse(folder, allowed, "control message 2")
