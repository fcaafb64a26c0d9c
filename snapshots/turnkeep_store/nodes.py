"""File system nodes: reading one name into an `Entry`, and writing one back.

All functions take a directory descriptor and a single name, never a path, and
follow no symlink. What is read and written is everything `tree.Entry` holds.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence

from turnkeep_store.errors import LimitExceeded, RestoreMismatch, UnsafePath
from turnkeep_store.tree import Entry, NodeType

OVERLAY_XATTRS = b"trusted.overlay."
"""Bookkeeping of overlayfs in its upper layer: no part of a sandbox's state.

`user.overlay.` is the sandbox's own, since its overlay is not mounted with `userxattr`.
"""

_ESCAPED = b"trusted.overlay.overlay."
"""What begins so in a layer is the sandbox's own, too: overlayfs (Linux 6.7) shows it without the
second `overlay.`, and puts that in when somebody sets one of its own names in the merged view."""

OPAQUE = b"trusted.overlay.opaque"
_ORIGIN = b"trusted.overlay.origin"
_UNREADABLE_ALONE = (b"trusted.overlay.metacopy", b"trusted.overlay.redirect")

MAX_XATTR_BYTES = 1024 * 1024
READ_BYTES = 1024 * 1024
_WHOLE_BYTES = 64 * 1024
PAGE = 4096
_ZERO_PAGE = bytes(PAGE)

_TYPES = {
    stat.S_IFREG: NodeType.FILE,
    stat.S_IFDIR: NodeType.DIRECTORY,
    stat.S_IFLNK: NodeType.SYMLINK,
    stat.S_IFIFO: NodeType.FIFO,
    stat.S_IFCHR: NodeType.CHAR_DEVICE,
    stat.S_IFBLK: NodeType.BLOCK_DEVICE,
    stat.S_IFSOCK: NodeType.SOCKET,
}
_FORMATS = {node_type: bits for bits, node_type in _TYPES.items()}


def entry_of(
    fd: int,
    name: bytes,
    *,
    overlay: bool = False,
    status: os.stat_result | None = None,
    opened: bool = False,
) -> Entry:
    """Describe the open node `fd` (O_PATH will do), without content.

    What fstat(2) has said of it can be given. A descriptor that was `opened`, no O_PATH,
    spares a way through /proc.

    With `overlay`, the node lies in an overlay's upper layer: a character device
    0/0 is a whiteout, and overlay's own xattrs are left out.

    Raises:
        LimitExceeded: its xattrs are larger than any file system keeps.
        RestoreMismatch: it is a node of an overlay with metacopy or redirects,
            whose meaning the upper layer alone does not tell.
    """
    status = status or os.fstat(fd)
    node_type = _TYPES[stat.S_IFMT(status.st_mode)]
    if overlay and node_type is NodeType.CHAR_DEVICE and status.st_rdev == 0:
        return Entry(name=name, type=NodeType.WHITEOUT)
    is_device = node_type in (NodeType.CHAR_DEVICE, NodeType.BLOCK_DEVICE)
    target = os.readlink(b"", dir_fd=fd) if node_type is NodeType.SYMLINK else b""
    return Entry(
        name=name,
        type=node_type,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        size=status.st_size if node_type is NodeType.FILE else 0,
        rdev=status.st_rdev if is_device else 0,
        xattrs=read_xattrs(fd, overlay=overlay, opened=opened),
        target=target,
    )


def shape_of(dir_fd: int, name: bytes) -> Entry:
    """Describe a name by its type and size alone."""
    status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    return Entry(name=name, type=_TYPES[stat.S_IFMT(status.st_mode)], size=status.st_size)


def read_xattrs(fd: int, *, overlay: bool = False, opened: bool = False) -> tuple[tuple[bytes, bytes], ...]:
    """Return the extended attributes of an open node, in the order of their names."""
    # The xattr calls refuse O_PATH descriptors; the descriptor's magic link
    # leads to exactly this node, a symlink included, and to no other.
    where: int | str = fd if opened else _magic(fd)
    try:
        names = os.listxattr(where)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM):
            return ()
        raise
    if not names:
        return ()
    found = []
    total = 0
    for name in sorted(os.fsencode(each) for each in names):
        if overlay and name in _UNREADABLE_ALONE:
            raise RestoreMismatch(
                f"overlay attribute {os.fsdecode(name)} found: mount without metacopy and redirect_dir"
            )
        if overlay and name.startswith(OVERLAY_XATTRS) and not name.startswith(_ESCAPED):
            continue
        try:
            value = os.getxattr(where, name)
        except OSError as error:
            if error.errno == errno.ENODATA:
                continue
            raise
        total += len(name) + len(value)
        if total > MAX_XATTR_BYTES:
            raise LimitExceeded(f"extended attributes of more than {MAX_XATTR_BYTES} bytes on one file")
        if overlay and name.startswith(_ESCAPED):
            name = OVERLAY_XATTRS + name.removeprefix(_ESCAPED)
        found.append((name, value))
    return tuple(sorted(found))


def is_opaque(fd: int) -> bool:
    """Whether an open directory of an overlay's layer hides those below it."""
    try:
        return os.getxattr(_magic(fd), OPAQUE) == b"y"
    except OSError:
        return False


