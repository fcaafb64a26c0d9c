"""A repository's files, encrypted (see `sealing`): whatever backend they lie in sees no content.

The config stays as it is; it says nothing but the repository's version and id.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from turnkeep_store.backend import Area, Backend, NewFile
from turnkeep_store.durable import Bytes
from turnkeep_store.errors import Damaged
from turnkeep_store.keys import Keyring
from turnkeep_store.sealing import (
    HEADER_BYTES,
    LENGTH,
    SEALED_BYTES,
    SEGMENT_BYTES,
    FileCipher,
    Shape,
    padding,
)

_KEPT_FILES = 1024
_COPY_BYTES = 4 * 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file whose header and length were read."""

    cipher: FileCipher
    shape: Shape
    length: int
    has_end: bool = True
    """Whether its end is sound; if not, the length is what it can be at most."""


class SealedBackend:
    """The files of another backend, encrypted with the keys of a keyring."""

    def __init__(self, inner: Backend, keyring: Keyring) -> None:
        self.inner = inner
        self.keyring = keyring
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[Area, str], _Opened] = OrderedDict()
        self._lengths: dict[tuple[Area, str], tuple[int, int]] = {}

    def list(self, area: Area) -> list[tuple[str, int]]:
        """Return name and content length of the visible files, in no order.

        Of a damaged one the length is what it can be at most.
        """
        found = self.inner.list(area)
        if area is Area.CONFIG:
            return found
        with self._lock:
            known = {name: self._lengths.get((area, name)) for name, _ in found}
        lengths = {}
        for name, size in found:
            there = known[name]
            if there is None or there[0] != size:
                there = size, self._length(area, name, size)
            lengths[name] = there
        with self._lock:
            gone = [key for key in self._lengths if key[0] is area and key[1] not in lengths]
            for key in gone:
                del self._lengths[key]
            self._lengths.update({(area, name): each for name, each in lengths.items()})
        return [(name, lengths[name][1]) for name, _ in found]

    def size(self, area: Area, name: str) -> int:
        if area is Area.CONFIG:
            return self.inner.size(area, name)
        return self._sound(area, name, lambda file: file.length)

    def read(self, area: Area, name: str, offset: int, length: int) -> bytes:
        """Return up to `length` bytes; fewer only where the content ends.

        Raises:
            Damaged: they are not what was written.
            FileNotFoundError: there is no such file.
        """
        if area is Area.CONFIG:
            return self.inner.read(area, name, offset, length)
        return self._sound(area, name, lambda file: self._read(area, name, file, offset, length))

    def create(self, area: Area) -> NewFile:
        file = self.inner.create(area)
        if area is Area.CONFIG:
            return file
        cipher = FileCipher.new(self.keyring.current)
        return SealedFile(file, cipher, lambda name: self._forget(area, name))

    def delete(self, area: Area, names: Iterable[str]) -> None:
        names = list(names)
        self.inner.delete(area, names)
        for name in names:
            self._forget(area, name)

    def set_aside(self, area: Area, name: str) -> None:
        self.inner.set_aside(area, name)
        self._forget(area, name)

    def remove_leftovers(self) -> int:
        return self.inner.remove_leftovers()

    def reseal(self, area: Area, name: str) -> bool:
        """Encrypt a file with the current key; return whether it was with another. Its content stays.

        Raises:
            Damaged: it is; it stays as it was.
            FileNotFoundError: there is no such file.
        """
        file = self._sound(area, name, lambda opened: opened)
        if file.cipher.key_id == self.keyring.current.id:
            return False
        if not file.has_end:
            raise Damaged(f"{area}/{name}: its end is not what was written")
        new = self.create(area)
        try:
            offset = 0
            while offset < file.length:
                part = self.read(area, name, offset, _COPY_BYTES)
                if not part:
                    raise Damaged(f"{area}/{name}: cut short")
                new.write(part)
                offset += len(part)
        except BaseException:
            new.discard()
            raise
        new.publish(name, replace=True)
        return True

    def _sound(self, area: Area, name: str, action: Callable[[_Opened], T]) -> T:
        """Do something with an opened file; what is remembered of it may be of one that was there before."""
        with self._lock:
            file = self._files.get((area, name))
            if file is not None:
                self._files.move_to_end((area, name))
        if file is not None:
            try:
                return action(file)
            except Damaged:
                self._forget(area, name)
        try:
            return action(self._open(area, name))
        except Damaged as error:
            raise type(error)(f"{area}/{name}: {error}") from error

    def _open(self, area: Area, name: str) -> _Opened:
        header = self.inner.read(area, name, 0, HEADER_BYTES)
        cipher = FileCipher.of(header, self.keyring)
        shape = Shape.of(self.inner.size(area, name))
        start = shape.stream_bytes - LENGTH.size
        if start < 0:
            raise Damaged("cut short")
        whole = _Opened(cipher, shape, shape.stream_bytes)
        try:
            (length,) = LENGTH.unpack(self._read(area, name, whole, start, LENGTH.size))
        except Damaged:
            # What is sound before its end can be read all the same; so can zeros after the content.
            return _Opened(cipher, shape, start, has_end=False)
        opened = _Opened(cipher, shape, length)
        with self._lock:
            self._files[area, name] = opened
            while len(self._files) > _KEPT_FILES:
                self._files.popitem(last=False)
        return opened

    def _read(self, area: Area, name: str, file: _Opened, offset: int, length: int) -> bytes:
        end = min(offset + length, file.length)
        if offset >= end:
            return b""
        first, last = offset // SEGMENT_BYTES, (end - 1) // SEGMENT_BYTES
        place, size = HEADER_BYTES + first * SEALED_BYTES, (last - first + 1) * SEALED_BYTES
        sealed = memoryview(self.inner.read(area, name, place, size))
        parts = []
        for number in range(first, last + 1):
            start = (number - first) * SEALED_BYTES
            segment = sealed[start : start + SEALED_BYTES]
            parts.append(file.cipher.open(number, segment, last=number == file.shape.last))
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        skipped = offset - first * SEGMENT_BYTES
        return data[skipped : skipped + end - offset]

    def _length(self, area: Area, name: str, size: int) -> int:
        try:
            return self.size(area, name)
        except (Damaged, FileNotFoundError):
            return max(0, Shape.of(size).stream_bytes - LENGTH.size)

    def _forget(self, area: Area, name: str) -> None:
        with self._lock:
            self._files.pop((area, name), None)
            self._lengths.pop((area, name), None)


