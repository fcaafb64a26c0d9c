"""Capturing and restoring the processes of a sandbox.

`Processes` chooses what to dump, has it dumped, and later brings it back. Blocking:
use threads.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from turnkeep_store.blobcache import BlobCache

from turnkeep.config import ProcessSettings
from turnkeep.errors import (
    CriuFailed,
    SandboxGone,
    TurnkeepError,
    Unsupported,
)
from turnkeep.process.criu import find_criu
from turnkeep.process.dumping import (
    Dump,
    Dumping,
    Sandbox,
    forest_of,
    is_attached,
    names_of,
    resident_bytes,
    stateful_of,
)
from turnkeep.process.launch import Launcher, Place
from turnkeep.process.memory import CannotTell
from turnkeep.process.quiet import TreePrint, Verdict, same
from turnkeep.process.registers import Registers
from turnkeep.process.sandboxed import InSandbox, Waiting
from turnkeep.process.sharing import examine
from turnkeep.process.table import may_trace

NO_CRIU = "CRIU is not there"


class Processes:
    """Captures and restores processes, or knows why that cannot be. Used from any thread."""

    def __init__(self, settings: ProcessSettings, run_dir: Path, *, on_disk: bool = True) -> None:
        """Start what captures. Without `on_disk`, images never lie on the disk unencrypted."""
        self.settings = settings
        self.run_dir = run_dir
        self.cache = BlobCache(settings.cache_bytes)
        self._launcher: Launcher | None = None
        self._engine: InSandbox | None = None
        self._registers: Registers | None = None
        self.criu = ""
        self._criu_bin = ""
        self.degraded = ""
        try:
            self._start(run_dir, run_dir if on_disk else None)
        except (TurnkeepError, OSError) as error:
            self.degraded = f"processes are not captured: {error}"

    def _start(self, run_dir: Path, disk: Path | None) -> None:
        if not self.settings.enabled:
            raise Unsupported("process.enabled is off")
        criu = find_criu(self.settings.criu)
        if criu is None:
            raise Unsupported(f"{NO_CRIU} (make host installs it)")
        run_dir.mkdir(mode=0o700, exist_ok=True)
        for left in (*run_dir.glob("images-*"), *run_dir.glob("whole-*")):
            shutil.rmtree(left, ignore_errors=True)
        self._launcher = Launcher(criu, run_dir / "criu")
        engine = InSandbox(self._launcher, self.settings.image_bytes, disk)
        with _open_process(os.getpid()) as own:
            engine.prime(Place(init=own))
        self._engine = engine
        with contextlib.suppress(CannotTell, OSError):
            self._registers = Registers()
        self.criu = criu.version
        self._criu_bin = criu.folder

    def close(self) -> None:
        """End the launcher, once nothing runs any more."""
        if self._registers is not None:
            self._registers.close()
        if self._launcher is not None:
            self._launcher.__exit__(None, None, None)

    @property
    def available(self) -> bool:
        """Whether processes can be captured at all."""
        return self._engine is not None

    @contextlib.contextmanager
    def waiting(self, sandbox: Sandbox, is_stateful: Callable[[int], bool]) -> Iterator[list[Waiting]]:
        """Have CRIU started for each tree before the freeze, for a `with` block.

        Only where nobody in the sandbox may trace it; else it is started inside
        the freeze.
        """
        if self._engine is None:
            yield []
            return
        pids = sandbox.pids()
        with contextlib.ExitStack() as stack:
            started: list[Waiting] = []
            if not may_trace(pids):
                with contextlib.suppress(CriuFailed, SandboxGone, OverflowError, OSError):
                    place = stack.enter_context(_place(sandbox))
                    for tree in forest_of(sandbox, is_stateful).to_dump:
                        waiting = self._engine.waiting(place, resident_bytes(tree))
                        started.append(stack.enter_context(waiting))
            yield started

    def dump(self, sandbox: Sandbox, is_stateful: Callable[[int], bool], started: list[Waiting]) -> Dump:
        """Dump every tree that holds stateful processes. The caller has frozen the sandbox.

        What cannot be dumped is named in the result; nothing is raised for it.
        The caller closes the result.

        Raises:
            SandboxGone: its init has ended.
            CaptureFailed: `exec_sessions = "fail"`, and a client of `docker exec` waits.
        """
        result = Dump(criu=self.criu, cache=self.cache)
        try:
            forest = forest_of(sandbox, is_stateful)
        except OverflowError as error:
            result.missing.append(f"processes: {error}")
            return result
        result.missing += [f"{each}: it is being started" for each in forest.starting]
        result.passing = bool(forest.starting)
        if self._engine is None:
            result.missing += [f"{self.degraded} ({names_of(tree)})" for tree in forest.to_dump]
            return result
        findings = examine(forest.trees, sandbox.init_pid)
        result.passing |= any(finding.passing for finding in findings.findings)
        try:
            with _place(sandbox) as place:
                work = Dumping(
                    self._engine,
                    self.settings,
                    place,
                    sandbox,
                    findings,
                    list(started),
                    self._criu_bin,
                    self._registers,
                )
                for tree in forest.to_dump:
                    try:
                        result.trees.append(work.dump(tree))
                    except CriuFailed as error:
                        result.missing.append(f"processes {names_of(tree)}: {error.message}")
        except CriuFailed as error:
            result.missing += [f"processes {names_of(tree)}: {error.message}" for tree in forest.to_dump]
        except BaseException:
            result.close()
            raise
        return result

    def same(
        self, sandbox: Sandbox, is_stateful: Callable[[int], bool], prints: Mapping[int, TreePrint]
    ) -> Verdict:
        """Whether the trees that hold state are still as they were dumped. The caller has frozen the sandbox.

        `prints` are what they looked like then, by their roots' pids on the host.
        What cannot be told counts as a change.
        """
        try:
            forest = forest_of(sandbox, is_stateful)
        except (OverflowError, SandboxGone) as error:
            return Verdict(False, str(error))
        if (
            forest.starting
            or forest.to_dump == ()
            or {tree.root_pid for tree in forest.to_dump} != prints.keys()
        ):
            return Verdict(False, "processes came or went")
        for tree in forest.to_dump:
            budget = self.settings.compare_bytes
            verdict = same(stateful_of(tree), prints[tree.root_pid], self._registers, budget)
            if not verdict.same:
                return verdict
        return Verdict(True)

    def attached(self, sandbox: Sandbox) -> bool:
        """Whether a client of `docker exec` waits for a process: its standard streams lead outside."""
        forest = forest_of(sandbox, lambda pid: pid != sandbox.init_pid)
        findings = examine(forest.trees, sandbox.init_pid)
        return any(is_attached(tree, findings) for tree in forest.to_dump)

    @property
    def engine(self) -> InSandbox:
        """The engine that works.

        Raises:
            Unsupported: there is none.
        """
        if self._engine is None:
            raise Unsupported(self.degraded, hint="make host installs CRIU; turnkeep doctor tells more")
        return self._engine


def require_own_proc(init: int) -> None:
    """Refuse a sandbox whose /proc is not the kernel's: CRIU believes what it reads there.

    Who may mount in a sandbox could put anything there.

    Raises:
        CriuFailed: something else is mounted, or nothing.
    """
    with open(f"/proc/{init}/mountinfo", "rb") as file:
        mounts = [line.split() for line in file]
    there = [fields for fields in mounts if fields[4] == b"/proc"]
    kinds = [(fields[3], fields[fields.index(b"-") + 1]) for fields in there]
    if kinds != [(b"/", b"proc")]:
        raise CriuFailed(
            "its /proc is not the kernel's own",
            hint="something in the sandbox mounted over it; findmnt /proc shows what",
        )


@contextlib.contextmanager
def _place(sandbox: Sandbox) -> Iterator[Place]:
    require_own_proc(sandbox.init_pid)
    with _open_process(sandbox.init_pid) as init:
        yield Place(init=init, freezer=sandbox.freezer_folder)


@contextlib.contextmanager
def _open_process(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)
