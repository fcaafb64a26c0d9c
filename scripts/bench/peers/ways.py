"""Ways to keep a turn's files and to go back to them, other than Turnkeep's.

None of them can go back in a running sandbox, so each goes back in a folder of its own:
what a user would do next, to put that in the sandbox's place, is not counted.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from demo.stage import Failed
from docker.models.containers import Container

from bench import disk
from bench.interrupt import Interrupts
from bench.loop import file_system
from bench.peer import Peer, layer_bytes
from bench.tools import Tool
from bench.tools.base import call
from bench.upper import Upper

BASE = "base"
_BTRFS_BYTES = 16 << 30


class Way(Protocol):
    """A way to keep what is in a sandbox's writable layer."""

    key: str
    title: str

    def start(self) -> None:
        """Keep the state that is always gone back to."""
        ...

    def take_over(self, changed: list[Path]) -> None:
        """Learn of changed files what costs the way nothing: not measured."""
        ...

    def keep(self, name: str) -> None:
        """Keep the state."""
        ...

    def stored_bytes(self) -> int:
        """Return what the last `keep` added."""
        ...

    def before_back(self) -> None:
        """Make ready what is not counted."""
        ...

    def back(self, name: str) -> None:
        """Go back to the first state; `name` was kept last."""
        ...

    def place(self) -> Path:
        """Return the folder in which it went back."""
        ...


class ToolWay:
    """One of the tools, on the upper folder."""

    def __init__(self, tool: Tool, upper: Upper, folder: Path) -> None:
        self.key, self.title = tool.key, tool.title
        self._tool = tool
        self._tree = upper.folder()
        self._folder = folder / tool.key
        self._place = folder / f"{tool.key}-back"
        self._stored = 0

    def start(self) -> None:
        self._folder.mkdir()
        self._tool.prepare(self._folder)
        self._tool.keep(self._tree, BASE)
        self._before = disk.allocated_bytes(self._tool.stored_folder())
        if self._tool.in_place:
            shutil.copytree(self._tree, self._place, symlinks=True)

    def take_over(self, changed: list[Path]) -> None:
        if not self._tool.in_place:
            return
        # What is gone back from is this state.
        for path in changed:
            shutil.copy2(path, self._place / _inside(path))

    def keep(self, name: str) -> None:
        self._tool.keep(self._tree, name)

    def stored_bytes(self) -> int:
        now = disk.allocated_bytes(self._tool.stored_folder())
        added, self._before = now - self._before, now
        return added

    def before_back(self) -> None:
        if not self._tool.in_place:
            shutil.rmtree(self._place, ignore_errors=True)
            self._place.mkdir()

    def back(self, name: str) -> None:
        self._tool.bring(BASE, self._place)

    def place(self) -> Path:
        return self._place


class Commit:
    """`docker commit`; going back is a new container of the first image."""

    key, title = "commit", "docker commit"

    def __init__(self, peer: Peer, upper: Upper, interrupts: Interrupts) -> None:
        self._peer = peer
        self._upper = upper
        self._interrupts = interrupts

    def start(self) -> None:
        self.keep(BASE)
        self._replaced = self._peer.run(f"{self._peer.name}:{BASE}")

    def take_over(self, changed: list[Path]) -> None:
        """Nothing: a new container is of the image, whatever the one before held."""

    def keep(self, name: str) -> None:
        container: Container = self._upper.container
        with self._interrupts.held():
            self._image = self._peer.commit(container, name, pause=True)

    def stored_bytes(self) -> int:
        return layer_bytes(self._image)

    def before_back(self) -> None:
        """Nothing is to be made ready."""

    def back(self, name: str) -> None:
        with self._interrupts.held():
            self._replaced.remove(force=True)
            self._replaced = self._peer.run(f"{self._peer.name}:{BASE}")
        self._peer.forget(name)

    def place(self) -> Path:
        return Upper(self._replaced, 0).root


class Btrfs:
    """`btrfs subvolume snapshot`, of a copy of the files on a btrfs of its own."""

    key, title = "btrfs", "btrfs snapshot"

    def __init__(self, upper: Upper, root: Path) -> None:
        self._upper = upper
        self._root = root
        self._live = root / "live"

    def start(self) -> None:
        _btrfs("subvolume", "create", str(self._live))
        shutil.copytree(self._upper.folder(), self._live, symlinks=True, dirs_exist_ok=True)
        disk.write_out(self._root)
        self.keep(BASE)
        self._before = disk.used_bytes(self._root)

    def take_over(self, changed: list[Path]) -> None:
        # What the sandbox would have written to a btrfs itself, and had to write anyway.
        for path in changed:
            shutil.copy2(path, self._live / _inside(path))
        disk.write_out(self._root)
        self._before = disk.used_bytes(self._root)

    def keep(self, name: str) -> None:
        _btrfs("subvolume", "snapshot", "-r", str(self._live), str(self._root / name))
        _btrfs("filesystem", "sync", str(self._root))

    def stored_bytes(self) -> int:
        return max(0, disk.used_bytes(self._root) - self._before)

    def before_back(self) -> None:
        """Nothing is to be made ready."""

    def back(self, name: str) -> None:
        _btrfs("subvolume", "delete", str(self._live))
        _btrfs("subvolume", "snapshot", str(self._root / BASE), str(self._live))
        _btrfs("filesystem", "sync", str(self._root))

    def place(self) -> Path:
        return self._live


@contextlib.contextmanager
def btrfs(upper: Upper, folder: Path) -> Iterator[Btrfs]:
    """Yield the way of btrfs, on a file system that is gone afterwards."""
    with file_system(folder, "btrfs", _BTRFS_BYTES) as root:
        yield Btrfs(upper, root)


def _btrfs(*words: str) -> None:
    call(["btrfs", *words])


def _inside(path: Path) -> Path:
    """Return a sandbox's path without what it is reached through."""
    parts = path.parts
    if "root" not in parts:
        raise Failed(f"{path} is no path in a sandbox")
    return Path(*parts[parts.index("root") + 1 :])
