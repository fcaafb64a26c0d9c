"""/proc/PID/mountinfo: the kernel's own, and what could be in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from turnkeep.errors import SandboxGone, Unsupported
from turnkeep.runtime.mountinfo import MountPoint, parse_mountinfo, read_mountinfo, split_layers
from turnkeep.runtime.places import overlay_dirs

from tests.unit.namespaces import Namespace

LINE = b"36 35 98:7 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n"


def one(line: bytes) -> MountPoint:
    """Parse a line that has to be understood."""
    (mount,) = parse_mountinfo(line)
    return mount


def overlay(options: bytes) -> MountPoint:
    """Return a root file system mounted so."""
    return one(b"1 0 0:50 / / rw,relatime - overlay overlay rw," + options)


def test_the_manuals_line() -> None:
    mount = one(LINE)
    assert (mount.mount_id, mount.device) == (36, os.makedev(98, 7))
    assert (mount.root, mount.target, mount.fs_type, mount.source) == (
        b"/mnt1",
        b"/mnt2",
        b"ext3",
        b"/dev/root",
    )
    assert mount.options == {b"rw", b"noatime"}
    assert mount.super_options == (b"rw", b"errors=continue")
    assert mount.super_option(b"errors") == b"continue"
    assert mount.super_option(b"error") is None


@pytest.mark.parametrize(
    ("options", "super_options", "writable"),
    [(b"rw", b"rw", True), (b"ro", b"rw", False), (b"rw", b"ro", False), (b"rw,ro-not", b"rw", True)],
)
def test_writable_means_both(options: bytes, super_options: bytes, writable: bool) -> None:
    assert one(b"1 0 0:1 / /x " + options + b" - tmpfs t " + super_options).writable is writable


def test_without_optional_fields_and_with_escapes() -> None:
    mount = one(rb"1 0 0:1 / /a\040b\011c\012d\134e rw - fuse.x a\040b rw")
    assert mount.target == b"/a b\tc\nd\\e"
    assert mount.source == b"a b"


def test_an_escape_is_undone_once() -> None:
    assert one(rb"1 0 0:1 / /a\134040b rw - tmpfs t rw").target == rb"/a\040b"


def test_a_carriage_return_ends_no_line() -> None:
    """The kernel does not escape it, and a mount that is not seen is not reported as uncovered."""
    assert one(b"1 0 0:1 / /a\rb rw - tmpfs t rw").target == b"/a\rb"


def test_this_process_own() -> None:
    mounts = read_mountinfo("self")
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    assert len(mounts) == len(lines)
    by_target = {mount.target: mount for mount in mounts}
    assert by_target[b"/"].device == os.stat("/").st_dev
    assert by_target[b"/proc"].fs_type == b"proc"
    assert not any(b"\\0" in mount.target for mount in mounts)


def test_a_process_that_is_gone() -> None:
    with pytest.raises(SandboxGone, match="process 999999999 is gone"):
        read_mountinfo(999999999)


@given(
    st.binary()
    | st.lists(st.sampled_from([b"1", b"0:1", b"/", b" ", b"-", b"\\", b"04", b"x"])).map(b" ".join)
)
@example(b"1 0 99999999999999999999:0 / / rw - a b c")
@example(b"1 0 -1:0 / / rw - a b c")
def test_garbage_is_passed_over(data: bytes) -> None:
    for mount in parse_mountinfo(data):
        assert mount.fs_type is not None
    assert one(b"x\n\n1 2 3\n" + LINE).mount_id == 36


@pytest.mark.parametrize(
    ("value", "layers"),
    [
        (b"/a", [b"/a"]),
        (b"/a:/b:/c", [b"/a", b"/b", b"/c"]),
        (b"/a::/data", [b"/a", b"/data"]),
        (rb"/a\:b:/c", [b"/a:b", b"/c"]),
        (b"", []),
    ],
)
def test_layers(value: bytes, layers: list[bytes]) -> None:
    assert split_layers(value) == layers


def test_absolute_layers() -> None:
    root = overlay(b"lowerdir=/l/b:/l/a,upperdir=/up,workdir=/work")
    assert overlay_dirs(root, {}, "web") == ("/up", ["/l/b", "/l/a"])


def test_relative_layers_lie_in_the_engines_folder(tmp_path: Path) -> None:
    """Docker mounts so when the options would not fit into a page: with 90 layers, say."""
    own = tmp_path / "overlay2" / "abc"
    (own / "diff").mkdir(parents=True)
    names = b":".join(b"l/%026d" % number for number in range(90))
    root = overlay(b"lowerdir=" + names + b",upperdir=abc/diff,workdir=abc/work")
    upper, layers = overlay_dirs(root, {"UpperDir": str(own / "diff")}, "web")
    assert upper == str(own / "diff")
    assert len(layers) == 90
    assert layers[:2] == [f"{tmp_path}/overlay2/l/{0:026d}", f"{tmp_path}/overlay2/l/{1:026d}"]


def test_layers_that_were_given_one_by_one() -> None:
    root = overlay(b"lowerdir+=/l/b,lowerdir+=/l/a,upperdir=/up")
    assert overlay_dirs(root, {}, "web") == ("/up", ["/l/b", "/l/a"])


@pytest.mark.parametrize(
    ("options", "says", "message"),
    [
        (b"lowerdir=/l", {}, "no upper layer"),
        (b"lowerdir=l/a,upperdir=abc/diff", {}, "relative path"),
        (b"lowerdir=/l,upperdir={tmp}/up", {"UpperDir": "{tmp}/other"}, "the engine says"),
        (b"lowerdir=/l,upperdir={tmp}/up", {"UpperDir": "{tmp}/none"}, "the engine says"),
        (b"lowerdir=/l,upperdir={tmp}/none", {"UpperDir": "{tmp}/up"}, "the engine says"),
        (b"lowerdir=/l,upperdir=abc/none", {"UpperDir": "{tmp}/up"}, "the engine says"),
    ],
    ids=["read-only", "relative", "another", "the engine's is gone", "the kernel's is gone", "elsewhere"],
)
def test_what_does_not_agree_is_refused(
    tmp_path: Path, options: bytes, says: dict[str, str], message: str
) -> None:
    for name in ("up", "other"):
        (tmp_path / name).mkdir()
    root = overlay(options.replace(b"{tmp}", os.fsencode(tmp_path)))
    data = {key: value.replace("{tmp}", str(tmp_path)) for key, value in says.items()}
    with pytest.raises(Unsupported, match=message) as raised:
        overlay_dirs(root, data, "web")
    assert raised.value.object == "container web"


@pytest.mark.parametrize("name", ["plain", "a b", "a\tb", "caf\xe9", "a\nb", "a=b", "a#b", "a:b"])
def test_a_real_overlay(namespace: Namespace, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    for part in ("low1", "low2", "up", "work", "merged"):
        (folder / part).mkdir(parents=True)
    escaped = str(folder).replace(":", "\\:")
    low = f"{escaped}/low2:{escaped}/low1"
    options = f"lowerdir={low},upperdir={folder}/up,workdir={folder}/work"
    namespace.mount("overlay", options, folder / "merged")
    (root,) = (
        mount for mount in read_mountinfo(namespace.pid) if mount.target == os.fsencode(folder / "merged")
    )
    upper, layers = overlay_dirs(root, {"UpperDir": str(folder / "up")}, "web")
    assert Path(upper) == folder / "up"
    assert [Path(layer) for layer in layers] == [folder / "low2", folder / "low1"]
