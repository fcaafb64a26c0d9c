"""Shells in real containers: bash, and sh where there is none."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator

import docker
import pytest
from turnkeep.client import aio_shell, docker_exec, shell_run
from turnkeep.client.shell import Shell, open_shell
from turnkeep.errors import (
    Conflict,
    ContainerNotFound,
    ContainerNotRunning,
    InvalidRequest,
    ShellEnded,
    ShellTimeout,
    TurnkeepError,
)

from tests.conftest import IMAGE
from tests.e2e.harness import Box, make_box, wait_until


@pytest.fixture(scope="module", params=["bash", "sh"])
def shelled(request: pytest.FixtureRequest, engine: docker.DockerClient) -> Iterator[Box]:
    """A sandbox with bash, and one without."""
    box = make_box(engine, IMAGE)
    if request.param == "sh":
        box.sh("rm /bin/bash")
    yield box
    box.container.remove(force=True)


@pytest.fixture
def shell(shelled: Box) -> Iterator[Shell]:
    with open_shell(shelled.name) as shell:
        assert shell.started
        yield shell
    # Nothing of it is left, neither processes nor files.
    wait_until(lambda: processes(shelled) == ["sleep"], "its processes end")
    assert shelled.run(["ls", "-A", "/tmp"]) == (0, b"")


def processes(box: Box) -> list[str]:
    """Return the names of what runs in a sandbox besides its init and the `ps` that looks."""
    code, output = box.run(["ps", "-eo", "pid=,comm="])
    assert code == 0
    names = [line.split()[1] for line in output.decode().splitlines() if line.split()[0] != "1"]
    return sorted(name for name in names if name != "ps")


def test_what_is_set_stays_set(shelled: Box, shell: Shell) -> None:
    shell.run("x='a  b'; export Y=1; greet() { echo \"hello $1\"; }; cd /usr/lib; alias z='echo aliased'")
    again = open_shell(shelled.name)
    assert (shell.started, again.started) == (True, False)
    said = again.run('echo "$x"; sh -c "echo \\$Y"; greet you; pwd')
    assert (said.output, said.exit_code) == ("a  b\n1\nhello you\n/usr/lib\n", 0)
    assert shell.run("z").output == "aliased\n"
    assert shell.cwd == again.cwd == "/usr/lib"


OUTPUT = [
    ("printf 'no newline'", b"no newline"),
    ("printf 'a\\0b\\377\\n'", b"a\0b\xff\n"),
    ("echo out; echo err >&2; echo out", b"out\nerr\nout\n"),
    # Of a file, these would cut off what is there.
    ("echo 1; echo 2 >/dev/stderr; echo 3 >/dev/stdout; echo 4 | tee /dev/stderr", b"1\n2\n3\n4\n4\n"),
    ("cat <<'END'\nit's \"$x\" `y` \\\nEND\necho 'two\nlines'", b'it\'s "$x" `y` \\\ntwo\nlines\n'),
    ("cat; read x || echo nothing", b"nothing\n"),
    ("# only a comment", b""),
    ("", b""),
    ("echo ä€😀", "ä€😀\n".encode()),
    ("exec >/tmp/file; echo there", b""),
    ("cat /tmp/file; rm /tmp/file", b"there\n"),
    ("for i in 1 2 3; do echo $i; done | sort -r", b"3\n2\n1\n"),
]


def test_output_is_exact(shell: Shell) -> None:
    for command, data in OUTPUT:
        assert (command, shell.run(command).data) == (command, data)


EXIT_CODES = [
    ("true", 0),
    ("false", 1),
    ("(exit 200)", 200),
    ("return 4; echo not here", 4),
    ("if", 2),
    ("no-such-program", 127),
    ("/etc/passwd", 126),
    ("sh -c 'kill -9 $$'", 137),
    ("break; continue; (exit 3)", 3),
    ("set -e; true", 0),
]


def test_exit_codes(shell: Shell) -> None:
    for command, code in EXIT_CODES:
        assert (command, shell.run(command).exit_code) == (command, code)
        # As at a prompt, the next command can ask for it.
        assert (command, shell.run("echo $?").output) == (command, f"{code}\n")


def test_large_output_is_whole_or_says_that_it_is_not(shelled: Box, shell: Shell) -> None:
    code = "import random,sys; sys.stdout.buffer.write(random.Random(1).randbytes(60 << 20))"
    said = shell.run(f"python3 -c '{code}' | tee /tmp/copy | head -c {60 << 20}")
    copy = shell.run("sha256sum /tmp/copy; rm /tmp/copy").output.split()[0]
    assert (len(said.data), said.truncated) == (60 << 20, False)
    assert hashlib.sha256(said.data).hexdigest() == copy
    said = shell.run("seq 100000", max_output_bytes=10)
    assert (said.data, said.truncated, said.exit_code) == (b"1\n2\n3\n4\n5\n", True, 0)
    said = shell.run("seq 5", max_output_bytes=10)
    assert (said.data, said.truncated) == (b"1\n2\n3\n4\n5\n", False)


def test_a_flood_does_not_fill_the_disk(shelled: Box) -> None:
    with open_shell(shelled.name, max_output_bytes=100_000) as shell:
        said = shell.run("yes | head -c 50000000; stat -c %s $TURNKEEP_SHELL/out >/tmp/size")
        assert (len(said.data), said.truncated, said.exit_code) == (100_000, True, 0)
        assert int(shell.run("cat /tmp/size; rm /tmp/size").output) < 110_000
        said = shell.run("head -c 100000 /dev/zero")
        assert (said.data, said.truncated) == (bytes(100_000), False)


def test_background_jobs_go_on(shell: Shell) -> None:
    shell.run("mkfifo /tmp/go; (read x </tmp/go; echo done $x) & job=$!")
    assert shell.run("echo x1 >/tmp/go; wait $job; rm /tmp/go").output == "done x1\n"
    # Its output between runs goes nowhere, and blocks nobody.
    shell.run("(head -c 5000000 /dev/zero; touch /tmp/written) & true")
    shell.run("wait")
    assert shell.run("rm /tmp/written").exit_code == 0


def test_a_command_that_takes_too_long_is_interrupted(shell: Shell) -> None:
    shell.run("cd /tmp; mkfifo in; sleep 1000 & job=$!")
    for command in ("sleep 1000", "while :; do :; done", "sleep 1000 | cat", "python3 -c 'open(\"in\")'"):
        with pytest.raises(ShellTimeout, match=r"than 0.5 s; it was interrupted, and the shell is free") as e:
            shell.run(f"echo before; {command}", timeout_s=0.5)
        assert e.value.output.startswith("before\n")
        assert (command, shell.run("echo $?").output) == (command, "130\n")
    assert shell.run("kill $job && echo jobs are left alone; rm in").output == "jobs are left alone\n"


def test_a_command_that_ignores_sigint_is_left_running(
    shelled: Box, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell_run, "_GRACE_S", 0.1)
    shell.run("mkfifo /tmp/go")
    with pytest.raises(ShellTimeout, match="it goes on in spite of SIGINT"):
        shell.run("trap '' INT; echo before; cat /tmp/go; rm /tmp/go; x=late", timeout_s=0.5)
    shelled.run(["sh", "-c", ": >/tmp/go"])
    assert shell.run("trap - INT; echo $x").output == "late\n"


def test_ctrl_c_interrupts_the_command(shelled: Box, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(execution: docker_exec.Exec, timeout_s: float | None = None) -> None:
        monkeypatch.undo()
        wait_until(lambda: shelled.run(["test", "-e", "/tmp/on"])[0] == 0, "the command runs")
        raise KeyboardInterrupt

    monkeypatch.setattr(docker_exec.Exec, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shell.run("touch /tmp/on; sleep 1000")
    assert shell.run("rm /tmp/on; echo free").output == "free\n"


def test_a_shell_that_ends_says_so(shelled: Box) -> None:
    shell = open_shell(shelled.name, env={"GIVEN": "yes"}, workdir="/usr")
    assert shell.run("echo $GIVEN; pwd").output == "yes\n/usr\n"
    with pytest.raises(ShellEnded, match="ended the shell, with exit code 3") as e:
        shell.run("echo last words; exit 3")
    assert e.value.output == "last words\n"
    with pytest.raises(ShellEnded, match="not there any more"):
        shell.run("true")
    with pytest.raises(ShellEnded):
        _ = shell.cwd
    with open_shell(shelled.name) as another:
        assert (another.started, another.run("echo $GIVEN$x").output) == (True, "\n")
    shell.close()


def test_one_that_cannot_say_so_is_found_out(shelled: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_run, "_LOOK_S", 0.2)
    for command in ("kill -9 $$", "exec true", "trap - EXIT; exit 1"):
        with open_shell(shelled.name) as shell, pytest.raises(ShellEnded):
            shell.run(command)


def test_one_command_at_a_time(shelled: Box, shell: Shell) -> None:
    async def both() -> None:
        first = await aio_shell.open_shell(shelled.name)
        work = asyncio.create_task(first.run("mkfifo /tmp/go; cat /tmp/go; rm /tmp/go"))
        await asyncio.to_thread(
            wait_until, lambda: shelled.run(["test", "-p", "/tmp/go"])[0] == 0, "the command runs"
        )
        with pytest.raises(Conflict, match="another client's command runs"):
            await asyncio.to_thread(shell.run, "true")
        await asyncio.to_thread(shelled.run, ["sh", "-c", "echo go >/tmp/go"])
        assert (await work).output == "go\n"
        assert shell.run("echo free").output == "free\n"

    asyncio.run(both())


def test_a_cancelled_command_is_interrupted(shelled: Box, shell: Shell) -> None:
    async def cancelled() -> None:
        same = await aio_shell.open_shell(shelled.name)
        assert (same.name, same.started, await same.cwd()) == ("main", False, "/")
        work = asyncio.create_task(same.run("touch /tmp/on; sleep 1000"))
        await asyncio.to_thread(
            wait_until, lambda: shelled.run(["test", "-e", "/tmp/on"])[0] == 0, "the command runs"
        )
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert (await same.run("rm /tmp/on; echo free")).output == "free\n"

    asyncio.run(cancelled())


def test_shells_have_names_and_users(box: Box) -> None:
    with contextlib.ExitStack() as shells:
        one, two, other = (
            shells.enter_context(open_shell(box.name, name, user=user))
            for name, user in (("one", None), ("two", None), ("one", "1000:1000"))
        )
        one.run("x=1")
        two.run("x=2")
        assert one.run("echo $x").output == "1\n"
        assert two.run("echo $x").output == "2\n"
        assert other.run("echo x$x $(id -u)").output == "x 1000\n"
    for name in ("", "../x", "a b", ".hidden", "x" * 65):
        with pytest.raises(InvalidRequest, match="letters, digits"):
            open_shell(box.name, name)


def test_a_read_only_container(make: Callable[..., Box]) -> None:
    box = make(read_only=True, user="1000:1000", tmpfs={"/run": "mode=1777"})
    with open_shell(box.name) as shell:
        assert shell.run("echo $TURNKEEP_SHELL; umask").output == "/dev/shm/.turnkeep-shell-1000-main\n0022\n"


def test_what_docker_refuses(box: Box) -> None:
    with pytest.raises(ContainerNotFound):
        open_shell("turnkeep-test-nobody")
    with pytest.raises(InvalidRequest, match="user"):
        open_shell(box.name, user="nobody-of-that-name")
    with pytest.raises((InvalidRequest, ShellEnded)):
        open_shell(box.name, workdir="/nowhere")
    shell = open_shell(box.name)
    with pytest.raises(InvalidRequest, match="NUL"):
        shell.run("a\0b")
    with pytest.raises(InvalidRequest, match="timeout"):
        shell.run("true", timeout_s=0)
    box.container.stop(timeout=0)
    with pytest.raises(ContainerNotRunning):
        shell.run("true")
    # The folder outlived the shell, and its number may be anybody's by now.
    box.container.start()
    with pytest.raises(ShellEnded):
        shell.run("true")
    assert open_shell(box.name).started


def test_a_paused_container_is_waited_for(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_shell(box.name) as shell:
        box.container.pause()
        monkeypatch.setattr(time, "sleep", lambda _: box.container.unpause())
        assert shell.run("echo thawed").output == "thawed\n"
        monkeypatch.undo()
        monkeypatch.setattr(docker_exec, "_FROZEN_RETRY_S", -1)
        box.container.pause()
        with pytest.raises(Conflict, match="paused"):
            shell.run("true")
        box.container.unpause()


def test_a_sandbox_that_lies(box: Box) -> None:
    shell = open_shell(box.name)
    box.sh("mv /bin/sh /bin/real-sh; printf '#!/bin/real-sh\\nexec yes\\n' >/bin/sh; chmod +x /bin/sh")
    with pytest.raises(Conflict, match="cut off"):
        shell.run("true", max_output_bytes=1000)
    with pytest.raises(TurnkeepError, match="no place for a shell"):
        open_shell(box.name, "other")


def test_a_command_that_ran_is_never_sent_again(box: Box) -> None:
    # Who waits for it is killed, after words that Docker uses, too.
    killer = '#!/bin/sh\nreal-rm "$@"\ncase $* in *busy) kill -9 $PPID; esac\n'
    with open_shell(box.name) as shell:
        box.sh(f"mv /bin/rm /bin/real-rm; cat >/bin/rm <<'END'\n{killer}END\nchmod +x /bin/rm")
        assert shell.run("echo paused; x=$((x + 1))").output == "paused\n"
        box.sh("mv /bin/real-rm /bin/rm")
        assert shell.run("echo $x").output == "1\n"
