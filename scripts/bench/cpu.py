"""How much processor time the daemon has used, to the nanosecond."""

from __future__ import annotations

import contextlib
import time

import psutil

_SCHEDULED = 2  # CPUCLOCK_SCHED, of a whole process: clock_getres(2) and the kernel's posix-timers.h


class DaemonClock:
    """The processor time of a process, its children and those it has waited for."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    def spent_ns(self) -> int:
        """Return what all of them have used so far.

        Of children that ended only hundredths of a second are known.
        """
        times = self._process.cpu_times()
        ended_ns = int((times.children_user + times.children_system) * 1e9)
        spent_ns = ended_ns + _spent_ns(self._process.pid)
        for child in self._process.children(recursive=True):
            with contextlib.suppress(OSError):
                spent_ns += _spent_ns(child.pid)
        return spent_ns


def _spent_ns(pid: int) -> int:
    # The process's own clock: its times in /proc are rounded to hundredths of a second,
    # which is more than a turn may cost.
    return time.clock_gettime_ns((~pid << 3) | _SCHEDULED)
