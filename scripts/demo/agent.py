"""The harness and its LLM, both simulated; the tools it runs in the sandbox are real."""

from __future__ import annotations

import json
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard
from docker.models.containers import Container
from turnkeep.client import RestoreResult, Sandbox, TurnInfo
from turnkeep.model import TurnMetadata

from demo.script import ASK, Step
from demo.stage import Failed

COPY_LEVEL = 3
"""The zstd level of the full copies that are compared with: the daemon's own."""

_DURABLE_S = 60.0

LISTING = r"""
find /app /root \( -name __pycache__ -prune \) -o -type f -printf '%m %U:%G %s %T@ %p\n' \
    -o -printf '%y %m %U:%G %p %l\n' 2>/dev/null | sort
find /app /root \( -name __pycache__ -prune \) -o -type f -print0 2>/dev/null | sort -z | xargs -0r sha256sum
"""
"""What the sandbox itself says of its files: modes, owners, sizes, times, links, SHA-256."""


@dataclass(slots=True, kw_only=True)
class Played:
    """A turn that was played, and what was measured of it."""

    number: int
    step: Step
    exposed_s: float
    put_s: float
    listing: str
    conversation: bytes
    full_copy: int = 0
    info: TurnInfo | None = None


class Agent:
    """Plays steps as turns of a sandbox, and keeps the conversation."""

    def __init__(
        self, box: Sandbox, sandbox: Container, tell: Callable[[Played], None], speed: float
    ) -> None:
        self.played: list[Played] = []
        self._box = box
        self._sandbox = sandbox
        self._tell = tell
        self._speed = speed
        self._talk: list[dict[str, str]] = [
            {"role": "user", "content": "Add a median to stats.py and build."}
        ]
        sandbox.reload()
        self._upper = Path(sandbox.attrs["GraphDriver"]["Data"]["UpperDir"])

    def play(self, steps: Sequence[Step]) -> None:
        """Play the steps, a turn each, and tell of each one as soon as nothing waits for it."""
        for step in steps:
            self._play(step)
        self._report()

    def _play(self, step: Step) -> None:
        turn = self._box.turn(label=step.command, metadata=TurnMetadata(model="scripted", tool_name="bash"))
        arrived = time.perf_counter()
        with turn:
            begun = time.perf_counter()
            # Only now, when nothing is held up by it: the gate has been passed,
            # and the files are still the last turn's.
            self._report()
            result = self._run(step.script)
            listing = self.listing()
            ending = time.perf_counter()
        ended = time.perf_counter()
        assert turn.number is not None
        self._talk += [
            {"role": "assistant", "content": f"I run: {step.command}\n{step.script}"},
            {"role": "tool", "content": result},
        ]
        conversation = json.dumps(self._talk, indent=1).encode()
        # A harness does this while it waits for the LLM's reply.
        waiting = time.perf_counter()
        turn.put_state(conversation)
        put_s = time.perf_counter() - waiting
        time.sleep(max(0.0, step.think_s / self._speed - put_s))
        self.played.append(
            Played(
                number=turn.number,
                step=step,
                exposed_s=begun - arrived + ended - ending,
                put_s=put_s,
                listing=listing,
                conversation=conversation,
            )
        )

    def _report(self) -> None:
        if not self.played or self.played[-1].info is not None:
            return
        last = self.played[-1]
        last.info = self._box.wait(last.number, timeout_s=_DURABLE_S)
        last.full_copy = _full_copy_bytes(self._upper)
        self._tell(last)

    def _run(self, script: str) -> str:
        code, output = self._exec(script, "/app" if self.played else "/")
        return f"exit {code}\n{output}"

    def listing(self) -> str:
        """Return what the sandbox itself says of its files now."""
        code, output = self._exec(LISTING, "/")
        if code:
            raise Failed(f"the listing failed with {code}: {output[:200]}")
        return output

    def ask(self, container: Container | None = None) -> int:
        """Ask the counting server in the sandbox, or in another container."""
        code, output = self._exec(ASK, "/", container)
        if code:
            raise Failed(f"the server does not answer: {output[:200]}")
        return int(output)

    def _exec(self, script: str, folder: str, container: Container | None = None) -> tuple[int, str]:
        result = (container or self._sandbox).exec_run(["bash", "-c", script], workdir=folder)
        assert isinstance(result.output, bytes)
        return result.exit_code or 0, result.output.decode(errors="backslashreplace")

    def come_back(self, result: RestoreResult) -> int:
        """Take up the conversation that a restore returned; return its length."""
        self._talk = json.loads(result.harness_state or b"[]")
        return len(self._talk)


class _Counted:
    """A file that is only counted."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        return len(data)


def _full_copy_bytes(upper: Path) -> int:
    """Return the size of a tar, compressed, of the container's writable layer as it is now."""
    counted = _Counted()
    with (
        zstandard.ZstdCompressor(level=COPY_LEVEL).stream_writer(counted) as packed,  # type: ignore[arg-type]
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        archive.add(upper, arcname=".")
    return counted.bytes