def read_segments(fd: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, data) of an open file up to `size`, skipping its holes.

    A file that is read at one go is: looking for holes in it would take longer.
    """
    if 0 < size <= _WHOLE_BYTES:
        data = os.pread(fd, size, 0)
        if len(data) == size:
            yield 0, data
            return
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        while start < min(end, size):
            data = os.pread(fd, min(READ_BYTES, end - start, size - start), start)
            if not data:
                return
            yield start, data
            start += len(data)
        position = end


def write_segments(fd: int, segments: Iterable[tuple[int, bytes]], size: int) -> int:
    """Write (offset, data) pieces into an open, empty file of `size` bytes.

    Pages of zeros are not written, so that what was sparse is so again. Returns
    the number of bytes written.
    """
    written = 0
    end = 0
    for offset, data in segments:
        written += _write_sparse(fd, offset, memoryview(data))
        end = offset + len(data)
    if written != size or end != size:  # a hole is left out somewhere, perhaps at the end
        os.ftruncate(fd, size)
    return written


def is_solid(segments: Sequence[tuple[int, bytes]], size: int) -> bool:
    """Whether pieces make up a whole file, without a page of zeros that would be left out as a hole."""
    end = 0
    for offset, data in segments:
        if offset != end or _ZERO_PAGE in data:
            return False
        end += len(data)
    return end == size


def overwrite(fd: int, segments: Iterable[tuple[int, bytes]], size: int) -> int:
    """Write the pieces of a solid file over whatever an open file holds; return the bytes written.

    Cutting it to nothing first would have ext4 write it back at once, for fear of
    a crash before the new content is there (its option auto_da_alloc).
    """
    written = 0
    for offset, data in segments:
        written += _pwrite(fd, memoryview(data), offset)
    os.ftruncate(fd, size)
    return written


def create_node(dir_fd: int, name: bytes, entry: Entry) -> None:
    """Create a directory, symlink, FIFO, socket, device, or whiteout; no attributes yet."""
    if entry.type is NodeType.DIRECTORY:
        os.mkdir(name, 0o700, dir_fd=dir_fd)
    elif entry.type is NodeType.SYMLINK:
        os.symlink(entry.target, name, dir_fd=dir_fd)
    elif entry.type is NodeType.WHITEOUT:
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=dir_fd)
    else:
        os.mknod(name, _FORMATS[entry.type] | 0o600, entry.rdev, dir_fd=dir_fd)


def set_attributes(dir_fd: int, name: bytes, entry: Entry, *, overlay: bool = False) -> None:
    """Give a node the owner, mode, xattrs and modification time of `entry`.

    The order matters: a change of owner clears setuid bits and file
    capabilities, and everything but utimensat touches the times.
    """
    if entry.type is NodeType.WHITEOUT:
        return
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        set_attributes_of(fd, entry, overlay=overlay)
    finally:
        os.close(fd)


def set_attributes_of(fd: int, entry: Entry, *, overlay: bool = False, opened: bool = False) -> None:
    """Do what `set_attributes` does with a node's descriptor.

    O_PATH will do; one that was `opened`, to read or to write, spares a way through /proc.
    """
    status = os.fstat(fd)
    where: int | str = fd if opened else _magic(fd)
    if (status.st_uid, status.st_gid) != (entry.uid, entry.gid):
        os.chown(where, entry.uid, entry.gid)
        status = os.fstat(fd)
    if entry.type is not NodeType.SYMLINK and stat.S_IMODE(status.st_mode) != entry.mode:
        os.chmod(where, entry.mode)
    _set_xattrs(fd, entry, overlay=overlay, opened=opened)
    os.utime(where, ns=(entry.mtime_ns, entry.mtime_ns))


def clear_marks(fd: int) -> None:
    """Make a node of an overlay's upper layer mean no more than its own name says.

    The layers below a directory show through again. And a file is no longer the
    copy of one in the image: it may have been renamed since, and the kernel
    takes it and what it was copied from for one inode, so that one would show
    the other's content.
    """
    for name in (OPAQUE, _ORIGIN):
        try:
            os.removexattr(_magic(fd), name)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise


def remove_tree(dir_fd: int, name: bytes) -> int:
    """Remove a name and all beneath it. Returns how many names went.

    Never follows a symlink, and keeps one descriptor open however deep the tree
    is: the way back up is "..", taken only if it is the folder it was entered
    from.

    Raises:
        UnsafePath: folders are being moved about at this moment.
    """
    status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=dir_fd)
        return 1
    top = os.fstat(dir_fd)
    fd = os.open(name, _FOLDER, dir_fd=dir_fd)
    removed, folders = _unlink_files(fd)
    stack = [(name, (top.st_dev, top.st_ino), folders)]
    while stack:
        name, parent_identity, folders = stack[-1]
        if folders:
            child = folders.pop()
            here = os.fstat(fd)
            fd = _step(fd, child)
            count, below = _unlink_files(fd)
            removed += count
            stack.append((child, (here.st_dev, here.st_ino), below))
            continue
        stack.pop()
        fd = _step_up(fd, parent_identity)
        try:
            os.rmdir(name, dir_fd=fd)
        except OSError:
            os.close(fd)
            raise
        removed += 1
    os.close(fd)
    return removed


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _unlink_files(fd: int) -> tuple[int, list[bytes]]:
    """Unlink all that is no folder; return how many went, and the folders' names."""
    removed, folders = 0, []
    try:
        for child in _names(fd):
            try:
                os.unlink(child, dir_fd=fd)
                removed += 1
            except IsADirectoryError:
                folders.append(child)
    except OSError:
        os.close(fd)
        raise
    return removed, folders


