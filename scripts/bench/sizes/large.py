"""One large file: appended to, rewritten, cut, each time in a turn that is rolled back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3
from demo.stage import Failed
from turnkeep.client import Client, Sandbox
from turnkeep.model import TurnState

from bench import floors
from bench.samples import Samples
from bench.sizes import rows
from bench.sizes.rows import MIB, OPERATIONS
from bench.upper import Upper, run

_LIMIT_S = 600.0

# Run inside the sandbox. Hexadecimal digits again: about half of it compresses away.
_CHANGE = """
import os, sys
path, operation, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
def write(file, left):
    while left:
        piece = min(left, 1 << 20)
        file.write(os.urandom(piece // 2).hex().encode())
        left -= piece
if operation == "truncated":
    os.truncate(path, size // 2)
elif operation == "appended":
    with open(path, "ab") as file:
        write(file, 64 << 10)
else:
    with open(path, "wb") as file:
        write(file, size)
"""


class Large:
    """Measures one sandbox with a file of each size, round by round."""

    def __init__(self, samples: Samples, tk: Client, upper: Upper, sizes: Sequence[int]) -> None:
        self._samples = samples
        self._upper = upper
        self._sizes = sizes
        self._box: Sandbox = tk.attach(upper.container.name or "")
        self._reversed = False

    def start(self) -> None:
        """Take the turn that every rollback goes back to."""
        with self._box.turn(label="base", gate_timeout_s=_LIMIT_S) as turn:
            for size in self._sizes:
                self._change("rewritten", size)
        info = turn.wait(timeout_s=_LIMIT_S)
        self._base = info.number
        self._content = {size: self._hash(size) for size in self._sizes}

    def run(self) -> None:
        """Measure everything once; the order is another one from round to round.

        Raises:
            Failed: something else happened than what was to be measured.
        """
        self._reversed = not self._reversed
        for size in reversed(self._sizes) if self._reversed else self._sizes:
            self._floors(size)
            for operation in reversed(OPERATIONS) if self._reversed else OPERATIONS:
                os.sync()
                self._turn(operation, size)
                self._rollback(operation, size)
                self._settle()

    def _turn(self, operation: str, size: int) -> None:
        turn = self._box.turn(label=operation, gate_timeout_s=_LIMIT_S)
        with turn:
            self._change(operation, size)
        info = turn.wait(timeout_s=_LIMIT_S)
        if (info.state, info.changed_files) != (TurnState.DURABLE, 1):
            raise Failed(
                f"turn {info.number} was to keep one large file, and is {info.state}"
                f" with {info.changed_files}: {info.state_reason}"
            )
        values = {
            "freeze": info.timings.freeze_ns,
            "captured": info.timings.captured_ns,
            "durable": info.timings.durable_ns,
            "stored": info.stored_bytes,
        }
        for what, value in values.items():
            self._samples.add(rows.large(what, size, operation), value)

    def _rollback(self, operation: str, size: int) -> None:
        with self._samples.timed(rows.large("rollback", size, operation)):
            result = self._box.restore(turn=self._base, mode="live")
        self._samples.add(rows.large("rollback_freeze", size, operation), result.freeze_ns)
        if self._hash(size) != self._content[size]:
            raise Failed(f"after the rollback the file of {size // MIB} MiB has other content than before")

    def _settle(self) -> None:
        with self._box.turn(label="settle", gate_timeout_s=_LIMIT_S) as turn:
            pass
        turn.wait(timeout_s=_LIMIT_S)

    def _floors(self, size: int) -> None:
        with self._samples.timed(rows.large("floor", size, "read")):
            data = self._path(size).read_bytes()
        floors.compress(self._samples, rows.large("floor", size, "zstd"), data)

    def _change(self, operation: str, size: int) -> None:
        run(self._upper.container, _CHANGE, f"/{_name(size)}", operation, str(size))

    def _path(self, size: int) -> Path:
        return self._upper.root / _name(size)

    def _hash(self, size: int) -> str:
        return blake3(max_threads=blake3.AUTO).update_mmap(self._path(size)).hexdigest()


def _name(size: int) -> str:
    return f"large-{size // MIB}"
