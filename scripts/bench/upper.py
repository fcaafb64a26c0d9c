"""The files in a sandbox's writable layer: made and changed inside it, read from outside."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

from demo.stage import Failed
from docker.models.containers import Container

FILE_BYTES = 2048
PER_FOLDER = 100

# Run inside the sandbox. Random hexadecimal digits: no two files share a chunk, and
# compression gains what it does on ordinary text, about a half.
_FILL = """
import os, sys
count, size, per_folder = map(int, sys.argv[1:])
def fill(first, step):
    for number in range(first * per_folder, count, step * per_folder):
        folder = f"/work/{number // per_folder:04}"
        os.makedirs(folder)
        for each in range(number, min(number + per_folder, count)):
            fd = os.open(f"{folder}/{each:06}.txt", os.O_WRONLY | os.O_CREAT)
            os.write(fd, os.urandom(size // 2).hex().encode())
            os.close(fd)
os.makedirs("/work", exist_ok=True)
workers = os.cpu_count() if count > 1000 else 1
if workers == 1:
    fill(0, 1)
else:
    children = []
    for worker in range(workers):
        pid = os.fork()
        if not pid:
            fill(worker, workers)
            os._exit(0)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
"""
_EDIT = """
import os, sys
changed, count, size, per_folder = map(int, sys.argv[1:])
for each in range(changed):
    number = each * count // changed
    with open(f"/work/{number // per_folder:04}/{number:06}.txt", "w") as file:
        file.write(os.urandom(size // 2).hex())
"""


class Upper:
    """So many small files in the writable layer of a running container of the benchmark's own."""

    def __init__(self, container: Container, files: int) -> None:
        self.container = container
        self.files = files
        container.reload()
        # Its view of its files. Nothing in it is a stranger's, so paths may be followed.
        self.root = Path(f"/proc/{container.attrs['State']['Pid']}/root")

    def fill(self) -> None:
        """Make all files."""
        self._run(_FILL, self.files)

    def edit(self, changed: int) -> None:
        """Write new content of the same size to so many files, in as many folders as there are."""
        self._run(_EDIT, changed, self.files)

    def paths(self, changed: int) -> list[Path]:
        """Return the files that `edit` writes, as seen from the host."""
        numbers = (each * self.files // changed for each in range(changed))
        return [self.root / f"work/{number // PER_FOLDER:04}/{number:06}.txt" for number in numbers]

    def read(self, changed: int) -> bytes:
        """Return the content of the files that `edit` writes."""
        return b"".join(path.read_bytes() for path in self.paths(changed))

    def content(self, changed: int) -> str:
        """Return a hash of the content of the files that `edit` writes."""
        return hashlib.sha256(self.read(changed)).hexdigest()

    def idle(self) -> None:
        """Run a program that changes nothing."""
        run(self.container, "pass")

    def folder(self) -> Path:
        """Return the overlay's upper folder.

        Raises:
            Failed: the engine does not say where it is.
        """
        found: str = (self.container.attrs.get("GraphDriver", {}).get("Data") or {}).get("UpperDir", "")
        if not found:
            raise Failed("the engine does not say where a container's files are; overlay2 is needed here")
        return Path(found)

    def _run(self, program: str, *numbers: int) -> None:
        run(self.container, program, *map(str, (*numbers, FILE_BYTES, PER_FOLDER)))


def run(container: Container, program: str, *arguments: str) -> bytes:
    """Run a Python program in a sandbox, to its end, and return what it printed.

    Raises:
        Failed: it failed.
    """
    code, raw = container.exec_run(["python3", "-I", "-B", "-c", program, *arguments])
    # Not a stream: it was not asked for.
    output = cast(bytes, raw)
    if code != 0:
        raise Failed(f"a program in the sandbox exited with {code}: {output!r}")
    return output