def _step(fd: int, name: bytes) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=fd)
    finally:
        os.close(fd)


def _step_up(fd: int, identity: tuple[int, int]) -> int:
    parent = _step(fd, b"..")
    status = os.fstat(parent)
    if (status.st_dev, status.st_ino) != identity:
        os.close(parent)
        raise UnsafePath("a folder was moved while it was being removed")
    return parent


def _names(fd: int) -> list[bytes]:
    return [os.fsencode(name) for name in os.listdir(fd)]


def _set_xattrs(fd: int, entry: Entry, *, overlay: bool, opened: bool) -> None:
    found = read_xattrs(fd, overlay=overlay, opened=opened)
    where: int | str = fd if opened else _magic(fd)
    if found == entry.xattrs:
        return
    wanted, present = dict(entry.xattrs), dict(found)
    for name in present.keys() - wanted.keys():
        os.removexattr(where, _name_in(name, overlay=overlay))
    for name, value in wanted.items():
        if present.get(name) != value:
            os.setxattr(where, _name_in(name, overlay=overlay), value)


def _name_in(name: bytes, *, overlay: bool) -> bytes:
    """Return the name that an attribute has on the disk, in an upper layer or elsewhere."""
    if overlay and name.startswith(OVERLAY_XATTRS):
        return _ESCAPED + name.removeprefix(OVERLAY_XATTRS)
    return name


def _write_sparse(fd: int, offset: int, data: memoryview) -> int:
    written = 0
    start = None
    for position in range(0, len(data), PAGE):
        if data[position] == 0 and _is_zero_page(data[position : position + PAGE]):
            if start is not None:
                written += _pwrite(fd, data[start:position], offset + start)
                start = None
        elif start is None:
            start = position
    if start is not None:
        written += _pwrite(fd, data[start:], offset + start)
    return written


def _is_zero_page(page: memoryview) -> bool:
    return page == _ZERO_PAGE[: len(page)]


def _pwrite(fd: int, data: memoryview, offset: int) -> int:
    total = len(data)
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count
    return total


def _magic(fd: int) -> str:
    return f"/proc/self/fd/{fd}"
