"""Sandboxes that make too much of something: theirs alone is the turn that pays for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from turnkeep.client.sync import Client
from turnkeep.errors import TurnFailed
from turnkeep.model import TurnState

from tests.e2e.harness import Box, turn, wait_until

# More on one file than any file system on a disk keeps; a file system in memory does.
LARGE_ATTRIBUTES = """
import os
open("/t/large", "w").close()
for n in range(40):
    os.setxattr("/t/large", "user.%d" % n, bytes([n]) * 60000)
"""
NAMES = """
import os
os.mkdir("/names")
open("/names/0", "w").write("one inode")
for n in range(1, 20000):
    os.link("/names/0", "/names/%d" % n)
"""
# Each process makes others as fast as it can, for as long as there is a file.
FORKS = """
import os, time
open("/dev/shm/bomb", "w").close()
while os.path.exists("/dev/shm/bomb"):
    try:
        os.fork()
    except OSError:
        pass
"""


def test_attributes_larger_than_any_disk_keeps_fail_their_turn(
    tk: Client, make: Callable[..., Box], box: Box
) -> None:
    bomb = make(tmpfs={"/t": "size=64m"})
    sandbox, other = tk.attach(bomb.name), tk.attach(box.name)
    with sandbox.turn() as large:
        bomb.sh(f"python3 -c '{LARGE_ATTRIBUTES}'")
    with pytest.raises(TurnFailed, match="extended attributes of more than"):
        large.wait()
    assert bomb.freezer() == "THAWED"
    assert turn(box, other, "echo served > /file").state is TurnState.DURABLE
    after = turn(bomb, sandbox, "rm /t/large; echo 1 > /calm")
    assert after.state is TurnState.DURABLE


def test_many_names_of_one_inode_are_kept(tk: Client, box: Box) -> None:
    sandbox = tk.attach(box.name)
    turn(box, sandbox, "echo 0 > /calm")
    assert turn(box, sandbox, f"python3 -c '{NAMES}'").state is TurnState.DURABLE
    sandbox.restore(turn=1)
    assert box.sh("ls -d /names 2>/dev/null; true") == ""
    sandbox.restore(turn=2)
    assert box.sh("stat -c %h /names/19999; cat /names/19999") == "20000\none inode"


def test_processes_that_fork_at_the_limit(tk: Client, make: Callable[..., Box], box: Box) -> None:
    """The freeze meets them at it; nobody else waits, and they are thawed, whatever becomes of the turn."""
    bomb = make(pids_limit=200)
    sandbox, other = tk.attach(bomb.name), tk.attach(box.name)
    turn(bomb, sandbox, "echo 0 > /calm")
    with sandbox.turn() as forking:
        bomb.spawn("python3", "-c", FORKS)
        wait_until(lambda: len(bomb.container.top()["Processes"]) > 150, "there are many of them")
    assert turn(box, other, "echo served > /file").state is TurnState.DURABLE
    try:
        ended = forking.wait()
    except TurnFailed:
        ended = None
    assert ended is None or ended.state is TurnState.DURABLE
    wait_until(lambda: bomb.freezer() == "THAWED", "the sandbox runs")
    sandbox.restore(turn=1, mode="cold", skip_safety_checkpoint=True)
    assert turn(bomb, sandbox, "echo 1 > /calm").state is TurnState.DURABLE
