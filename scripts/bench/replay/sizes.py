"""How large a sandbox's writable layer is, as the ways that keep all of it would store it."""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import zstandard
from demo.stage import Failed
from docker.models.containers import Container
from turnkeep.runtime.mountinfo import read_mountinfo

LEVEL = 3
"""zstd's own default, and Turnkeep's."""

_PIECE = 1024 * 1024
_TAR = ("tar", "--create", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--file=-", "--directory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes of one writable layer at one moment."""

    snapshot: int
    """`tar | zstd` of everything in it."""
    layer: int
    """Its files' sizes, which is what `docker commit` stores and `docker history` shows."""
    files: int


def upperdir(container: Container) -> Path:
    """Return the folder of a running container's writable layer.

    Raises:
        Failed: its root is no overlay with an absolute one.
    """
    container.reload()
    roots = [each for each in read_mountinfo(container.attrs["State"]["Pid"]) if each.target == b"/"]
    upper = roots[-1].super_option(b"upperdir") if roots else None
    if not upper or not upper.startswith(b"/"):
        raise Failed(f"{container.name} has no writable layer that could be measured")
    return Path(os.fsdecode(upper))


def measure(upper: Path) -> Sizes:
    """Measure a writable layer. Its sandbox should be idle: nothing is frozen for this."""
    layer = files = 0
    for folder, _, names in os.walk(upper):
        for name in names:
            status = os.lstat(os.path.join(folder, name))
            if stat.S_ISREG(status.st_mode):
                layer += status.st_size
                files += 1
    return Sizes(snapshot=_compressed(upper), layer=layer, files=files)


def _compressed(upper: Path) -> int:
    found = 0
    compressor = zstandard.ZstdCompressor(level=LEVEL).compressobj()
    with subprocess.Popen(
        [*_TAR, str(upper), "."], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while piece := process.stdout.read(_PIECE):
            found += len(compressor.compress(piece))
        found += len(compressor.flush())
        said = process.stderr.read()
    # 1: a file changed while it was read, by a process that an earlier turn left behind.
    if process.returncode not in (0, 1):
        raise Failed(f"tar of {upper} failed: {said.decode(errors='replace').strip()}")
    return found
