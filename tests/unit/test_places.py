"""Where a container can write, from a real mount namespace and what the engine says of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from turnkeep.errors import SandboxGone, Unsupported
from turnkeep.model import Mount, MountKind
from turnkeep.runtime.places import Place, Places, find_places

from tests.unit.namespaces import Namespace


class Sandbox:
    """A namespace whose root is an overlay, as a container's is."""

    def __init__(self, namespace: Namespace, folder: Path, options: str = "") -> None:
        self.folder = folder
        for part in (
            "low/proc",
            "low/etc",
            "low/data",
            "low/tmp",
            "low/host",
            "low/odd",
            "up",
            "work",
            "merged",
        ):
            (folder / part).mkdir(parents=True)
        for part in ("low/etc/hosts", "hosts"):
            (folder / part).write_text("127.0.0.1 localhost\n")
        for part in ("volume", "host"):
            (folder / part).mkdir()
        self.namespace = namespace
        layers = f"lowerdir={folder}/low,upperdir={folder}/up,workdir={folder}/work{options}"
        namespace.mount("overlay", layers, folder / "merged")
        self.inspected: dict[str, Any] = {
            "Id": "c" * 64,
            "Name": "/web",
            "State": {"Pid": 0},
            "Config": {"Labels": {}},
            "Mounts": [],
            "HostsPath": str(folder / "hosts"),
            "GraphDriver": {"Data": {"UpperDir": str(folder / "up")}},
        }

    def bind(self, source: str, target: str) -> None:
        self.namespace.run("mount", "--bind", self.folder / source, self.folder / "merged" / target)

    def declare(self, kind: str, source: str, target: str, **more: str) -> None:
        self.inspected["Mounts"].append(
            {"Type": kind, "Source": str(self.folder / source), "Destination": f"/{target}", **more}
        )

    def cover(self, targets: str) -> None:
        self.inspected["Config"]["Labels"]["turnkeep.binds"] = targets

    def enter(self) -> Namespace:
        """Start a process whose root it is; it stands for the container's init."""
        inside = ["nsenter", f"--mount=/proc/{self.namespace.pid}/ns/mnt", "unshare", "--mount"]
        command = [*inside, sys.executable, "-c", _PIVOT, str(self.folder / "merged")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert process.stdout is not None
        assert process.stdout.read(6) == b"ready\n"
        self.inspected["State"]["Pid"] = process.pid
        return Namespace(process)


_PIVOT = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(sys.argv[1])
assert libc.mount(b"none", b"/", None, 0x40000 | 0x4000, None) == 0
assert libc.pivot_root(b".", b"tmp") == 0
assert libc.umount2(b"/tmp", 2) == 0
os.chdir("/")
os.write(1, b"ready\\n")
os.read(0, 1)
"""


@pytest.fixture
def sandbox(namespace: Namespace, tmp_path: Path) -> Sandbox:
    return Sandbox(namespace, tmp_path)


def places_of(sandbox: Sandbox, shared: tuple[str, ...] = ()) -> Places:
    """Find the places of a sandbox that is set up."""
    inside = sandbox.enter()
    try:
        return find_places(sandbox.inspected, shared)
    finally:
        inside.close()


def what(mounts: tuple[Mount, ...]) -> list[tuple[str, str]]:
    """Return targets and kinds."""
    return [(mount.target, mount.kind.value) for mount in mounts]


def test_a_root_alone(sandbox: Sandbox) -> None:
    places = places_of(sandbox)
    assert what(places.mounts) == [("/", "rootfs")]
    root = places.rootfs
    assert (root.host_path, root.layers) == (str(sandbox.folder / "up"), (str(sandbox.folder / "low"),))
    assert (root.slot, root.exclude, root.is_rootfs) == (b"rootfs", frozenset(), True)


def test_everything_that_is_covered(sandbox: Sandbox) -> None:
    sandbox.bind("volume", "data")
    sandbox.declare("volume", "volume", "data", Name="v", Driver="local")
    sandbox.bind("host", "host")
    sandbox.declare("bind", "host", "host")
    sandbox.cover(" /host , /other")
    sandbox.bind("hosts", "etc/hosts")
    sandbox.namespace.mount("tmpfs", "size=1m", sandbox.folder / "merged/odd")
    places = places_of(sandbox)
    assert what(places.mounts) == [
        ("/", "rootfs"),
        ("/data", "volume"),
        ("/etc/hosts", "file"),
        ("/host", "bind"),
        ("/odd", "tmpfs"),
    ]
    assert places.uncovered == ()
    assert places.rootfs.exclude == {b"data", b"host", b"etc/hosts", b"odd"}
    by_slot = places.by_slot()
    assert by_slot[b"%2Fdata"].host_path == str(sandbox.folder / "volume")
    assert by_slot[b"%2Fetc%2Fhosts"].host_path == str(sandbox.folder / "hosts")
    assert by_slot[b"%2Fodd"].host_path == ""


def test_what_is_not_covered_says_so(sandbox: Sandbox) -> None:
    sandbox.bind("volume", "data")
    sandbox.declare("volume", "volume", "data", Name="shared", Driver="local")
    sandbox.bind("host", "host")
    sandbox.declare("bind", "host", "host")
    sandbox.bind("host", "odd")
    places = places_of(sandbox, shared=("shared",))
    assert what(tuple(place.mount for place in places.covered)) == [("/", "rootfs")]
    assert {mount.target: mount.covered for mount in places.uncovered} == dict.fromkeys(
        ("/data", "/host", "/odd"), False
    )
    reasons = {mount.target: mount.reason for mount in places.uncovered}
    assert "shared with other containers" in reasons["/data"]
    assert "label turnkeep.binds=/host covers it" in reasons["/host"]
    assert "Docker does not know" in reasons["/odd"]
    # They are no part of the root either.
    assert places.rootfs.exclude == {b"data", b"host", b"odd"}


def test_a_shared_volume_is_covered_when_its_label_says_so(sandbox: Sandbox) -> None:
    sandbox.bind("volume", "data")
    sandbox.declare("volume", "volume", "data", Name="shared", Driver="local")
    sandbox.cover("/data")
    assert places_of(sandbox, shared=("shared",)).uncovered == ()


def test_a_volume_of_another_driver_is_not_covered(sandbox: Sandbox) -> None:
    sandbox.bind("volume", "data")
    sandbox.declare("volume", "volume", "data", Name="v", Driver="nfs")
    (mount,) = places_of(sandbox).uncovered
    assert "driver nfs" in mount.reason


def test_a_read_only_mount_is_no_place(sandbox: Sandbox) -> None:
    sandbox.bind("host", "host")
    sandbox.namespace.run("mount", "-o", "remount,bind,ro", sandbox.folder / "merged/host")
    places = places_of(sandbox)
    assert what(places.mounts) == [("/", "rootfs")]
    assert places.rootfs.exclude == {b"host"}


def test_a_mount_over_a_mount_hides_it(sandbox: Sandbox) -> None:
    sandbox.bind("host", "odd")
    sandbox.namespace.mount("tmpfs", "size=1m", sandbox.folder / "merged/odd")
    assert what(places_of(sandbox).mounts) == [("/", "rootfs"), ("/odd", "tmpfs")]


def test_a_tmpfs_is_reached_through_the_init(sandbox: Sandbox) -> None:
    sandbox.namespace.mount("tmpfs", "size=1m", sandbox.folder / "merged/odd")
    sandbox.namespace.run("touch", sandbox.folder / "merged/odd/file")
    inside = sandbox.enter()
    place = find_places(sandbox.inspected).covered[1]
    fd = place.open(inside.pid)
    # Through a descriptor for reading: the place's own is O_PATH.
    listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
    assert os.listdir(listing) == ["file"]
    os.close(listing)
    os.close(fd)
    moved = Place(slot=place.slot, mount=place.mount, device=place.device + 1)
    with pytest.raises(SandboxGone, match="no longer the mount it was"):
        moved.open(inside.pid)
    inside.close()
    with pytest.raises(SandboxGone):
        place.open(inside.pid)


@pytest.mark.parametrize("option", ["metacopy", "redirect_dir"])
def test_an_upper_layer_that_lacks_data_is_refused(namespace: Namespace, tmp_path: Path, option: str) -> None:
    sandbox = Sandbox(namespace, tmp_path, f",{option}=on")
    with pytest.raises(Unsupported, match=f"{option}=on"):
        places_of(sandbox)


def test_another_upper_layer_than_the_engines_is_refused(sandbox: Sandbox) -> None:
    sandbox.inspected["GraphDriver"]["Data"]["UpperDir"] = str(sandbox.folder / "low")
    with pytest.raises(Unsupported, match="the engine says"):
        places_of(sandbox)


def test_an_engine_that_says_nothing_is_believed(sandbox: Sandbox) -> None:
    """containerd's snapshotter has no GraphDriver."""
    del sandbox.inspected["GraphDriver"]
    assert places_of(sandbox).rootfs.host_path == str(sandbox.folder / "up")


def test_a_root_that_is_no_overlay_is_refused(sandbox: Sandbox) -> None:
    sandbox.namespace.mount("tmpfs", "size=1m", sandbox.folder / "merged")
    sandbox.namespace.run("mkdir", sandbox.folder / "merged/tmp")
    with pytest.raises(Unsupported, match="is tmpfs, not overlay"):
        places_of(sandbox)


def test_an_init_that_is_gone() -> None:
    with pytest.raises(SandboxGone):
        find_places({"Id": "c" * 64, "Name": "/web", "State": {"Pid": 999999999}, "Config": {}})


def test_kinds_are_told_apart() -> None:
    file = Place(slot=b"x", mount=Mount(target="/x", kind=MountKind.FILE, covered=True))
    assert (file.is_file, file.is_rootfs) == (True, False)
