"""From the first look at a sandbox to a committed snapshot. Blocking: use threads."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import structlog
from turnkeep_store.blobcache import CachingSink
from turnkeep_store.diff import Delta, diff
from turnkeep_store.ids import TreeId
from turnkeep_store.lease import Lease
from turnkeep_store.points import reached
from turnkeep_store.repository import Repository
from turnkeep_store.snapshot import Snapshot
from turnkeep_store.writer import BlobWriter, HashOnlySink

from turnkeep.checkpointer.arena import CopyAhead
from turnkeep.checkpointer.changes import count, image_of, is_in, net_changes, only_folder_time
from turnkeep.checkpointer.images import commit_images, fidelity_of
from turnkeep.checkpointer.inspection import (
    PlaceReading,
    Reader,
    settle_unchanged,
)
from turnkeep.checkpointer.states import States
from turnkeep.checkpointer.trees import archive_places, baselines_after
from turnkeep.checkpointer.view import Baseline, ContainerView, PlaceBaseline
from turnkeep.config import Classify, Limits
from turnkeep.errors import CaptureFailed
from turnkeep.model import Decision, Fidelity, ProcessImage, TurnClass, TurnNumber
from turnkeep.paths import display
from turnkeep.points import Point
from turnkeep.process.dumping import Dump
from turnkeep.process.engine import Processes
from turnkeep.process.quiet import Verdict
from turnkeep.process.sandboxed import Waiting
from turnkeep.turns import Evidence, classify
from turnkeep.watch.processes import Process, ProcessSample, activity, sample
from turnkeep.watch.table import NEVER, Sight
from turnkeep.watch.trail import TrackedFolders

log = structlog.get_logger()

_UNDECIDED = Decision(turn_class=TurnClass.FULL, reason="not decided yet")


@dataclass(slots=True)
class Inspection:
    """What a sandbox is like at the end of a turn, read while it may run."""

    view: ContainerView
    readings: list[PlaceReading]
    processes: ProcessSample
    decision: Decision
    lease: Lease
    writer: BlobWriter
    ahead: CopyAhead
    reader: Reader
    changed: set[bytes] = field(default_factory=set)
    deltas: list[Delta] = field(default_factory=list)
    only_woke: bool = False
    dump: Dump | None = None

    def drop(self) -> None:
        """Let go of what was copied ahead, and of what was dumped."""
        self.drop_dump()
        self.writer.abort()
        self.lease.release()

    def drop_dump(self) -> None:
        """Let go of the images that were dumped."""
        if self.dump is not None:
            self.dump.close()
            self.dump = None


@dataclass(slots=True)
class Capture:
    """A consistent copy of a sandbox's state, not durable yet."""

    inspection: Inspection
    readings: list[PlaceReading]
    processes: ProcessSample
    stateful: tuple[Process, ...]
    captured_at_ns: int
    freeze_ns: int
    dump: Dump | None = None
    reused: ProcessImage | None = None

    @property
    def fidelity(self) -> Fidelity:
        """What a restore will bring back."""
        return fidelity_of(self.dump or self.reused, stateful=bool(self.stateful))

    @property
    def missing(self) -> tuple[str, ...]:
        """The processes that could not be dumped, and why."""
        image = self.dump or self.reused
        return tuple(image.missing) if image is not None else ()


@dataclass(frozen=True, slots=True)
class Committed:
    """A durable checkpoint, and what the next turn is compared with."""

    snapshot: Snapshot
    baseline: Baseline
    changed_files: int
    changed_bytes: int
    stored_bytes: int


