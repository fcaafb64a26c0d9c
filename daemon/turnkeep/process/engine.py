"""Capturing and restoring the processes of a sandbox.

`Processes` chooses what to dump, has it dumped, and later brings it back. Blocking:
use threads.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from turnkeep.config import ProcessSettings
from turnkeep.errors import CriuFailed, TurnkeepError, Unsupported
from turnkeep.model import ProcessLine, ProcessTree
from turnkeep.process.criu import find_criu
from turnkeep.process.launch import Launcher, Place
from turnkeep.process.sandboxed import Dumped, Images, InSandbox, Waiting
from turnkeep.process.table import INIT, Row, Table, Tree, read_table
from turnkeep.process.ties import FILE, ties_of

IN_SANDBOX = "in the sandbox"
NO_CRIU = "CRIU is not there"


class Sandbox(Protocol):
    """What is needed of a sandbox's container."""

    init_pid: int

    def pids(self) -> list[int]: ...

    @property
    def freezer_folder(self) -> str: ...

    def procs_files(self) -> list[str]: ...


@dataclass(slots=True)
class TreeDump:
    """One tree as it was dumped; `record` lacks only where its images are stored."""

    record: ProcessTree
    images: Images


@dataclass(slots=True)
class Dump:
    """What was dumped of a sandbox inside one freeze, and what could not be."""

    trees: list[TreeDump] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    criu: str = ""

    def close(self) -> None:
        """Let go of the images."""
        for tree in self.trees:
            tree.images.close()


class Processes:
    """Captures and restores processes, or knows why that cannot be. Used from any thread."""

    def __init__(self, settings: ProcessSettings, run_dir: Path) -> None:
        self._settings = settings
        self._launcher: Launcher | None = None
        self._engine: InSandbox | None = None
        self.criu = ""
        self.degraded = ""
        try:
            self._start(run_dir)
        except (TurnkeepError, OSError) as error:
            self.degraded = f"processes are not captured: {error}"

    def _start(self, run_dir: Path) -> None:
        if not self._settings.enabled:
            raise Unsupported("process.enabled is off")
        criu = find_criu(self._settings.criu)
        if criu is None:
            raise Unsupported(f"{NO_CRIU} (make host installs it)")
        self._launcher = Launcher(criu, run_dir / "criu")
        engine = InSandbox(self._launcher, self._settings.image_bytes)
        with _open_process(os.getpid()) as own:
            engine.prime(Place(init=own))
        self._engine = engine
        self.criu = criu.version

    def close(self) -> None:
        """End the launcher, once nothing runs any more."""
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
        table = read_table(sandbox.pids(), sandbox.init_pid)
        with contextlib.ExitStack() as stack:
            started: list[Waiting] = []
            if not table.may_trace:
                place = stack.enter_context(_place(sandbox))
                with contextlib.suppress(CriuFailed):
                    for _ in table.trees(is_stateful):
                        started.append(stack.enter_context(self._engine.waiting(place)))
            yield started

    def dump(self, sandbox: Sandbox, is_stateful: Callable[[int], bool], started: list[Waiting]) -> Dump:
        """Dump every tree that holds stateful processes. The caller has frozen the sandbox.

        What cannot be dumped is named in the result; nothing is raised for it.
        The caller closes the result.
        """
        table = read_table(sandbox.pids(), sandbox.init_pid)
        trees = table.trees(is_stateful)
        result = Dump(criu=self.criu)
        if self._engine is None:
            if trees:
                listed = ", ".join(f"{row.pid} {row.name}" for tree in trees for row in tree.stateful[:10])
                result.missing.append(f"{self.degraded} ({listed})")
            return result
        spare = list(started)
        with _place(sandbox) as place:
            for tree in trees:
                try:
                    result.trees.append(self._dump_tree(place, table, tree, spare))
                except CriuFailed as error:
                    names = ", ".join(f"{row.pid} {row.name}" for row in tree.stateful[:10])
                    result.missing.append(f"processes {names}: {error.message}")
                except BaseException:
                    result.close()
                    raise
        return result

    def _dump_tree(self, place: Place, table: Table, tree: Tree, spare: list[Waiting]) -> TreeDump:
        assert self._engine is not None
        if tree.kind == INIT and tree.root_is_stateful:
            raise CriuFailed(
                "the container's own process holds state, which only a dump of the whole container takes"
            )
        if table.reasons:
            raise CriuFailed("; ".join(table.reasons))
        replaced, notes = ties_of(tree, table)
        close = not self._settings.keep_connections
        with contextlib.ExitStack() as stack:
            waiting = spare.pop() if spare else stack.enter_context(self._engine.waiting(place))
            external = [name for name in replaced if name.startswith(FILE)]
            dumped = self._engine.dump(waiting, tree.root.pid, external=external, tcp_close=close)
        return TreeDump(_record(tree, dumped, replaced, notes), dumped.images)

    @property
    def engine(self) -> InSandbox:
        """The engine that works.

        Raises:
            Unsupported: there is none.
        """
        if self._engine is None:
            raise Unsupported(self.degraded, hint="make host installs CRIU; turnkeep doctor tells more")
        return self._engine


def _record(tree: Tree, dumped: Dumped, replaced: dict[str, str], notes: list[str]) -> ProcessTree:
    return ProcessTree(
        kind=tree.kind,
        root=tree.root.pid,
        images="",
        processes=tuple(_line(row) for row in tree.rows if row.pid not in tree.skipped),
        skipped=tuple(sorted(tree.skipped)),
        replaced=replaced,
        notes=tuple(notes),
        stopped_ns=dumped.stats.frozen_us * 1000,
    )


def _line(row: Row) -> ProcessLine:
    return ProcessLine(
        pid=row.pid,
        parent=row.parent,
        group=row.group,
        session=row.session,
        name=row.name,
        threads=row.threads,
        zombie=row.zombie,
        confinement=row.confinement,
    )


@contextlib.contextmanager
def _place(sandbox: Sandbox) -> Iterator[Place]:
    with _open_process(sandbox.init_pid) as init:
        yield Place(init=init, freezer=sandbox.freezer_folder)


@contextlib.contextmanager
def _open_process(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)
