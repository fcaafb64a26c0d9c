"""Whether this kernel reports what is written through an overlay to its upper layer's file system.

Overlayfs opens the files beneath it in ways of its own, and before about Linux
6.5 their content changed without an event. A kernel's version says little
about what was carried over to it, so this is tried out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator

from turnkeep.watch import fanotify

_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_CLOEXEC, _SET_STRING, _CREATE = 1, 1, 6
_INDEX = "/sys/module/overlay/parameters/index"

_libc = ctypes.CDLL(None, use_errno=True)


def why_not_seen(scratch: str) -> str:
    """Return why changes of upper layers cannot be followed on this host; empty if they can.

    Makes an overlay in the folder `scratch` that no path leads to, and removes it.
    """
    if _has_index():
        return "overlays of this host keep an index, so that files have names outside of their upper layer"
    try:
        with _overlay(scratch) as (merged, upper):
            return "" if _is_seen(merged, upper) else "this kernel does not report writes through an overlay"
    except OSError as error:
        return f"following changes was tried out and failed: {error}"


def _has_index() -> bool:
    try:
        with open(_INDEX) as file:
            return file.read().strip() in ("Y", "1")
    except OSError:
        return False


def _is_seen(merged: int, upper: int) -> bool:
    """Whether a write through the overlay is reported before the file is closed."""
    written = os.open("file", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=merged)
    group = fanotify.open_group()
    try:
        fanotify.mark_file_system(group, upper)
        os.write(written, b"x")
        with contextlib.suppress(BlockingIOError):
            while True:
                for event in fanotify.parse(os.read(group, 65536)):
                    if event.mask & fanotify.MODIFY and event.name == b"file" and event.file:
                        return event.folder == fanotify.handle_of(upper)
        return False
    finally:
        os.close(group)
        os.close(written)


@contextlib.contextmanager
def _overlay(scratch: str) -> Iterator[tuple[int, int]]:
    """Yield descriptors of an overlay and of its upper layer. The mount is detached: it ends with them."""
    os.makedirs(scratch, mode=0o700, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="overlay-", dir=scratch)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        layers = {key: os.path.join(folder, key) for key in ("lowerdir", "upperdir", "workdir")}
        for path in layers.values():
            os.mkdir(path)
        context = _call(_SYS_FSOPEN, b"overlay", _CLOEXEC)
        stack.callback(os.close, context)
        for key, path in layers.items():
            _call(_SYS_FSCONFIG, context, _SET_STRING, key.encode(), os.fsencode(path), 0)
        _call(_SYS_FSCONFIG, context, _CREATE, None, None, 0)
        mount = _call(_SYS_FSMOUNT, context, _CLOEXEC, 0)
        stack.callback(os.close, mount)
        upper = os.open(layers["upperdir"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, upper)
        yield mount, upper


def _call(number: int, *arguments: object) -> int:
    converted = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *converted))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
