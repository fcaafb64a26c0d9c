"""A restore whose parts are killed half-way: nothing runs on, and no file of the container is touched."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from turnkeep.runtime import registration

from tests.runtime.boxes import SERVER, Box
from tests.runtime.engines import LIMIT_S

pytestmark = pytest.mark.docker

# Says where a restore has got to, and holds it there.
STAGE = """#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = post-restore ] || exit 0
echo "$CRTOOLS_INIT_PID" >{0}/reached
read -r _ <{0}/go_on
"""


@pytest.fixture
def held(settings: registration.Settings, tmp_path: Path) -> Iterator[Path]:
    """The folder with the pipes of a restore that is held when all is restored."""
    stage = settings.folder / "at-stage"
    shipped = stage.read_text()
    for name in ("reached", "go_on"):
        os.mkfifo(tmp_path / name)
    stage.write_text(STAGE.format(tmp_path))
    yield tmp_path
    stage.write_text(shipped)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


@pytest.mark.parametrize("victim", ["criu", "runc", "worker", "supervisor"])
def test_nothing_is_left(make: Callable[..., Box], held: Path, victim: str) -> None:
    box = make("python3", "-c", SERVER)
    box.wait_ready()
    box.run("sh", "-c", "echo it is >/root/here")
    box.dump()
    record = box.bundle.runc_root / box.id
    box.stop()
    box.order()
    command = ["docker", "--host", box.own.host, "start", box.id]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as starting:
        init = int((held / "reached").read_text())
        runc = parent(init)
        go_on = os.open(held / "go_on", os.O_RDWR)
        try:
            criu = next(child for child in children(runc) if child != init)
            worker = parent(runc)
            victims = {"criu": criu, "runc": runc, "worker": worker, "supervisor": parent(worker)}
            pidfds = [os.pidfd_open(pid) for pid in (init, *victims.values())]
            os.kill(victims[victim], 9)
            # CRIU looks at nothing else before its script has ended, if that still runs.
            os.write(go_on, b"\n")
            for pidfd in pidfds:
                assert select.select([pidfd], [], [], LIMIT_S)[0]
                os.close(pidfd)
            assert starting.wait(LIMIT_S) == 1
        finally:
            os.close(go_on)
    assert not record.exists()
    assert str(record) not in Path("/proc/self/mounts").read_text()

    box.start()
    while b"ready" not in box.container.logs(tail=1):
        pass
    assert box.run("cat", "/root/here") == "it is\n"
    assert box.next() == 1
    assert box.traces() == []
