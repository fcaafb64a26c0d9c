"""Restore orders: what tells the OCI runtime `turnkeep` to restore a container.

An order is a file, named after the container, in a folder that only root can
enter. The next `create` of that container takes it away and restores the images
that it names instead of starting the container's program (`shim.carry_out`).
It is good for one attempt, for a limited time, and not beyond a reboot.

The folder is not below the socket's, because that one is mounted into harnesses'
containers, and whoever writes an order has processes restored by root.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from turnkeep_store.durable import OsDisk, remove_durably, remove_leftovers, write_file_durably
from turnkeep_store.errors import StoreError

from turnkeep.codec import to_json
from turnkeep.errors import InvalidRequest, RestoreFailed
from turnkeep.runtime.engine import boot_id
from turnkeep.runtime.shim import carry_out

DEFAULT_DIR = Path("/run/turnkeep-orders")
_ID = re.compile(r"[0-9a-f]{64}")
_ABANDONED_S = 3600.0
"""A trace of an attempt that is older belongs to none that still goes on."""


class Tcp(StrEnum):
    """What becomes of connections that were established."""

    CLOSE = "close"
    ESTABLISHED = "established"


class ManageCgroups(StrEnum):
    """How CRIU treats cgroups at a restore (its option of that name)."""

    SOFT = "soft"
    FULL = "full"
    STRICT = "strict"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """How a container is to be restored; as it was dumped, mostly. `limit_s` bounds CRIU's work."""

    tcp: Tcp = Tcp.CLOSE
    ext_unix_sk: bool = True
    shell_job: bool = True
    file_locks: bool = True
    manage_cgroups: ManageCgroups = ManageCgroups.SOFT
    limit_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """An order, as it lies in its file. `expires_ns` is of the clock that counts from the boot."""

    container_id: str
    image_path: str
    work_path: str
    options: RestoreOptions = field(default_factory=RestoreOptions)
    boot_id: str
    expires_ns: int
    version: int = carry_out.VERSION


def place(
    orders_dir: Path,
    container_id: str,
    image_path: Path,
    work_path: Path,
    options: RestoreOptions | None = None,
    expires_s: float = 60.0,
) -> Order:
    """Have the next start of a container restore it from images.

    An order that was there before is replaced. `work_path`, a folder that may
    not exist yet, gets CRIU's log and figures: `stats-restore` is there when the
    restore has succeeded.

    Raises:
        InvalidRequest: this is no container's id, or the images are not in a
            folder that only root can write to.
        RestoreFailed: the order cannot be written.
    """
    if not _ID.fullmatch(container_id):
        raise InvalidRequest("this is not the full id of a container", object=container_id)
    if not (image_path.is_absolute() and work_path.is_absolute()):
        raise InvalidRequest("the folders of an order have to be absolute", object=str(image_path))
    with _errors(image_path):
        _require_private(image_path, 0o022)
    order = Order(
        container_id=container_id,
        image_path=str(image_path),
        work_path=str(work_path),
        options=options or RestoreOptions(),
        boot_id=boot_id(),
        expires_ns=carry_out.now_ns() + int(expires_s * 1e9),
    )
    with _errors(orders_dir):
        orders_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(orders_dir, 0o077)
        text = json.dumps(to_json(order)).encode()
        write_file_durably(OsDisk(), str(orders_dir), container_id, [text])
    return order


def withdraw(orders_dir: Path, container_id: str) -> bool:
    """Take an order back. Returns whether it was still there: nothing was restored by it then.

    Raises:
        RestoreFailed: it cannot be removed.
    """
    with _errors(orders_dir):
        try:
            (orders_dir / container_id).unlink()
        except FileNotFoundError:
            return False
        return True


def clean(orders_dir: Path) -> list[str]:
    """Remove expired orders, and what a crash left of any. Returns the containers of the former.

    For a start of the daemon. Orders that are still good stay: a start of their
    container may be under way.

    Raises:
        RestoreFailed: the folder cannot be read or changed.
    """
    if not orders_dir.exists():
        return []
    with _errors(orders_dir):
        expired, rubbish = [], []
        for path in filter(_is_file, orders_dir.iterdir()):
            if _ID.fullmatch(path.name):
                if _has_expired(path):
                    expired.append(path.name)
            elif path.suffix in _TRACES and _is_abandoned(path):
                rubbish.append(path.name)
        remove_durably(OsDisk(), str(orders_dir), [*expired, *rubbish])
        remove_leftovers(OsDisk(), str(orders_dir))
    return sorted(expired)


_TRACES = frozenset({carry_out.TAKEN, carry_out.RESTORED, carry_out.CRIU_CONFIG})


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _has_expired(path: Path) -> bool:
    try:
        order = json.loads(path.read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return not isinstance(order, dict) or carry_out.is_expired(order)


def _is_abandoned(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.lstat().st_mtime > _ABANDONED_S
    return False


def _require_private(folder: Path, forbidden: int) -> None:
    status = os.lstat(folder)
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & forbidden:
        return
    raise InvalidRequest(
        "it has to be a folder, not a link to one, that only root can write to",
        object=str(folder),
        hint=f"chown root {folder} && chmod 0700 {folder}",
    )


@contextlib.contextmanager
def _errors(where: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, StoreError) as error:
        raise RestoreFailed(f"cannot handle a restore order: {error}", object=str(where)) from error
