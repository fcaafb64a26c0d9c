"""Other processes that do something to a file and then wait."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BEGINNING = """
import ctypes, mmap, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
path = os.fsencode(sys.argv[1])
def wait():
    print("ready", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def task(path: Path | bytes, code: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python code in a process of its own until it first calls `wait()`; it ends with this."""
    process = subprocess.Popen(
        [sys.executable, "-c", _BEGINNING + code, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            go_on(process, said=False)
            yield process
        finally:
            process.kill()


def go_on(process: subprocess.Popen[str], *, said: bool = True) -> None:
    """Have it go on until it waits again."""
    assert process.stdin is not None
    assert process.stdout is not None
    if said:
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.stdout.readline() == "ready\n"