class Checkpointer:
    """Takes checkpoints of any sandbox into one repository. Used from many threads."""

    def __init__(
        self,
        repository: Repository,
        limits: Limits,
        rules: Classify,
        processes: Processes | None = None,
        tracked: TrackedFolders | None = None,
    ) -> None:
        self._repository = repository
        self._limits = limits
        self._rules = rules
        self._processes = processes
        self.states = States(repository, limits, rules, tracked)

    def inspect(self, view: ContainerView, baseline: Baseline) -> Inspection:
        """Look for what changed since the baseline, copying it, while the sandbox may run.

        The caller owns the result and either drops it or commits its capture.
        """
        lease = self._repository.lease("capture")
        writer = self._repository.writer(lease)
        try:
            processes = sample(view.pids(), view.usage_ns)
            ahead = CopyAhead(writer, self._limits.arena_bytes)
            reader = self.states.reader(view, ahead)
            reader.audit = self.states.is_audit_due()
            reader.look_for_mappings()
            readings = [reader.read(place, baseline.place(place.slot)) for place in view.covered()]
            self.states.note_audit(reader, view)
            inspection = Inspection(view, readings, processes, _UNDECIDED, lease, writer, ahead, reader)
            self._decide(inspection, baseline)
        except BaseException:
            writer.abort()
            lease.release()
            raise
        return inspection

    def settle(self, inspection: Inspection, baseline: Baseline) -> None:
        """Close the inspection of a turn that has nothing to keep."""
        for reading in inspection.readings:
            slot = reading.place.slot
            changed = {path for path in inspection.changed if path == slot or path.startswith(slot + b"/")}
            if slot not in baseline.places:
                if changed:
                    continue
                # Every path counts as changed until its status is accepted, and
                # as gone when it vanishes before that.
                baseline.places[slot] = PlaceBaseline(Sight(dict.fromkeys(reading.sight, NEVER)))
            is_changed = functools.partial(is_in, changed, slot)
            settle_unchanged(baseline.places[slot], reading, is_changed)
        inspection.drop()

    def capture(
        self,
        inspection: Inspection,
        baseline: Baseline,
    ) -> Capture:
        """Take the state of one instant. The sandbox runs when this returns or raises.

        Raises:
            CaptureFailed: no consistent copy was possible within the limits.
            SandboxGone: the container went away meanwhile.
        """
        frozen_ns = 0
        for attempt in range(1, self._limits.capture_attempts + 1):
            began_ns = time.monotonic_ns()
            try:
                with (
                    self._criu_waiting(inspection, baseline) as waiting,
                    inspection.view.frozen(self._limits.freeze_budget_s) as freeze,
                ):
                    inspection.ahead.frozen = True
                    reached(Point.CAPTURE_FROZEN)
                    capture = self._capture_frozen(inspection, baseline, waiting)
                    reached(Point.CAPTURE_READ)
                    if capture.dump is not None and capture.dump.passing:
                        self._refuse_passing(capture, attempt)
                    if freeze is not None:
                        freeze.check()
                capture.freeze_ns = frozen_ns + (freeze.ns if freeze is not None else 0)
                inspection.ahead.settle()
                return capture
            except CaptureFailed:
                # Too much changed inside the freeze, or it lasted too long: most
                # of that was copied now, so that the next one has less to do.
                if attempt == self._limits.capture_attempts:
                    raise
                frozen_ns += time.monotonic_ns() - began_ns
                inspection.ahead.settle()
                self._copy_again(inspection, baseline)
        raise CaptureFailed("no attempt was made", hint="limits.capture_attempts has to be 1 or more")

    def commit(self, capture: Capture, baseline: Baseline, metadata: Mapping[str, Any]) -> Committed:
        """Make a captured checkpoint durable.

        `metadata` becomes the snapshot record's; figures that only the commit
        knows are added. When this returns the checkpoint survives a crash.
        """
        inspection = capture.inspection
        repository, writer = self._repository, inspection.writer
        turn = TurnNumber(metadata.get("checkpoint", {}).get("turn", 0))
        try:
            kept_too = CachingSink(writer, self.states.cache)
            tree = archive_places(
                kept_too, repository, capture.readings, baseline, inspection.view, keep=repository.remember
            )
            kept = commit_images(writer, tree.tree, capture.dump, capture.reused, baseline.prints, turn)
            reached(Point.COMMIT_ARCHIVED)
            writer.flush()
            reached(Point.COMMIT_FLUSHED)
            changed_files, changed_bytes = self._count(capture, baseline, tree.tree)
            stored = writer.stats.stored_bytes
            snapshot = repository.commit(
                writer,
                tree=kept.root,
                digest=tree.digest,
                metadata={
                    **metadata,
                    **kept.metadata(),
                    "changed_files": changed_files,
                    "changed_bytes": changed_bytes,
                    "stored_bytes": stored,
                },
            )
        finally:
            inspection.drop()
        places = baselines_after(capture.readings, baseline)
        after = Baseline(tree.tree, None, places, capture.processes, kept.image, kept.prints)
        return Committed(snapshot, after, changed_files, changed_bytes, stored)

    def _capture_frozen(self, inspection: Inspection, baseline: Baseline, waiting: list[Waiting]) -> Capture:
        view = inspection.view
        processes = sample(view.pids(), view.usage_ns)
        is_stateful = self.states.stateful(view)
        captured_at_ns = time.time_ns()
        inspection.reader.look_for_mappings()
        quiet = self.states.is_still(inspection.readings, inspection.processes, processes, view)
        readings = inspection.readings
        if not quiet:
            readings = [
                inspection.reader.read_again(reading, baseline.place(reading.place.slot))
                for reading in inspection.readings
            ]
        stateful = tuple(process for process in processes.processes.values() if is_stateful(process))
        dump = None
        ran = bool(inspection.decision.processes) or not quiet
        pids = {process.pid for process in stateful}
        verdict = self._same(view, pids, baseline) if stateful and ran else Verdict(bool(stateful))
        reused = baseline.image if verdict.same else None
        if self._processes is not None and stateful and reused is None:
            inspection.drop_dump()
            dump = inspection.dump = self._processes.dump(view, pids.__contains__, waiting)
            dump.reason = verdict.why
            reached(Point.CAPTURE_DUMPED)
            # CRIU has them run a little of its own code.
            processes = sample(view.pids(), view.usage_ns)
        return Capture(inspection, readings, processes, stateful, captured_at_ns, 0, dump, reused)

    def _refuse_passing(self, capture: Capture, attempt: int) -> None:
        """Give a capture up that met a process at a bad moment, while another attempt is left."""
        if attempt < self._limits.capture_attempts:
            raise CaptureFailed("; ".join(capture.missing), hint="a program was just being started")

    def _same(self, view: ContainerView, stateful: Collection[int], baseline: Baseline) -> Verdict:
        """Whether the processes, frozen now, are still as they were dumped, though some woke."""
        if self._processes is None or baseline.image is None or baseline.image.missing:
            return Verdict(False, "there is no dump of all of them to compare with")
        return self._processes.same(view, stateful.__contains__, baseline.prints)

    def settle_woken(self, inspection: Inspection, baseline: Baseline) -> Decision | None:
        """Look closer at a turn in which processes woke and no file changed.

        If they are as they were dumped, the turn has nothing to keep: the decision
        that says so is returned. Else None, and nothing has changed.
        """
        view = inspection.view
        if inspection.decision.turn_class is not TurnClass.PROCESS or not inspection.only_woke:
            return None
        with view.frozen(self._limits.freeze_budget_s) as freeze:
            processes = sample(view.pids(), view.usage_ns)
            inspection.reader.look_for_mappings()
            is_stateful = self.states.stateful(view)
            stateful = {each.pid for each in processes.processes.values() if is_stateful(each)}
            if not self._same(view, stateful, baseline).same:
                return None
            if not self.states.is_still(inspection.readings, inspection.processes, processes, view):
                # The freeze itself wakes some; what they may have written since is read again.
                self._read_all_again(inspection, baseline)
                if baseline.tree is None or self._net_changes(inspection.readings, baseline, view):
                    return None
            if freeze is not None:
                freeze.check()
        baseline.processes = processes
        woke = ", ".join(inspection.decision.processes[:3])
        return replace(
            inspection.decision,
            turn_class=TurnClass.STATELESS,
            reason=f"no file changed, and the processes that woke are as they were dumped ({woke})",
        )

    @contextlib.contextmanager
    def _criu_waiting(self, inspection: Inspection, baseline: Baseline) -> Iterator[list[Waiting]]:
        """Have CRIU started before the freeze, if it will be needed in it."""
        is_stateful = self.states.stateful(inspection.view)
        running = inspection.processes.processes.values()
        stateful = {process.pid for process in running if is_stateful(process)}
        expected = stateful and (inspection.decision.processes or baseline.image is None)
        if self._processes is None or not expected:
            yield []
            return
        with self._processes.waiting(inspection.view, stateful.__contains__) as waiting:
            yield waiting

    def _copy_again(self, inspection: Inspection, baseline: Baseline) -> None:
        inspection.processes = sample(inspection.view.pids(), inspection.view.usage_ns)
        inspection.reader.look_for_mappings()
        self._read_all_again(inspection, baseline)

    def _read_all_again(self, inspection: Inspection, baseline: Baseline) -> None:
        inspection.readings = [
            inspection.reader.read_again(reading, baseline.place(reading.place.slot))
            for reading in inspection.readings
        ]

    def _count(self, capture: Capture, baseline: Baseline, tree: TreeId) -> tuple[int, int]:
        """Return how many paths a capture changed, and their bytes."""
        inspection = capture.inspection
        image = image_of(inspection.view)
        if baseline.tree is None:
            return count(diff(self._repository, None, tree), image)
        if capture.readings is inspection.readings:
            return count(inspection.deltas, image)
        return count(self._net_changes(capture.readings, baseline, inspection.view), image)

    def _net_changes(
        self, readings: list[PlaceReading], baseline: Baseline, view: ContainerView
    ) -> list[Delta]:
        """Return the paths whose state is not the last checkpoint's; none without one."""
        if baseline.tree is None:
            return []
        old = self._repository.read_directory(baseline.tree)
        slots = [reading.place.slot for reading in readings]
        if old.entries.keys() <= set(slots) <= baseline.places.keys():
            return [
                delta
                for reading in readings
                for delta in net_changes(
                    reading,
                    view.image_view(reading.place),
                    baseline.place(reading.place.slot),
                    self._repository,
                    old.entries.get(reading.place.slot),
                )
            ]
        # What is gone from a place that was never read here, only its whole tree tells.
        sink = HashOnlySink(self._repository)
        tree = archive_places(sink, sink, readings, baseline, view)
        if tree.digest == old.digest():
            return []
        image = image_of(view)
        found = diff(sink, baseline.tree, tree.tree)
        return [delta for delta in found if not only_folder_time(delta, image)]

    def _decide(self, inspection: Inspection, baseline: Baseline) -> None:
        """Set the decision and the changed paths of an inspection."""
        view = inspection.view
        unsure = []
        is_stateful = self.states.stateful(view)
        if baseline.tree is None:
            unsure.append("there is no checkpoint to compare with")
        deltas = self._net_changes(inspection.readings, baseline, view)
        for reading in inspection.readings:
            torn = [
                path
                for path, read in reading.reads.items()
                if read.status is None and read.change.entry is not None
            ]
            if torn:
                unsure.append(f"{len(torn)} files were being written")
        inspection.deltas = deltas
        inspection.changed = {delta.path for delta in deltas}
        if baseline.processes is None:
            described = tuple(
                f"{process} (running)"
                for process in inspection.processes.processes.values()
                if is_stateful(process)
            )
        else:
            seen = activity(baseline.processes, inspection.processes, is_stateful)
            inspection.only_woke = not (seen.born or seen.died)
            described = seen.describe()
        running = sum(is_stateful(process) for process in inspection.processes.processes.values())
        evidence = Evidence(
            changed=[display(delta.path) for delta in deltas],
            processes=described,
            unsure=unsure,
            stateful_running=running,
        )
        inspection.decision = classify(evidence, self._rules.caches)
