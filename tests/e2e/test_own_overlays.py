"""Overlays and marks of overlays that a sandbox makes itself: captured as what they are, and restored so."""

from __future__ import annotations

from collections.abc import Callable

from turnkeep.client.calls import RestoreMode
from turnkeep.client.sync import Client
from turnkeep.model import TurnState

from tests.e2e.harness import Box, turn

TOPS = "/etc"

# Whiteouts by hand and opaque marks, over the image's files and over nothing. The
# kernel refuses some of it in an overlay's merged view: whatever it takes, counts.
MARKS = r"""
import contextlib, os, stat
os.makedirs("/etc/marks/folder/inside")
open("/etc/marks/folder/file", "w").close()
os.makedirs("/etc/ssl/new")
for path in ("/etc/marks/whiteout", "/etc/ssl/whiteout", "/etc/ssl/new/whiteout"):
    with contextlib.suppress(OSError):
        os.mknod(path, stat.S_IFCHR | 0o600, 0)
os.rename("/etc/profile", "/etc/profile.away")
with contextlib.suppress(OSError):
    os.mknod("/etc/profile", stat.S_IFCHR, 0)
for space in ("user", "trusted"):
    for key, value in (("opaque", b"y"), ("whiteout", b"y"), ("redirect", b"/etc"), ("metacopy", b""),
                       ("origin", b"x" * 20), ("overlay.opaque", b"y")):
        for path in ("/etc/marks/folder", "/etc/marks/folder/file", "/etc/ssl"):
            with contextlib.suppress(OSError):
                os.setxattr(path, f"{space}.overlay.{key}", value)
"""

# An overlay in a user and mount namespace of its own, with layers on a volume (the kernel takes no
# overlay as an upper layer). What it leaves behind are whiteouts and `user.overlay.opaque`.
NESTED = """
set -e
cd /nest; mkdir -p lower/folder lower/opaque upper work merged
echo lower > lower/file; echo lower > lower/folder/file; echo lower > lower/opaque/file
mount -t overlay overlay -o userxattr,lowerdir=lower,upperdir=upper,workdir=work merged
cd merged
echo merged > file; rm folder/file; rm -r opaque; mkdir opaque; echo own > opaque/new
"""


def _compare(tk: Client, box: Box, attack: list[str], tops: str) -> None:
    """Capture what an attack leaves, go away from it and back, both ways; everything is as it was."""
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "echo 0 > /calm")
    calm = box.look(tops)
    with sandbox.turn() as hostile:
        code, output = box.run(attack)
        assert code == 0, output
    assert hostile.wait().state is TurnState.DURABLE
    wanted = box.look(tops)
    assert wanted != calm
    modes: tuple[RestoreMode, ...] = ("live", "cold")
    for mode in modes:
        sandbox.restore(turn=1, mode=mode)
        assert box.look(tops) == calm
        result = sandbox.restore(turn=2, mode=mode)
        assert result.actual_digest == result.expected_digest
        assert box.look(tops) == wanted


def test_marks_by_hand(tk: Client, make: Callable[..., Box]) -> None:
    _compare(tk, make(cap_add=["SYS_ADMIN"]), ["python3", "-c", MARKS], TOPS)


def test_an_overlay_in_namespaces_of_its_own(tk: Client, make: Callable[..., Box]) -> None:
    box = make(
        name="turnkeep-test-nested",
        cap_add=["SYS_ADMIN"],
        security_opt=["seccomp=unconfined", "apparmor=unconfined"],
        volumes={"turnkeep-test-nested-v": {"bind": "/nest"}},
    )
    nested = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", NESTED]
    _compare(tk, box, nested, "/nest")
    assert "c---------" in box.sh("ls -l /nest/upper/folder")
