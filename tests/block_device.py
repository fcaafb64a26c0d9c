"""Block devices of the tests' own: ext4 on a disk that is recorded and can fail (see `fuse_disk`)."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

LIMIT_S = 60.0
ROOT = Path(__file__).parents[1]
_PROGRAMS = ("mkfs.ext4", "e2fsck", "losetup")


def require_block_devices() -> None:
    """Skip on a laptop, and fail in CI, where there are no loop devices or no FUSE."""
    try:
        if os.geteuid() != 0:
            raise OSError("not root")
        for device in ("/dev/fuse", "/dev/loop-control"):
            os.close(os.open(device, os.O_RDWR))
        for program in _PROGRAMS:
            run(program, "-V" if program != "losetup" else "--version")
    except (OSError, subprocess.CalledProcessError) as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs FUSE, loop devices and ext4: {error}")
        pytest.skip(f"needs root, FUSE, loop devices and ext4: {error}")


def run(*command: str | Path, accepted: tuple[int, ...] = (0,)) -> str:
    """Run a program; return what it printed."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LIMIT_S)
    if done.returncode not in accepted:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    return done.stdout


def make_ext4(image: Path, size_bytes: int) -> None:
    """Make a file that holds an empty ext4, all of it written."""
    with image.open("wb") as file:
        file.truncate(size_bytes)
    written = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
    run("mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", "-E", written, image)


@contextlib.contextmanager
def mounted(device: Path, folder: Path, options: str = "nodiscard") -> Iterator[Path]:
    """Mount a device, or a file that holds one, for a `with` block."""
    folder.mkdir(exist_ok=True)
    if device.is_file():
        options += ",loop"
    run("mount", "-t", "ext4", "-o", options, device, folder)
    try:
        yield folder
    finally:
        try:
            run("umount", folder)
        except BaseException:
            run("umount", "--lazy", folder)
            raise


def mount_options(folder: Path) -> set[str]:
    """Return the options of what is mounted on a folder."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, _, options, *_ = line.split()
        if target == str(folder):
            return set(options.split(","))
    raise AssertionError(f"nothing is mounted on {folder}")


@dataclass(frozen=True, slots=True)
class RecordedDisk:
    """A block device, the file that it is, what was written to it, and the file that has it fail."""

    device: Path
    file: Path
    image: Path
    log: Path
    control: Path

    def position(self) -> int:
        """Return how long the log is: all that was done so far."""
        return self.log.stat().st_size

    @contextlib.contextmanager
    def failing(self, *calls: str) -> Iterator[None]:
        """Have `write` or `sync` fail for a `with` block."""
        self.control.write_text(" ".join(calls))
        try:
            yield
        finally:
            self.control.unlink()

    def repaired(self) -> Path:
        """Return a copy of what it holds, with its ext4 checked and repaired.

        The device itself may be mounted yet: who has copied the mount namespace meanwhile has
        the mount, too, and who mounted it again would get that one.
        """
        copy = self.log.with_name("repaired")
        shutil.copyfile(self.file, copy)
        run("e2fsck", "-f", "-y", copy, accepted=(0, 1))
        return copy


@contextlib.contextmanager
def recorded_disk(folder: Path, size_bytes: int) -> Iterator[RecordedDisk]:
    """Make a recorded disk with an empty ext4 for a `with` block."""
    image, log, control, served = (folder / name for name in ("image", "log", "control", "served"))
    make_ext4(image, size_bytes)
    served.mkdir()
    command = [sys.executable, "-m", "tests.fuse_disk", *map(str, (served, image, log, control))]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as server,
        contextlib.ExitStack() as stack,
    ):
        # If anything is stuck, nobody waits for it: what is killed answers with an error.
        stack.callback(_end, server, served)
        assert server.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(server.stdout, selectors.EVENT_READ)
            assert ready.select(LIMIT_S), "the disk is not served"
        assert server.stdout.readline() == b"mounted\n"
        device = Path(run("losetup", "--find", "--show", served / "disk").strip())
        stack.callback(run, "losetup", "--detach", device)
        yield RecordedDisk(device, served / "disk", image, log, control)


def _end(server: subprocess.Popen[bytes], served: Path) -> None:
    run("umount", "--lazy", served, accepted=(0, 1, 32))
    # Whoever has copied this mount namespace meanwhile may hold the device.
    try:
        server.wait(1)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
