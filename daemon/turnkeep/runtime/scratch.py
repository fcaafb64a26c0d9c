"""A cgroup of our own for a moment: something to freeze that is nobody's sandbox."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from turnkeep.errors import CaptureFailed, Unsupported
from turnkeep.runtime.cgroup import Cgroup
from turnkeep.runtime.freezer import Freezer
from turnkeep.runtime.mountinfo import read_mountinfo

_NAME = "turnkeep-self-test-"
_END_LIMIT_S = 10.0
_POLL_S = 0.001


class ScratchGroup:
    """A cgroup below the hierarchy's root, with the freezer that its sandboxes are frozen with."""

    def __init__(self, cgroup: Cgroup, freezer: Freezer, budget_s: float) -> None:
        self._cgroup = cgroup
        self._freezer = freezer
        self._budget_s = budget_s

    @property
    def version(self) -> int:
        """Which kind of cgroup it is: 1 or 2."""
        return self._cgroup.version

    @property
    def freezer_folder(self) -> str:
        """The folder of the cgroup that is frozen."""
        return str(self._cgroup.freezer)

    def procs_files(self) -> list[str]:
        """Return the file that a process is written to in order to join it."""
        return self._cgroup.procs_files()

    def pids(self) -> list[int]:
        """Return the processes in it, by their pids on the host."""
        return self._cgroup.pids()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze it for a `with` block (see `Freezer`).

        Raises:
            CaptureFailed: it cannot be frozen, or was thawed meanwhile.
        """
        with self._freezer.frozen(self._cgroup, self._budget_s) as state:
            yield
            state.check()


@contextlib.contextmanager
def scratch_group(freezer: Freezer, budget_s: float) -> Iterator[ScratchGroup]:
    """Give an empty cgroup for a `with` block; whoever is in it at the end is killed.

    One at a time for each daemon. One that a killed daemon left is removed first.

    Raises:
        Unsupported: no hierarchy can freeze, or none may be written to.
    """
    version, top = _hierarchy()
    _remove_left(top, version)
    folder = top / f"{_NAME}{os.getpid()}"
    cgroup = Cgroup(version, folder, folder, (folder,))
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise Unsupported(
            f"no cgroup can be made: {error.strerror}",
            object=str(top),
            hint="the daemon has to be able to write there",
        ) from error
    try:
        yield ScratchGroup(cgroup, freezer, budget_s)
    finally:
        _remove(cgroup)


def _hierarchy() -> tuple[int, Path]:
    """Return the version and the root of the hierarchy that sandboxes are frozen in."""
    unified = None
    for mount in read_mountinfo("self"):
        if mount.fs_type == b"cgroup" and b"freezer" in mount.super_options:
            return 1, Path(os.fsdecode(mount.target))
        if mount.fs_type == b"cgroup2" and unified is None:
            unified = Path(os.fsdecode(mount.target))
    if unified is None:
        raise Unsupported(
            "no cgroup hierarchy can freeze", hint="mount cgroup2, or the v1 freezer controller"
        )
    return 2, unified


def _remove_left(top: Path, version: int) -> None:
    for folder in top.glob(f"{_NAME}*"):
        owner = re.fullmatch(r"\d+", folder.name.removeprefix(_NAME))
        if owner and not Path("/proc", owner[0]).exists():
            with contextlib.suppress(CaptureFailed):
                _remove(Cgroup(version, folder, folder, (folder,)))


def _remove(cgroup: Cgroup) -> None:
    """Kill what is in it, and remove it.

    Raises:
        CaptureFailed: something in it cannot be killed.
    """
    cgroup.thaw()
    deadline = time.monotonic() + _END_LIMIT_S
    while cgroup.freezer.exists():
        for pid in cgroup.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            cgroup.freezer.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise CaptureFailed(
                    f"a cgroup of the self-test cannot be removed: {error.strerror}",
                    object=str(cgroup.freezer),
                    hint="see who is in its cgroup.procs",
                ) from error
            time.sleep(_POLL_S)
