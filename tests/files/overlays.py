"""Overlays that the kernel mounts, and images made of layers that it wrote."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2

Step = Callable[[Path], None]
"""Changes a root file system through its merged view, as a line of a Dockerfile does."""


class Overlay:
    """One overlay: `layers` (topmost first) below, `upper` above, `merged` while it is mounted."""

    def __init__(self, folder: Path, layers: Sequence[Path]) -> None:
        self.layers = tuple(layers)
        self.upper = folder / "upper"
        self.merged = folder / "merged"
        self._work = folder / "work"
        self._mounted = False
        for each in (self.upper, self.merged, self._work):
            each.mkdir(parents=True)

    def mount(self) -> None:
        """Mount it at `merged`."""
        lower = ":".join(map(str, self.layers))
        # What Docker's hosts have: the upper layer alone tells everything.
        options = (
            f"lowerdir={lower},upperdir={self.upper},workdir={self._work},metacopy=off,redirect_dir=nofollow"
        )
        _check(
            _libc.mount(b"overlay", os.fsencode(self.merged), b"overlay", 0, options.encode()), self.merged
        )
        self._mounted = True

    def unmount(self, *, at_any_rate: bool = False) -> None:
        """Unmount it, unless it is not mounted. What is still open prevents that, but not at any rate."""
        if self._mounted:
            flags = _MNT_DETACH if at_any_rate else 0
            _check(_libc.umount2(os.fsencode(self.merged), flags), self.merged)
            self._mounted = False


def bind(source: Path, target: Path) -> None:
    """Mount a folder over another."""
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), None, 4096, None), target)


def mount_tmpfs(target: Path) -> None:
    """Mount a file system in memory."""
    _check(_libc.mount(b"tmpfs", os.fsencode(target), b"tmpfs", 0, None), target)


def unmount(target: Path) -> None:
    """Take a mount away, even if a descriptor still holds it."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), target)


def remove_all(folder: Path) -> None:
    """Remove a folder. pytest does it by recursion, which deep trees are too deep for."""
    subprocess.run(["rm", "-rf", folder], check=True)


def _check(result: int, path: Path) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))


@contextmanager
def mounted(folder: Path, layers: Sequence[Path]) -> Iterator[Overlay]:
    """Give an overlay over `layers`, mounted."""
    overlay = Overlay(folder, layers)
    overlay.mount()
    try:
        yield overlay
    finally:
        overlay.unmount(at_any_rate=True)


def build_image(folder: Path, steps: Sequence[Step]) -> list[Path]:
    """Make an image, one layer a step; return its layers, topmost first.

    Each step runs on a mounted overlay over the layers before it, so that
    whiteouts and opaque folders are the kernel's.
    """
    empty = folder / "empty"
    empty.mkdir(parents=True)
    layers = [empty]
    for number, step in enumerate(steps):
        with mounted(folder / str(number), layers) as overlay:
            step(overlay.merged)
        layers.insert(0, overlay.upper)
    return layers
