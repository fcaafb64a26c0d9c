"""A folder of images on the disk or in memory, reached by its descriptor alone."""

from __future__ import annotations

import os
import stat
from types import TracebackType
from typing import Self

from turnkeep.process.imageformat.framing import Limits, bad

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SUFFIX = ".img"
_PARENT = "parent"


class ImageFolder:
    """The images in one folder. Files that CRIU does not take for images are left out.

    Files are never changed in place: their inodes may be shared with other folders.
    """

    def __init__(self, folder: int | str, limits: Limits | None = None) -> None:
        """Open a folder by its path or descriptor, which stays the caller's."""
        at = folder if isinstance(folder, int) else None
        self._fd = os.open("." if at is not None else str(folder), _FOLDER, dir_fd=at)
        self.limits = limits or Limits()

    def close(self) -> None:
        """Give back the descriptor. The folder stays as it is."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each image, in order of their names.

        Raises:
            BadImages: too many, one that is no regular file, or the link `parent`,
                which would have CRIU read another folder as well.
        """
        found = {}
        names = sorted(os.listdir(self._fd))
        if _PARENT in names:
            raise bad(_PARENT, "images on top of others are not supported")
        for name in names:
            if not name.endswith(_SUFFIX):
                continue
            status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                raise bad(_shown(name), "not a regular file")
            found[_shown(name)] = status.st_size
            if len(found) > self.limits.files:
                raise bad("", f"more than {self.limits.files} files")
        return found

    def read(self, name: str, at_most: int | None = None) -> bytes:
        """Return an image's content, or only its first `at_most` bytes.

        Raises:
            BadImages: it is no regular file, or over the limit.
        """
        bound = self.limits.file_bytes if at_most is None else at_most
        fd = os.open(name, _READ, dir_fd=self._fd)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise bad(name, "not a regular file")
            content = file.read(bound + 1)
        if len(content) > bound and at_most is None:
            raise bad(name, f"larger than {bound} bytes")
        return content[:bound]

    def replace(self, name: str, content: bytes) -> None:
        """Put a new file in the place of an image, if there is one."""
        self.remove(name)
        with open(os.open(name, _CREATE, 0o600, dir_fd=self._fd), "wb") as file:
            file.write(content)

    def move(self, name: str, new_name: str) -> None:
        """Give an image another name, which must be free."""
        os.link(name, new_name, src_dir_fd=self._fd, dst_dir_fd=self._fd, follow_symlinks=False)
        os.unlink(name, dir_fd=self._fd)

    def remove(self, name: str) -> None:
        """Remove an image. Removing one that is not there does nothing."""
        try:
            os.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:
            return


def _shown(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
