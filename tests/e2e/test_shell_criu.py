"""A shell is what CRIU can dump and restore in a running container, and then goes on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from turnkeep.client.shell import open_shell
from turnkeep.errors import ShellEnded

from tests.e2e.harness import Box, wait_until

PREFIX = Path(os.environ.get("TURNKEEP_CRIU_ROOT", "/opt/turnkeep/criu"))
OPTIONS = ["--images-dir", "/dev/shm/images", "--manage-cgroups=ignore", "--no-default-config"]


class Criu:
    """CRIU inside a container's namespaces, from a copy of the prefix in there."""

    def __init__(self, box: Box) -> None:
        [loader] = PREFIX.glob("usr/lib/*/ld-linux*")
        libraries = f"/criu/{loader.parent.relative_to(PREFIX)}"
        self.command = [f"{libraries}/{loader.name}", "--library-path", libraries, "/criu/usr/sbin/criu"]
        self.box = box
        subprocess.run(["docker", "cp", PREFIX, f"{box.name}:/criu"], check=True, stdout=subprocess.DEVNULL)
        box.sh("mkdir /dev/shm/images")

    def run(self, action: str, *arguments: str) -> None:
        """Dump or restore; the log is in the error."""
        enter = ["nsenter", "-t", str(self.box.state()["Pid"]), "-m", "-p", "-n", "-i", "-u", "--", "setsid"]
        command = [*enter, "-w", *self.command, action, *OPTIONS, "-o", f"{action}.log", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, self.box.sh(f"tail -n 20 /dev/shm/images/{action}.log")


@pytest.mark.skipif(not (PREFIX / "VERSION").exists(), reason=f"no CRIU in {PREFIX} (make host)")
def test_a_restored_shell_goes_on_as_it_was(box: Box) -> None:
    criu = Criu(box)
    shell = open_shell(box.name)
    said = shell.run('x=42; f() { echo "f $x"; }; cd /usr/lib; sleep 1000 & echo $$; (exit 7)')
    [pid] = said.output.split()
    criu.run("dump", "--tree", pid, "--leave-running")
    for _ in range(2):
        # What came after the checkpoint is gone after the restore, and so is the process that did it.
        assert shell.run("x=999; unset -f f; cd /; kill $!; echo $x").output == "999\n"
        assert box.run(["pkill", "-KILL", "-s", f"{pid},{shell_drain(box, pid)}"])[0] == 0
        wait_until(lambda: box.run(["pgrep", "-s", pid])[0] == 1, "the processes are gone")
        with pytest.raises(ShellEnded):
            shell.run("true")
        criu.run("restore", "--restore-detached")
        said = shell.run("echo $? $x; f; pwd; kill -0 $! && echo the job is there")
        assert said.output == "7 42\nf 42\n/usr/lib\nthe job is there\n"
        assert shell.cwd == "/usr/lib"
        assert not open_shell(box.name).started
    shell.close()
    wait_until(lambda: box.run(["pgrep", "bash"])[0] == 1, "it ends")


def shell_drain(box: Box, pid: str) -> str:
    """Return the session of what moves the shell's output."""
    code, output = box.run(["ps", "-o", "sid=", "--ppid", pid])
    assert code == 0
    return next(sid for sid in output.decode().split() if sid != pid)
