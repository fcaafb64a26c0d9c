"""What a sandbox holds at a moment, as a tree of which nothing is stored. Blocking: use threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog
from turnkeep_store.blobcache import BlobCache, CachingSource
from turnkeep_store.ids import Digest, TreeId
from turnkeep_store.repository import Repository
from turnkeep_store.restorer import Source
from turnkeep_store.tree import Directory
from turnkeep_store.writer import HashOnlySink

from turnkeep.checkpointer.arena import CopyAhead
from turnkeep.checkpointer.changes import net_changes
from turnkeep.checkpointer.inspection import PlaceReading, Reader
from turnkeep.checkpointer.trees import archive_places, baselines_after
from turnkeep.checkpointer.view import Baseline, ContainerView
from turnkeep.config import Classify, Limits
from turnkeep.model import MountKind
from turnkeep.paths import display
from turnkeep.watch.host_folders import HostFolders
from turnkeep.watch.processes import Process, ProcessSample, quiet_since, sample, stateful_test
from turnkeep.watch.trail import TrackedFolders, Trail

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Audit:
    """Which mounts are followed, and the paths of whose change nobody told: a defect."""

    followed: tuple[str, ...]
    missed: tuple[str, ...]


@dataclass(slots=True)
class Look:
    """A sandbox's state as it was read before a freeze."""

    view: ContainerView
    sink: HashOnlySink
    reader: Reader
    readings: list[PlaceReading]
    processes: ProcessSample


@dataclass(frozen=True, slots=True)
class State:
    """What a sandbox holds at a moment: its tree, where that can be read, and a baseline for later."""

    tree: TreeId
    digest: Digest
    source: Source
    baseline: Baseline


class _Cached(CachingSource):
    """The repository, and what was stored in it or read lately from memory."""

    def __init__(self, repository: Repository, cache: BlobCache) -> None:
        super().__init__(repository, cache)
        self._repository = repository

    def read_directory(self, tree: TreeId) -> Directory:
        return self._repository.read_directory(tree)


