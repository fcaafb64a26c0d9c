"""Anything a sandbox may do to its files, checkpoints at any time, and back again on either way."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from turnkeep.paths import ROOTFS
from turnkeep_store.repository import Repository
from turnkeep_store.tree import Entry

from .listing import listing
from .overlays import Overlay, build_image
from .sandboxes import Sandbox, Saved

SECOND = 10**9


def _image_base(root: Path) -> None:
    for folder in ("d", "d/sub", "e", "e/sub", "e/sub/deep"):
        (root / folder).mkdir()
    for path in ("d/a", "d/b", "d/sub/x", "e/a", "e/sub/y", "e/sub/deep/z", "f"):
        (root / path).write_bytes(path.encode() * 10)
        os.utime(root / path, ns=(SECOND, SECOND))
    os.symlink("d/a", root / "l")
    os.mkfifo(root / "e/p")


def _image_top(root: Path) -> None:
    (root / "d/b").unlink()
    (root / "d/c").write_bytes(b"of the top layer")
    shutil.rmtree(root / "e/sub")
    (root / "e/sub").mkdir()
    (root / "e/sub/new").write_bytes(b"in an opaque folder")


OLD = st.integers(0, 63)
"""Chooses among what is there."""
NAMES = st.sampled_from([b"a", b"b", b"d", b"e", b"sub", b"n"])
CONTENTS = st.sampled_from([b"", b"x", b"other", b"d/a" * 10, bytes(9000) + b"end", b"x" * 200_000])
MODES = st.sampled_from([0o644, 0o755, 0o600, 0, 0o4755, 0o2770, 0o1777])
OWNERS = st.sampled_from([0, 1000, 65534])
TIMES = st.sampled_from([SECOND, 0, -SECOND - 1, 1_700_000_000 * SECOND + 123_456_789])
ATTRIBUTES = st.sampled_from(["user.a", "user.b", "trusted.t"])
VALUES = st.sampled_from([b"", b"1", b"\0\xff" * 20])


class SandboxMachine(RuleBasedStateMachine):
    """Changes files through the merged view of an overlay, and takes and restores checkpoints."""

    repository: ClassVar[Repository]
    layers: ClassVar[Sequence[Path]]

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tk-"))
        overlay = Overlay(self.folder / "sandbox", self.layers)
        self.sandbox = Sandbox(overlay, self.repository)
        overlay.mount()
        self.root = os.fsencode(overlay.merged)
        self.saved = [self.sandbox.checkpoint()]

    def teardown(self) -> None:
        if hasattr(self, "sandbox"):
            self.sandbox.close()
            shutil.rmtree(self.folder)

    def at(self, path: bytes) -> bytes:
        return self.root + b"/" + path

    # Much of what is drawn is impossible in the state at hand; the kernel says so.

    @rule(path=PATHS, content=CONTENTS)
    def write(self, path: bytes, content: bytes) -> None:
        with _if_possible():
            fd = os.open(self.at(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_NOFOLLOW)
            with open(fd, "wb") as file:
                file.write(content)

    @rule(path=PATHS, size=st.sampled_from([0, 1, 5, 100_000, 3_000_000]))
    def truncate(self, path: bytes, size: int) -> None:
        if os.path.isfile(self.at(path)) and not os.path.islink(self.at(path)):
            os.truncate(self.at(path), size)

    @rule(path=PATHS)
    def append(self, path: bytes) -> None:
        with _if_possible():
            fd = os.open(self.at(path), os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW)
            with open(fd, "wb") as file:
                file.write(b"+")

    @rule(path=PATHS)
    def unlink(self, path: bytes) -> None:
        with _if_possible():
            os.unlink(self.at(path))

    @rule(path=PATHS, mode=MODES)
    def make_folder(self, path: bytes, mode: int) -> None:
        with _if_possible():
            os.mkdir(self.at(path), mode)

    @rule(path=PATHS)
    def remove_folder(self, path: bytes) -> None:
        with _if_possible():
            os.rmdir(self.at(path))

    @rule(path=PATHS)
    def remove_all(self, path: bytes) -> None:
        if os.path.isdir(self.at(path)) and not os.path.islink(self.at(path)):
            shutil.rmtree(self.at(path))

    @rule(path=PATHS)
    def make_anew(self, path: bytes) -> None:
        """Delete a folder and make one of the same name, which hides the image's."""
        self.remove_all(path)
        self.make_folder(path, 0o755)

    @rule(path=PATHS)
    def replace_folder_by_file(self, path: bytes) -> None:
        self.remove_all(path)
        self.write(path, b"was a folder")

    @rule(old=OLD, folder=OLD, name=NAMES)
    def rename(self, old: int, folder: int, name: bytes) -> None:
        with _if_possible():
            os.rename(self.old(old), self.new(folder, name))

    @rule(old=OLD, folder=OLD, name=NAMES)
    def link(self, old: int, folder: int, name: bytes) -> None:
        with _if_possible():
            os.link(self.old(old), self.new(folder, name), follow_symlinks=False)

    @rule(path=PATHS, text=st.sampled_from([b"d/a", b"../..", b"/etc/passwd", b"nowhere", b"n" * 300]))
    def symlink(self, path: bytes, text: bytes) -> None:
        with _if_possible():
            os.symlink(text, self.at(path))

    @rule(path=PATHS, kind=st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK]))
    def make_node(self, path: bytes, kind: int) -> None:
        with _if_possible():
            os.mknod(self.at(path), kind | 0o640, os.makedev(1, 3))

    @rule(path=PATHS, mode=MODES)
    def chmod(self, path: bytes, mode: int) -> None:
        if not os.path.islink(self.at(path)):
            with _if_possible():
                os.chmod(self.at(path), mode)

    @rule(path=PATHS, uid=OWNERS, gid=OWNERS)
    def chown(self, path: bytes, uid: int, gid: int) -> None:
        with _if_possible():
            os.chown(self.at(path), uid, gid, follow_symlinks=False)

    @rule(path=PATHS, name=ATTRIBUTES, value=VALUES)
    def set_attribute(self, path: bytes, name: str, value: bytes) -> None:
        with _if_possible():
            os.setxattr(self.at(path), name, value, follow_symlinks=False)

    @rule(path=PATHS, name=ATTRIBUTES)
    def remove_attribute(self, path: bytes, name: str) -> None:
        with _if_possible():
            os.removexattr(self.at(path), name, follow_symlinks=False)

    @rule(path=PATHS, mtime_ns=TIMES)
    def set_time(self, path: bytes, mtime_ns: int) -> None:
        with _if_possible():
            os.utime(self.at(path), ns=(0, mtime_ns), follow_symlinks=False)

    @rule(path=PATHS)
    def put_back(self, path: bytes) -> None:
        """Write what the image has, with its time."""
        image = [layer / os.fsdecode(path) for layer in self.layers]
        source = next((each for each in image if each.is_file() and not each.is_symlink()), None)
        if source is not None:
            self.write(path, source.read_bytes())
            self.set_time(path, source.stat().st_mtime_ns)
            self.chmod(path, stat.S_IMODE(source.stat().st_mode))
            self.chown(path, 0, 0)

    @rule(busy=st.booleans())
    def checkpoint(self, busy: bool) -> None:
        saved = self.sandbox.checkpoint(busy=busy)
        self.compare_with_full(saved)
        self.saved.append(saved)

    @rule()
    def end_turn(self) -> None:
        """A turn is skipped only if its state is the last checkpoint's."""
        assert self.sandbox.baseline.tree is not None
        last = self.repository.read_directory(self.sandbox.baseline.tree).digest()
        same = self.sandbox.full_state().digest == last
        assert self.sandbox.end_turn() == same

    @rule(number=st.integers(0, 30))
    def restore_live(self, number: int) -> None:
        saved = self.saved[number % len(self.saved)]
        self.sandbox.restore_live(saved)
        self.compare(saved)

    @rule(number=st.integers(0, 30))
    def restore_cold(self, number: int) -> None:
        saved = self.saved[number % len(self.saved)]
        self.sandbox.restore_cold(saved)
        self.compare(saved)

    def compare(self, saved: Saved) -> None:
        assert listing(self.sandbox.root) == saved.listing
        self.compare_with_full(saved)

    def compare_with_full(self, saved: Saved) -> None:
        full = self.sandbox.full_state()
        assert full.digest == saved.digest


class _if_possible(contextlib.suppress):  # noqa: N801
    def __init__(self) -> None:
        super().__init__(OSError)


def test_every_checkpoint_comes_back(repository: Repository, tmp_path: Path) -> None:
    SandboxMachine.repository = repository
    SandboxMachine.layers = build_image(tmp_path / "image", [_image_base, _image_top])
    run_state_machine_as_test(
        SandboxMachine,
        settings=settings(
            max_examples=int(os.environ.get("EX", "60")),
            stateful_step_count=int(os.environ.get("ST", "50")),
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
