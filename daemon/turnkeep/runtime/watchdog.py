"""The freeze watchdog: thaws what the daemon froze, if the daemon cannot.

A process of its own, started with this file as its script and without the
package, so that it is small and hangs on nothing. The daemon writes a line to
its standard input before it freezes and another after it has thawed:

    arm NAME SECONDS TEXT FILE      after SECONDS, write TEXT to FILE
    hold NAME                       do not thaw NAME when the daemon dies
    disarm NAME

It writes TEXT to FILE when the time is over, and at once when its standard
input ends (the daemon died) or the daemon is stopped by a signal. What is held
belongs to a restore, which the next start finishes or undoes before it thaws.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

POLL_S = 0.1


def main() -> int:
    """Run until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    daemon = os.getppid()
    armed: dict[str, tuple[float, str, str]] = {}
    held: set[str] = set()
    buffer = b""
    while True:
        ready, _, _ = select.select([0], [], [], POLL_S if armed else None)
        if ready:
            data = os.read(0, 65536)
            if not data:
                _thaw(armed, set(armed) - held)
                return 0
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                _obey(line.decode(), armed, held)
        overdue = {name for name, (deadline, _, _) in armed.items() if time.monotonic() > deadline}
        if armed and _is_stopped(daemon):
            overdue = set(armed)
        _thaw(armed, overdue - held)


def _obey(line: str, armed: dict[str, tuple[float, str, str]], held: set[str]) -> None:
    # The file comes last: its path may hold spaces.
    match line.split(" ", 4):
        case ["arm", name, seconds, text, file]:
            armed[name] = (time.monotonic() + float(seconds), file, text)
        case ["hold", name]:
            held.add(name)
        case ["disarm", name]:
            armed.pop(name, None)
            held.discard(name)


def _thaw(armed: dict[str, tuple[float, str, str]], names: set[str]) -> None:
    for name in names:
        _, file, text = armed.pop(name)
        try:
            with open(file, "w") as control:
                control.write(text)
        except OSError as error:
            print(f"watchdog: {file}: {error}", file=sys.stderr)


def _is_stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0]
    except OSError:
        return True
    return state in (b"T", b"t", b"Z", b"X")


if __name__ == "__main__":
    raise SystemExit(main())
