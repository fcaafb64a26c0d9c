"""The image as `LayerView` sees it, and as the kernel does."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from functools import partial
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from turnkeep_store.layers import LayerView
from turnkeep_store.nodes import OVERLAY_XATTRS, read_segments
from turnkeep_store.tree import Entry, NodeType

from .listing import Node, listing
from .operations import OPERATIONS, Operation, apply, image_base
from .overlays import build_image, mounted

LAYERS = st.lists(st.lists(OPERATIONS, min_size=1, max_size=10), min_size=1, max_size=3)

TYPES = {
    NodeType.FILE: stat.S_IFREG,
    NodeType.DIRECTORY: stat.S_IFDIR,
    NodeType.SYMLINK: stat.S_IFLNK,
    NodeType.FIFO: stat.S_IFIFO,
    NodeType.CHAR_DEVICE: stat.S_IFCHR,
    NodeType.BLOCK_DEVICE: stat.S_IFBLK,
    NodeType.SOCKET: stat.S_IFSOCK,
}


def _layer(operations: list[Operation], root: Path) -> None:
    for operation in operations:
        apply(root, operation)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=LAYERS)
def test_it_shows_what_the_kernel_shows(steps: list[list[Operation]]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="tk-"))
    try:
        layers = build_image(folder / "image", [image_base, *(partial(_layer, step) for step in steps)])
        with mounted(folder / "box", layers) as overlay, LayerView(layers) as view:
            _compare(view, overlay.merged)
    finally:
        shutil.rmtree(folder)


def _compare(view: LayerView, merged: Path) -> None:
    expected = listing(merged)
    assert _walk(view) == sorted(expected)
    for path, node in expected.items():
        entry = view.lookup(path)
        assert entry is not None
        assert _attributes(entry) == _expected(node, path)
        if entry.type is NodeType.FILE:
            with view.content(path) as fd:
                assert _bytes(fd) == (merged / os.fsdecode(path)).read_bytes()
        else:
            with pytest.raises(FileNotFoundError), view.content(path):
                pass
        if entry.type is not NodeType.DIRECTORY:
            assert view.names(path) == []
        for absent in (path + b"/none", path + b"-none", path + b"/a"):
            if absent not in expected:
                assert view.lookup(absent) is None
                assert view.names(absent) == []
                with pytest.raises(FileNotFoundError), view.content(absent):
                    pass


def _walk(view: LayerView) -> list[bytes]:
    found, pending = [], [b""]
    while pending:
        folder = pending.pop()
        paths = [folder + b"/" + name if folder else name for name in view.names(folder)]
        found += paths
        pending += paths
    return sorted(found)


def _attributes(entry: Entry) -> tuple[object, ...]:
    mtime_ns = 0 if entry.is_directory else entry.mtime_ns
    kind = TYPES[entry.type] | entry.mode
    return kind, entry.uid, entry.gid, entry.size, entry.rdev, mtime_ns, dict(entry.xattrs), entry.target


def _expected(node: Node, path: bytes) -> tuple[object, ...]:
    target = node.content if stat.S_ISLNK(node.mode) else b""
    xattrs = {os.fsencode(name): value for name, value in node.xattrs}
    return node.mode, node.uid, node.gid, node.size, node.rdev, node.mtime_ns, xattrs, target


def _bytes(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size + 1, 0)


def test_a_name_that_is_no_file_hides_the_files_below(tmp_path: Path) -> None:
    """Nothing but a file is opened: a device would act, a FIFO would wait."""

    def base(root: Path) -> None:
        for name in ("pipe", "device", "gone", "link", "folder"):
            (root / name).write_bytes(b"below")

    def top(root: Path) -> None:
        for path in list(root.iterdir()):
            path.unlink()
        os.mkfifo(root / "pipe")
        os.mknod(root / "device", stat.S_IFCHR, os.makedev(5, 1))
        os.symlink("folder", root / "link")
        (root / "folder").mkdir()

    layers = build_image(tmp_path / "image", [base, top])
    with LayerView(layers) as view:
        for name in (b"pipe", b"device", b"gone", b"link", b"folder"):
            with pytest.raises(FileNotFoundError), view.content(name):
                pass
        assert view.names(b"") == [b"device", b"folder", b"link", b"pipe"]


def test_a_deep_image_is_no_trouble(tmp_path: Path) -> None:
    """More folders than are cached, in an order that does not suit the cache."""
    depth = 300

    def deep(root: Path) -> None:
        (root / "/".join("d" * depth)).mkdir(parents=True)

    layers = build_image(tmp_path / "image", [deep])
    with LayerView(layers) as view:
        paths = [b"/".join([b"d"] * level) for level in range(1, depth + 1)]
        for path in (*reversed(paths), *paths):
            assert view.lookup(path) is not None
        assert view.names(paths[-1]) == []
        assert view.names(paths[-2]) == [b"d"]


def test_overlays_own_attributes_are_not_the_images(tmp_path: Path) -> None:
    def base(root: Path) -> None:
        (root / "folder").mkdir()
        (root / "folder/file").write_bytes(b"x")

    def top(root: Path) -> None:
        shutil.rmtree(root / "folder")
        (root / "folder").mkdir()
        os.setxattr(root / "folder", "user.kept", b"1")

    layers = build_image(tmp_path / "image", [base, top])
    assert "trusted.overlay.opaque" in os.listxattr(layers[0] / "folder")
    with LayerView(layers) as view:
        entry = view.lookup(b"folder")
        assert entry is not None
        assert entry.xattrs == ((b"user.kept", b"1"),)
        assert not any(name.startswith(OVERLAY_XATTRS) for name, _ in entry.xattrs)
        assert view.names(b"folder") == []


def test_content_is_read_with_its_holes(tmp_path: Path) -> None:
    def base(root: Path) -> None:
        with open(root / "sparse", "wb") as file:
            file.truncate(10_000_000)
            file.seek(5_000_000)
            file.write(b"x" * 10)

    layers = build_image(tmp_path / "image", [base])
    with LayerView(layers) as view, view.content(b"sparse") as fd:
        segments = list(read_segments(fd, 10_000_000))
    assert sum(len(data) for _, data in segments) <= 8192
