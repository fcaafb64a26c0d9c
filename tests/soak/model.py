"""What a sandbox has to look like, as something simpler than Turnkeep remembers it."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from dataclasses import dataclass, field
from typing import Literal

from turnkeep.client.sync import Client
from turnkeep.errors import CheckpointNotFound, Conflict
from turnkeep.model import TurnState

from tests.e2e.harness import Box, Daemon

TOPS = "/work:/etc:/root"
SETTLED = (TurnState.DURABLE, TurnState.SKIPPED, TurnState.FAILED)


class Wrong(AssertionError):
    """Turnkeep and the model disagree."""


@dataclass(slots=True)
class Subject:
    """A sandbox and its model: what an independent look found after each turn that was kept.

    For one thread at a time, which holds `lock`.
    """

    daemon: Daemon
    box: Box
    rng: random.Random
    states: dict[int, str] = field(default_factory=dict)
    checkpoints: dict[int, str] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    now: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def look(self) -> str:
        """Return the hash of what there is."""
        found = self.box.look(TOPS, "/work/skipped")
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()

    def begin(self, tk: Client) -> None:
        """Attach the sandbox."""
        self.box.sh("mkdir -p /work")
        tk.attach(self.box.name)
        self.take_turn(tk)

    def take_turn(self, tk: Client) -> str:
        """Change something, or nothing, as a turn that is waited for."""
        self._expect(self.now or self.look(), "before a turn")
        command = self._command()
        with tk.sandbox(self.box.name).turn(label=command[:60], take_over=True) as turn:
            self.now = ""  # nobody has looked, should the daemon die now
            self.box.sh(command)
            self.now = self.look()
        info = turn.wait()
        if info is None or info.state not in (TurnState.DURABLE, TurnState.SKIPPED):
            raise Wrong(f"{self.box.name}: {info}")
        self.states[info.number] = self.now
        self.checkpoints[info.number] = info.checkpoint_id or ""
        return info.state.value.lower()

    def restore(self, tk: Client) -> str:
        """Go back to some turn, and compare."""
        number = self.rng.choice(sorted(self.states))
        mode: Literal["cold"] | None = "cold" if self.rng.random() < 0.2 else None
        before = self.now
        # If the daemon dies in the middle: finished, or undone.
        self.now = f"{before} {self.states[number]}"
        try:
            tk.sandbox(self.box.name).restore(turn=number, mode=mode)
        except CheckpointNotFound:
            self.now = before
            if self.checkpoints[number] not in self.deleted:
                raise
            return "restore of what was deleted"
        self.now = self.states[number]
        self._expect(self.now, f"after a restore to turn {number}")
        return f"restore, {mode or 'as it chose'}"

    def fork(self, tk: Client) -> str:
        """Make a copy, compare it, remove it."""
        (copy,) = tk.sandbox(self.box.name).fork()
        client = self.box.container.client
        assert client is not None
        other = Box(client.containers.get(copy.name))
        try:
            found = Subject(self.daemon, other, self.rng).look()
            # /etc has the copy's own name and address.
            if other.look("/work:/root", "/work/skipped") != self.box.look("/work:/root", "/work/skipped"):
                raise Wrong(f"{copy.name}: differs from {self.box.name} ({found})")
        finally:
            other.container.remove(force=True, v=True)
        return "fork"

    def delete(self, tk: Client) -> str:
        """Delete a checkpoint, unless it is where the sandbox stands."""
        sandbox = tk.sandbox(self.box.name)
        kept = [each.id for each in sandbox.checkpoints()]
        if len(kept) < 3:
            return "nothing to delete"
        chosen = self.rng.choice(kept[:-1])
        try:
            self.deleted.add(chosen)
            tk.delete_checkpoint(chosen)
        except Conflict:
            self.deleted.discard(chosen)
            return "delete of a head, refused"
        return "delete"

    def settle(self, tk: Client) -> None:
        """After a daemon's end: nothing is open, and what there is, is what may be there."""
        sandbox = tk.sandbox(self.box.name)
        for each in sandbox.turns():
            if each.state not in SETTLED:
                with sandbox.turn(take_over=True):
                    pass
                sandbox.wait(each.number)
        found = self.look()
        if self.now and found not in self.now.split():
            raise Wrong(
                f"{self.box.name}: after the daemon's end it is neither what it was nor what was asked"
            )
        self.now = found
        for each in sandbox.turns(after=max(self.states, default=0)):
            # Cut off by the daemon's end, and kept with what there was then, which nobody looked at.
            self.states.pop(each.number, None)

    def verify_all(self, tk: Client) -> int:
        """Restore every turn whose checkpoint is there; return how many."""
        done = 0
        for number, state in sorted(self.states.items()):
            if self.checkpoints[number] in self.deleted:
                continue
            tk.sandbox(self.box.name).restore(turn=number)
            self.now = state
            self._expect(state, f"at the end, after a restore to turn {number}")
            done += 1
        return done

    def _expect(self, wanted: str, when: str) -> None:
        found = self.look()
        if found not in wanted.split():
            raise Wrong(f"{self.box.name}: {when} it is not what it has to be")

    def _command(self) -> str:
        number = self.rng.randrange(40)
        commands = [
            "true",
            "ls -la /work >/dev/null; cat /etc/passwd >/dev/null",
            f"head -c {self.rng.randrange(1, 200_000)} /dev/urandom > /work/f{number}",
            f"echo {number} >> /work/log",
            f"mkdir -p /work/d{number}/e; seq {number * 50} > /work/d{number}/e/seq",
            f"rm -rf /work/d{number} /work/f{number}",
            f"mv /work/log /work/log{number} 2>/dev/null; ln -sf log{number} /work/last",
            f"chmod 6{number % 8}5 /work/log* 2>/dev/null; touch -d @{number} /work",
            f"ln -f /work/log /root/hard{number} 2>/dev/null; mkfifo /root/fifo{number} 2>/dev/null; true",
            f"echo '# {number}' >> /etc/passwd; rm -f /etc/fstab; truncate -s {number}M /work/sparse",
            f"for n in $(seq {number * 5}); do echo $n > /work/many$n; done",
        ]
        return self.rng.choice(commands)


WORK = {"take_turn": 24, "restore": 5, "fork": 1, "delete": 2}
"""How often each is done."""


def act(subject: Subject, tk: Client) -> str:
    """Do one thing of those in `WORK`; return what it was."""
    (name,) = subject.rng.choices(list(WORK), list(WORK.values()))
    done: str = getattr(subject, name)(tk)
    return done