class SealedFile:
    """A file that is being written, encrypted on its way. `published` is called with its name."""

    def __init__(self, inner: NewFile, cipher: FileCipher, published: Callable[[str], None]) -> None:
        self._inner = inner
        self._published = published
        self._cipher = cipher
        self._buffer = bytearray()
        self._sealed = 0
        try:
            inner.write(cipher.header)
        except BaseException:
            inner.discard()
            raise

    @property
    def size(self) -> int:
        return self._sealed * SEGMENT_BYTES + len(self._buffer)

    def write(self, data: Bytes) -> None:
        self._buffer += data
        # The last segment is marked as such, so one is always kept back.
        self._seal(len(self._buffer) - 1)

    def read(self, offset: int, length: int) -> bytes:
        parts = []
        end = min(offset + length, self.size)
        while offset < end:
            number, start = divmod(offset, SEGMENT_BYTES)
            content = self._segment(number) if number < self._sealed else self._buffer
            if number >= self._sealed:
                start = offset - self._sealed * SEGMENT_BYTES
            part = bytes(content[start : start + end - offset])
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def publish(self, name: str, *, replace: bool = False) -> None:
        length = self.size
        try:
            self._buffer += bytes(padding(length)) + LENGTH.pack(length)
            self._seal(len(self._buffer) - 1)
            self._inner.write(self._cipher.seal(self._sealed, self._buffer, last=True))
        except BaseException:
            self.discard()
            raise
        self._buffer = bytearray()
        self._inner.publish(name, replace=replace)
        self._published(name)

    def discard(self) -> None:
        self._inner.discard()

    def _segment(self, number: int) -> bytes:
        sealed = self._inner.read(HEADER_BYTES + number * SEALED_BYTES, SEALED_BYTES)
        return self._cipher.open(number, sealed, last=False)

    def _seal(self, upto: int) -> None:
        """Encrypt all whole segments that end within the first so many bytes of the buffer."""
        count = max(0, upto) // SEGMENT_BYTES
        with memoryview(self._buffer) as whole:
            for index in range(count):
                part = whole[index * SEGMENT_BYTES : (index + 1) * SEGMENT_BYTES]
                self._inner.write(self._cipher.seal(self._sealed, part, last=False))
                part.release()
                self._sealed += 1
        del self._buffer[: count * SEGMENT_BYTES]
