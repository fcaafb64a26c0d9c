"""Every kind of thing that a process can hold comes back as it was, twice in a row."""

from __future__ import annotations

import shlex

import pytest
from turnkeep.client.sync import Client, Sandbox
from turnkeep.model import Fidelity

from tests.e2e.exhibits import Exhibit, Make, checkpoint_of, comes_back, keep
from tests.e2e.harness import Box, turn, wait_until
from tests.e2e.kinds import KINDS, NAMED, REASONS, TICKING


@pytest.fixture
def sandbox(tk: Client, box: Box) -> Sandbox:
    """The plain sandbox, attached."""
    return tk.attach(box.name)


def _kinds() -> list[object]:
    """Return the kinds; of those that are lost, say why."""
    marks = {kind: pytest.mark.xfail(strict=True, reason=reason) for kind, reason in REASONS.items()}
    return [pytest.param(kind, marks=marks.get(kind, ())) for kind in KINDS]


@pytest.mark.parametrize("kind", _kinds())
def test_comes_back(kind: str, box: Box, sandbox: Sandbox, tk: Client) -> None:
    exhibit = Exhibit(box, f"{KINDS[kind]}\nshow(look, change)")
    before = exhibit.look()
    kept = keep(box, sandbox, tk)
    comes_back(exhibit, sandbox, kept, before)


def test_timers_tick_on(box: Box, sandbox: Sandbox, tk: Client) -> None:
    exhibit = Exhibit(box, TICKING)
    wait_until(lambda: min(exhibit.look().values()) > 3, "all timers tick")
    before = exhibit.look()
    kept = keep(box, sandbox, tk)
    for _ in range(2):
        exhibit.change()
        sandbox.restore(turn=kept.number)
        after = exhibit.look()
        assert all(before[name] <= after[name] < 10**9 for name in before)
        wait_until(
            lambda after=after: all(count > after[name] for name, count in exhibit.look().items()),  # type: ignore[misc]
            "all timers tick on",
            lambda after=after: f"{before} {after} {exhibit.look()}",  # type: ignore[misc]
        )


@pytest.mark.xfail(strict=True, reason=REASONS["stopped"])
def test_a_stopped_job_of_a_shell(box: Box, sandbox: Sandbox, tk: Client) -> None:
    """Ctrl-Z in a terminal; after the restore the shell knows its job, and `fg` continues it."""
    box.sh("tmux new-session -d -s main -x 100 -y 40 'bash --norc'")

    def type_(*keys: str) -> None:
        box.sh(f"tmux send-keys -t main {shlex.join(keys)}")

    def shows(text: str) -> None:
        wait_until(lambda: text in box.sh("tmux capture-pane -pt main"), f"{text} is shown")

    type_("sleep 1000", "Enter")
    wait_until(lambda: box.sh("pgrep -x sleep -a | grep 1000", check=False), "it runs")
    type_("C-z")
    shows("Stopped")
    type_("clear; kill -0 %1 && echo ki''lled", "Enter")
    shows("killed")
    kept = keep(box, sandbox, tk)
    for _ in range(2):
        box.sh("tmux kill-server")
        sandbox.restore(turn=kept.number)
        assert "T" in box.sh("ps -o stat= -p $(pgrep -f '^sleep 1000')")
        type_("clear; jobs", "Enter")
        shows("Stopped")
        type_("bg; echo do''ne", "Enter")
        shows("done")
        wait_until(lambda: "S" in box.sh("ps -o stat= -p $(pgrep -f '^sleep 1000')"), "it goes on")


@pytest.mark.parametrize("reason", NAMED)
def test_what_cannot_be_captured_is_named(reason: str, make: Make, tk: Client) -> None:
    box = make(cap_add=["SYS_PTRACE", "SYS_ADMIN"], security_opt=["seccomp=unconfined"])
    sandbox = tk.attach(box.name)
    exhibit = Exhibit(box, f"{NAMED[reason]}\nshow(lambda: 1)")
    kept = turn(box, sandbox, "echo kept > /root/file")
    checkpoint = checkpoint_of(tk, kept)
    assert any(reason in each for each in checkpoint.not_captured), checkpoint.not_captured
    assert checkpoint.fidelity is Fidelity.FILES_ONLY
    assert exhibit.look() == 1
    box.sh("echo lost > /root/file")
    sandbox.restore(turn=kept.number)
    assert box.sh("cat /root/file") == "kept\n"
    assert box.freezer() == "THAWED"
