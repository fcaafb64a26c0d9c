"""The processor's registers of threads that stand still, read without touching the threads.

A debugger has to stop a thread to see its registers, and one that the freezer of
cgroup v1 holds does not stop. So the kernel is asked by a small program of ours
(a BPF iterator over tasks) that copies what the kernel saved when the thread left
the processor: it runs in our own process, when we read, and changes nothing.

Needs x86-64, Linux 6.1 with BTF (the kernel's description of its own types), and
the rights that root has; what it cannot tell, it says so. The program's few
instructions below are offered under MIT or GPL, as the kernel asks of programs that
use its tracing functions.

See Documentation/bpf/bpf_iterators.rst, bpf(2).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from turnkeep.process.btf import Types, read_types
from turnkeep.process.memory import CannotTell

_SYS_BPF = 321
_PROG_LOAD, _LINK_CREATE, _ITER_CREATE = 5, 28, 33
_TRACING, _TRACE_ITER = 26, 28
_PROBE_READ_KERNEL, _SEQ_WRITE, _TASK_PT_REGS = 113, 127, 175
_ITERATOR = "bpf_iter_task"
_LICENSE = b"Dual MIT/GPL"
_ATTRIBUTES_BYTES = 160
_LOAD = struct.Struct("=IIQQIIQII16sII36xI")
_LINK = struct.Struct("=IIIIQI")

_REGISTERS = struct.Struct("=21Q")
"""pt_regs: r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss."""
_R11, _AX, _CX, _ORIG_AX, _IP, _FLAGS = 6, 10, 11, 15, 16, 18
_SEGMENTS_BYTES = 24
"""es, ds, fs, gs, and the bases of the last two."""
_SCRATCH, _SIZE, _STATE_BYTES = struct.Struct("=Q"), struct.Struct("=I"), 64
"""struct fpstate begins with its size; what it says of the vector registers comes before them."""
_PLACE_OF_SCRATCH = _REGISTERS.size + _SEGMENTS_BYTES
_PLACE_OF_STATE = _PLACE_OF_SCRATCH + _SCRATCH.size
_MAX_STATE = 4096
_CHUNK = 256
_RESUME = 0x10000
_WAITING = frozenset({-4, -38, *range(-516, -511)})
"""What a system call has in ax that is being waited in, or that was interrupted for a freeze."""
_RESTARTED = 219
_SYSCALL_BYTES = 2


@dataclass(frozen=True, slots=True)
class Saved:
    """A thread's registers, such that equal ones go on equally.

    For a thread that waits in a system call, what the call itself will overwrite
    does not count, nor whether the call was begun anew after a freeze (`call` is
    then None).
    """

    call: int | None
    waiting: bool
    general: tuple[int, ...]
    others: bytes
    scratch: int = 0
    """Where in the thread's memory the kernel notes the processor it is on (rseq), 0 if nowhere."""

    def same(self, other: Saved) -> bool:
        """Whether a thread with these goes on as one with the others."""
        calls = {self.call, other.call} - {None}
        if len(calls) > 1 or self.waiting != other.waiting or self.scratch != other.scratch:
            return False
        return self.general == other.general and self.others == other.others


class Registers:
    """Reads registers. Used from any thread.

    Raises on making one:
        CannotTell: this kernel or machine does not allow it.
    """

    def __init__(self) -> None:
        self._program = -1
        try:
            if platform.machine() != "x86_64":
                raise CannotTell("registers are known on x86-64 only")
            types = read_types([_ITERATOR], ["task_struct", "thread_struct", "fpu", "fpstate"])
            # First only the size of what is saved, then all of it.
            self._load(types, 0)
            (self._size,) = _SIZE.unpack_from(self._read(os.getpid()), _PLACE_OF_STATE)
            if not 0 < self._size <= _MAX_STATE:
                raise CannotTell(f"vector registers of {self._size} bytes")
            self._load(types, self._size)
        except (OSError, ValueError, KeyError) as error:
            self.close()
            raise CannotTell(f"registers cannot be read: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the program."""
        if self._program >= 0:
            os.close(self._program)
            self._program = -1

    def read(self, thread: int) -> Saved:
        """Return what is saved of a thread that stands still, by its pid on the host.

        Raises:
            CannotTell: it is gone, or has more state than others.
        """
        try:
            data = self._read(thread)
        except OSError as error:
            raise CannotTell(f"the registers of thread {thread}: {error}") from error
        expected = _PLACE_OF_STATE + _STATE_BYTES + self._size
        if len(data) != expected or _SIZE.unpack_from(data, _PLACE_OF_STATE)[0] != self._size:
            raise CannotTell(f"the vector registers of thread {thread} are of another size")
        return _saved(data)

    def _load(self, types: Types, size: int) -> None:
        self.close()
        program = _program(types, size)
        license_, instructions = ctypes.create_string_buffer(_LICENSE), ctypes.create_string_buffer(program)
        self._program = _bpf(
            _PROG_LOAD,
            _LOAD.pack(
                _TRACING, len(program) // 8, ctypes.addressof(instructions), ctypes.addressof(license_),
                0, 0, 0, 0, 0, b"turnkeep", 0, _TRACE_ITER, types.functions[_ITERATOR],
            ),
        )  # fmt: skip

    def _read(self, thread: int) -> bytes:
        which = ctypes.create_string_buffer(struct.pack("=4I", thread, 0, 0, 0), 16)
        link = _bpf(_LINK_CREATE, _LINK.pack(self._program, 0, _TRACE_ITER, 0, ctypes.addressof(which), 16))
        try:
            iterator = _bpf(_ITER_CREATE, struct.pack("=II", link, 0))
        finally:
            os.close(link)
        try:
            return b"".join(iter(lambda: os.read(iterator, 65536), b""))
        finally:
            os.close(iterator)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, _ATTRIBUTES_BYTES)
    result = _syscall(_SYS_BPF, command, ctypes.addressof(buffer), _ATTRIBUTES_BYTES)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf: {os.strerror(code)}")
    return int(result)


