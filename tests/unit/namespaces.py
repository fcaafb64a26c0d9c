"""A mount namespace of one's own, held by a process."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_HOLDER = "mount --make-rprivate / && echo ready && exec cat"


@dataclass(slots=True)
class Namespace:
    """What a process sees mounted; nobody else does."""

    process: subprocess.Popen[bytes]

    @classmethod
    def make(cls) -> Namespace:
        """Start a process in a mount namespace of its own. Needs root."""
        command = ["unshare", "--mount", "sh", "-c", _HOLDER]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert process.stdout is not None
        assert process.stdout.read(6) == b"ready\n"
        return cls(process)

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(self, *command: str | Path) -> None:
        """Run a command inside."""
        subprocess.run(["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", *map(str, command)], check=True)

    def mount(self, fs_type: str, options: str, target: Path) -> None:
        """Mount something inside."""
        self.run("mount", "-t", fs_type, "-o", options, fs_type, target)

    def close(self) -> None:
        """End it, and what is mounted with it."""
        self.process.kill()
        self.process.communicate()
