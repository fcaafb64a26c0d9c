"""What a container gives in tests of vetting, and ways to ask for more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from turnkeep.errors import ImagesRefused
from turnkeep.process.allowance import Allowance, allowance_from
from turnkeep.process.confinement import Confinement, Credentials, Rlimit, Thread
from turnkeep.process.imageformat import criu_pb2 as pb
from turnkeep.process.images import Images, TaskState, open_images
from turnkeep.process.vet import vet

from tests.process.dumps import INIT, read, write

DOCKERS = (
    *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP"),
    *("SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
)
SPEC: dict[str, Any] = {
    "process": {"capabilities": {"bounding": [f"CAP_{name}" for name in DOCKERS]}, "oomScoreAdj": 0},
    "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}, "sysctl": {}},
}
Edit = Callable[[Any], object]


def _confinement(images: Images, pid: int, threads: tuple[int, ...]) -> Confinement:
    """Return what the kernel said at the capture, as far as images have it."""
    core = images.cores[pid]
    own = _credentials(images.cores[pid].thread_core, core.thread_core)
    others = ((tid, _credentials(images.cores[tid].thread_core, core.thread_core)) for tid in threads)
    return Confinement(
        pid=pid,
        credentials=own,
        threads=tuple(Thread(tid=tid, credentials=each) for tid, each in others if each != own),
        rlimits=tuple(Rlimit(soft=limit.cur, hard=limit.max) for limit in core.tc.rlimits.rlimits),
        oom_score_adj=core.tc.oom_score_adj,
        nice=0,
        policy=0,
        umask=0o022,
        login_uid=2**32 - 1,
        namespaces={},
        cgroups={},
    )


def _credentials(thread: pb.Thread, first: pb.Thread) -> Credentials:
    creds = thread.creds
    sets = (creds.cap_inh, creds.cap_prm, creds.cap_eff, creds.cap_bnd, creds.cap_amb)
    inheritable, permitted, effective, bounding, ambient = (low | high << 32 for low, high in sets)
    return Credentials(
        uids=(creds.uid, creds.euid, creds.suid, creds.fsuid),
        gids=(creds.gid, creds.egid, creds.sgid, creds.fsgid),
        groups=tuple(creds.groups),
        inheritable=inheritable,
        permitted=permitted,
        effective=effective,
        bounding=bounding,
        ambient=ambient,
        no_new_privs=bool(creds.no_new_privs),
        seccomp_mode=first.seccomp_mode,
        seccomp_filters=1,
        lsm_label="",
    )


def allowance_of(images: Images) -> Allowance:
    """Return what Docker gives by default, with these processes as they were seen."""
    live = [task for task in images.tasks() if task.state is not TaskState.DEAD]
    processes = {task.pid: _confinement(images, task.pid, task.threads) for task in live}
    return allowance_from(SPEC, processes[INIT], processes=processes, machine=1)


def refuse(folder: Path, allowed: Allowance, what: str) -> None:
    """Check that the images are refused, with these words."""
    with pytest.raises(ImagesRefused, match=what) as refused:
        vet(open_images(str(folder)), allowed)
    assert refused.value.object
    assert "allowed: " in str(refused.value)


def change_one(folder: Path, name: str, edit: Edit, fits: Callable[[Any], bool] = lambda _: True) -> None:
    """Apply an edit to the first message of an image that fits."""
    messages = read(folder, name)
    edit(next(message for message in messages if fits(message)))
    write(folder, name, messages)
