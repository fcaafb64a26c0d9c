"""What a copy of a sandbox must not share with the original: names, addresses, machine ids."""

from __future__ import annotations

import contextlib
import os
import re
import secrets

from turnkeep_store.beneath import open_beneath
from turnkeep_store.errors import StoreError

from turnkeep.model import Checkpoint
from turnkeep.runtime.container import Container
from turnkeep.runtime.places import open_root

OWN_IDENTITY = (
    "the new container has an identity of its own: /etc/hostname, its lines of /etc/hosts and its machine id"
    " are not the original's, and /.dockerenv and /etc/mtab are of its own making"
)

_HOSTNAME, _HOSTS = "/etc/hostname", "/etc/hosts"
_MACHINE_IDS = (b"etc/machine-id", b"var/lib/dbus/machine-id")
_MACHINE_ID = re.compile(rb"[0-9a-f]{32}\n?")
_MAX_BYTES = 1 << 20


class Identity:
    """What the engine gave a new container, read before a checkpoint is written over it."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._own: dict[str, bytes] = {}
        for place in container.covered():
            if place.is_file and place.mount.target in (_HOSTNAME, _HOSTS):
                self._own[place.mount.target] = _read(place.open(container.init_pid))

    def take_back(self, checkpoint: Checkpoint) -> None:
        """Give the container its own names and address again, and a new machine id.

        `/etc/hosts` keeps the checkpoint's lines but for those of the original.
        The caller has frozen the container.
        """
        for place in self._container.covered():
            own = self._own.get(place.mount.target)
            if own is None:
                continue
            if place.mount.target == _HOSTS:
                own = _merged(_read(place.open(self._container.init_pid)), own, checkpoint)
            _write(place.open(self._container.init_pid), own)
        root = open_root(self._container.init_pid)
        try:
            for path in _MACHINE_IDS:
                with contextlib.suppress(OSError, StoreError):
                    _renew(root, path)
        finally:
            os.close(root)


def _merged(captured: bytes, own: bytes, checkpoint: Checkpoint) -> bytes:
    """Return the captured lines without the original's own, and this container's at the end."""
    original = checkpoint.container
    name = str(original.get("Config", {}).get("Hostname") or original["Id"][:12]).encode()
    common = set(captured.splitlines())
    kept = [line for line in captured.splitlines() if name not in line.split()[1:]]
    return b"\n".join(kept + [line for line in own.splitlines() if line not in common]) + b"\n"


def _renew(root: int, path: bytes) -> None:
    fd = open_beneath(root, path, os.O_RDWR)
    try:
        if _MACHINE_ID.fullmatch(os.pread(fd, 64, 0)):
            os.pwrite(fd, secrets.token_hex(16).encode(), 0)
    finally:
        os.close(fd)


def _read(handle: int) -> bytes:
    try:
        with open(f"/proc/self/fd/{handle}", "rb") as file:
            return file.read(_MAX_BYTES)
    finally:
        os.close(handle)


def _write(handle: int, content: bytes) -> None:
    try:
        with open(f"/proc/self/fd/{handle}", "wb") as file:
            file.write(content)
    finally:
        os.close(handle)
