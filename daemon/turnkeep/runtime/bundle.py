"""Where the engine's containerd keeps a running container, past the engine's API.

The parent of a container's init is containerd's shim. Its working folder is the
container's bundle; there lies what the shim was told of the OCI runtime.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from turnkeep.errors import SandboxGone, Unsupported

_SHIM = "containerd-shim"
_GENERATIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A running container as containerd keeps it.

    `runc_root` is the `--root` of the OCI runtime, `runtime` its program.
    """

    path: Path
    runc_root: Path
    runtime: str


def find_bundle(init_pid: int, container_id: str) -> Bundle:
    """Find the bundle of a running container by its init process.

    Raises:
        SandboxGone: the process is gone.
        Unsupported: no shim of containerd's is above it, or it is not one for runc.
    """
    where = f"container {container_id[:12]}"
    try:
        path = Path(os.readlink(f"/proc/{_shim(init_pid, where)}/cwd"))
        options = json.loads((path / "options.json").read_bytes())
    except (FileNotFoundError, ProcessLookupError) as error:
        raise SandboxGone("its init process is gone", object=where) from error
    except (OSError, ValueError) as error:
        raise Unsupported(f"what containerd noted of it cannot be read: {error}", object=where) from error
    if path.name != container_id or not isinstance(options, dict):
        raise Unsupported(f"{path} is not its bundle", object=where)
    # The shim adds containerd's namespace, the name of the bundle's parent.
    root = Path(options.get("root") or "/run/containerd/runc", path.parent.name)
    return Bundle(path=path, runc_root=root, runtime=options.get("binary_name") or "runc")


def _shim(init_pid: int, where: str) -> int:
    """Return the nearest ancestor that is a shim; a subreaper may stand between."""
    pid = init_pid
    for _ in range(_GENERATIONS):
        pid = _parent(pid)
        if pid <= 1:
            break
        if Path(f"/proc/{pid}/comm").read_text().startswith(_SHIM):
            return pid
    raise Unsupported(
        "its init is not below a shim of containerd's", object=where, hint="only containers of runc's are"
    )


def _parent(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("PPid:"):
            return int(line.split()[1])
    return 0
