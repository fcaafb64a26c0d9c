"""Captured processes whose pids the container's own processes got at a later start."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from turnkeep.errors import PidsTaken

from tests.e2e.harness import Box, Daemon, turn, wait_until

SERVER = (
    "import itertools, os, pathlib, time\n"
    "pathlib.Path('/dev/shm/pid').write_text(str(os.getpid()))\n"
    "for n in itertools.count():\n"
    "    pathlib.Path('/dev/shm/count').write_text(str(n)); time.sleep(0.02)\n"
)

# An init with one child. Where the folder /wanted has a file N-PID it takes that away and
# gives the child this pid, for which it has to be allowed to write below /proc/sys.
INIT = """
mount -o remount,rw /proc/sys
for each in /wanted/[0-9]*; do
  if [ -e "$each" ]; then echo $((${each##*-} - 1)) >/proc/sys/kernel/ns_last_pid; break; fi
done
(
  read pid rest </proc/self/stat
  echo "$pid" >/wanted/got
  exec 3<>/wanted/never
  read nothing <&3
) &
if [ -e "$each" ]; then rm "$each"; fi
while :; do wait; done
"""
CONFIGURATION = 'auto_attach = false\n[classify]\nreproducible = ["dash"]'


@pytest.fixture
def wanted(folder: Path) -> Path:
    """The folder that tells the init which pid its child is to have."""
    os.mkfifo(folder / "never")
    return folder


@pytest.fixture
def sandbox(make: Callable[..., Box], wanted: Path) -> Box:
    return make(
        init=False,
        command=["dash", "-c", INIT],
        volumes={str(wanted): {"bind": "/wanted", "mode": "rw"}},
        cap_add=["SYS_ADMIN"],
    )


def want(folder: Path, pid: int, *, starts: int) -> None:
    """Have the next starts of the container give its own child a pid."""
    for number in range(starts):
        (folder / f"{number}-{pid}").touch()


def met(folder: Path, pid: int, restore: Callable[[], object]) -> bool:
    """Restore when the next two starts take the pid; whether there was a third.

    There is none if the freeze comes before the init has its child, as it may.
    """
    want(folder, pid, starts=2)
    restore()
    left = list(folder.glob("[0-9]*"))
    for each in left:
        each.unlink()
    return not left


def counts(box: Box) -> bool:
    """Whether the server runs on."""
    before = box.sh("cat /dev/shm/count")
    wait_until(lambda: box.sh("cat /dev/shm/count") != before, "the server counts on")
    return True


def server_pid(box: Box) -> int:
    """Start the server; return its pid, which is above those of a start."""
    box.sh("for n in $(seq 20); do /bin/true; done")
    box.spawn("python3", "-c", SERVER)
    box.sh("until test -s /dev/shm/count; do :; done")
    return int(box.sh("cat /dev/shm/pid"))


def test_it_is_started_again_until_the_pids_are_free(
    start_daemon: Callable[..., Daemon], sandbox: Box, wanted: Path
) -> None:
    with start_daemon(CONFIGURATION).connect() as tk:
        attached = tk.attach(sandbox.name)
        pid = server_pid(sandbox)
        turn(sandbox, attached, "touch /kept")
        wait_until(
            lambda: met(wanted, pid, lambda: attached.restore(turn=1, mode="cold")), "the pid was taken"
        )
        assert (wanted / "got").read_text() != f"{pid}\n"
        assert counts(sandbox)
        wait_until(lambda: met(wanted, pid, lambda: attached.fork(1)), "the pid was taken")
        assert counts(sandbox)


def test_a_pid_of_what_stays_is_no_reason_to_fail(
    start_daemon: Callable[..., Daemon], sandbox: Box, wanted: Path
) -> None:
    with start_daemon(CONFIGURATION).connect() as tk:
        attached = tk.attach(sandbox.name)
        pid = server_pid(sandbox)
        turn(sandbox, attached, "echo 1 >/kept")
        turn(sandbox, attached, f"kill -9 {pid}; echo 2 >/kept")
        want(wanted, pid, starts=1)
        attached.restore(turn=2, mode="cold")
        wait_until(lambda: (wanted / "got").read_text() == f"{pid}\n", "the init's child has the pid")
        with pytest.raises(PidsTaken, match=rf"{pid} \(dash\)"):
            attached.restore(turn=1, mode="live")
        assert sandbox.sh("cat /kept") == "2\n"
        restored = attached.restore(turn=1)
        assert restored.mode == "cold"
        assert f"{pid} (dash)" in restored.mode_reason
        assert sandbox.sh("cat /kept") == "1\n"
        assert counts(sandbox)


def test_a_dead_process_is_waited_for(start_daemon: Callable[..., Daemon], make: Callable[..., Box]) -> None:
    """Whoever dies just before a restore keeps its pid until the init has waited for it."""
    box = make()
    with start_daemon("auto_attach = false").connect() as tk:
        attached = tk.attach(box.name)
        box.sh(f"setsid python3 -c {shlex.quote(SERVER)} >/dev/null 2>&1 </dev/null &")
        box.sh("until test -s /dev/shm/count; do :; done")
        pid = int(box.sh("cat /dev/shm/pid"))
        turn(box, attached, "touch /kept")
        init = psutil.Process(box.container.attrs["State"]["Pid"])
        # It does not wait for anybody now.
        init.suspend()
        try:
            box.sh(f"kill -9 {pid}; until grep -q 'State:.Z' /proc/{pid}/status; do :; done")
            with ThreadPoolExecutor(1) as pool:
                again = pool.submit(attached.restore, turn=1, skip_safety_checkpoint=True)
                wait_until(
                    lambda: any(each.kind == "restoring" for each in tk.events(after=0, follow=False)),
                    "the restore is under way",
                )
                init.resume()
                assert again.result().mode == "live"
        finally:
            init.resume()
        assert int(box.sh("cat /dev/shm/pid")) == pid
        assert counts(box)
