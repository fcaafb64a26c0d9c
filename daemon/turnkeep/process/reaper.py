"""Having a container's init wait for its dead children, where it does not do so itself.

`sleep infinity` as process 1 never waits for anybody, so that every process it
inherited stays a zombie and keeps its pid for ever. A restore needs these pids.
The init is made to call wait4(2) through ptrace(2), as a debugger would; its own
system call goes on afterwards as if nothing had been.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct

_SEIZE, _INTERRUPT, _DETACH, _CONT, _SYSCALL = 0x4206, 0x4207, 17, 7, 24
_GETREGSET, _SETREGSET, _NT_PRSTATUS = 0x4204, 0x4205, 1
_WALL = 0x40000000
_WAIT4 = 61
_REGISTERS = struct.Struct("<27Q")
_R10, _RAX, _RDX, _RSI, _RDI, _ORIG_RAX, _RIP = 7, 10, 12, 13, 14, 15, 16
_SYSCALL_INSTRUCTION = b"\x0f\x05"
_MAX_CHILDREN = 100_000
_U64 = 2**64

_libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def can_reap() -> bool:
    """Whether `reap` knows this processor."""
    return platform.machine() == "x86_64"


def reap(init_pid: int) -> int:
    """Have this process wait for all its dead children; return how many there were.

    It must run (not be frozen), and stand in a system call, as one that only
    waits does. Where that is not so, or on a processor that is not known here,
    nothing happens and 0 is returned. One thread does all.
    """
    if not can_reap() or not _seize(init_pid):
        return 0
    try:
        return _reap(init_pid)
    finally:
        _ptrace(_DETACH, init_pid)


def _seize(pid: int) -> bool:
    if _ptrace(_SEIZE, pid) < 0:
        return False
    _ptrace(_INTERRUPT, pid)
    return _stopped(pid)


def _reap(pid: int) -> int:
    before = _registers(pid)
    if not _in_system_call(pid, before[_RIP]):
        return 0
    count = 0
    try:
        while count < _MAX_CHILDREN and _wait4(pid, before) > 0:
            count += 1
    finally:
        # Only on the way out of a stop of this kind does the kernel take up the
        # interrupted system call again.
        _ptrace(_INTERRUPT, pid)
        _ptrace(_CONT, pid)
        _stopped(pid)
        _set_registers(pid, before)
    return count


def _wait4(pid: int, before: list[int]) -> int:
    """Have it call wait4(-1, NULL, WNOHANG | __WALL, NULL); return the result."""
    registers = list(before)
    registers[_RAX] = _WAIT4
    registers[_RDI], registers[_RSI] = _U64 - 1, 0
    registers[_RDX], registers[_R10] = os.WNOHANG | _WALL, 0
    registers[_RIP] = before[_RIP] - len(_SYSCALL_INSTRUCTION)
    registers[_ORIG_RAX] = _U64 - 1
    _set_registers(pid, registers)
    for _ in ("entry", "exit"):
        _ptrace(_SYSCALL, pid)
        if not _stopped(pid):
            return 0
    result = _registers(pid)[_RAX]
    return result if result < _U64 // 2 else 0


def _in_system_call(pid: int, position: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(position - len(_SYSCALL_INSTRUCTION))
        return memory.read(len(_SYSCALL_INSTRUCTION)) == _SYSCALL_INSTRUCTION
    return False


def _stopped(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        _, status = os.waitpid(pid, _WALL)
        return os.WIFSTOPPED(status)
    return False


def _registers(pid: int) -> list[int]:
    buffer = ctypes.create_string_buffer(_REGISTERS.size)
    _ptrace(_GETREGSET, pid, _NT_PRSTATUS, _vector(buffer))
    return list(_REGISTERS.unpack(buffer.raw))


def _set_registers(pid: int, values: list[int]) -> None:
    buffer = ctypes.create_string_buffer(_REGISTERS.pack(*values), _REGISTERS.size)
    _ptrace(_SETREGSET, pid, _NT_PRSTATUS, _vector(buffer))


def _vector(buffer: ctypes.Array[ctypes.c_char]) -> ctypes.c_void_p:
    vector = _Vector(ctypes.addressof(buffer), _REGISTERS.size)
    return ctypes.cast(ctypes.pointer(vector), ctypes.c_void_p)


def _ptrace(request: int, pid: int, address: int = 0, data: ctypes.c_void_p | None = None) -> int:
    return int(_libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(address), data))