class States:
    """Looks at what any sandbox holds. Used from many threads."""

    def __init__(
        self,
        repository: Repository,
        limits: Limits,
        rules: Classify,
        tracked: TrackedFolders | None = None,
    ) -> None:
        self.cache = BlobCache(limits.cache_bytes)
        self._source = _Cached(repository, self.cache)
        self._limits = limits
        self._rules = rules
        self.host_folders = HostFolders()
        self.tracked = tracked

    def forget(self, folders: Iterable[str]) -> None:
        """Stop following folders of the host; the next look at one scans it."""
        folders = tuple(folders)
        self.host_folders.forget(folders)
        if self.tracked is not None:
            self.tracked.forget(folders)

    def reader(self, view: ContainerView, ahead: CopyAhead) -> Reader:
        """Return a reader of a container's places."""
        return Reader(view, self._limits, ahead, self.host_folders, self.tracked)

    def stateful(self, view: ContainerView) -> Callable[[Process], bool]:
        """Return the test of a container's processes for state (see `stateful_test`)."""
        return stateful_test(view.init_pid, view.command, self._rules.reproducible, view.health_check)

    def current_state(
        self, view: ContainerView, baseline: Baseline | None, source: Source | None = None
    ) -> State:
        """Return what is there now as a tree, storing nothing.

        With a baseline only what changed against it is read; without one,
        everything is. The baseline's tree is read from `source`, the repository
        if none is given. The caller keeps the sandbox still.
        """
        known = baseline or Baseline()
        return self._state(self._look(view, known, source or self._source), known)

    def look(self, view: ContainerView, baseline: Baseline | None) -> Look:
        """Look at what is there while the sandbox may run; `confirm` it inside a freeze."""
        return self._look(view, baseline or Baseline(), self._source)

    def confirm(self, look: Look, baseline: Baseline | None) -> State:
        """Return what is there, inside a freeze, as a tree, storing nothing.

        What was seen before the freeze is read again only if anything may have
        run since.
        """
        known = baseline or Baseline()
        now = sample(look.view.pids(), look.view.usage_ns)
        look.reader.look_for_mappings()
        if not self.is_still(look.readings, look.processes, now, look.view):
            look.readings = [
                look.reader.read_again(reading, known.place(reading.place.slot)) for reading in look.readings
            ]
        return self._state(look, known)

    def known_state(self, view: ContainerView, baseline: Baseline) -> State | None:
        """Return what is there, inside a freeze in which an inspection found the baseline to be exact.

        None where that can be told only by looking again: a folder of the host
        does not stand still with the container.
        """
        places = view.covered()
        exact = all(
            place.slot in baseline.places and place.mount.kind is not MountKind.BIND for place in places
        )
        if baseline.tree is None or not exact:
            return None
        source = HashOnlySink(self._source)
        return State(baseline.tree, self._source.read_directory(baseline.tree).digest(), source, baseline)

    def after_writing(
        self, view: ContainerView, state: State, touched: Mapping[bytes, Trail], want: TreeId
    ) -> State:
        """Return what is there after `touched` was written in a freeze in which `state` was there.

        It is read again; that the sandbox stood still vouches for the rest. `want`
        is the tree that should be there now.
        """
        sink = HashOnlySink(state.source)
        reader = self.reader(view, CopyAhead(sink, self._limits.arena_bytes))
        reader.look_for_mappings()
        readings = [
            reader.read_touched(place, state.baseline.place(place.slot), touched.get(place.slot, Trail()))
            for place in view.covered()
            if place.slot in touched or place.mount.kind is MountKind.BIND
        ]
        places = {**state.baseline.places, **baselines_after(readings, state.baseline)}
        if _reads_as(sink, state, want, readings, touched, view):
            digest = self._source.read_directory(want).digest()
            return State(want, digest, state.source, Baseline(want, None, places))
        before = state.source.read_directory(state.tree)
        tree = archive_places(sink, sink, readings, state.baseline, view, before.copy())
        return State(tree.tree, tree.digest, sink, Baseline(tree.tree, None, places))

    def _look(self, view: ContainerView, baseline: Baseline, source: Source) -> Look:
        sink = HashOnlySink(source)
        reader = self.reader(view, CopyAhead(sink, self._limits.arena_bytes))
        reader.look_for_mappings()
        processes = sample(view.pids(), view.usage_ns)
        readings = [reader.read(place, baseline.place(place.slot)) for place in view.covered()]
        return Look(view, sink, reader, readings, processes)

    def _state(self, look: Look, baseline: Baseline) -> State:
        tree = archive_places(look.sink, look.sink, look.readings, baseline, look.view)
        places = baselines_after(look.readings, baseline)
        return State(tree.tree, tree.digest, look.sink, Baseline(tree.tree, None, places))

    def is_still(
        self,
        readings: list[PlaceReading],
        before: ProcessSample,
        frozen: ProcessSample,
        view: ContainerView,
    ) -> bool:
        """Whether readings taken after `before` are certainly true inside the freeze."""
        torn = any(
            reading.reads[path].change.entry is not None for reading in readings for path in reading.torn()
        )
        mapped = any(reading.mapped for reading in readings)
        return not torn and not mapped and quiet_since(before, frozen, self.stateful(view))

    def audit(self, view: ContainerView, baseline: Baseline) -> Audit:
        """Compare what was followed with a scan of everything, while the sandbox may run; change nothing."""
        sink = HashOnlySink(self._source)
        reader = self.reader(view, CopyAhead(sink, self._limits.arena_bytes))
        reader.audit = True
        reader.look_for_mappings()
        followed = []
        for place in view.covered():
            reading = reader.read(place, baseline.place(place.slot))
            if reading.looked is not None:
                followed.append(place.mount.target)
        self.note_audit(reader, view)
        return Audit(tuple(followed), tuple(map(display, reader.missed)))

    def is_audit_due(self) -> bool:
        """Whether the next look is to be compared with a scan."""
        return self.tracked is not None and self.tracked.is_due()

    def note_audit(self, reader: Reader, view: ContainerView) -> None:
        """Count an audit, and say what it found."""
        if self.tracked is None or not reader.audit:
            return
        self.tracked.figures.audits += 1
        self.tracked.figures.missed += len(reader.missed)
        if reader.missed:
            shown = [display(path) for path in reader.missed[:20]]
            log.error("changes were not reported; a scan found them", container=view.id[:12], paths=shown)


def _reads_as(
    source: Source,
    state: State,
    want: TreeId,
    readings: Iterable[PlaceReading],
    touched: Mapping[bytes, Trail],
    view: ContainerView,
) -> bool:
    """Whether what was read after bringing `state` to `want` certainly is `want`.

    It is, if each path in which the two differ was read and is as `want` says, and
    nothing else was found changed. That spares building a tree to compare digests.
    False means only that it has to be built.
    """
    before, after = (source.read_directory(tree) for tree in (state.tree, want))
    read = {reading.place.slot: reading for reading in readings}
    if before.entries.keys() != after.entries.keys():
        return False
    for entry in after:
        reading = read.get(entry.name)
        if reading is None:
            if before.entries[entry.name] != entry:
                return False
            continue
        trail = touched.get(entry.name, Trail())
        if trail.deep or not trail.paths <= reading.reads.keys() | reading.gone:
            return False
        image = view.image_view(reading.place)
        if net_changes(reading, image, state.baseline.place(entry.name), source, entry):
            return False
    return True
