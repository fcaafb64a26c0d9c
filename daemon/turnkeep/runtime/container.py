"""One container as it runs now: its processes, its places, freezing it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from turnkeep_store.layers import LayerView

from turnkeep.errors import ContainerNotRunning, Unsupported
from turnkeep.model import ContainerState, Mount
from turnkeep.runtime.bundle import find_bundle
from turnkeep.runtime.cgroup import Cgroup, find_cgroup
from turnkeep.runtime.engine import Engine, state_of
from turnkeep.runtime.freezer import Freezer, Frozen
from turnkeep.runtime.places import Place, Places, find_places, places_on_disk


class Container:
    """A container between two starts.

    It stays valid while the init process lives (`is_current`). Files of a stopped
    container can be read, too: `running` is false then, and what existed only in
    its mounts is gone.
    """

    def __init__(
        self,
        inspected: Mapping[str, Any],
        places: Places,
        cgroup: Cgroup | None,
        freezer: Freezer,
        layers: Sequence[str],
    ) -> None:
        self.inspected = inspected
        self.id: str = inspected["Id"]
        self.name: str = inspected["Name"].lstrip("/")
        self.image_id: str = inspected["Image"]
        self.image: str = inspected["Config"].get("Image", "")
        self.layers: tuple[str, ...] = tuple(layers)
        self.places = places
        self.init_pid: int = inspected["State"]["Pid"]
        self.running = cgroup is not None
        self._cgroup = cgroup
        self._freezer = freezer
        self._started = start_time(self.init_pid) if self.running else 0
        self._images: dict[bytes, LayerView] = {}

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """What is covered and what is not."""
        return self.places.mounts

    def covered(self) -> tuple[Place, ...]:
        """Return the places that belong to its state."""
        return self.places.covered

    @property
    def command(self) -> tuple[str, ...]:
        """The program and arguments that the container was made to run."""
        return (self.inspected["Path"], *self.inspected["Args"])

    @property
    def health_check(self) -> tuple[str, ...]:
        """The command line of the engine's health check, as it shows among the processes."""
        test = (self.inspected["Config"].get("Healthcheck") or {}).get("Test") or ()
        if test and test[0] == "CMD":
            return tuple(test[1:])
        if test and test[0] == "CMD-SHELL":
            return ("/bin/sh", "-c", *test[1:])
        return ()

    def is_current(self) -> bool:
        """Whether the init process that this speaks of still lives."""
        return self.running and start_time(self.init_pid) == self._started

    def pids(self) -> list[int]:
        """Return its processes, by their pids on the host."""
        return self._cgroup.pids() if self._cgroup is not None else []

    def usage_ns(self) -> int:
        """Return the processor time used by all its processes, dead ones included."""
        return self._cgroup.usage_ns() if self._cgroup is not None else 0

    @contextlib.contextmanager
    def frozen(self, budget_s: float, *, hold: bool = False) -> Iterator[Frozen | None]:
        """Freeze it for a `with` block (see `Freezer`). Yields None if it does not run."""
        if self._cgroup is None:
            yield None
            return
        with self._freezer.frozen(self._cgroup, budget_s, hold=hold) as state:
            yield state

    def thaw(self) -> None:
        """Let it run, whoever froze it."""
        if self._cgroup is not None:
            self._cgroup.thaw()
            self._cgroup.let_go()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Keep what is in it frozen for a `with` block, while what joins it runs (see `Cgroup.hold`)."""
        assert self._cgroup is not None
        self._cgroup.hold()
        try:
            yield
        finally:
            self._cgroup.let_go()

    def hold_more(self, pids: Iterable[int]) -> None:
        """Keep these frozen as well, inside `holding`."""
        if self._cgroup is not None:
            self._cgroup.hold_more(pids)

    def held_pids(self) -> list[int]:
        """Return the processes that are held."""
        return self._cgroup.held_pids() if self._cgroup is not None else []

    @property
    def freezer_folder(self) -> str:
        """The folder of the cgroup that is frozen."""
        return str(self._cgroup.freezer) if self._cgroup is not None else ""

    def procs_files(self) -> list[str]:
        """Return the `cgroup.procs` of all its cgroups."""
        return self._cgroup.procs_files() if self._cgroup is not None else []

    def is_frozen(self) -> bool:
        """Whether its tasks are stopped."""
        return self._cgroup is not None and self._cgroup.is_frozen()

    def image_view(self, place: Place) -> LayerView | None:
        """Return the layers below a place; None for one that is no overlay."""
        if not place.layers:
            return None
        if place.slot not in self._images:
            self._images[place.slot] = LayerView(place.layers)
        return self._images[place.slot]

    def configuration(self) -> Mapping[str, Any]:
        """Return the OCI configuration that it was made from (config.json of its bundle).

        Raises:
            SandboxGone: the container is gone.
            Unsupported: there is no such file.
        """
        path = find_bundle(self.init_pid, self.id).path / "config.json"
        try:
            spec: Mapping[str, Any] = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise Unsupported(
                f"its configuration cannot be read: {error}", object=f"container {self.name}"
            ) from error
        return spec

    def runc_root(self) -> Path:
        """Return where runc keeps its record of it."""
        return find_bundle(self.init_pid, self.id).runc_root

    def close(self) -> None:
        """Let go of the image's layers."""
        while self._images:
            self._images.popitem()[1].close()


