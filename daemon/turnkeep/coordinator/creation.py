"""Making new containers from checkpoints."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import structlog
from turnkeep_store.points import reached

from turnkeep.checkpointer.view import Baseline
from turnkeep.coordinator.filling import fill_and_start
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.errors import Conflict, ContainerNotFound, InvalidRequest, TurnkeepError, Unsupported
from turnkeep.journal import Intent
from turnkeep.model import Checkpoint, Fidelity, MountKind
from turnkeep.points import Point
from turnkeep.restorer.cold import new_container_config
from turnkeep.restorer.plan import Progress, Restored
from turnkeep.restorer.processes import Ready, bring_back
from turnkeep.restorer.whole import RUNTIME
from turnkeep.runtime.container import Container
from turnkeep.runtime.engine import Engine
from turnkeep.runtime.places import places_on_disk

log = structlog.get_logger()

INTENT_LABEL = "turnkeep.restore"
MAX_FORKS = 256
SET_ASIDE = "-turnkeep-replaced"
_SET_ASIDE_NAME = re.compile(re.escape(SET_ASIDE) + r"(-[0-9a-f]{8})?$")


def make_container(
    sandbox: SandboxCoordinator, checkpoint: Checkpoint, name: str, intent_id: str, *, whole: bool
) -> tuple[str, dict[str, str]]:
    """Create, not start, a container like the one that a checkpoint was taken of.

    A label names the intent, so that recovery knows a half-made one for its own.

    Named volumes are made anew, so that nothing another container uses is
    touched. A whole container comes back only under our runtime. Returns its id
    and the volumes' old and new names.
    """
    engine = sandbox.deps.engine
    named = [
        mount["Name"]
        for mount in checkpoint.container.get("Mounts", ())
        if mount["Type"] == "volume" and not _is_anonymous(mount["Name"])
    ]
    volumes = {old: f"{name}-{old}" for old in named}
    _refuse_taken(engine, name, volumes.values())
    created: list[str] = []
    try:
        for new in volumes.values():
            engine.create_volume(new, {INTENT_LABEL: intent_id})
            created.append(new)
        config = new_container_config(checkpoint, volumes)
        _free_ports(config, engine, checkpoint)
        if whole:
            config["HostConfig"]["Runtime"] = RUNTIME
        config["Labels"] = {**(config.get("Labels") or {}), INTENT_LABEL: intent_id}
        return engine.create(name, config), volumes
    except BaseException:
        for new in created:
            engine.remove_volume(new)
        raise


def _refuse_taken(engine: Engine, name: str, volumes: Iterable[str]) -> None:
    """Refuse names that somebody else's container or volumes have.

    Raises:
        Conflict: one is taken.
    """
    with contextlib.suppress(ContainerNotFound):
        engine.inspect(name)
        raise Conflict("this name is taken", object=f"container {name}", hint="choose another name")
    for volume in volumes:
        with contextlib.suppress(ContainerNotFound):
            engine.volume(volume)
            raise Conflict(
                "a volume of this name is there already",
                object=f"volume {volume}",
                hint=f"remove it, or choose another name than {name}",
            )


def _free_ports(config: dict[str, Any], engine: Engine, checkpoint: Checkpoint) -> None:
    """Publish on ports that the engine chooses where the original still has its own."""
    try:
        running = engine.inspect(checkpoint.container["Id"])["State"].get("Running")
    except ContainerNotFound:
        return
    bindings = config["HostConfig"].get("PortBindings") or {}
    if running and bindings:
        config["HostConfig"]["PortBindings"] = {
            port: [{**each, "HostPort": ""} for each in published or ()]
            for port, published in bindings.items()
        }


class Replacement:
    """A container of the same name and configuration under our runtime, in another one's place.

    The old one is stopped and out of the way, until it is known that the new one
    works. Blocking.
    """

    def __init__(self, engine: Engine, old_id: str, checkpoint: Checkpoint, intent_id: str) -> None:
        self._engine = engine
        self._old_id = old_id
        self._checkpoint = checkpoint
        self._intent_id = intent_id
        self._name = engine.inspect(old_id)["Name"].lstrip("/")
        self.new_id = ""

    def make(self) -> None:
        """Stop the old one, and create, not start, the new one. If this raises, nothing has changed."""
        config = new_container_config(self._checkpoint, {})
        config["Labels"] = {**(config.get("Labels") or {}), INTENT_LABEL: self._intent_id}
        config["HostConfig"]["Runtime"] = RUNTIME
        self._engine.stop(self._old_id)
        self._set_aside()
        reached(Point.REPLACE_SET_ASIDE)
        try:
            self.new_id = self._engine.create(self._name, config)
        except BaseException:
            self.undo()
            raise
        reached(Point.REPLACE_CREATED)

    def _set_aside(self) -> None:
        name = self._name + SET_ASIDE
        try:
            self._engine.rename(self._old_id, name)
        except Conflict:
            # An earlier one is still there (see `keep`).
            self._engine.rename(self._old_id, f"{name}-{self._intent_id[:8]}")

    def keep(self) -> str:
        """Remove the old one; return what is to be said if the engine does not do that."""
        note = _remove_replaced(self._engine, self._old_id)
        reached(Point.REPLACE_OLD_REMOVED)
        return note

    def undo(self) -> None:
        """Remove the new one, and give the old one its name again."""
        if self.new_id:
            self._engine.remove(self.new_id)
        self._engine.rename(self._old_id, self._name)


def replacement_again(
    engine: Engine, old_id: str, present_id: str, checkpoint: Checkpoint, intent_id: str
) -> Replacement | None:
    """Make good a replacement that was cut off, so that it can be done again; None if it was done.

    `present_id` is the container that was recorded as the sandbox's.
    """
    if present_id != old_id:
        _remove_replaced(engine, old_id)
        return None
    _undo_replacement(engine, old_id, intent_id)
    return Replacement(engine, old_id, checkpoint, intent_id)


def _remove_replaced(engine: Engine, old_id: str) -> str:
    """Remove a container that another one has replaced; return what is to be said if that fails."""
    try:
        # If it stays, it must not be started beside the other one.
        with contextlib.suppress(ContainerNotFound):
            engine.never_restart(old_id)
        engine.remove(old_id)
    except TurnkeepError as error:
        # What was restored works all the same.
        note = f"the old container was not removed, docker rm -fv {old_id[:12]} does it: {error.message}"
        log.warning("a container is left", note=note)
        return note
    return ""


def own_name(name: str) -> str:
    """Return the name of a sandbox's container, also while another one has it."""
    return _SET_ASIDE_NAME.sub("", name)


