"""Confinement: each field read from real processes, each loss of it found."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from turnkeep.process.confinement import (
    RLIMITS,
    UNLIMITED,
    Confinement,
    Credentials,
    Difference,
    Rlimit,
    Thread,
    compare,
)
from turnkeep.process.observe import observe, outside

CREDENTIALS = Credentials(
    uids=(1000, 1000, 1000, 1000),
    gids=(100, 100, 100, 100),
    groups=(7, 8),
    inheritable=0,
    permitted=0b0110,
    effective=0b0010,
    bounding=0b1110,
    ambient=0b0010,
    no_new_privs=True,
    seccomp_mode=2,
    seccomp_filters=2,
    lsm_label="docker-default (enforce)",
)

CAPTURED = Confinement(
    pid=17,
    credentials=CREDENTIALS,
    threads=(Thread(tid=19, credentials=replace(CREDENTIALS, effective=0)),),
    thread_count=3,
    rlimits=tuple(Rlimit(soft=10 * number, hard=20 * number) for number in range(len(RLIMITS))),
    oom_score_adj=100,
    nice=5,
    policy=0,
    umask=0o022,
    login_uid=UNLIMITED,
    namespaces={"mnt": 1, "net": 2, "pid": 3, "ipc": 4, "uts": 5, "cgroup": 6, "user": 7, "time": 8},
    cgroups={"memory": "/docker/x", "": "/docker/x"},
    clock_offsets="monotonic 0 0 boottime 0 0",
)


def _is_weaker(differences: tuple[Difference, ...]) -> bool:
    assert differences
    return any(difference.weaker for difference in differences)


def test_the_same_differs_in_nothing() -> None:
    assert compare(CAPTURED, replace(CAPTURED)) == ()


def test_json_and_back() -> None:
    assert Confinement.from_json(json.loads(json.dumps(CAPTURED.to_json()))) == CAPTURED
    for key in CAPTURED.to_json().keys() - {"clock_offsets", "thread_count"}:
        value = CAPTURED.to_json()
        del value[key]
        with pytest.raises(ValueError, match=key):
            Confinement.from_json(value)


WEAKER_CREDENTIALS: list[dict[str, Any]] = [
    {"uids": (1000, 0, 1000, 1000)},
    {"uids": (1001, 1001, 1001, 1001)},
    {"gids": (100, 100, 0, 100)},
    {"groups": (7, 8, 9)},
    {"groups": (7,)},
    {"inheritable": 1},
    {"permitted": 0b1110},
    {"effective": 0b0110},
    {"bounding": 0b11110},
    {"ambient": 0b0110},
    {"no_new_privs": False},
    {"seccomp_mode": 0},
    {"seccomp_filters": 1},
    {"seccomp_mode": 0, "seccomp_filters": 2},
    {"lsm_label": "unconfined"},
    {"lsm_label": ""},
    {"lsm_label": "docker-default (complain)"},
]


@pytest.mark.parametrize("forged", WEAKER_CREDENTIALS, ids=str)
def test_weaker_credentials_are_found(forged: dict[str, Any]) -> None:
    restored = replace(CAPTURED, credentials=replace(CREDENTIALS, **forged))
    assert _is_weaker(compare(CAPTURED, restored))


@pytest.mark.parametrize("forged", WEAKER_CREDENTIALS, ids=str)
def test_weaker_threads_are_found(forged: dict[str, Any]) -> None:
    """Also in a thread that was confined as its process is, and in one that was not."""
    for tid in (18, 19):
        before = CAPTURED.thread(tid)
        threads = (Thread(tid=tid, credentials=replace(before, **forged)),)
        kept = tuple(thread for thread in CAPTURED.threads if thread.tid != tid)
        assert _is_weaker(compare(CAPTURED, replace(CAPTURED, threads=kept + threads)))


def test_strict_mode_is_not_weaker_than_filters_and_filters_are_weaker_than_it() -> None:
    strict = replace(CAPTURED, credentials=replace(CREDENTIALS, seccomp_mode=1, seccomp_filters=2))
    assert not _is_weaker(compare(CAPTURED, strict))
    assert _is_weaker(compare(strict, CAPTURED))


WEAKER: list[dict[str, Any]] = [
    {"pid": 18},
    {"thread_count": 4},
    {"threads": ()},
    {"rlimits": CAPTURED.rlimits[:-1]},
    {"rlimits": ()},
    {"oom_score_adj": 99},
    {"oom_score_adj": -1000},
    {"nice": 4},
    {"policy": 1},
    {"policy": 6},
    {"umask": 0},
    {"umask": 0o002},
    {"login_uid": 0},
    *({"namespaces": {**CAPTURED.namespaces, name: 99}} for name in CAPTURED.namespaces if name != "time"),
    *(
        {"namespaces": {key: inode for key, inode in CAPTURED.namespaces.items() if key != name}}
        for name in CAPTURED.namespaces
        if name != "time"
    ),
    {"cgroups": {"memory": "/", "": "/docker/x"}},
    {"cgroups": {"memory": "/docker", "": "/docker/x"}},
    {"cgroups": {"memory": "/docker/xy", "": "/docker/x"}},
    {"cgroups": {"memory": "/docker/x", "": "/user.slice"}},
    {"cgroups": {"": "/docker/x"}},
]


@pytest.mark.parametrize("forged", WEAKER, ids=str)
def test_weaker_is_found(forged: dict[str, Any]) -> None:
    assert _is_weaker(compare(CAPTURED, replace(CAPTURED, **forged)))


@pytest.mark.parametrize("number", range(len(RLIMITS)))
@pytest.mark.parametrize("which", ["soft", "hard"])
def test_higher_limits_are_found(number: int, which: str) -> None:
    for value in (CAPTURED.rlimits[number].hard + 1, UNLIMITED):
        limits = list(CAPTURED.rlimits)
        limits[number] = replace(limits[number], **{which: value})
        (difference,) = compare(CAPTURED, replace(CAPTURED, rlimits=tuple(limits)))
        assert difference.weaker
        assert RLIMITS[number] in difference.field


STRICTER: list[dict[str, Any]] = [
    {"oom_score_adj": 500},
    {"nice": 19},
    {"policy": 3},
    {"umask": 0o077},
    {"rlimits": tuple(Rlimit(soft=0, hard=0) for _ in RLIMITS)},
    {"cgroups": {"memory": "/docker/x/part", "": "/docker/x"}},
    {"credentials": replace(CREDENTIALS, effective=0, ambient=0)},
    {"credentials": replace(CREDENTIALS, seccomp_filters=3)},
]


@pytest.mark.parametrize("stricter", STRICTER, ids=str)
def test_stricter_is_said_and_not_weaker(stricter: dict[str, Any]) -> None:
    assert not _is_weaker(compare(CAPTURED, replace(CAPTURED, **stricter)))


def test_another_time_namespace_is_said_and_not_weaker() -> None:
    restored = replace(
        CAPTURED, namespaces={**CAPTURED.namespaces, "time": 9}, clock_offsets="monotonic -3 0 boottime -3 0"
    )
    (difference,) = compare(CAPTURED, restored)
    assert not difference.weaker
    assert "monotonic -3 0" in str(difference)


def test_in_a_fork_the_init_of_now_counts() -> None:
    namespaces = {name: inode + 100 for name, inode in CAPTURED.namespaces.items()}
    init = replace(CAPTURED, pid=1, namespaces=namespaces, cgroups={"memory": "/docker/y", "": "/docker/y"})
    restored = replace(CAPTURED, namespaces=namespaces, cgroups=init.cgroups)
    assert compare(CAPTURED, restored, init=init) == ()
    assert _is_weaker(compare(CAPTURED, CAPTURED, init=init))


@contextlib.contextmanager
def _running(*command: str) -> Iterator[int]:
    """Run a command that writes a line when it is as it is to be looked at."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


