"""The daemon with no more privileges than its systemd unit leaves it.

systemd itself is not asked: setpriv(1) and a mount namespace do what the unit says of
capabilities, new privileges and folders. What it does by seccomp filters is not among
that, and untested.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from turnkeep.model import Fidelity

from tests.e2e.crash_cases import SERVER
from tests.e2e.harness import Box, Daemon, turn, wait_until

SCRIPTS = Path(__file__).parents[2] / "scripts"
DEFAULT = ("turnkeep.service",)
FILES_ONLY = ("turnkeep.service", "turnkeep-files-only.conf")

# ProtectSystem=full and ProtectKernelTunables=yes.
READ_ONLY = """
for folder in /usr /boot /etc /proc/sys /sys; do
  mount --rbind "$folder" "$folder" && mount -o remount,bind,ro "$folder"
done
exec "$@"
"""


def _settings(files: tuple[str, ...], key: str) -> list[str]:
    lines = [line for name in files for line in (SCRIPTS / name).read_text().splitlines()]
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


def _bounding_set(files: tuple[str, ...]) -> set[str]:
    """Return the capabilities that are left (systemd.exec(5) says how lines add up)."""
    listed = subprocess.run(["setpriv", "--list-caps"], capture_output=True, text=True, check=True)
    everything = set(listed.stdout.split())
    left: set[str] | None = None
    for value in _settings(files, "CapabilityBoundingSet"):
        names = {each.removeprefix("CAP_").lower() for each in value.removeprefix("~").split()}
        assert names <= everything
        if value.startswith("~"):
            left = (everything if left is None else left) - names
        else:
            left = names | (left if left and value else set())
    assert left
    return left


def _confined(files: tuple[str, ...]) -> list[str]:
    """Return what a program is started with so that it is as confined as by these files."""
    assert _settings(files, "ProtectSystem") == ["full"]
    assert _settings(files, "ProtectKernelTunables") == ["yes"]
    caps = ",".join(["-all", *(f"+{name}" for name in sorted(_bounding_set(files)))])
    privileges = ["--no-new-privs"] if _settings(files, "NoNewPrivileges") == ["yes"] else []
    mounts = ["unshare", "--mount", "--propagation", "slave", "sh", "-ec", READ_ONLY, "sh"]
    return [*mounts, "setpriv", "--bounding-set", caps, *privileges]


@pytest.fixture
def start_confined(own_folder: Callable[[], Daemon]) -> Iterator[Callable[..., Daemon]]:
    started: list[Daemon] = []

    def start(files: tuple[str, ...], configuration: str) -> Daemon:
        daemon = own_folder()
        daemon.prefix = _confined(files)
        daemon.configure(configuration)
        started.append(daemon)
        daemon.start()
        return daemon

    yield start
    for each in started:
        each.stop()
        each.assert_nothing_missed()


def test_all_of_it_works(start_confined: Callable[..., Daemon], box: Box) -> None:
    daemon = start_confined(DEFAULT, "auto_attach = false")
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    assert "NoNewPrivs:\t0" in status
    with daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        box.spawn("python3", "-c", SERVER)
        box.sh("until test -s /dev/shm/count; do :; done")
        kept = turn(box, sandbox, "mkdir /work; echo 1 > /work/a; chown 5:6 /work/a; chmod 4755 /work/a")
        assert kept.checkpoint_id is not None
        assert tk.checkpoint(kept.checkpoint_id).fidelity is Fidelity.COMPLETE
        box.sh("pkill python3; rm -r /work")
        sandbox.restore(turn=1)
        assert box.sh("stat -c '%u %g %a' /work/a") == "5 6 4755\n"
        before = box.sh("cat /dev/shm/count")
        wait_until(lambda: box.sh("cat /dev/shm/count") != before, "the server counts on")
        sandbox.restore(turn=1, mode="cold")
        assert box.sh("cat /work/a") == "1\n"
        (copy,) = sandbox.fork(1)
        assert copy.info.attached


def test_files_without_what_processes_need(start_confined: Callable[..., Daemon], box: Box) -> None:
    daemon = start_confined(FILES_ONLY, "auto_attach = false\n[process]\nenabled = false")
    assert daemon.process is not None
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    with daemon.connect() as tk:
        sandbox = tk.attach(box.name)
        turn(box, sandbox, "mkdir /work; echo 1 > /work/a; chown 5:6 /work/a; mknod /work/null c 1 3")
        turn(box, sandbox, "rm -r /work")
        for mode in ("live", "cold"):
            sandbox.restore(turn=1, mode=mode)
            assert box.sh("stat -c '%u %g %F' /work/a /work/null") == (
                "5 6 regular file\n0 0 character special file\n"
            )
        (copy,) = sandbox.fork(1)
        assert copy.info.attached