def _undo_replacement(engine: Engine, old_id: str, intent_id: str) -> None:
    """Put back what a replacement that was cut off left of itself."""
    for container in engine.containers_with_label(f"{INTENT_LABEL}={intent_id}"):
        engine.remove(container)
    reached(Point.REPLACE_NEW_REMOVED)
    name = engine.inspect(old_id)["Name"].lstrip("/")
    if name != own_name(name):
        engine.rename(old_id, own_name(name))


def fork_names(engine: Engine, original: str, count: int, names: Sequence[str]) -> list[str]:
    """Return the names of the copies: those given, or `ORIGINAL-fork-N` with the next free numbers.

    Raises:
        InvalidRequest: the names do not fit the number.
        Conflict: one is taken.
    """
    count = count or len(names) or 1
    if count > MAX_FORKS:
        raise InvalidRequest(f"{count} copies at once; at most {MAX_FORKS}")
    if names:
        if len(names) != count or len(set(names)) != count:
            raise InvalidRequest(
                f"{len(names)} names for {count} copies", hint="give each copy a name of its own, or none"
            )
        for name in names:
            _refuse_taken(engine, name, ())
        return list(names)
    found: list[str] = []
    number = 0
    while len(found) < count:
        number += 1
        with contextlib.suppress(Conflict):
            _refuse_taken(engine, f"{original}-fork-{number}", ())
            found.append(f"{original}-fork-{number}")
    return found


def fork_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return what the user of a copy should know."""
    notes = ["its own: container id, hostname, network address, /etc/hosts, machine id"]
    if checkpoint.processes is not None and checkpoint.processes.trees:
        notes.append(
            "copied processes share what was in their memory: seeds of random numbers, session keys, tokens"
        )
    if checkpoint.fidelity is not Fidelity.COMPLETE:
        notes.append(
            f"fidelity: {checkpoint.fidelity}; the other processes that ran then are not in the copies"
        )
    return tuple(notes)


def remove_new(engine: Engine, container_id: str) -> None:
    """Remove a container that was made here, with the volumes that were made for it."""
    labels = (engine.inspect(container_id)["Config"].get("Labels") or {}) if container_id else {}
    if INTENT_LABEL not in labels:
        return
    engine.remove(container_id)
    for volume in engine.volumes_with_label(f"{INTENT_LABEL}={labels[INTENT_LABEL]}"):
        engine.remove_volume(volume)


def _is_anonymous(name: str) -> bool:
    return len(name) == 64 and all(digit in "0123456789abcdef" for digit in name)


def restore_new(
    sandbox: SandboxCoordinator, checkpoint: Checkpoint, intent: Intent, ready: Ready, progress: Progress
) -> tuple[Restored, Baseline, Container]:
    """Make a new container and fill it with a checkpoint. Blocking.

    If this raises, there is no new container, and no new volume.

    Raises:
        Conflict: the name is taken.
        Unsupported: the image that is there has other layers.
    """
    deps = sandbox.deps
    image = deps.engine.image(checkpoint.image_id)
    if tuple(image["RootFS"]["Layers"]) != checkpoint.layers:
        raise Unsupported(
            "the image has other layers than the checkpoint", object=f"image {checkpoint.image}"
        )
    progress("create", 0, 0)
    if ready.whole is not None and RUNTIME not in (deps.engine.info().get("Runtimes") or {}):
        ready.leave_whole("the runtime turnkeep is not registered (turnkeep install)")
    container_id, volumes = make_container(
        sandbox, checkpoint, intent.details["name"], intent.id, whole=ready.whole is not None
    )
    reached(Point.NEW_CREATED)
    try:
        return fill_and_start(
            deps,
            container_id,
            places_on_disk(deps.engine.inspect(container_id), checkpoint.mounts),
            checkpoint,
            ready,
            progress,
            filled=lambda: reached(Point.NEW_FILLED),
            started=lambda: None,
            and_then=lambda container: bring_back(ready, container, deps.processes),
            is_copy=True,
        )
    except BaseException:
        deps.engine.remove(container_id)
        for new in volumes.values():
            deps.engine.remove_volume(new)
        raise


def check_new(checkpoint: Checkpoint, *, original_exists: bool) -> None:
    """Refuse a new container that would write where the original still does.

    Raises:
        Conflict: an opted-in folder of the host is covered, and the original is there.
    """
    shared = [mount.target for mount in checkpoint.mounts if mount.kind is MountKind.BIND and mount.covered]
    if shared and original_exists:
        raise Conflict(
            f"folders of the host are part of the checkpoint ({', '.join(shared)}), and the original"
            " container still uses them",
            object=f"checkpoint {checkpoint.id[:12]}",
            hint="remove the original container first",
        )
