"""What a dump is of: trees, what they may hold, and what becomes of each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from turnkeep_store.blobcache import BlobCache

from turnkeep.config import ProcessSettings
from turnkeep.errors import (
    BadImages,
    CaptureFailed,
    CriuFailed,
    ImagesRefused,
    TurnkeepError,
)
from turnkeep.model import ProcessLine, ProcessTree
from turnkeep.process import archive, whole
from turnkeep.process.findings import Findings, Kind, Tie
from turnkeep.process.launch import Place
from turnkeep.process.memory import MemoryPrint
from turnkeep.process.observe import observe
from turnkeep.process.quiet import TreePrint, take
from turnkeep.process.registers import Registers
from turnkeep.process.sandboxed import Dumped, Images, InSandbox, Waiting
from turnkeep.process.table import Row, read_table
from turnkeep.process.trees import Forest, Tree, TreeKind, partition
from turnkeep.process.vet import vet_folder

IN_SANDBOX, WHOLE, BOTH = "in the sandbox", "the whole container", "both"
WHOLE_KIND = "whole"
"""The kind of a tree that runc dumped: the container's init with all its descendants."""

NULL = "null"
"""Stands for a file that leads out of the sandbox: /dev/null."""

_PAGE = os.sysconf("SC_PAGE_SIZE")

INIT_FD = "init:"
"""Stands for such a file: what the sandbox's init has under a number."""


class Sandbox(Protocol):
    """What is needed of a sandbox's container."""

    id: str
    init_pid: int

    def pids(self) -> list[int]: ...

    @property
    def freezer_folder(self) -> str: ...

    def procs_files(self) -> list[str]: ...

    def runc_root(self) -> Path: ...

    def configuration(self) -> Mapping[str, Any]: ...


@dataclass(slots=True)
class TreeDump:
    """One tree as it was dumped; `record` lacks only where its images are stored.

    `root` is its root's pid on the host, `seen` what it looked like to the kernel, memory
    aside, and `pids` maps the pids inside to those of the host, to add the memory from
    the images.
    """

    record: ProcessTree
    root: int
    images: Images
    seen: TreePrint
    pids: Mapping[int, int]

    def print(self) -> TreePrint:
        """Return what a later look at the tree is held against. Reads the images; takes a while."""
        memory = {}
        for inner, host in self.pids.items():
            scratch = self.seen.processes[host].scratch if host in self.seen.processes else ()
            with contextlib.suppress(FileNotFoundError):
                memory[host] = MemoryPrint.of_pages(archive.pages_of(self.images, inner), scratch)
        return self.seen.with_memory(memory)


@dataclass(slots=True)
class Dump:
    """What was dumped of a sandbox inside one freeze, and what could not be."""

    trees: list[TreeDump] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    criu: str = ""
    cache: BlobCache = field(default_factory=lambda: BlobCache(0))
    reason: str = ""
    vetted: bool = False
    passing: bool = False
    """Whether some could not be dumped only because of the moment: thaw, and try again."""

    def vet(self, sandbox: Sandbox) -> None:
        """Leave out what would be refused at a restore, and say so. The sandbox may run.

        Does nothing if its init has ended meanwhile.
        """
        if self.vetted:
            return
        self.vetted = True
        try:
            configuration, init = sandbox.configuration(), observe(sandbox.init_pid)
        except (TurnkeepError, OSError):
            return
        for tree in [tree for tree in self.trees if tree.record.kind != WHOLE_KIND]:
            try:
                vet_folder(tree.images.folder, configuration, init, replaced=tree.record.replaced)
            except (BadImages, ImagesRefused) as error:
                self.trees.remove(tree)
                tree.images.close()
                names = ", ".join(f"{each.pid} {each.name}" for each in tree.record.processes[:10])
                self.missing.append(f"processes {names}: {error.message}")

    def close(self) -> None:
        """Let go of the images."""
        for tree in self.trees:
            tree.images.close()


