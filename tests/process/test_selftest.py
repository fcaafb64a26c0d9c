"""The self-test on this host: it passes where CRIU works, says why where not, and leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from turnkeep.config import ProcessSettings
from turnkeep.errors import CaptureFailed, Unsupported
from turnkeep.process import selftest
from turnkeep.process.engine import Processes
from turnkeep.process.features import look_for_features, missing_capabilities
from turnkeep.process.sandboxed import Dumped, Images, InSandbox
from turnkeep.process.selftest import NOBODY, try_out
from turnkeep.runtime.freezer import Freezer
from turnkeep.runtime.scratch import ScratchGroup, scratch_group

pytestmark = pytest.mark.docker

BUDGET_S = 20.0
CAP_SYS_RESOURCE = 24


def holds(capability: int) -> bool:
    """Whether this process has a capability."""
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
    return bool(int(status["CapEff"], 16) >> capability & 1)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InSandbox]:
    """The engine with this host's CRIU; without one, skip on a laptop and fail in CI."""
    processes = Processes(ProcessSettings(), tmp_path_factory.mktemp("run"))
    if not processes.available:
        if os.environ.get("CI"):
            pytest.fail(processes.degraded)
        pytest.skip(processes.degraded)
    yield processes.engine
    processes.close()


@pytest.fixture
def freezer() -> Iterator[Freezer]:
    with Freezer() as started:
        yield started


@pytest.fixture
def group(freezer: Freezer) -> Iterator[ScratchGroup]:
    with scratch_group(freezer, BUDGET_S) as made:
        yield made
    assert not Path(made.freezer_folder).exists()


def boxes() -> list[str]:
    """Return the self-tests' processes that are there."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes()
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if b"selftest_box" in line and parent == str(os.getpid()):
                found.append(folder.name)
    return found


def test_a_process_of_root_goes_on(engine: InSandbox, group: ScratchGroup) -> None:
    trial = try_out(engine, group, 0)
    assert trial.passed, trial
    assert 0 < trial.stopped_ns < trial.total_ns
    assert (group.pids(), boxes()) == ([], [])


def test_a_process_of_another_user(engine: InSandbox, group: ScratchGroup) -> None:
    trial = try_out(engine, group, NOBODY)
    if holds(CAP_SYS_RESOURCE):
        assert trial.passed, trial
    else:
        assert "rlimit" in trial.error
        assert "CAP_SYS_RESOURCE" in trial.hint
    assert (group.pids(), boxes()) == ([], [])


def test_it_can_be_done_again(engine: InSandbox, group: ScratchGroup) -> None:
    assert [try_out(engine, group, 0).passed for _ in range(2)] == [True, True]


def test_what_came_back_otherwise_is_told(
    engine: InSandbox, group: ScratchGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of another process: it does not go on from where the dumped one was."""

    def corrupt(engine: InSandbox, dumped: Dumped) -> Images:
        images = copied(engine, dumped)
        for name in images.names():
            if name.startswith("pages-"):
                images.write(name, bytes(len(images.read(name))))
        return images

    copied = selftest._copied
    monkeypatch.setattr(selftest, "_copied", corrupt)
    assert not try_out(engine, group, 0).passed
    assert (group.pids(), boxes()) == ([], [])


class Refusing:
    """A group that cannot be frozen."""

    def __init__(self, group: ScratchGroup) -> None:
        self.freezer_folder = group.freezer_folder
        self.procs_files = group.procs_files
        self.pids = group.pids

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        raise CaptureFailed("it cannot be frozen", hint="wake it")
        yield


def test_a_failure_in_the_middle_leaves_nothing(engine: InSandbox, group: ScratchGroup) -> None:
    trial = try_out(engine, Refusing(group), 0)
    assert (trial.error, trial.hint) == ("it cannot be frozen", "wake it")
    assert (group.pids(), boxes()) == ([], [])


def test_whoever_is_in_a_scratch_group_is_killed_at_its_end(freezer: Freezer) -> None:
    with (
        subprocess.Popen(["sleep", "infinity"]) as process,
        scratch_group(freezer, BUDGET_S) as made,
    ):
        Path(made.procs_files()[0]).write_text(str(process.pid))
        assert made.pids() == [process.pid]
    assert process.returncode == -signal.SIGKILL
    assert not Path(made.freezer_folder).exists()


def test_what_a_killed_daemon_left_is_removed(freezer: Freezer) -> None:
    with scratch_group(freezer, BUDGET_S) as made:
        top = Path(made.freezer_folder).parent
    with subprocess.Popen(["true"]) as dead:
        pass
    left, other = top / f"turnkeep-self-test-{dead.pid}", top / f"turnkeep-self-test-{os.getppid()}"
    left.mkdir()
    other.mkdir()
    try:
        with scratch_group(freezer, BUDGET_S):
            assert not left.exists()
        assert other.exists(), "its daemon lives"
    finally:
        other.rmdir()


def test_without_a_hierarchy_nothing_freezes(freezer: Freezer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnkeep.runtime.scratch.read_mountinfo", lambda pid: [])
    with pytest.raises(Unsupported, match="no cgroup hierarchy can freeze"), scratch_group(freezer, BUDGET_S):
        pass


def test_this_kernel_has_what_is_needed() -> None:
    assert {each.name: each.present for each in look_for_features()} == dict.fromkeys(
        ("setns by pidfd", "detached mounts", "mount_setattr", "clone3", "checkpoint/restore", "kcmp"), True
    )
    assert missing_capabilities() == ()


UNPRIVILEGED: Mapping[str, bool] = {
    "setns by pidfd": False,
    "detached mounts": False,
    "mount_setattr": False,
    "clone3": True,
    "checkpoint/restore": True,
    "kcmp": True,
}


def test_without_rights_the_looks_say_so() -> None:
    """In a process of another user, for rights cannot be given back."""
    code = (
        "import json; from turnkeep.process.features import *;"
        "print(json.dumps([{each.name: each.present for each in look_for_features()},"
        " missing_capabilities()]))"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    found, lacking = json.loads(done.stdout)
    assert found == UNPRIVILEGED
    assert lacking == ["CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]
