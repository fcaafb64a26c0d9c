"""Dumping a whole container: its init with all that descends from it, by runc and CRIU.

runc knows the container's mounts and namespaces and tells CRIU of them, so this
works for any container that runc started, whatever its init is. Processes that
`docker exec` started descend from elsewhere and are in no such dump. Blocking:
use threads.

What makes it fit for a capture:

- runc has CRIU freeze the container's cgroup. One that is frozen already stays
  frozen throughout, and nothing in it runs in between (cgroup v1 and v2). That
  also saves 0.1 s, for which CRIU otherwise waits between two looks at a v1 freezer.
- Options that runc has no word for reach CRIU through a file that the annotation
  `org.criu.config` names. runc reads annotations from its record of the
  container, so it is given a copy of that record, in a root of its own. Nothing
  is changed in the real one, and `/etc/criu/runc.conf` does not count.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turnkeep_store.points import reached

from turnkeep.errors import CriuFailed, SandboxGone
from turnkeep.points import Point
from turnkeep.process.wire import read_fields

CRIU_BIN = "/opt/turnkeep/criu/bin"
LOG, STATS = "dump.log", "stats-dump"
_RUNC_MODES = frozenset({"soft", "full", "strict"})
_STATS_MAGIC_BYTES = 8
_APART = ("unshare", "--mount", "--propagation", "slave")
"""CRIU mounts cgroup hierarchies below its working folder. Killed, it would leave them there,
and whoever then deletes the folder would delete cgroups."""
_SHOWN_LINES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Runc:
    """How to reach a container past the engine.

    `root` is where runc keeps its record, `<exec-root>/runtime-runc/moby` on most
    hosts (`runtime.bundle` finds it); `criu_bin` a folder with a `criu`, before PATH.
    """

    root: Path
    program: str = "runc"
    criu_bin: str = CRIU_BIN


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpOptions:
    """What CRIU may find and is to keep.

    `tcp`: "close" leaves established connections out, "established" keeps them.
    `manage_cgroups`: CRIU's option of that name; "ignore" where cgroup2 is mounted
    without controllers.
    """

    tcp: str = "close"
    ext_unix_sk: bool = True
    shell_job: bool = True
    file_locks: bool = True
    manage_cgroups: str = "soft"
    limit_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpStats:
    """CRIU's own figures of a dump, in microseconds and pages.

    `frozen_us` is how long the tasks were stopped by CRIU, which is part of the
    freeze where the cgroup was frozen before.
    """

    freezing_us: int = 0
    frozen_us: int = 0
    memory_us: int = 0
    writing_us: int = 0
    pages_scanned: int = 0
    pages_written: int = 0


def dump(
    runc: Runc, container_id: str, images: Path, work: Path, options: DumpOptions | None = None
) -> DumpStats:
    """Write the images of a container's processes; they go on afterwards.

    A container whose cgroup was frozen is frozen when this returns or raises.
    `work` gets CRIU's log. What is in `images` after an error is of no use.

    Raises:
        CriuFailed: CRIU cannot dump it; the message quotes its log.
        SandboxGone: runc knows no such container there, or it has ended.
    """
    options = options or DumpOptions()
    for folder in (images, work):
        folder.mkdir(mode=0o700, exist_ok=True)
    with _record(runc.root, container_id, work, options) as root:
        words = [*_APART, runc.program, "--root", str(root), "checkpoint", "--leave-running"]
        words += ["--image-path", str(images), "--work-path", str(work), *_words(options), container_id]
        status, said = _run(words, {"PATH": _path(runc.criu_bin)}, options.limit_s)
        reached(Point.WHOLE_DUMPED)
    if status:
        raise _failed(container_id, work, status, said)
    try:
        return read_stats((work / STATS).read_bytes())
    except (OSError, ValueError):
        return DumpStats()  # figures, and nothing that a checkpoint stands on


@contextlib.contextmanager
def _record(root: Path, container_id: str, work: Path, options: DumpOptions) -> Iterator[Path]:
    """Make a copy of runc's record of a container that names our options for CRIU."""
    try:
        state: dict[str, Any] = json.loads((root / container_id / "state.json").read_bytes())
    except FileNotFoundError as error:
        raise SandboxGone(
            "runc has no record of it", object=f"container {container_id[:12]}", hint=f"looked in {root}"
        ) from error
    with tempfile.TemporaryDirectory(prefix="runc-", dir=work) as folder:
        config = Path(folder, "criu.conf")
        config.write_text("".join(f"{line}\n" for line in _lines(options)))
        labels = state["config"].get("labels") or []
        kept = [each for each in labels if not each.startswith("org.criu.config=")]
        state["config"]["labels"] = [*kept, f"org.criu.config={config}"]
        copy = Path(folder, container_id)
        copy.mkdir(mode=0o700)
        (copy / "state.json").write_text(json.dumps(state))
        yield Path(folder)


