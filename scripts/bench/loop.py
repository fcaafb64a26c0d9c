"""File systems of the benchmark's own, in files of its folder."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

_MAKE = {"ext4": ["mkfs.ext4", "-q", "-F"], "btrfs": ["mkfs.btrfs", "-q"]}


def why_not(kind: str) -> str:
    """Return why there can be no file system of this kind; "" if there can."""
    program = _MAKE[kind][0]
    if shutil.which(program) is None:
        return f"{program} is not installed; scripts/bench-peers does that"
    if not Path("/dev/loop-control").exists():
        return "this machine has no loop devices"
    known = Path("/proc/filesystems").read_text().split()
    if kind not in known and subprocess.run(["modprobe", "-q", kind], check=False).returncode != 0:
        return f"this kernel has no {kind}"
    return ""


@contextlib.contextmanager
def file_system(folder: Path, kind: str, size: int) -> Iterator[Path]:
    """Yield the root of a new file system of so many bytes; it is gone afterwards.

    What is synced in it waits for nothing that others have written to the disk.

    Raises:
        CalledProcessError: it cannot be made or mounted.
    """
    image, root = folder / f"{kind}.img", folder / kind
    root.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    _run([*_MAKE[kind], str(image)])
    try:
        _run(["mount", "-o", "loop,noatime", str(image), str(root)])
        yield root
    finally:
        if root.is_mount():
            # Lazily: a program that was interrupted in it may need a moment to end.
            _run(["umount", "--lazy", str(root)])
        image.unlink()


def _run(command: list[str]) -> None:
    # What they say on the way is of interest only if they fail.
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, f"{' '.join(command)}: {done.stderr.strip()}")