_READY = "echo ready; exec cat"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give and take privileges")


def test_a_process_like_ourselves() -> None:
    with _running("sh", "-c", _READY) as pid:
        found, own = observe(pid), observe(os.getpid())
    assert found.credentials == own.credentials
    assert found.rlimits == own.rlimits
    assert len(found.rlimits) == len(RLIMITS)
    assert found.namespaces == own.namespaces
    assert found.cgroups == own.cgroups
    assert found.credentials.uids[0] == os.getuid()
    assert compare(found, replace(own, pid=found.pid, thread_count=1, threads=())) == ()


@root_only
def test_identity_and_capabilities() -> None:
    options = ["--reuid=1000", "--regid=100", "--groups=7,8", "--no-new-privs", "--inh-caps=-all,+chown"]
    with _running("setpriv", *options, "--bounding-set=-all,+chown,+kill", "sh", "-c", _READY) as pid:
        found = observe(pid)
    assert found.credentials.uids == (1000,) * 4
    assert found.credentials.gids == (100,) * 4
    assert found.credentials.groups == (7, 8)
    assert found.credentials.bounding == 1 << 0 | 1 << 5
    assert found.credentials.inheritable == 1
    assert found.credentials.permitted == found.credentials.effective == 0
    assert found.credentials.no_new_privs