_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = [ctypes.c_long] * 4
_syscall.restype = ctypes.c_long


def _saved(data: bytes) -> Saved:
    general = list(_REGISTERS.unpack_from(data))
    others = data[_REGISTERS.size : _PLACE_OF_SCRATCH] + data[_PLACE_OF_STATE:]
    (scratch,) = _SCRATCH.unpack_from(data, _PLACE_OF_SCRATCH)
    general[_FLAGS] &= ~_RESUME
    call, result = _signed(general[_ORIG_AX]), _signed(general[_AX])
    if call >= 0 and result in (call, _RESTARTED):
        # About to begin the call anew, two bytes before where it waits.
        general[_IP] += _SYSCALL_BYTES
        call = result
    elif call < 0 or result not in _WAITING:
        # Not in a system call, or one that has its result: everything counts.
        return Saved(call, False, tuple(general), others, scratch)
    for overwritten in (_AX, _CX, _R11, _ORIG_AX):
        general[overwritten] = 0
    return Saved(None if call == _RESTARTED else call, True, tuple(general), others, scratch)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _program(types: Types, size: int) -> bytes:
    """Return the program: write what is saved of the iterator's task, or nothing if there is none.

    r6 is the task, r7 where to write, r8 what holds its vector registers.
    """
    task, thread = types.structs["task_struct"], types.structs["thread_struct"]
    fpu = types.structs["fpu"].members["fpstate"]
    own = task.members["thread"]
    # Since Linux 6.16 it lies behind the task, before that inside.
    fpu += own + thread.members["fpu"] if "fpu" in thread.members else task.size
    state = types.structs["fpstate"].members["regs"]
    body = [
        _code(0xBF, 1, 6), _code(0x85, value=_TASK_PT_REGS), _code(0xBF, 3, 0), *_copy(_REGISTERS.size),
        _code(0xBF, 3, 6), _code(0x07, 3, value=own + thread.members["es"]), *_copy(_SEGMENTS_BYTES),
        _code(0xBF, 3, 6), _code(0x07, 3, value=task.members["rseq"]), *_copy(_SCRATCH.size),
        _code(0xBF, 3, 6), _code(0x07, 3, value=fpu), *_fetch(8), _code(0x79, 8, 10, -8),
        _code(0xBF, 3, 8), *_copy(_STATE_BYTES),
    ]  # fmt: skip
    for offset in range(0, size, _CHUNK):
        body += [_code(0xBF, 3, 8), _code(0x07, 3, value=state + offset), *_copy(min(_CHUNK, size - offset))]
    head = [_code(0x79, 6, 1, 8), _code(0x79, 7, 1, 0), _code(0x79, 7, 7, 0), _code(0x15, 6, 0, len(body))]
    return b"".join([*head, *body, _code(0xB7, 0), _code(0x95)])


def _fetch(size: int) -> Iterator[bytes]:
    """Copy from where r3 points to the end of the stack."""
    yield from (_code(0xBF, 1, 10), _code(0x07, 1, value=-size), _code(0xB7, 2, value=size))
    yield _code(0x85, value=_PROBE_READ_KERNEL)


def _copy(size: int) -> Iterator[bytes]:
    """Write what r3 points to."""
    yield from _fetch(size)
    yield from (
        _code(0xBF, 1, 7),
        _code(0xBF, 2, 10),
        _code(0x07, 2, value=-size),
        _code(0xB7, 3, value=size),
    )
    yield _code(0x85, value=_SEQ_WRITE)


def _code(operation: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", operation, target | source << 4, offset, value)
