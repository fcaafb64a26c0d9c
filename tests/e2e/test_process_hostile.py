"""Sandboxes that want to be executed by what dumps them, or to trace and kill it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from turnkeep.client.sync import Client
from turnkeep.errors import TurnkeepError
from turnkeep.model import Fidelity, TurnState

from tests.e2e.confined import everyone
from tests.e2e.exhibits import PRELUDE, Exhibit, Make, checkpoint_of, comes_back, keep
from tests.e2e.harness import Box, Daemon, turn, wait_until
from tests.e2e.watched_files import Watch

COUNTER = """
count, child = [1], worker(lambda word: os.getpid())
show(lambda: [count, child("?")], lambda: count.append(2))
"""

# What a loader, CRIU, or a shell that CRIU starts might look up by path.
LURES = (
    *("/etc/ld.so.preload", "/etc/ld.so.cache", "/usr/lib/evil.so", "/usr/lib/criu/evil.so"),
    *("/etc/criu/default.conf", "/root/.criu/default.conf", "/.criu/default.conf", "/run/criu.kdat"),
    *("/usr/local/sbin/sh", "/usr/local/bin/sh", "/usr/local/sbin/iptables", "/usr/local/bin/iptables"),
    *("/usr/sbin/iptables", "/usr/bin/iptables", "/usr/local/bin/iptables-restore", "/usr/sbin/nft"),
    *("/usr/local/bin/ip", "/usr/local/bin/tar", "/usr/local/bin/criu", "/criu", "/ld.so", "/tools/criu"),
    *(
        "/tools/ld.so",
        "/tools/null",
        "/images/inventory.img",
        "/lib/libprotobuf-c.so.1",
        "/tools/lib/libc.so.6",
    ),
)
PLANT = """
set -e
for each in LURES; do
  mkdir -p $(dirname $each)
  printf '#!/bin/bash\\necho $0 >> /executed\\n' > $each; chmod 755 $each