@root_only
def test_limits_and_numbers() -> None:
    script = f"umask 077; renice -n 7 $$ >/dev/null; echo 300 > /proc/self/oom_score_adj; {_READY}"
    with _running("prlimit", "--nofile=100:200", "--core=0:0", "chrt", "-b", "0", "sh", "-c", script) as pid:
        found = observe(pid)
    assert found.rlimits[RLIMITS.index("nofile")] == Rlimit(soft=100, hard=200)
    assert found.rlimits[RLIMITS.index("core")] == Rlimit(soft=0, hard=0)
    assert (found.umask, found.nice, found.policy, found.oom_score_adj) == (0o077, 7, 3, 300)


@root_only
def test_namespaces_and_a_misleading_name() -> None:
    script = "printf 'a) R 1\\nUid:\\t9' > /proc/self/comm; " + _READY.replace("exec cat", "read x")
    with _running("unshare", "--mount", "--uts", "--net", "bash", "-c", script) as pid:
        found, own = observe(pid), observe(os.getpid())
    assert found.credentials.uids == own.credentials.uids
    assert found.nice == own.nice
    differing = {name for name, inode in own.namespaces.items() if found.namespaces[name] != inode}
    assert differing == {"mnt", "uts", "net"}


_THREADED = """
import ctypes, threading
def strict():
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
    print("ready", flush=True)
    threading.Event().wait()
threading.Thread(target=strict).start()
"""


def test_a_thread_of_its_own_mind() -> None:
    if observe(os.getpid()).credentials.no_new_privs:
        pytest.skip("everything here has no_new_privs already")
    with _running(sys.executable, "-c", _THREADED) as pid:
        found = observe(pid)
    (thread,) = found.threads
    assert found.thread_count == 2
    assert thread.tid != found.pid
    assert thread.credentials == replace(found.credentials, no_new_privs=True)


_FILTERED = """
import ctypes, struct
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
allow = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0x7fff0000))
program = struct.pack("<HxxxxxxQ", 1, ctypes.addressof(allow))
for _ in range(2):
    assert libc.prctl(22, 2, ctypes.create_string_buffer(program), 0, 0) == 0
print("ready", flush=True)
input()
"""


def test_filters_are_counted() -> None:
    own = observe(os.getpid()).credentials.seccomp_filters
    with _running(sys.executable, "-c", _FILTERED) as pid:
        found = observe(pid).credentials
    assert found.seccomp_mode == 2
    assert found.seccomp_filters == own + 2


def test_who_is_gone() -> None:
    with subprocess.Popen(["true"], stdin=subprocess.DEVNULL) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        for look in (observe, lambda pid: outside(pid, os.getpid())):
            with pytest.raises(ProcessLookupError):
                look(process.pid)
    with pytest.raises(ProcessLookupError):
        observe(process.pid)


@root_only
def test_nothing_is_outside_of_its_own_mounts() -> None:
    script = (
        "import mmap, os, socket\n"
        "os.memfd_create('m'); mmap.mmap(-1, 4096); os.pipe(); keep = socket.socketpair()\n"
        "print('ready', flush=True); input()"
    )
    with _running(sys.executable, "-c", script) as pid:
        assert outside(pid, pid) == ()


@root_only
def test_what_is_on_a_mount_from_elsewhere_is_found() -> None:
    mount = "set -e; mount -t tmpfs none /mnt; cp /bin/sh /mnt; exec 9>/mnt/file; cd /mnt; umount -l /mnt"
    script = f"{mount}; exec env ./sh -c 'echo ready; read x'"
    with _running("unshare", "--mount", "bash", "-c", script) as pid:
        found = outside(pid, pid)
    places = {each.partition(" -> ")[0] for each in found}
    assert {"cwd", "exe", "fd/9"} <= places
    assert any(place.startswith("map_files/") for place in places)
    assert "root" not in places