def _lines(options: DumpOptions) -> list[str]:
    lines = [] if options.tcp == "established" else ["tcp-close"]
    if options.manage_cgroups not in _RUNC_MODES:
        lines.append(f"manage-cgroups={options.manage_cgroups}")
    return lines


def _words(options: DumpOptions) -> list[str]:
    words = ["--tcp-established"] if options.tcp == "established" else []
    for name in ("ext_unix_sk", "shell_job", "file_locks"):
        if getattr(options, name):
            words.append(f"--{name.replace('_', '-')}")
    if options.manage_cgroups in _RUNC_MODES:
        words += ["--manage-cgroups-mode", options.manage_cgroups]
    return words


def _path(criu_bin: str) -> str:
    return os.pathsep.join((criu_bin, os.environ.get("PATH", os.defpath)))


def _run(words: list[str], environment: dict[str, str], limit_s: float) -> tuple[int, str]:
    """Run a program; return its status and what it said. One that takes too long is killed."""
    process = subprocess.Popen(
        words,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        # CRIU with it, which is in its session. The last resort: a task that it was
        # working in may not survive that.
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        return process.returncode, f"it took more than {limit_s:g} s and was killed. {said}"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    return process.returncode, said


def _failed(container_id: str, work: Path, status: int, said: str) -> CriuFailed | SandboxGone:
    where = f"container {container_id[:12]}"
    if "cannot be checkpointed in stopped state" in said.lower():
        return SandboxGone("it has ended", object=where)
    killed = [said.strip()] if status < 0 else []
    quoted = "; ".join(killed + log_lines(work / LOG)) or said.strip() or f"runc ended with {status}"
    return CriuFailed(f"CRIU could not dump it: {quoted}", object=where, hint=f"all of it: {work / LOG}")


_NOISE = ("Dumping FAILED", "Unable to create tun", "RLIMIT_NOFILE for self")


def log_lines(log: Path) -> list[str]:
    """Return the first lines of CRIU's log that say what went wrong."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return []
    errors = [line for line in text.splitlines() if "Error" in line]
    useful = [line for line in errors if not any(noise in line for noise in _NOISE)]
    return [re.sub(r"^\([\d.]+\)\s*", "", line).strip() for line in useful[:_SHOWN_LINES]]


def read_stats(image: bytes) -> DumpStats:
    """Read CRIU's `stats-dump`: two magic numbers, a length, and a message with the figures in field 1.

    Raises:
        ValueError: it is none.
    """
    body = image[_STATS_MAGIC_BYTES:]
    length = int.from_bytes(body[:4], "little")
    inner = dict(read_fields(body[4 : 4 + length])).get(1, b"")
    if not isinstance(inner, bytes):
        raise ValueError("no figures of a dump")
    found = {number: value for number, value in read_fields(inner) if isinstance(value, int)}
    return DumpStats(
        freezing_us=found.get(1, 0),
        frozen_us=found.get(2, 0),
        memory_us=found.get(3, 0),
        writing_us=found.get(4, 0),
        pages_scanned=found.get(5, 0),
        pages_written=found.get(7, 0),
    )
