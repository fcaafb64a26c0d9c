"""Who opens a sandbox's files: fanotify permission events, so that nobody is gone before he is named."""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_libc = ctypes.CDLL(None, use_errno=True)
_CLASS_CONTENT, _CLOEXEC, _NONBLOCK = 0x4, 0x1, 0x2
_ADD, _OPEN_PERM, _OPEN_EXEC_PERM = 0x1, 0x10000, 0x40000
_EVENT = struct.Struct("=IBBHQii")
_ALLOW = 1


class Watch:
    """For a `with` block: `openers` are (path, program, command line) of those who opened or ran a file."""

    def __init__(self, paths: list[str]) -> None:
        self._names: dict[tuple[int, int], str] = {}
        self._paths = paths
        self.openers: set[tuple[str, str, str]] = set()

    def __enter__(self) -> Self:
        self._fd = _checked(_libc.fanotify_init(_CLASS_CONTENT | _CLOEXEC | _NONBLOCK, os.O_RDONLY))
        for path in self._paths:
            mask = ctypes.c_uint64(_OPEN_PERM | _OPEN_EXEC_PERM)
            _checked(_libc.fanotify_mark(self._fd, _ADD, mask, -100, os.fsencode(path)))
            status = os.stat(path)
            self._names[status.st_dev, status.st_ino] = path
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        # Whoever still waits for an answer may go on.
        os.close(self._fd)

    def _serve(self) -> None:
        with selectors.DefaultSelector() as ready:
            ready.register(self._fd, selectors.EVENT_READ)
            ready.register(self._stop, selectors.EVENT_READ)
            while self._stop not in {key.fd for key, _ in ready.select()}:
                with contextlib.suppress(BlockingIOError):
                    self._answer(os.read(self._fd, 65536))

    def _answer(self, events: bytes) -> None:
        while events:
            length, _, _, _, _, fd, pid = _EVENT.unpack_from(events)
            events = events[length:]
            status = os.fstat(fd)
            name = self._names.get((status.st_dev, status.st_ino), str(status.st_ino))
            self.openers.add((name, *_who(pid)))
            os.write(self._fd, struct.pack("=iI", fd, _ALLOW))
            os.close(fd)


def _who(pid: int) -> tuple[str, str]:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return os.readlink(f"/proc/{pid}/exe"), command
    except OSError as error:
        return str(error.strerror), ""


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
