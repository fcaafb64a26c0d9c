"""The run: start what is needed, play, break, restore, compare, remove what was started.

It exits with 0 only if the restored sandbox is what it was: by Turnkeep's digest,
by a listing that the sandbox itself makes, and by the conversation that came back.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import docker
import turnkeep
from docker.errors import DockerException, ImageNotFound
from docker.models.containers import Container
from turnkeep.client import Client, Sandbox
from turnkeep.errors import TurnkeepError

from demo import show, stage
from demo.agent import Agent
from demo.script import ASKED, GOOD_TURN, NEXT, STEPS
from demo.show import Out

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPTED = 130


def main() -> int:
    """Run the demo; return the exit code."""
    options = argparse.ArgumentParser(prog="demo", description="Show Turnkeep at work on a real sandbox.")
    options.add_argument(
        "--speed", type=float, default=10.0, help="how much faster than life the LLM replies"
    )
    speed = max(options.parse_args().speed, 0.1)
    if os.geteuid() != 0:
        return _complain(
            "needs root: the daemon reads containers' files and freezes them. Try: sudo make demo"
        )
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    out = Out()
    started = time.monotonic()
    try:
        with contextlib.ExitStack() as stack:
            _run(out, stack, speed, started)
    except KeyboardInterrupt:
        _complain("interrupted; what it had started is gone again")
        return _INTERRUPTED
    except ImageNotFound:
        return _complain(f"the engine has no image {stage.IMAGE}. Try: make image")
    except DockerException as error:
        return _complain(f"the Docker Engine failed: {error}. Try: make host")
    except (stage.Failed, TurnkeepError, OSError, subprocess.CalledProcessError) as error:
        return _complain(str(error))
    return 0


def _run(out: Out, stack: contextlib.ExitStack, speed: float, started: float) -> None:
    engine = stack.enter_context(contextlib.closing(docker.from_env()))
    folder = stack.enter_context(stage.private_folder())
    environment = stage.private_environment(folder)
    stack.enter_context(stage.pin_removed(engine))
    sandbox = stack.enter_context(stage.container(engine, f"turnkeep-demo-{secrets.token_hex(3)}"))
    out.say(f"sandbox   {sandbox.name}, a container of {stage.IMAGE}")
    pid = stack.enter_context(stage.daemon(folder, environment))
    out.say(f"daemon    turnkeep serve, pid {pid}, state and socket in {folder}")
    tk = stack.enter_context(turnkeep.connect(environment["TURNKEEP_ADDRESS"]))
    stack.callback(_ignore_signals)
    _play(out, tk, sandbox, folder, environment, speed)
    out.say(f"  {'run time':<14} {time.monotonic() - started:.1f} s, clean-up not counted")


def _play(
    out: Out, tk: Client, sandbox: Container, folder: Path, environment: Mapping[str, str], speed: float
) -> None:
    arrived = time.perf_counter()
    box = tk.attach(sandbox.name or "")
    out.say(f"attached  in {(time.perf_counter() - arrived) * 1e3:.0f} ms, sandbox {box.info.id}")
    out.say(f"LLM       simulated by waits of 3 to 8 s, played {speed:g} times as fast")
    out.say("columns   sizes in bytes, K and M are KiB and MiB; freeze and delay in ms; delay is what")
    out.say("          the agent waits for Turnkeep: begin with its gate, and end")
    out.say()
    agent = Agent(box, sandbox, out.turn, speed)
    out.heads()
    agent.play(STEPS)
    stored = stage.stored_files(folder)
    _restore(out, box, agent)
    out.heads()
    agent.play([NEXT])
    _fork(out, box, agent)
    show.command_line(out, environment, "log", box.name, "--graph")
    show.command_line(out, environment, "ps")
    show.summary(out, agent, stored)


def _restore(out: Out, box: Sandbox, agent: Agent) -> None:
    """Bring the sandbox back to before the mistake, and look at it from three sides."""
    gone = agent.listing().count("\n")
    out.say()
    out.say(
        f"The work folder is gone: {gone} lines are left of the listing. box.restore(turn={GOOD_TURN})",
        "bold",
    )
    result = box.restore(turn=GOOD_TURN)
    show.restored(out, result, agent.played[GOOD_TURN - 1], agent.listing())
    show.counted(out, "the server", ASKED + 1, agent.ask())
    out.say(f"  The conversation goes on from its message {agent.come_back(result)}.")
    out.say()


def _fork(out: Out, box: Sandbox, agent: Agent) -> None:
    """Make a copy of the sandbox as it is, and see that each goes its own way."""
    out.say()
    out.say("A second way to try: box.fork()", "bold")
    arrived = time.perf_counter()
    (copy,) = box.fork()
    out.say(f"  {copy.name}, attached and running after {(time.perf_counter() - arrived) * 1e3:.0f} ms")
    with stage.removed(copy.name) as container:
        for number in (ASKED + 2, ASKED + 3):
            show.counted(out, "the copy's", number, agent.ask(container))
        show.counted(out, "the original's", ASKED + 2, agent.ask())
    out.say()


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Once is enough: what follows is the cleaning up.
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _complain(message: str) -> int:
    print(f"demo: {message}", file=sys.stderr)
    return 1
