"""The registry as one harness sees it: its own sandboxes, and nothing that tells of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turnkeep.config import Quota
from turnkeep.coordinator.deps import run
from turnkeep.coordinator.registry import Registry
from turnkeep.coordinator.sandbox import SandboxCoordinator
from turnkeep.errors import ResourceExhausted
from turnkeep.model import SandboxId
from turnkeep.runtime.engine import no_such_container, owner_of


class Owned(Registry):
    """The sandboxes whose container's label names an owner. Made for one call.

    What is another's is not found, in the words of what is not there at all.
    """

    def __init__(self, base: Registry, owner: str, quota: Quota) -> None:
        self.deps = base.deps
        self.sandboxes = {key: each for key, each in base.sandboxes.items() if each.record.owner == owner}
        self._attaching = base._attaching
        self._deleting = base._deleting
        self._base = base
        self._owner = owner
        self._quota = quota

    def sees(self, sandbox_id: SandboxId | None) -> bool:
        sandbox = self._base.sandboxes.get(sandbox_id) if sandbox_id is not None else None
        return sandbox is not None and sandbox.record.owner == self._owner

    def add(self, sandbox: SandboxCoordinator) -> None:
        self._base.add(sandbox)
        super().add(sandbox)

    def remove(self, sandbox_id: SandboxId) -> None:
        self._base.remove(sandbox_id)
        super().remove(sandbox_id)

    async def attach(self, name: str) -> tuple[SandboxCoordinator, bool]:
        """Attach a container whose label names the owner (see `Registry.attach`).

        Raises:
            ContainerNotFound: there is none, or it is another's.
            ResourceExhausted: the owner's quota is used up.
        """
        if name:
            inspected = await run(self.deps.pools.engine, self.deps.engine.inspect, name)
            if owner_of(inspected["Config"].get("Labels")) != self._owner:
                raise no_such_container(f"container {name}")
            known = {each.record.container_id for each in self.sandboxes.values() if each.record.attached}
            if inspected["Id"] not in known:
                self.check_room(sandboxes=1)
        sandbox, created = await self._base.attach(name)
        super().add(sandbox)
        return sandbox, created

    def check_room(self, *, sandboxes: int = 0) -> None:
        """See that there is room in the quota for something that is kept, and for so many sandboxes more.

        Raises:
            ResourceExhausted: there is not.
        """
        quota = self._quota
        present: Mapping[str, Any] = {
            "sandboxes": sum(each.record.attached for each in self.sandboxes.values()) + sandboxes,
            "captures": sum(each.capturing for each in self.sandboxes.values()) + 1 if not sandboxes else 0,
        }
        for name, count in present.items():
            most = getattr(quota, name)
            if most and count > most:
                raise ResourceExhausted(
                    f"{count} {name}; {most} are allowed",
                    object=f"access.quota.{name} of {self._owner}",
                    hint="detach a sandbox" if name == "sandboxes" else "wait until one is durable",
                )
        if quota.stored_bytes:
            stored = sum(self.deps.journal.stored_bytes(each) for each in self.sandboxes)
            if stored >= quota.stored_bytes:
                raise ResourceExhausted(
                    f"{stored} bytes are stored; {quota.stored_bytes} are allowed",
                    object=f"access.quota.stored_bytes of {self._owner}",
                    hint="delete checkpoints",
                )
