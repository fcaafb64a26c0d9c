"""A look at a sandbox from outside: its files and its processes at one moment."""

from __future__ import annotations

from dataclasses import dataclass

import docker

from bench.recovery.listing import Listing, listing
from bench.recovery.living import Living, living


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What there is."""

    files: Listing
    processes: frozenset[Living]


def look(client: docker.DockerClient, name: str) -> Look:
    """Look at a running container."""
    container = client.containers.get(name)
    pid = container.attrs["State"]["Pid"]
    return Look(files=listing(pid), processes=living(pid))