class Dumping:
    """The dumps of one sandbox inside one freeze."""

    def __init__(
        self,
        engine: InSandbox,
        settings: ProcessSettings,
        place: Place,
        sandbox: Sandbox,
        findings: Findings,
        spare: list[Waiting],
        criu_bin: str,
        registers: Registers | None,
    ) -> None:
        self._registers = registers
        self._criu_bin = criu_bin
        self._engine = engine
        self._settings = settings
        self._place = place
        self._sandbox = sandbox
        self._findings = findings
        self._spare = spare

    def dump(self, tree: Tree) -> TreeDump:
        """Dump one tree.

        Raises:
            CriuFailed: it cannot be dumped, or is not to be.
            CaptureFailed: see `Processes.dump`.
        """
        if lost := list(_locks_on_mapped(tree)):
            raise CriuFailed("; ".join(lost))
        try:
            self._refuse(tree)
        except CriuFailed as error:
            if tree.kind is not TreeKind.INIT or tree.problems or self._findings.blocking_whole():
                raise
            return self._dump_whole(tree, error.message)
        ties = self._findings.ties_of(tree.root_pid)
        replaced = {tie.inherit: _stand_in(tie) for tie in ties}
        external = [tie.external for tie in ties if tie.external]
        close = not self._settings.keep_connections
        with contextlib.ExitStack() as stack:
            if self._spare:
                waiting = self._spare.pop(0)
            else:
                waiting = stack.enter_context(self._engine.waiting(self._place, resident_bytes(tree)))
            dumped = self._engine.dump(waiting, tree.inner_root_pid, external=external, tcp_close=close)
        try:
            return self._dumped(tree, self._record(tree, dumped, replaced), dumped.images)
        except BaseException:
            dumped.images.close()
            raise

    def _dump_whole(self, tree: Tree, why: str) -> TreeDump:
        """Have runc dump the init's tree together with the container's mounts and namespaces."""
        images = self._engine.new_images(expected_bytes=resident_bytes(tree))
        work = self._engine.new_images()
        try:
            tcp = "established" if self._settings.keep_connections else "close"
            runc = whole.Runc(root=self._sandbox.runc_root(), criu_bin=self._criu_bin)
            options = whole.DumpOptions(tcp=tcp)
            stats = whole.dump(runc, self._sandbox.id, images.as_path, work.as_path, options)
            record = ProcessTree(
                kind=WHOLE_KIND,
                root=tree.inner_root_pid,
                images="",
                processes=tuple(map(line_of, read_table(tree.pids, self._sandbox.init_pid).rows)),
                notes=(f"dumped as a whole container: {why}",),
                stopped_ns=stats.frozen_us * 1000,
            )
        except BaseException:
            images.close()
            raise
        finally:
            work.close()
        return self._dumped(tree, record, images)

    def _dumped(self, tree: Tree, record: ProcessTree, images: Images) -> TreeDump:
        pids = {each.inner[-1]: each.pid for each in tree.processes if not each.dead}
        return TreeDump(record, tree.root_pid, images, take(stateful_of(tree), self._registers), pids)

    def _refuse(self, tree: Tree) -> None:
        if is_attached(tree, self._findings):
            self._refuse_attached(tree)
        if tree.kind is TreeKind.INIT and tree.root_pid in tree.stateful:
            raise CriuFailed(
                "the container's own process holds state, which only a dump of the whole container takes"
            )
        blocking = self._findings.blocking_in_sandbox({tree.root_pid})
        problems = [*tree.problems, *(finding.what for finding in blocking)]
        if problems:
            raise CriuFailed("; ".join(dict.fromkeys(problems)))

    def _refuse_attached(self, tree: Tree) -> None:
        """Do with a tree that a client of `docker exec` waits for what the configuration says."""
        if self._settings.exec_sessions == "fail":
            raise CaptureFailed(
                f"a client of docker exec waits for {names_of(tree)}",
                hint='process.exec_sessions = "fail" is set; end the turn when the command has ended',
            )
        if self._settings.exec_sessions == "record":
            raise CriuFailed("a client of docker exec waits for them, and process.exec_sessions = record")

    def _record(self, tree: Tree, dumped: Dumped, replaced: Mapping[str, str]) -> ProcessTree:
        rows = {row.host: row for row in read_table(tree.pids, self._sandbox.init_pid).rows}
        skipped = [rows[pid].pid for pid in _reproducible(tree) if pid in rows]
        notes = []
        if closed := sum(value == NULL for name, value in replaced.items() if name.startswith("pipe")):
            notes.append(f"{closed} pipes lead out of the sandbox; after a restore /dev/null stands for them")
        cut = [
            finding.what for finding in self._findings.of(Kind.CONNECTION) if tree.root_pid in finding.trees
        ]
        if not self._settings.keep_connections:
            notes += [f"{what}; the processes see their end" for what in cut]
        return ProcessTree(
            kind=tree.kind,
            root=tree.inner_root_pid,
            images="",
            processes=tuple(line_of(row) for row in rows.values() if row.pid not in skipped),
            skipped=tuple(sorted(skipped)),
            replaced=replaced,
            notes=tuple(notes),
            stopped_ns=dumped.stats.frozen_us * 1000,
        )


