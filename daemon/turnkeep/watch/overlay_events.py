"""Whether this kernel reports what is written through an overlay to its upper layer's file system.

Overlayfs opens the files beneath it in ways of its own, and before about Linux
6.5 their content changed without an event. A kernel's version says little
about what was carried over to it, so this is tried out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from turnkeep.watch import fanotify
from turnkeep.watch.kernel import system_call

_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_CLOEXEC, _SET_STRING, _CREATE = 1, 1, 6
_INDEX = "/sys/module/overlay/parameters/index"


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
    """Whether writes through the overlay are reported before the file is closed, and by which names."""
    made = os.open("made", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=merged)
    copied = os.open("copied", os.O_WRONLY | os.O_CLOEXEC, dir_fd=merged)
    group = fanotify.open_group()
    try:
        fanotify.mark_file_system(group, upper)
        os.write(made, b"x")
        os.write(copied, b"x")
        folder, seen = fanotify.handle_of(upper), set()
        with contextlib.suppress(BlockingIOError):
            while True:
                for event in fanotify.parse(os.read(group, 65536)):
                    if event.mask & fanotify.MODIFY and event.file:
                        seen.add(event.file if is_temporary(event.name) else (event.folder, event.name))
        # A copy may go on under the name that it had while it was made.
        return (folder, b"made") in seen and not seen.isdisjoint(
            {(folder, b"copied"), _handle_in(upper, "copied")}
        )
    finally:
        for fd in (group, made, copied):
            os.close(fd)


def is_temporary(name: bytes) -> bool:
    """Whether a name is like those that overlayfs, and files without a name, have in a work folder."""
    return name.startswith(b"#")


def _handle_in(folder: int, name: str) -> fanotify.Handle:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        return fanotify.handle_of(fd)
    finally:
        os.close(fd)


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
        with open(os.path.join(layers["lowerdir"], "copied"), "wb") as file:
            file.write(b"x")
        context = system_call(_SYS_FSOPEN, b"overlay", _CLOEXEC)
        stack.callback(os.close, context)
        for key, path in layers.items():
            system_call(_SYS_FSCONFIG, context, _SET_STRING, key.encode(), os.fsencode(path), 0)
        system_call(_SYS_FSCONFIG, context, _CREATE, None, None, 0)
        mount = system_call(_SYS_FSMOUNT, context, _CLOEXEC, 0)
        stack.callback(os.close, mount)
        upper = os.open(layers["upperdir"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, upper)
        yield mount, upper
