"""When a sandbox is frozen, told by the kernel: a poll may sleep through a freeze of milliseconds."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
from types import TracebackType
from typing import Self

from turnkeep.runtime.cgroup import Cgroup

_libc = ctypes.CDLL(None, use_errno=True)
_MODIFY = 0x2


class Freezes:
    """For a `with` block: whoever freezes or thaws a cgroup is noticed."""

    def __init__(self, cgroup: Cgroup) -> None:
        self._control = cgroup.freezer / ("freezer.state" if cgroup.version == 1 else "cgroup.freeze")

    def __enter__(self) -> Self:
        self._fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        assert self._fd >= 0, os.strerror(ctypes.get_errno())
        watch = _libc.inotify_add_watch(self._fd, os.fsencode(self._control), _MODIFY)
        assert watch >= 0, os.strerror(ctypes.get_errno())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def forget(self) -> None:
        """Pay no heed to what was noticed so far: the end of an earlier freeze, say."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 65536)

    def met(self, within_s: float) -> bool:
        """Wait for the next freeze; whether it still lasts when this returns."""
        assert select.select([self._fd], [], [], within_s)[0], "nobody froze it"
        os.read(self._fd, 65536)
        return self._control.read_text() not in ("THAWED\n", "0\n")
