"""The part about the store: a whole folder in and out, beside restic, borg and `tar | zstd -1`."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import docker
from demo.stage import IMAGE, Failed
from docker.errors import NotFound
from docker.models.containers import Container

from bench import disk, floors, loop, report
from bench.figures import Limit, Measure, Part, Sections, figures
from bench.samples import Samples
from bench.scene import Scene
from bench.tools import Borg, EncryptedStore, Restic, Store, TarZstd, Tool, why_missing

_NAME = "state"
_DISK_BYTES = 8 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which folders of the sandboxes' image are stored, and at most how often."""

    folders: tuple[str, ...] = ("etc", "usr", "var")
    runs: int = 8


class _Rounds:
    """Each tool's way in and out; they take turns."""

    def __init__(self, folder: Path, tree: Path, tools: list[Tool]) -> None:
        self.samples = Samples()
        self.content = disk.content(tree)
        self._folder = folder
        self._tree = tree
        self._tools = tools
        self._checked: set[str] = set()

    def run(self) -> None:
        """Measure everything once, each tool with a store of its own that is new.

        Raises:
            Failed: what came out is not what went in.
        """
        steps: list[Callable[[], None]] = [self._floors]
        steps += [lambda tool=tool: self._tool(tool) for tool in self._tools]  # type: ignore[misc]
        for step in steps:
            step()
        # The next round begins with another one.
        self._tools.append(self._tools.pop(0))

    def _tool(self, tool: Tool) -> None:
        folder, target = self._folder / tool.key, self._folder / f"{tool.key}-out"
        folder.mkdir()
        target.mkdir()
        tool.prepare(folder)
        disk.forget(self._tree)
        with self.samples.timed(f"in_{tool.key}"):
            tool.keep(self._tree, _NAME)
        disk.forget(folder)
        with self.samples.timed(f"out_{tool.key}"):
            tool.bring(_NAME, target)
            disk.write_out(target)
        self.samples.add(f"stored_{tool.key}", disk.allocated_bytes(tool.stored_folder()))
        self._check(tool, target)
        shutil.rmtree(folder)
        shutil.rmtree(target)

    def _check(self, tool: Tool, target: Path) -> None:
        if disk.content(target) != self.content:
            raise Failed(f"{tool.title} brought {disk.content(target)} (names, bytes) back of {self.content}")
        if tool.key not in self._checked:
            subprocess.run(["diff", "-r", "-q", "--no-dereference", self._tree, target], check=True)
            self._checked.add(tool.key)

    def _floors(self) -> None:
        disk.forget(self._tree)
        with self.samples.timed("floor_read"):
            disk.read_all(self._tree)
        whole = self._folder / "all"
        with whole.open("wb") as file:
            subprocess.run(["tar", "-C", self._tree, "-cf", "-", "."], stdout=file, check=True)
        with self.samples.timed("floor_zstd"):
            subprocess.run(["zstd", "-1", "-q", "-c", whole], stdout=subprocess.DEVNULL, check=True)
        whole.unlink()
        floors.fsync(self.samples, "floor_fsync", self._folder / "floor")


def measure(scene: Scene, plan: Plan) -> Part:
    """Measure all tools that there are."""
    started = time.monotonic()
    wanted: list[Tool] = [Store(), EncryptedStore(), Restic(), Borg(), TarZstd()]
    missing = {tool.title: reason for tool in wanted if (reason := why_missing(tool.program))}
    tools = [tool for tool in wanted if tool.title not in missing]
    notes = [f"{title}: not measured. {reason}" for title, reason in missing.items()]
    with _disk(scene.folder, notes) as folder:
        tree = folder / "tree"
        tree.mkdir()
        _export(scene, plan.folders, tree)
        rounds = _Rounds(folder, tree, tools)
        for number in scene.budget.rounds(plan.runs):
            report.progress(f"store, round {number} of {plan.runs}")
            rounds.run()
    names, size = rounds.content
    took_s = time.monotonic() - started
    return Part(
        name="store",
        summary=f"in {took_s:.0f} s; {names:,} names and {size / 2**20:,.0f} MiB"
        f" of the sandbox image's {', '.join(plan.folders)}",
        settings={"folders": list(plan.folders), "names": names, "bytes": size},
        sections=_sections(wanted, size),
        found=figures(rounds.samples.values),
        notes=notes,
    )


@contextlib.contextmanager
def _disk(folder: Path, notes: list[str]) -> Iterator[Path]:
    """Yield a folder on a file system of its own, or a plain one, with a note, where there can be none."""
    if reason := loop.why_not("ext4"):
        notes.append(f"no file system of its own, so syncs wait for what others write: {reason}")
        yield folder
        return
    with loop.file_system(folder, "ext4", _DISK_BYTES) as root:
        yield root


def _sections(tools: list[Tool], size: int) -> Sections:
    store = Store.key
    limits = {
        way: tuple(Limit(most, f"{way}_{key}") for key, most in (("restic", 1), ("borg", 1), ("tar", 2)))
        for way in ("in", "out")
    }
    titles = {"in": "in: kept in a new store, cold", "out": "out: brought back, cold"}
    rows: dict[str, dict[str, Measure]] = {}
    for way, title in titles.items():
        rows[title] = {
            f"{way}_{tool.key}": Measure(
                tool.title,
                peer="" if tool.key == store else f"{way}_{store}",
                short=tool.key,
                limits=limits[way] if tool.key == store else (),
                moved_bytes=size,
                axes={"quantity": way, "tool": tool.title},
            )
            for tool in tools
        }
    rows["what it takes up on the disk"] = {
        f"stored_{tool.key}": Measure(
            tool.title,
            peer="" if tool.key == store else f"stored_{store}",
            unit="bytes",
            short=tool.key,
            axes={"quantity": "stored", "tool": tool.title},
        )
        for tool in tools
    }
    rows["the machine"] = {
        "floor_read": Measure(
            "reading all of it, cold", short="read", moved_bytes=size, axes={"quantity": "floor read"}
        ),
        "floor_zstd": Measure(
            "zstd -1 of all of it, warm", moved_bytes=size, axes={"quantity": "floor zstd"}
        ),
        "floor_fsync": Measure("append 4 KiB and fsync"),
    }
    return rows


def _export(scene: Scene, folders: tuple[str, ...], tree: Path) -> None:
    """Unpack folders of the sandboxes' image."""
    with _container(scene.engine, scene.name) as container:
        with subprocess.Popen(["tar", "-C", tree, "-xf", "-", *folders], stdin=subprocess.PIPE) as tar:
            assert tar.stdin is not None
            # The types say text, the engine sends bytes.
            for piece in cast(Iterator[bytes], container.export()):
                tar.stdin.write(piece)
            tar.stdin.close()
        if tar.returncode != 0:
            raise Failed(f"tar could not unpack {', '.join(folders)} of the image {IMAGE}")
    disk.write_out(tree)


@contextlib.contextmanager
def _container(engine: docker.DockerClient, name: str) -> Iterator[Container]:
    """Yield a container that never runs."""
    try:
        yield engine.containers.create(IMAGE, ["true"], name=name)
    finally:
        with contextlib.suppress(NotFound):
            engine.api.remove_container(name, force=True, v=True)
