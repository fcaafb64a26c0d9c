"""A repository against a dict, in any order of what can be done to it."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from turnkeep_store.check import check, rebuild_index
from turnkeep_store.ids import SnapshotId
from turnkeep_store.lease import Lease
from turnkeep_store.prune import prune
from turnkeep_store.repository import Repository
from turnkeep_store.snapshot import Snapshot
from turnkeep_store.writer import BlobWriter

from .disks import PowerCutDisk
from .trees import IN_MEMORY, SMALL, Files, commit, get_tree, put_tree

NOISE = [random.Random(number).randbytes(400 + number) for number in range(10)]
PATHS = st.sampled_from([b"a", b"b", b"d/a", b"d/b", b"d/e/f", b"g/h"])
FILES = st.dictionaries(PATHS, st.sampled_from(NOISE), max_size=5)


class StoreMachine(RuleBasedStateMachine):
    """Commits, deletes, prunes, leases, reopens, and loses power in between."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tk-", dir=IN_MEMORY))
        self.disk = PowerCutDisk()
        self.model: dict[SnapshotId, Files] = {}
        self.leased: list[tuple[Lease, dict[SnapshotId, tuple[Snapshot, Files]]]] = []
        self.open_writers: list[tuple[Lease, BlobWriter, Files]] = []
        self.open()

    def open(self) -> None:
        index = str(self.folder / "index.sqlite")
        self.repo = Repository.open_or_create("/repo", options=SMALL, disk=self.disk, index_path=index)

    @rule(files=FILES)
    def commit(self, files: Files) -> None:
        self.model[commit(self.repo, files).id] = files

    @rule(files=FILES)
    def begin_writing(self, files: Files) -> None:
        lease = self.repo.lease("slow writer")
        writer = self.repo.writer(lease)
        put_tree(writer, files)
        self.open_writers.append((lease, writer, files))

    @precondition(lambda self: self.open_writers)
    @rule()
    def finish_writing(self) -> None:
        lease, writer, files = self.open_writers.pop(0)
        with lease:
            self.model[commit(self.repo, files, writer=writer, lease=lease).id] = files

    @precondition(lambda self: self.open_writers)
    @rule()
    def give_up_writing(self) -> None:
        lease, _, _ = self.open_writers.pop()
        lease.release()

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        self.repo.delete(name)
        del self.model[name]

    @rule(fraction=st.sampled_from([0.0, 0.3, 0.9]))
    def prune(self, fraction: float) -> None:
        prune(self.repo, max_unused_fraction=fraction)

    @rule()
    def hold_lease(self) -> None:
        lease = self.repo.lease("reader")
        held = {name: (self.repo.snapshot(name), files) for name, files in self.model.items()}
        self.leased.append((lease, held))

    @precondition(lambda self: self.leased)
    @rule()
    def release_lease(self) -> None:
        self.leased.pop(0)[0].release()

    @rule()
    def rebuild(self) -> None:
        rebuild_index(self.repo)

    @rule()
    def reopen(self) -> None:
        for lease, _, _ in self.open_writers:
            lease.release()
        self.repo.close()
        self.forget()
        self.open()

    @rule(seed=st.integers(0, 2**32), keep_index=st.booleans())
    def crash(self, seed: int, keep_index: bool) -> None:
        self.repo.blobs.close()
        self.disk.cut(random.Random(seed))
        if not keep_index:
            (self.folder / "index.sqlite").unlink()
        self.forget()
        self.open()

    def forget(self) -> None:
        self.leased.clear()
        self.open_writers.clear()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "repo"):
            return
        assert {each.id for each in self.repo.snapshots()} == set(self.model)
        for name, files in self.model.items():
            assert get_tree(self.repo, self.repo.snapshot(name).tree) == files
        for _, held in self.leased:
            for snapshot, files in held.values():
                assert get_tree(self.repo, snapshot.tree) == files

    def teardown(self) -> None:
        if hasattr(self, "repo"):
            report = check(self.repo)
            self.repo.close()
            shutil.rmtree(self.folder)
            assert report.ok, report.damage


StoreMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStore = StoreMachine.TestCase