done
cp -L /lib/x86_64-linux-gnu/libutil.so.1 /usr/lib/evil.so; cp /usr/lib/evil.so /usr/lib/criu/evil.so
rm -f /usr/bin/sh; printf '#!/bin/bash\\necho sh >> /executed\\n' > /usr/bin/sh; chmod 755 /usr/bin/sh
echo 'action-script /usr/local/bin/sh' > /etc/criu/default.conf
cp /etc/criu/default.conf /root/.criu/default.conf; cp /etc/criu/default.conf /.criu/default.conf
head -c 200 /dev/urandom > /run/criu.kdat
echo /usr/lib/evil.so > /etc/ld.so.preload
"""


def test_nothing_of_the_sandbox_is_run_or_read_by_us(make: Make, tk: Client) -> None:
    box = make()
    sandbox = tk.attach(box.name)
    # Before the lures are there: the preloaded library is not to be a part of it.
    exhibit = Exhibit(box, COUNTER)
    box.sh(PLANT.replace("LURES", " ".join(LURES)))
    before = exhibit.look()
    root = f"/proc/{box.state()['Pid']}/root"
    # Seen from inside the sandbox, but for the links on the way, which are its own.
    with Watch([f"{root}{path}" for path in (*LURES, "/usr/bin/sh")]) as watch:
        kept = keep(box, sandbox, tk)
        comes_back(exhibit, sandbox, kept, before)
    ours = {
        each
        for each in watch.openers
        if each[1].endswith("/ld.so") or "launcher.py" in each[2] or "criu" in each[2]
    }
    assert ours == set()
    assert watch.openers, "the sandbox's own programs were seen at the lures"
    assert box.run(["test", "-e", "/executed"])[0] == 1


def test_a_null_device_that_is_a_file(make: Make, tk: Client) -> None:
    """What others have open as /dev/null is a deleted device then; ours is never the one to be written to."""
    box = make()
    sandbox = tk.attach(box.name)
    box.sh("rm /dev/null; echo 'no device' > /dev/null; chmod 666 /dev/null")
    exhibit = Exhibit(box, COUNTER)
    before = exhibit.look()
    kept = turn(box, sandbox, "true")
    if checkpoint_of(tk, kept).fidelity is Fidelity.COMPLETE:
        comes_back(exhibit, sandbox, kept, before)
    else:
        assert checkpoint_of(tk, kept).not_captured
    assert box.sh("cat /dev/null") == "no device\n"


# It goes for every process that appears: looks for a way to the host, then traces or kills it.
HUNTER = """
known, seen = set(os.listdir("/proc")), {}
MARK = open("/tmp/mark").read().strip()
def look_at(pid):
    places = "root" + MARK, "root/../.." + MARK, "cwd/tools/criu", "cwd/images/inventory.img", "exe", "fd/3"
    for place in places:
        try:
            fd = os.open(f"/proc/{pid}/{place}", os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            continue
        what = os.readlink(f"/proc/self/fd/{fd}"); os.close(fd)
        if what.startswith("/") and not os.path.exists(what) or place.endswith(MARK) or "criu" in what:
            seen[f"{place} {what}"] = 1
def hunt():
    while True:
        for pid in set(os.listdir("/proc")) - known:
            if pid.isdigit():
                look_at(pid)
                libc.ptrace(0x4206, int(pid), None, None)
                try: os.kill(int(pid), signal.SIGKILL)
                except OSError: pass
def save(*_):
    with open("/tmp/part", "w") as out: json.dump(seen, out)
    os.rename("/tmp/part", "/tmp/seen")
signal.signal(signal.SIGUSR1, save); signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKED); save(); hunt()
"""


def test_one_that_hunts_what_dumps_it(make: Make, tk: Client, daemon: Daemon) -> None:
    """Root with CAP_SYS_PTRACE: a capture works or says why it does not, and nothing of the host is seen."""
    mark = daemon.folder / "mark"
    mark.write_text("of the host")
    box = make(cap_add=["SYS_PTRACE"])
    sandbox = tk.attach(box.name)
    box.sh(f"echo {mark} > /tmp/mark; cat > /tmp/hunt.py <<'END'\n{PRELUDE}\n{HUNTER}\nEND")
    quiet = Exhibit(box, COUNTER)
    before = quiet.look()
    kept = keep(box, sandbox, tk)
    for _ in range(3):
        box.container.exec_run(["bash", "-c", "exec python3 /tmp/hunt.py 2> /tmp/log"], detach=True)
        seen = Path(f"/proc/{box.state()['Pid']}/root/tmp/seen")
        wait_until(seen.exists, "it hunts")
        done = sandbox.turn(label="hunted")
        with done:
            pass
        info = done.wait()
        assert info is not None
        assert info.state in (TurnState.DURABLE, TurnState.SKIPPED)
        if info.state is TurnState.DURABLE:
            checkpoint = checkpoint_of(tk, info)
            assert checkpoint.fidelity is Fidelity.COMPLETE or checkpoint.not_captured
        assert box.freezer() == "THAWED"
        assert _asked(box, seen) == {}
        sandbox.restore(turn=kept.number)
        assert quiet.look() == before


def _hunters(box: Box) -> list[int]:
    found = []
    for host in everyone(box).values():
        with contextlib.suppress(OSError):
            if b"hunt.py" in Path(f"/proc/{host}/cmdline").read_bytes():
                found.append(host)
    return found


def _asked(box: Box, seen: Path) -> Any:
    """Ask the hunter from the host: nothing that is started in the sandbox lives long."""
    [hunter] = _hunters(box)
    before = seen.stat().st_ino
    os.kill(hunter, signal.SIGUSR1)
    wait_until(
        lambda: seen.stat().st_ino != before, "the hunter answers", Path(f"/proc/{hunter}/status").read_text
    )
    return json.loads(seen.read_text())


def test_a_fork_bomb(make: Make, tk: Client) -> None:
    """As many processes as its limit allows: the turn ends, and the sandbox can be had back."""
    box = make(pids_limit=60)
    sandbox = tk.attach(box.name)
    quiet = Exhibit(box, COUNTER)
    before = quiet.look()
    kept = keep(box, sandbox, tk)
    box.container.exec_run(["bash", "-c", ":() { :|: & }; :"], detach=True)
    wait_until(lambda: len(everyone(box)) > 30, "it explodes")
    open_turn = sandbox.turn(label="bombed")
    with open_turn:
        pass
    info = None
    with contextlib.suppress(TurnkeepError):
        info = open_turn.wait()
    if info is not None:
        checkpoint = checkpoint_of(tk, info)
        assert checkpoint.fidelity is Fidelity.COMPLETE or checkpoint.not_captured
    else:
        assert sandbox.turns()[-1].state_reason
    assert box.freezer() == "THAWED"
    for _ in range(2):
        sandbox.restore(turn=kept.number)
        assert quiet.look() == before


@pytest.mark.parametrize("name", ["sleep", "tini", "docker-init", "criu", "sh\\n(x) Z 1"])
def test_a_name_is_not_believed(name: str, make: Make, tk: Client) -> None:
    box = make()
    sandbox = tk.attach(box.name)
    exhibit = Exhibit(box, f'libc.prctl(15, b"{name}", 0, 0, 0)\n{COUNTER}')
    before = exhibit.look()
    comes_back(exhibit, sandbox, keep(box, sandbox, tk), before)
