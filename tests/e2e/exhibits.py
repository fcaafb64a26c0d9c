"""Programs in sandboxes that show what they hold, and change it on demand.

An exhibit is a Python program that ends with `show(look, change)`. It answers
one signal with what `look` returns and another by calling `change`; the answers
are files, so that nothing ties it to who asks.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

from turnkeep.client.sync import Client, Sandbox
from turnkeep.client.values import Checkpoint, RestoreResult, TurnInfo
from turnkeep.model import Fidelity

from tests.e2e.harness import Box, turn, wait_until

# What every exhibit may use. The signals are blocked before anything else exists,
# so that only `show` takes them.
PRELUDE = """
import ctypes, errno, fcntl, json, mmap, os, select, signal, socket, struct, sys, threading, traceback
libc = ctypes.CDLL(None, use_errno=True)
NAME, ASKED = os.path.splitext(sys.argv[0])[0], {signal.SIGUSR1, signal.SIGUSR2}
signal.pthread_sigmask(signal.SIG_BLOCK, ASKED)

def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def worker(answer, prepare=lambda: None):
    "Fork a child that answers words; return what asks it. `pid` is the child's."
    ask, said = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        os.close(ask[1]); os.close(said[0])
        prepare()
        while word := os.read(ask[0], 4096):
            os.write(said[1], json.dumps(answer(word.decode())).encode())
        os._exit(0)
    os.close(ask[0]); os.close(said[1])
    def asking(word):
        os.write(ask[1], word.encode())
        return json.loads(os.read(said[0], 65536))
    asking.pid, asking.ask, asking.said = pid, ask[1], said[0]
    return asking

def tell(name, value):
    with open(NAME + ".part", "w") as out:
        json.dump(value, out)
    os.rename(NAME + ".part", NAME + name)

def show(look, change=lambda: None):
    tell(".pid", os.getpid())
    while True:
        asked = signal.sigwait(ASKED)
        try:
            done = look() if asked == signal.SIGUSR1 else change()
        except BaseException:
            done = "failed: " + traceback.format_exc()
        tell(".answer", [done])
"""


class Exhibit:
    """A program that shows what it holds."""

    def __init__(self, box: Box, program: str, *, user: str = "", folder: str = "/tmp") -> None:
        self._box = box
        self._user = user
        self._name = f"{folder}/exhibit-{uuid.uuid4().hex[:8]}"
        file = f"{self._name}.py"
        box.sh(f"cat > {file} <<'END'\n{PRELUDE}\n{program}\nEND", user=user)
        log = f"{self._name}.log"
        box.sh(f"cd {folder}; setsid python3 -B {file} </dev/null >{log} 2>&1 &", user=user)
        self.pid = int(wait_until(self._ready, "the exhibit is set up"))

    def _ready(self) -> str:
        code, said = self._box.run(["cat", f"{self._name}.pid"])
        log = self._box.run(["cat", f"{self._name}.log"])[1].decode()
        assert "Traceback" not in log, log
        return said.decode() if code == 0 else ""

    def look(self) -> Any:
        """Return what it holds."""
        return self._ask("USR1")

    def change(self) -> Any:
        """Have it change what it holds."""
        return self._ask("USR2")

    def _ask(self, number: str) -> Any:
        answer = f"{self._name}.answer"
        self._box.sh(f"rm -f {answer}; kill -{number} {self.pid}", user=self._user)

        def answered() -> str:
            code, said = self._box.run(["cat", answer])
            return said.decode() if code == 0 else ""

        [said] = json.loads(wait_until(answered, "the exhibit answers", lambda: "\n".join(self._threads())))
        assert not (isinstance(said, str) and said.startswith("failed: ")), said
        return said

    def _threads(self) -> list[str]:
        return self._box.sh("ps -eLo pid,ppid,sid,stat,wchan:20,args", check=False).splitlines()


def keep(box: Box, sandbox: Sandbox, tk: Client) -> TurnInfo:
    """Take a turn that does nothing, and make sure that its checkpoint holds the processes."""
    kept = turn(box, sandbox, "true")
    checkpoint = checkpoint_of(tk, kept)
    assert checkpoint.not_captured == (), checkpoint.not_captured
    assert checkpoint.fidelity is Fidelity.COMPLETE
    return kept


def checkpoint_of(tk: Client, kept: TurnInfo) -> Checkpoint:
    """Return the checkpoint of a turn."""
    assert kept.checkpoint_id
    return tk.checkpoint(kept.checkpoint_id)


def comes_back(
    exhibit: Exhibit, sandbox: Sandbox, kept: TurnInfo, before: Any, times: int = 2
) -> list[RestoreResult]:
    """Change what is shown, restore, and make sure that it is as before; so many times."""
    done = []
    for _ in range(times):
        exhibit.change()
        assert exhibit.look() != before
        done.append(sandbox.restore(turn=kept.number))
        assert done[-1].mode == "live"
        after = exhibit.look()
        assert after == before, f"{after} now, {before} before"
    return done


Make = Callable[..., Box]
