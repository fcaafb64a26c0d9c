"""Containers of the tests' own that count, and that can be dumped and restored."""

from __future__ import annotations

import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from docker.models.containers import Container
from turnkeep.process import whole
from turnkeep.runtime import orders, registration
from turnkeep.runtime.bundle import Bundle, find_bundle
from turnkeep.runtime.cgroup import Cgroup, find_cgroup

from tests.runtime.engines import LIMIT_S, OwnEngine

# Answers each connection with the next number, and says it on its standard output.
SERVER = """
import itertools, socket
served = socket.create_server(("", 8000))
print("ready", flush=True)
for number in itertools.count(1):
    connection, _ = served.accept()
    connection.sendall(str(number).encode())
    connection.close()
    print("number", number, flush=True)
"""

ASK = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    print(connection.recv(99).decode())
"""


class Box:
    """A container whose program is `SERVER`, mostly."""

    def __init__(
        self, own: OwnEngine, settings: registration.Settings, container: Container, folder: Path
    ) -> None:
        self.own, self.settings, self.container = own, settings, container
        self.id: str = container.id or ""
        self.images, self.work = folder / "images", folder / "work"

    @property
    def state(self) -> dict[str, Any]:
        """What the engine says of it."""
        self.container.reload()
        found: dict[str, Any] = self.container.attrs["State"]
        return found

    @property
    def pid(self) -> int:
        """Its init's."""
        pid: int = self.state["Pid"]
        return pid

    @property
    def cgroup(self) -> Cgroup:
        """Its cgroup, while it runs."""
        return find_cgroup(self.pid, self.id)

    @property
    def bundle(self) -> Bundle:
        """Its bundle, while it runs."""
        return find_bundle(self.pid, self.id)

    def traces(self) -> list[str]:
        """Return the names of its order, and of what was made of it."""
        return sorted(path.name for path in self.settings.orders.glob(f"{self.id}*"))

    def thaw(self) -> None:
        """Let it run."""
        if self.state["Running"]:
            self.cgroup.thaw()

    def run(self, *words: str) -> str:
        """Run a program in it; return what it printed."""
        result = self.container.exec_run(list(words))
        assert isinstance(result.output, bytes)
        assert result.exit_code == 0, result.output
        return result.output.decode()

    def next(self) -> int:
        """Return the server's next number."""
        return int(self.run("python3", "-c", ASK, "8000"))

    def next_from_outside(self, port: int) -> int:
        """Return the server's next number, asked for at a published port."""
        command = self.own.inside(sys.executable, "-c", ASK, str(port))
        return int(subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_S).stdout)

    def wait_ready(self, *, again: bool = False) -> None:
        """Wait until it has said something; with `again`, since its last start."""
        command = ["docker", "--host", self.own.host, "logs", "--follow", self.id]
        if again:
            self.container.reload()
            command.insert(-1, f"--since={self.container.attrs['State']['StartedAt']}")
        with subprocess.Popen(command, stdout=subprocess.PIPE) as logs:
            assert logs.stdout is not None
            assert select.select([logs.stdout], [], [], LIMIT_S)[0], "it says nothing"
            logs.kill()

    def runc(self) -> whole.Runc:
        """Return how to reach it past the engine."""
        return whole.Runc(root=self.bundle.runc_root, criu_bin=str(self.settings.criu_bin))

    def dump(self, *, frozen: bool = True, **options: Any) -> whole.DumpStats:
        """Dump it, mostly inside a freeze; it runs afterwards."""
        cgroup = self.cgroup
        if frozen:
            cgroup.freeze(LIMIT_S)
        try:
            done = whole.dump(self.runc(), self.id, self.images, self.work, whole.DumpOptions(**options))
            assert cgroup.is_frozen() is frozen
            return done
        finally:
            cgroup.thaw()

    def order(self, expires_s: float = LIMIT_S, **options: Any) -> None:
        """Have the next start restore it."""
        orders.place(
            self.settings.orders,
            self.id,
            self.images,
            self.work,
            orders.RestoreOptions(**options),
            expires_s=expires_s,
        )

    def stop(self) -> None:
        """Stop it at once."""
        self.container.stop(timeout=0)

    def start(self) -> None:
        """Start it."""
        self.container.start()