def forest_of(sandbox: Sandbox, is_stateful: Callable[[int], bool]) -> Forest:
    return partition(sandbox.pids(), sandbox.init_pid, lambda pid: not is_stateful(pid))


def _locks_on_mapped(tree: Tree) -> Iterator[str]:
    """Name the processes that hold a POSIX lock on a file that they map.

    CRIU sets such locks, and loses them when it closes what it mapped the file
    with; a database in SQLite's WAL mode would then have two writers.
    """
    for process in tree.processes:
        if process.pid in tree.stateful:
            with contextlib.suppress(OSError):
                locked = _locked_files(process.pid)
                if locked and locked & _mapped_files(process.pid):
                    yield f"{process} holds a lock on a file that it maps, which CRIU would lose"


def _locked_files(pid: int) -> set[str]:
    # Not from /proc/locks: for its sake the kernel waits for every processor, 8 to 16 ms.
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            if target.startswith("/") and _is_locked(f"/proc/{pid}/fdinfo/{fd}"):
                found.add(target)
    return found


def _is_locked(path: str) -> bool:
    with open(path) as info:
        return any(line.startswith("lock:") and "POSIX" in line for line in info)


def _mapped_files(pid: int) -> set[str]:
    with open(f"/proc/{pid}/maps", errors="surrogateescape") as maps:
        fields = (line.rstrip("\n").split(None, 5) for line in maps)
        return {each[5] for each in fields if len(each) == 6}


def resident_bytes(tree: Tree) -> int:
    """Return the memory that a tree's processes have, which bounds their images well enough."""
    total = 0
    for pid in tree.pids:
        with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/statm") as file:
            total += int(file.read().split()[1]) * _PAGE
    return total


def stateful_of(tree: Tree) -> Tree:
    """Return the tree without what holds no state: how that fares changes nothing."""
    kept = [
        each
        for each in tree.processes
        if each.pid in tree.stateful or (each.dead and each.parent in tree.stateful)
    ]
    return replace(tree, processes=tuple(kept))


def _reproducible(tree: Tree) -> list[int]:
    """Return who need not come back: they are there again when the container starts."""
    parents = {process.parent for process in tree.processes}
    return [
        each.pid
        for each in tree.processes[1:]
        if not each.dead and each.pid not in tree.stateful and each.pid not in parents
    ]


def is_attached(tree: Tree, findings: Findings) -> bool:
    return tree.kind is TreeKind.EXEC and any(
        not tie.null and tie.init_fd is None for tie in findings.ties_of(tree.root_pid)
    )


def _stand_in(tie: Tie) -> str:
    if tie.init_fd is not None:
        return f"{INIT_FD}{tie.init_fd}"
    if tie.null or tie.kind is Kind.PIPE:
        return NULL
    raise CriuFailed(tie.what)


def names_of(tree: Tree, limit: int = 10) -> str:
    named = [f"{each.inner[-1]} {each.name}" for each in tree.processes if each.pid in tree.stateful]
    return ", ".join(named[:limit]) + (", …" if len(named) > limit else "")


def line_of(row: Row) -> ProcessLine:
    seen = {} if row.zombie else observe(row.host).to_json()
    return ProcessLine(
        pid=row.pid,
        parent=row.parent,
        group=row.group,
        session=row.session,
        name=row.name,
        threads=row.threads,
        zombie=row.zombie,
        confinement=seen,
    )
