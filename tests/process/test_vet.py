"""Vetting images: a real dump passes, and what a forger could ask for in processes and memory is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from turnkeep.errors import BadImages, ImagesRefused
from turnkeep.process.allowance import CAPABILITY, Allowance, allowance_from
from turnkeep.process.confinement import RLIMITS, UNLIMITED
from turnkeep.process.imageformat import criu_pb2 as pb
from turnkeep.process.images import TaskState, open_images
from turnkeep.process.keeper import renumber_root
from turnkeep.process.vet import vet

from tests.process.allowances import SPEC, Edit, allowance_of, change_one, refuse
from tests.process.dumps import INIT, SLEEP, names, read, unpack, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return unpack(tmp_path / "images")


@pytest.fixture(scope="module")
def allowed(tmp_path_factory: pytest.TempPathFactory) -> Allowance:
    return allowance_of(open_images(str(unpack(tmp_path_factory.mktemp("images")))))


def test_a_real_dump_passes(folder: Path, allowed: Allowance) -> None:
    images = open_images(str(folder))
    vet(images, allowed)
    vet(images, replace(allowed, processes=None))


def test_what_a_keeper_leads_passes(folder: Path, allowed: Allowance) -> None:
    renumber_root(str(folder), pid=20_000, without={SLEEP})
    vet(open_images(str(folder)), allowed)


def test_another_container_refuses_it(folder: Path, allowed: Allowance) -> None:
    few = replace(allowed, capabilities=CAPABILITY["CHOWN"], processes=None)
    refuse(folder, few, "permitted capabilities")
    refuse(folder, replace(allowed, no_new_privs=True), "no_new_privs")
    refuse(folder, replace(allowed, lsm_label="docker-default (enforce)"), "label")
    refuse(folder, replace(allowed, hard_limits=(1024,) * len(RLIMITS)), "limit cpu")
    refuse(folder, replace(allowed, oom_score_adj=1), "oom_score_adj")
    refuse(folder, replace(allowed, login_uid=1000), "login uid")
    refuse(folder, replace(allowed, pid_max=100), "number")
    refuse(folder, replace(allowed, machine=allowed.machine + 1), "machine")
    refuse(folder, replace(allowed, lowest_address=1 << 40), "memory at")
    low = replace(
        allowed, capabilities=allowed.capabilities & ~CAPABILITY["NET_BIND_SERVICE"], lowest_port=9001
    )
    refuse(folder, replace(low, processes=None), "capabilities")


def test_who_was_not_there_is_refused(folder: Path, allowed: Allowance) -> None:
    assert allowed.processes is not None
    fewer = {pid: each for pid, each in allowed.processes.items() if pid != SLEEP}
    refuse(folder, replace(allowed, processes=fewer), "was not there at the capture")


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_forger_gets_an_answer(folder: Path, allowed: Allowance, data: st.DataObject) -> None:
    """Whatever byte is another, wherever: refused or allowed, and never a defect."""
    small = sorted(name for name in names(folder) if not name.startswith("pages-"))
    path = folder / data.draw(st.sampled_from(small))
    whole = path.read_bytes()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(8, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        with contextlib.suppress(BadImages, ImagesRefused):
            vet(open_images(str(folder)), allowed)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("missing", ["pages-1.img", "files.img", "seccomp.img", "tty-info.img", "memfd.img"])
def test_what_others_refer_to(folder: Path, allowed: Allowance, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ImagesRefused):
        vet(open_images(str(folder)), allowed)


CORE = f"core-{SLEEP}.img"
CREDS: list[tuple[str, Edit]] = [
    ("uids", lambda creds: setattr(creds, "euid", 1)),
    ("uids", lambda creds: setattr(creds, "fsuid", 1)),
    ("gids", lambda creds: setattr(creds, "sgid", 1)),
    ("groups", lambda creds: creds.groups.append(42)),
    ("groups", lambda creds: creds.ClearField("groups")),
    ("inheritable capabilities", lambda creds: creds.cap_inh.__setitem__(0, 1)),
    ("permitted capabilities", lambda creds: creds.cap_prm.__setitem__(0, 0xFFFFFFFF)),
    ("effective capabilities", lambda creds: creds.cap_eff.__setitem__(1, 1)),
    ("bounding capabilities", lambda creds: creds.cap_bnd.__setitem__(0, CAPABILITY["SYS_ADMIN"])),
    ("ambient capabilities", lambda creds: creds.cap_amb.__setitem__(0, 1)),
    ("words of inheritable set", lambda creds: creds.cap_inh.append(1)),
    ("words of bounding set", lambda creds: creds.ClearField("cap_bnd")),
    ("label", lambda creds: setattr(creds, "lsm_profile", b"unconfined")),
    ("label for sockets", lambda creds: setattr(creds, "lsm_sockcreate", b"x")),
    ("AppArmor data", lambda creds: setattr(creds, "apparmor_data", b"x")),
]


@pytest.mark.parametrize(("what", "edit"), CREDS)
def test_more_than_its_credentials(folder: Path, allowed: Allowance, what: str, edit: Edit) -> None:
    change_one(folder, CORE, lambda core: edit(core.thread_core.creds))
    refuse(folder, allowed, f"process {SLEEP} sleep: .*{what}")


def test_a_thread_is_checked_as_its_process_is(folder: Path, allowed: Allowance) -> None:
    tree = read(folder, "pstree.img")
    tid = next(entry.threads[1] for entry in tree if len(entry.threads) > 1)
    change_one(folder, f"core-{tid}.img", lambda core: setattr(core.thread_core.creds, "uid", 77))
    refuse(folder, allowed, f"thread {tid}: uids")


def test_filters_of_the_first_thread_must_be_for_all(folder: Path, allowed: Allowance) -> None:
    tree = read(folder, "pstree.img")
    entry = next(entry for entry in tree if len(entry.threads) > 1)
    number = read(folder, f"core-{entry.pid}.img")[0].thread_core.seccomp_filter
    change_one(folder, "seccomp.img", lambda seccomp: setattr(seccomp.seccomp_filters[number], "flags", 0))
    refuse(folder, allowed, f"thread {entry.threads[1]}: seccomp mode 0")


THREAD: list[tuple[str, Edit]] = [
    ("seccomp mode 0", lambda core: core.thread_core.ClearField("seccomp_mode")),
    ("seccomp mode 0", lambda core: setattr(core.thread_core, "seccomp_mode", 0)),
    ("seccomp mode 7", lambda core: setattr(core.thread_core, "seccomp_mode", 7)),
    ("no seccomp filter", lambda core: core.thread_core.ClearField("seccomp_filter")),
    ("seccomp filter 99", lambda core: setattr(core.thread_core, "seccomp_filter", 99)),
    ("no credentials", lambda core: core.thread_core.ClearField("creds")),
    ("scheduling policy 1", lambda core: setattr(core.thread_core, "sched_policy", 1)),
    ("scheduling policy", lambda core: setattr(core.thread_core, "sched_prio", 50)),
    ("niceness -20", lambda core: setattr(core.thread_core, "sched_nice", -20)),
    ("signal 65", lambda core: setattr(core.thread_core, "pdeath_sig", 65)),
    ("signal of 4 bytes", lambda core: core.thread_core.signals_p.signals.add(siginfo=b"evil")),
    ("signal of 4 bytes", lambda core: core.tc.signals_s.signals.add(siginfo=b"evil")),
    ("machine", lambda core: setattr(core, "mtype", 5)),
    ("registers", lambda core: core.ClearField("thread_info_x86")),
    ("registers", lambda core: setattr(core, "thread_info_aarch64", b"")),
    ("old format", lambda core: core.ids.CopyFrom(pb.KernelIds(vm_id=1, files_id=1, fs_id=1, sighand_id=1))),
    ("old format", lambda core: setattr(core.tc, "old_seccomp_mode", 0)),
    ("long name", lambda core: setattr(core.tc, "comm", b"x" * 16)),
    ("oom_score_adj -1000", lambda core: setattr(core.tc, "oom_score_adj", -1000)),
    ("no oom_score_adj", lambda core: core.tc.ClearField("oom_score_adj")),
    ("login uid 0", lambda core: setattr(core.tc, "loginuid", 0)),
    ("login uid 0", lambda core: core.tc.ClearField("loginuid")),
    ("personality 0x400000", lambda core: setattr(core.tc, "personality", 0x400000)),
    ("15 limits", lambda core: core.tc.rlimits.rlimits.pop()),
    ("0 limits", lambda core: core.tc.ClearField("rlimits")),
    ("limit nofile", lambda core: setattr(core.tc.rlimits.rlimits[7], "max", UNLIMITED)),
    ("limit core", lambda core: setattr(core.tc.rlimits.rlimits[4], "cur", UNLIMITED)),
    ("limit nproc", lambda core: setattr(core.tc.rlimits.rlimits[6], "cur", UNLIMITED)),
    ("timer of clock 9", lambda core: _add_timer(core, 9)),
]


def _add_timer(core: pb.Core, clock: int) -> None:
    names = [field.name for field in pb.PosixTimer.DESCRIPTOR.fields]
    values = {name: 0 for name in names if name != "notify_thread_id"} | {"clock_id": clock}
    core.tc.timers.posix.add(**values)


@pytest.mark.parametrize(("what", "edit"), THREAD)
def test_more_than_a_process_may(folder: Path, allowed: Allowance, what: str, edit: Edit) -> None:
    change_one(folder, CORE, edit)
    refuse(folder, allowed, what)


def _filter(number: int, edit: Edit) -> Edit:
    return lambda seccomp: edit(seccomp.seccomp_filters[number])


def test_filters_that_are_none(folder: Path, allowed: Allowance) -> None:
    number = read(folder, CORE)[0].thread_core.seccomp_filter
    edits: list[tuple[str, Edit]] = [
        ("seccomp filter of 7 bytes", lambda each: setattr(each, "filter", b"x" * 7)),
        ("seccomp filter of 0 bytes", lambda each: setattr(each, "filter", b"")),
        ("filter flags", lambda each: setattr(each, "flags", 8)),
        ("one before it", lambda each: setattr(each, "prev", number)),
        ("one before it", lambda each: setattr(each, "prev", number + 1)),
    ]
    for what, edit in edits:
        change_one(folder, "seccomp.img", _filter(number, edit))
        refuse(folder, allowed, what)
        unpack(folder)


def test_fewer_filters_than_it_had(folder: Path, allowed: Allowance) -> None:
    assert allowed.processes is not None
    before = allowed.processes[SLEEP]
    more = replace(before, credentials=replace(before.credentials, seccomp_filters=2))
    twice = replace(allowed, processes={**allowed.processes, SLEEP: more})
    refuse(folder, twice, "1 seccomp filters; allowed: 2")
    number = read(folder, CORE)[0].thread_core.seccomp_filter
    change_one(folder, "seccomp.img", lambda each: setattr(each.seccomp_filters[number], "prev", number - 1))
    vet(open_images(str(folder)), twice)


def test_no_new_privs_that_it_had(folder: Path, allowed: Allowance) -> None:
    assert allowed.processes is not None
    before = allowed.processes[SLEEP]
    had = replace(before, credentials=replace(before.credentials, no_new_privs=True))
    bound = replace(allowed, processes={**allowed.processes, SLEEP: had})
    refuse(folder, bound, "no_new_privs")
    change_one(folder, CORE, lambda core: setattr(core.thread_core.creds, "no_new_privs", 1))
    vet(open_images(str(folder)), bound)


INVENTORY: list[tuple[str, Edit]] = [
    ("format 1", lambda inventory: setattr(inventory, "img_version", 1)),
    ("old layout", lambda inventory: setattr(inventory, "fdinfo_per_id", False)),
    ("old layout", lambda inventory: inventory.ClearField("ns_per_id")),
    ("no namespaces", lambda inventory: inventory.ClearField("root_ids")),
    ("plugins", lambda inventory: inventory.plugins_entry.plugins.append(b"evil")),
    ("uprobes", lambda inventory: setattr(inventory, "allow_uprobes", True)),
    ("dump in parts", lambda inventory: setattr(inventory, "pre_dump_mode", 1)),
    ("network lock 1", lambda inventory: setattr(inventory, "network_lock_method", 1)),
    ("security module 3", lambda inventory: setattr(inventory, "lsmtype", 3)),
    *(
        (f"a {kind} namespace", lambda inventory, kind=kind: setattr(inventory.root_ids, f"{kind}_ns_id", 99))
        for kind in ("pid", "net", "ipc", "uts", "mnt", "user", "cgroup", "time")
    ),
]


@pytest.mark.parametrize(("what", "edit"), INVENTORY)
def test_the_inventory(folder: Path, allowed: Allowance, what: str, edit: Edit) -> None:
    change_one(folder, "inventory.img", edit)
    refuse(folder, allowed, what)


@pytest.mark.parametrize("kind", ["pid", "net", "ipc", "uts", "mnt", "user", "cgroup", "time"])
def test_a_namespace_of_its_own(folder: Path, allowed: Allowance, kind: str) -> None:
    change_one(folder, f"ids-{SLEEP}.img", lambda ids: setattr(ids, f"{kind}_ns_id", 99))
    refuse(folder, allowed, f"process {SLEEP} sleep: a {kind} namespace")
    change_one(folder, f"ids-{SLEEP}.img", lambda ids: ids.ClearField(f"{kind}_ns_id"))
    refuse(folder, allowed, f"process {SLEEP} sleep: a {kind} namespace")


TREE: list[tuple[str, Edit]] = [
    ("no parent", lambda entry: setattr(entry, "ppid", 0)),
    ("no parent", lambda entry: setattr(entry, "ppid", 4444)),
    ("number 4194305", lambda entry: setattr(entry, "pgid", 4_194_305)),
    ("number 4194305", lambda entry: setattr(entry, "sid", 4_194_305)),
    ("number 4194305", lambda entry: entry.threads.append(4_194_305)),
    ("no first thread", lambda entry: entry.ClearField("threads")),
    ("no first thread", lambda entry: entry.threads.__setitem__(0, INIT)),
    ("a thread twice", lambda entry: entry.threads.append(SLEEP)),
    ("a thread twice", lambda entry: entry.threads.append(INIT)),
    ("no image of its state", lambda entry: entry.threads.append(3333)),
]


@pytest.mark.parametrize(("what", "edit"), TREE)
def test_the_tree(folder: Path, allowed: Allowance, what: str, edit: Edit) -> None:
    change_one(folder, "pstree.img", edit, lambda entry: entry.pid == SLEEP)
    refuse(folder, allowed, what)


@pytest.mark.parametrize("kind", ["ids", "mm", "fs", "pagemap"])
def test_all_of_a_process_must_be_there(folder: Path, allowed: Allowance, kind: str) -> None:
    (folder / f"{kind}-{SLEEP}.img").unlink()
    refuse(folder, allowed, f"process {SLEEP}")


def test_the_state_of_a_process_must_be_there(folder: Path) -> None:
    (folder / CORE).unlink()
    with pytest.raises(BadImages):
        open_images(str(folder)).tasks()


def test_a_zombie_needs_nothing_but_its_state(folder: Path, allowed: Allowance) -> None:
    """A live process cannot pass for a zombie: CRIU then makes a zombie of it."""
    change_one(folder, CORE, lambda core: setattr(core.tc, "task_state", TaskState.DEAD))
    for kind in ("ids", "fs", "mm", "pagemap"):
        (folder / f"{kind}-{SLEEP}.img").unlink()
    vet(open_images(str(folder)), allowed)


def _area(number: int) -> Callable[[Edit], Edit]:
    return lambda edit: lambda memory: edit(memory.vmas[number])


MEMORY: list[tuple[str, Edit]] = [
    ("memory at 0x0", _area(0)(lambda area: setattr(area, "start", 0))),
    ("memory at 0x1000", _area(0)(lambda area: setattr(area, "start", 0x1000))),
    ("up to", _area(0)(lambda area: setattr(area, "start", area.start + 1))),
    ("up to", _area(0)(lambda area: setattr(area, "end", area.end + 1))),
    ("memory at", _area(0)(lambda area: setattr(area, "end", area.end + 4096))),
    ("memory at", _area(1)(lambda area: setattr(area, "start", area.start - 4096))),
    ("memory at", _area(1)(lambda area: setattr(area, "end", area.start))),
    ("below the kernel", lambda memory: setattr(memory.vmas[-2], "end", 0xFFFF800000001000)),
    ("vsyscall elsewhere", lambda memory: setattr(memory.vmas[-1], "end", memory.vmas[-1].end + 4096)),
    ("kind 0x441", _area(0)(lambda area: setattr(area, "status", area.status | 1 << 10))),
    ("kind 0x841", _area(0)(lambda area: setattr(area, "status", area.status | 1 << 11))),
    ("kind 0x40000041", _area(0)(lambda area: setattr(area, "status", area.status | 1 << 30))),
    ("kind 0x8000041", _area(0)(lambda area: setattr(area, "status", area.status | 1 << 27))),
    ("one of private, shared, file", _area(0)(lambda area: setattr(area, "status", area.status | 1 << 9))),
    ("one of private, shared, file", _area(0)(lambda area: setattr(area, "status", 1))),
    ("protection", _area(0)(lambda area: setattr(area, "prot", 8))),
    ("flags", _area(0)(lambda area: setattr(area, "flags", 0x10000))),
    ("advice", _area(0)(lambda area: setattr(area, "madv", 1 << 9))),
    ("open flags", _area(0)(lambda area: setattr(area, "fdflags", 0o1000))),
    ("descriptor 5", _area(0)(lambda area: setattr(area, "fd", 5))),
    ("file 7777", _area(0)(lambda area: setattr(area, "shmid", 7777))),
    ("program 7777", lambda memory: setattr(memory, "exe_file_id", 7777)),
    ("dumpable 3", lambda memory: setattr(memory, "dumpable", 3)),
    ("AIO ring", lambda memory: memory.aios.add(id=memory.vmas[0].start, nr_req=1, ring_len=4096)),
]


@pytest.mark.parametrize(("what", "edit"), MEMORY)
def test_memory(folder: Path, allowed: Allowance, what: str, edit: Edit) -> None:
    change_one(folder, f"mm-{SLEEP}.img", edit)
    refuse(folder, allowed, f"process {SLEEP} sleep.*{what}")


def test_guards_stand_at_the_end(folder: Path, allowed: Allowance) -> None:
    memory = read(folder, f"mm-{SLEEP}.img")[0]
    first = memory.vmas[0]
    guard = pb.Vma()
    guard.CopyFrom(first)
    guard.status, guard.end = 1 << 16 | 1, first.start + 4096
    memory.vmas.append(guard)
    write(folder, f"mm-{SLEEP}.img", [memory])
    vet(open_images(str(folder)), allowed)
    late = pb.Vma()
    late.CopyFrom(first)
    late.start, late.end = memory.vmas[-2].end, memory.vmas[-2].end + 4096
    late.start, late.end = 1 << 55, (1 << 55) + 4096
    del memory.vmas[-2]
    memory.vmas.append(late)
    write(folder, f"mm-{SLEEP}.img", [memory])
    refuse(folder, allowed, "guards at the end")


PAGES: list[tuple[str, Edit]] = [
    ("pages with flags", lambda entry: setattr(entry, "flags", 5)),
    ("pages with flags", lambda entry: setattr(entry, "flags", 12)),
    ("in order", lambda entry: setattr(entry, "vaddr", 4096 * 17)),
    ("whole ones", lambda entry: setattr(entry, "vaddr", entry.vaddr + 8)),
    ("0 pages", lambda entry: setattr(entry, "nr_pages", 0)),
    ("as the file", lambda entry: setattr(entry, "flags", 2)),
    ("below the kernel", lambda entry: setattr(entry, "nr_pages", 1 << 50)),
]


@pytest.mark.parametrize(("what", "edit"), PAGES)
def test_pages(folder: Path, allowed: Allowance, what: str, edit: Edit) -> None:
    entries = read(folder, f"pagemap-{SLEEP}.img")
    edit(entries[2])
    write(folder, f"pagemap-{SLEEP}.img", entries)
    refuse(folder, allowed, what)


def test_pages_lie_within_private_memory(folder: Path, allowed: Allowance) -> None:
    """Else CRIU would write them where the image says, in its own address space."""
    head, first, *rest = read(folder, f"pagemap-{SLEEP}.img")
    first.vaddr = 65536
    write(folder, f"pagemap-{SLEEP}.img", [head, first, *rest])
    refuse(folder, allowed, "within private memory")
    unpack(folder)
    memory = read(folder, f"mm-{SLEEP}.img")[0]
    holder = next(area for area in memory.vmas if area.start <= rest[-1].vaddr < area.end)
    holder.status = 1 | 1 << 8
    write(folder, f"mm-{SLEEP}.img", [memory])
    refuse(folder, allowed, "within private memory")


def test_a_file_of_pages_has_one_user(folder: Path, allowed: Allowance) -> None:
    other = read(folder, f"pagemap-{INIT}.img")[0].pages_id
    change_one(folder, f"pagemap-{SLEEP}.img", lambda head: setattr(head, "pages_id", other))
    refuse(folder, allowed, "file of pages")
    change_one(folder, f"pagemap-{SLEEP}.img", lambda head: setattr(head, "pages_id", 4444))
    refuse(folder, allowed, "file of pages 4444")


def test_missing_pages(folder: Path, allowed: Allowance) -> None:
    number = read(folder, f"pagemap-{SLEEP}.img")[0].pages_id
    path = folder / f"pages-{number}.img"
    path.write_bytes(path.read_bytes()[:-4096])
    refuse(folder, allowed, "as the file of")


def _specs() -> Iterator[tuple[dict[str, Any], Callable[[Allowance], bool]]]:
    process, linux = SPEC["process"], SPEC["linux"]
    yield {"process": {**process, "noNewPrivileges": True}}, lambda a: a.no_new_privs and not a.seccomp
    yield {"process": {"apparmorProfile": "docker-default"}}, lambda a: a.lsm_label == "docker-default"
    yield {"process": {}, "linux": linux}, lambda a: a.seccomp and not a.capabilities
    yield (
        {"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 77}]}},
        lambda a: a.hard_limits[RLIMITS.index("nofile")] == 77 and a.hard_limits[0] == UNLIMITED,
    )
    yield {"process": {"oomScoreAdj": 500}}, lambda a: a.oom_score_adj == 500
    yield (
        {"process": {}, "linux": {"sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"}}},
        lambda a: a.lowest_port == 0,
    )
    yield (
        {"process": {}, "linux": {"devices": [{"path": "/dev/fuse"}]}},
        lambda a: {b"/dev/fuse", b"/dev/null"} <= a.devices,
    )


@pytest.mark.parametrize(("spec", "holds"), list(_specs()))
def test_what_a_configuration_gives(
    allowed: Allowance, spec: dict[str, Any], holds: Callable[[Allowance], bool]
) -> None:
    assert allowed.processes is not None
    assert holds(allowance_from(spec, allowed.processes[INIT]))


@pytest.mark.parametrize(
    "spec",
    [{}, {"process": None}, {"process": {"capabilities": {"bounding": ["CAP_NEW"]}}}, {"process": []}],
)
def test_what_is_no_configuration(allowed: Allowance, spec: dict[str, Any]) -> None:
    assert allowed.processes is not None
    with pytest.raises(ValueError, match="OCI"):
        allowance_from(spec, allowed.processes[INIT])
