import os

import pytest

from .listing import listing


def test_rename_folder_with_canonical_name(make_sandbox):
    box = make_sandbox()
    (box.root / "d1").mkdir()
    (box.root / "d1/a").write_text("x")
    os.link(box.root / "d1/a", box.root / "z")
    s0 = box.checkpoint()
    os.rename(box.root / "d1", box.root / "d2")
    s1 = box.checkpoint()
    assert s1.digest == box.full_state().digest
    box.restore_live(s0)
    assert listing(box.root) == s0.listing
    box.restore_live(s1)
    assert listing(box.root) == s1.listing
    box.restore_cold(s0)
    assert listing(box.root) == s0.listing


@pytest.mark.parametrize("live", [1, 0])
def test_linked_symlink(make_sandbox, live):
    box = make_sandbox()
    os.symlink("one", box.root / "a")
    os.link(box.root / "a", box.root / "b", follow_symlinks=False)
    s0 = box.checkpoint()
    os.unlink(box.root / "a")
    os.unlink(box.root / "b")
    os.symlink("two", box.root / "a")
    os.link(box.root / "a", box.root / "b", follow_symlinks=False)
    s1 = box.checkpoint()
    (box.restore_live if live else box.restore_cold)(s0)
    assert listing(box.root) == s0.listing


def test_file_to_fifo(make_sandbox):
    box = make_sandbox()
    (box.root / "a").write_text("x")
    os.link(box.root / "a", box.root / "b")
    s0 = box.checkpoint()
    os.unlink(box.root / "a")
    os.unlink(box.root / "b")
    os.mkfifo(box.root / "a")
    os.link(box.root / "a", box.root / "b", follow_symlinks=False)
    s1 = box.checkpoint()
    box.restore_live(s0)
    assert listing(box.root) == s0.listing
    box.restore_live(s1)
    assert listing(box.root) == s1.listing


def test_deep_hardlink(make_sandbox):
    box = make_sandbox()
    fd = os.open(box.root, os.O_RDONLY)
    for i in range(30):
        n = "n" * 200
        os.mkdir(n, dir_fd=fd)
        fd2 = os.open(n, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = fd2
    g = os.open("a", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.write(g, b"x")
    os.close(g)
    os.link("a", "b", src_dir_fd=fd, dst_dir_fd=fd)
    os.close(fd)
    s0 = box.checkpoint()
    (box.root / "c").write_text("x")
    s1 = box.checkpoint()
    box.restore_live(s0)
    assert listing(box.root) == s0.listing
    box.restore_cold(s1)
    assert listing(box.root) == s1.listing


def test_user_overlay(make_sandbox):
    box = make_sandbox()
    (box.root / "a").write_text("x")
    os.setxattr(box.root / "a", "user.overlay.x", b"1")
    s0 = box.checkpoint()
    os.removexattr(box.root / "a", "user.overlay.x")
    s1 = box.checkpoint()
    assert s0.digest != s1.digest
    box.restore_live(s0)
    assert listing(box.root) == s0.listing


def test_origin(make_sandbox):
    def base(root):
        (root / "a").write_text("image")
        (root / "f").write_text("f")

    box = make_sandbox([base])
    s0 = box.checkpoint()
    os.chmod(box.root / "a", 0o600)
    os.rename(box.root / "a", box.root / "f")
    s1 = box.checkpoint()
    (box.root / "a").write_text("image again")
    os.chmod(box.root / "f", 0o644)
    s2 = box.checkpoint()
    box.restore_cold(s1)
    (box.root / "a").write_text("image")
    st = os.stat(box.overlay.layers[0] / "a")
    os.utime(box.root / "a", ns=(0, st.st_mtime_ns))
    s3 = box.checkpoint()
    box.restore_cold(s3)
    assert listing(box.root) == s3.listing
