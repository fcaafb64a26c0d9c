"""Programs that copy: rsync into folders that share files, tar into compressed archives."""

from __future__ import annotations

import os
from pathlib import Path

from bench.tools.base import call

_TAR = ["tar", "--xattrs", "--numeric-owner"]


class Rsync:
    """`rsync --link-dest`: a folder for each state, with hard links where nothing changed."""

    key, title, program, in_place = "rsync", "rsync --link-dest", "rsync", True

    def prepare(self, folder: Path) -> None:
        self._folder = folder
        self._last: Path | None = None

    def keep(self, tree: Path, name: str) -> None:
        made = self._folder / name
        base = [f"--link-dest={self._last}"] if self._last else []
        # Of its files it syncs the written ones, of its folders none: it is given that.
        call(["rsync", "-aHAX", "--fsync", *base, f"{tree}/", f"{made}/"])
        self._last = made

    def bring(self, name: str, target: Path) -> None:
        call(["rsync", "-aHAX", "--delete", f"{self._folder / name}/", f"{target}/"])

    def stored_folder(self) -> Path:
        return self._folder


class TarZstd:
    """`tar | zstd -1`: an archive for each state."""

    key, title, program, in_place = "tar", "tar | zstd -1", "zstd", False

    def prepare(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, tree: Path, name: str) -> None:
        _pipe([*_TAR, "-C", str(tree), "-cf", "-", "."], ["zstd", "-1", "-q", "-o", str(self._path(name))])
        with self._path(name).open("rb") as file:
            os.fsync(file.fileno())  # noqa: TID251 - the tool's own file, which it does not sync

    def bring(self, name: str, target: Path) -> None:
        _pipe(["zstd", "-dcq", str(self._path(name))], [*_TAR, "-C", str(target), "-xf", "-"])

    def stored_folder(self) -> Path:
        return self._folder

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.tar.zst"


def _pipe(first: list[str], second: list[str]) -> None:
    """Run two programs, the output of one being the input of the other."""
    script = 'set -o pipefail; n=$1; shift; "${@:1:n}" | "${@:n+1}"'
    call(["bash", "-c", script, "bash", str(len(first)), *first, *second])
