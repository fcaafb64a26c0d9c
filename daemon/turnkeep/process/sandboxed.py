"""Dumping and restoring process trees inside a running sandbox.

CRIU runs in the sandbox's own namespaces (see `launcher`), so that for it there
is nothing to dump but processes. A tree is the sandbox's init with all that
descends from it, or one process that `docker exec` started, with what descends
from that. Blocking: use threads.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from turnkeep.errors import CriuFailed
from turnkeep.process.launch import Launcher, Place, Run, ready
from turnkeep.process.mounts import memory_file_system
from turnkeep.process.rpc import Answer, Options, dump_request, go_on, read_answer, restore_request
from turnkeep.process.wire import read_fields

LOG = "criu.log"
CACHE = "criu.kdat"
_NOT_IMAGES = frozenset({LOG, CACHE, "stats-dump", "stats-restore"})
_IMAGES, _FREEZER = "images", "../freezer"
_GHOST_LIMIT = 1 << 30
_SHOWN_LINES = 6
_CORE = re.compile(r"core-(\d+)\.img")
_RESTORED = "pre-resume"
_TIMEOUT_S = 120.0
_STATS_MAGIC_BYTES = 8


@dataclass(slots=True)
class Images:
    """A folder with one tree's images, in memory unless `path` says otherwise.

    `mount` is the file system's root, `folder` its descriptor that stays valid when
    the mount was handed over.
    """

    mount: int
    folder: int
    path: str = ""
    name: str = "."

    @classmethod
    def in_memory(cls, limit_bytes: int, name: str = ".") -> Images:
        """Make an empty folder in memory, of bounded size; with a name, below the file system's root."""
        mount = memory_file_system(limit_bytes)
        try:
            if name != ".":
                os.mkdir(name, 0o700, dir_fd=mount)
            folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
            return cls(mount, folder, name=name)
        except BaseException:
            os.close(mount)
            raise

    @classmethod
    def on_disk(cls, below: Path) -> Images:
        """Make an empty folder on the disk; it is removed when this is closed."""
        path = tempfile.mkdtemp(prefix="images-", dir=below)
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            return cls(os.dup(folder), folder, path)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise

    def names(self) -> list[str]:
        """Return the names of the images; logs and caches are none."""
        return sorted(set(os.listdir(self.folder)) - _NOT_IMAGES)

    def threads(self) -> list[int]:
        """Return the pids of all threads whose registers are among the images."""
        return [int(found[1]) for name in self.names() if (found := _CORE.fullmatch(name))]

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Open one file."""
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.folder)

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        with os.fdopen(self.open(name), "rb") as file:
            return file.read()

    def size(self, name: str) -> int:
        """Return a file's size."""
        return os.stat(name, dir_fd=self.folder, follow_symlinks=False).st_size

    @property
    def as_path(self) -> Path:
        """A path that leads to it for processes of the host, while this one lives and holds it."""
        if self.path:
            return Path(self.path)
        return Path(f"/proc/{os.getpid()}/fd/{self.mount}", self.name)

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        with os.fdopen(self.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(content)

    def close(self) -> None:
        """Let go of it; what it holds is gone then."""
        for fd in (self.mount, self.folder):
            if fd >= 0:
                os.close(fd)
        self.mount = self.folder = -1
        if self.path:
            shutil.rmtree(self.path, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """CRIU's own figures of a dump (its stats-dump image), in microseconds and pages."""

    freezing_us: int = 0
    frozen_us: int = 0
    memory_us: int = 0
    writing_us: int = 0
    pages_scanned: int = 0
    pages_written: int = 0


@dataclass(slots=True)
class Dumped:
    """One tree's images, and what they cost."""

    images: Images
    stats: Stats
    total_ns: int
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Waiting:
    """A CRIU that was started and was not asked for anything yet."""

    run: Run
    images: Images
    used: bool = False


@dataclass(slots=True)
class InSandbox:
    """The engine that works inside running sandboxes. Used from any thread.

    Images that take more than `image_bytes` go to the folder `disk` instead of memory,
    and are refused without one.
    `cache` is what CRIU found out about this kernel, as it wrote it itself in a
    run of our own (see `prime`): finding out takes it longer than many a dump.
    """

    launcher: Launcher
    image_bytes: int
    disk: Path | None
    cache: bytes = field(default=b"", repr=False)

    def new_images(self, name: str = ".", *, expected_bytes: int = 0) -> Images:
        """Make an empty folder for a tree's images: in memory, or on the disk if they are too large.

        Raises:
            CriuFailed: they are, and must not lie on the disk.
        """
        if expected_bytes > self.image_bytes:
            if self.disk is None:
                raise CriuFailed(
                    f"its images of {expected_bytes} bytes do not fit into process.image_bytes,"
                    " and are not put on the disk, as the state is encrypted"
                )
            return Images.on_disk(self.disk)
        return Images.in_memory(self.image_bytes, name)

    @contextlib.contextmanager
    def waiting(self, place: Place, expected_bytes: int = 0) -> Iterator[Waiting]:
        """Start CRIU ahead of a dump, for a `with` block: starting takes it a while.

        Raises:
            CriuFailed: it cannot be started.
        """
        images = self.new_images(expected_bytes=expected_bytes)
        waiting = Waiting(None, images)  # type: ignore[arg-type]
        try:
            with self._started(place, images) as run:
                waiting.run = run
                yield waiting
        finally:
            if not waiting.used:
                images.close()

    def dump(
        self, waiting: Waiting, root: int, *, external: Sequence[str] = (), tcp_close: bool = True
    ) -> Dumped:
        """Dump the tree whose root has this pid inside the sandbox; it goes on running.

        The caller has frozen the sandbox's cgroup, `place.freezer`; it is frozen
        when this returns or raises. The caller closes the images. `external` names
        files from outside of the sandbox, for which a restore is given others.

        Raises:
            CriuFailed: CRIU cannot dump it; the message quotes its log.
        """
        started = time.monotonic_ns()
        options = Options(
            images_dir=_IMAGES,
            log_file=LOG,
            pid=root,
            freeze_cgroup=_FREEZER,
            tcp_close=tcp_close,
            ghost_limit=_GHOST_LIMIT,
            external=external,
        )
        answer = _ask(waiting.run, dump_request(options))
        if not answer.success:
            raise _failed("dump", f"process {root}", waiting.images, answer)
        waiting.used = True
        stats = _stats(waiting.images.read("stats-dump"))
        return Dumped(waiting.images, stats, time.monotonic_ns() - started, log_lines(waiting.images, "Warn"))

    def restore(
        self,
        place: Place,
        images: Images,
        check: Callable[[], None],
        *,
        inherit: Mapping[str, int] | None = None,
        tcp_close: bool = True,
    ) -> None:
        """Restore a tree beside the sandbox's init.

        Where pids of theirs come next in the sandbox, they are kept from CRIU itself.
        `check` is called when the processes are complete and none has run an
        instruction yet; if it raises, they are killed, and its error is raised.
        `inherit` names files of the images that are replaced by descriptors.

        Raises:
            CriuFailed: CRIU cannot restore it; nothing of it is left.
        """
        keys = list(inherit or {})
        options = Options(
            images_dir=_IMAGES,
            log_file=LOG,
            tcp_close=tcp_close,
            inherit={key: 4 + index for index, key in enumerate(keys)},
        )
        handed_down = [(inherit or {})[key] for key in keys]
        problem: Exception | None = None

        def on_stage(stage: str) -> bool:
            nonlocal problem
            if stage != _RESTORED:
                return True
            try:
                check()
            except Exception as error:
                problem = error
                return False
            return True

        place = replace(place, avoid={*place.avoid, *images.threads()})
        with self._started(place, images, handed_down) as run:
            answer = _ask(run, restore_request(options), on_stage)
        if problem is not None:
            raise problem
        if not answer.success:
            raise _failed("restore", "the images", images, answer)

    def prime(self, place: Place) -> None:
        """Have CRIU find out what this kernel can do, and remember it.

        `place` has to be namespaces of our own making: what is found out in a
        sandbox is never believed.
        """
        images = Images.in_memory(self.image_bytes)
        try:
            with self._started(place, images) as run:
                _ask(run, dump_request(Options(images_dir=_IMAGES, log_file=LOG, pid=1 << 22)))
            with contextlib.suppress(FileNotFoundError):
                self.cache = images.read(CACHE)
        finally:
            images.close()

    @contextlib.contextmanager
    def _started(self, place: Place, images: Images, handed_down: Sequence[int] = ()) -> Iterator[Run]:
        if self.cache:
            images.write(CACHE, self.cache)
        log = images.open("launcher.log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            run = self.launcher.start(place, images.path or images.mount, log, handed_down)
        finally:
            os.close(log)
        try:
            yield run
        finally:
            run.socket.close()
            run.wait()


def _ask(run: Run, request: bytes, on_stage: Callable[[str], bool] = lambda stage: True) -> Answer:
    """Send a request and answer CRIU's stages until it says how it ended."""
    try:
        run.socket.send(request)
        while ready(run.socket, _TIMEOUT_S):
            data = run.socket.recv(65536)
            if not data:
                return Answer(error="it ended without an answer")
            answer = read_answer(data)
            if not answer.stage:
                return answer
            run.socket.send(go_on(success=on_stage(answer.stage)))
    except (OSError, ValueError) as error:
        return Answer(error=str(error))
    return Answer(error=f"no answer within {_TIMEOUT_S:g} s")


def _failed(what: str, whom: str, images: Images, answer: Answer) -> CriuFailed:
    lines = log_lines(images)
    quoted = "; ".join(lines) or answer.error or "without a word"
    return CriuFailed(f"CRIU could not {what} {whom}: {quoted}", hint=hint_for(quoted))


_NOISE = (
    "tun: Unable to create tun",
    "Can't setup RLIMIT_NOFILE for self",
    "Dumping FAILED",
    "Restoring FAILED",
    "cgroupd: recv req error",
)


def log_lines(images: Images, word: str = "Error") -> tuple[str, ...]:
    """Return the lines of CRIU's log that say what went wrong, the first of them."""
    found = []
    for name in (LOG, "launcher.log"):
        with contextlib.suppress(FileNotFoundError):
            text = images.read(name).decode("utf-8", "replace")
            found += [line for line in text.splitlines() if word in line]
    useful = [line for line in found if not any(noise in line for noise in _NOISE)]
    return tuple(re.sub(r"^\(\S+\)\s*", "", line).strip() for line in useful or found)[:_SHOWN_LINES]


_HINTS = (
    ("rlimit", "the daemon lacks CAP_SYS_RESOURCE, which CRIU needs for processes of another user"),
    ("has bad size", "a file that a process had open is not as it was at the checkpoint"),
    ("No space left", "process.image_bytes is too small for the memory of these processes"),
    ("io_uring", "a process uses io_uring, which CRIU cannot dump"),
    ("IPC", "a process uses System V IPC, which only the whole-container engine takes"),
    ("pid", "a process id of the checkpoint is taken"),
)


def hint_for(text: str) -> str:
    """Return what to do about a failure of CRIU's, as far as that is known."""
    return next((hint for word, hint in _HINTS if word in text), "turnkeep doctor says what CRIU can do here")


def _stats(image: bytes) -> Stats:
    """Read CRIU's stats image: magic, length, and a message that holds one of figures (field 1)."""
    body = image[_STATS_MAGIC_BYTES:]
    (length,) = struct.unpack_from("<I", body)
    outer = dict(read_fields(body[4 : 4 + length]))
    inner = outer.get(1, b"")
    figures = dict(read_fields(inner)) if isinstance(inner, bytes) else {}
    names = ("freezing_us", "frozen_us", "memory_us", "writing_us", "pages_scanned")
    values = {name: int(figures.get(number, 0)) for number, name in enumerate(names, 1)}
    return Stats(**values, pages_written=int(figures.get(7, 0)))