def open_container(
    engine: Engine,
    freezer: Freezer,
    container: str,
    known_places: Places | None = None,
    known_mounts: Sequence[Mount] = (),
) -> Container:
    """Look a container up and find out where it can write.

    A stopped one can be opened only with the places, or at least the mounts, that
    it had while it ran.

    Raises:
        ContainerNotFound: the engine knows no such container.
        ContainerNotRunning: it is stopped.
        Unsupported: it cannot be handled soundly; the message says why.
    """
    inspected = engine.inspect(container)
    name = inspected["Name"].lstrip("/")
    state = state_of(inspected)
    _refuse(inspected, name)
    # The image's layers by the digests of their content; the container keeps
    # them alive even when the image's name is gone.
    layers = engine.image(inspected["Image"])["RootFS"]["Layers"]
    if state is ContainerState.STOPPED:
        if known_places is None and known_mounts:
            known_places = places_on_disk(inspected, known_mounts)
        if known_places is None:
            raise ContainerNotRunning(
                "it does not run", object=f"container {name}", hint=f"docker start {name}"
            )
        return Container(inspected, _on_disk(known_places), None, freezer, layers)
    _refuse_remapped(inspected["State"]["Pid"], name)
    places = find_places(inspected, _shared_volumes(engine, inspected))
    cgroup = find_cgroup(inspected["State"]["Pid"], inspected["Id"])
    return Container(inspected, places, cgroup, freezer, layers)


def _on_disk(places: Places) -> Places:
    """Return the places that outlive the container's mounts."""
    covered = tuple(place for place in places.covered if place.host_path)
    return Places(covered=covered, uncovered=places.uncovered, mounts=places.mounts)


def _refuse(inspected: Mapping[str, Any], name: str) -> None:
    host = inspected.get("HostConfig") or {}
    refusals: tuple[tuple[bool, str], ...] = (
        (host.get("PidMode") == "host", "it shares the host's process namespace (--pid=host)"),
        (bool(host.get("Privileged")), "it is privileged, so that it can change the host itself"),
    )
    for refused, why in refusals:
        if refused:
            raise Unsupported(f"{why}, which this version does not support", object=f"container {name}")


def _refuse_remapped(pid: int, name: str) -> None:
    try:
        with open(f"/proc/{pid}/uid_map") as container, open("/proc/self/uid_map") as own:
            same = container.read().split() == own.read().split()
    except (FileNotFoundError, ProcessLookupError):
        return
    if not same:
        raise Unsupported(
            "its user namespace is remapped, which this version does not support", object=f"container {name}"
        )


def _shared_volumes(engine: Engine, inspected: Mapping[str, Any]) -> list[str]:
    shared = []
    for mount in inspected.get("Mounts", ()):
        name = mount.get("Name", "")
        if mount["Type"] == "volume" and name and set(engine.volume_users(name)) - {inspected["Id"]}:
            shared.append(name)
    return shared


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def kill_processes(container: Container, spare: Callable[[int], bool]) -> list[int]:
    """Send SIGKILL to every process but those to spare. Returns the pids.

    Sent to frozen processes, it takes effect at the thaw, before they can do
    anything else.
    """
    killed = []
    for pid in container.pids():
        if pid == container.init_pid or spare(pid):
            continue
        with contextlib.suppress(ProcessLookupError):
            # The pid is read from the container's own cgroup; a pidfd pins the
            # process, and the second look makes sure it is (still) one of it.
            fd = os.pidfd_open(pid)
            try:
                if pid in container.pids():
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
                    killed.append(pid)
            finally:
                os.close(fd)
    return killed
