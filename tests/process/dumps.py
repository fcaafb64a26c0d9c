"""A real dump, and ways to change it as a forger would.

`data/rich.tar.xz` was written by CRIU 4.2.1: a container's `docker-init` (1) with its
`sleep infinity` (7), a Python server with sockets, pipes, a thread, a mapped memory
file, a deleted file, locks, timers and a zombie, a child of its that lost its
parent, and a tmux server with a shell. The pages were replaced by zeros.
"""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

from google.protobuf.message import Message
from turnkeep.process.imageformat import ImageFolder, Kind, decode, encode, kind_of

RICH = Path(__file__).parent / "data" / "rich.tar.xz"
INIT, SLEEP = 1, 7
_M = TypeVar("_M", bound=Message)


def unpack(folder: Path) -> Path:
    """Put the dump into a folder; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (size, content) in _contents().items():
        with open(folder / name, "wb") as file:
            file.write(content)
            file.truncate(size)
    return folder


@functools.cache
def _contents() -> dict[str, tuple[int, bytes]]:
    """Return each image's size and content; the zeros at a file's end are left out."""
    found = {}
    with tarfile.open(RICH) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            content = file.read()
            found[member.name] = (len(content), content.rstrip(b"\0"))
    return found


def kind(name: str) -> Kind:
    """Return the kind of the image of this name."""
    known = kind_of(name)
    assert known is not None
    return known[0]


def read(folder: Path, name: str) -> list[Any]:
    """Return the messages of an image."""
    with ImageFolder(str(folder)) as images:
        return list(decode(kind(name), name, images.read(name), images.limits))


def write(folder: Path, name: str, messages: Iterable[Message]) -> None:
    """Write an image anew. Payloads are not kept: not for kinds that have them."""
    (folder / name).write_bytes(encode(kind(name), messages))


def change(folder: Path, name: str, edit: Callable[[Any], object], number: int = 0) -> None:
    """Apply an edit to one message of an image."""
    messages = read(folder, name)
    edit(messages[number])
    write(folder, name, messages)


def find(folder: Path, name: str, cls: type[_M], fits: Callable[[_M], bool]) -> int:
    """Return the number of the first message that fits."""
    return next(index for index, each in enumerate(read(folder, name)) if fits(cast("_M", each)))


def names(folder: Path) -> set[str]:
    """Return the names of all images."""
    return {path.name for path in folder.iterdir()}
