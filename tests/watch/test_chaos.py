"""Random things are done by several processes at once, and all of them are found.

`TURNKEEP_CHAOS_SECONDS` makes it go on for so long, with other seeds from one
on that `TURNKEEP_CHAOS_SEED` gives.
"""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import pytest

from .conftest import MakeFollowed
from .followed import Followed

SECONDS = int(os.environ.get("TURNKEEP_CHAOS_SECONDS", "0"))
SEED = int(os.environ.get("TURNKEEP_CHAOS_SEED", "1"))
ROUNDS = 60
PROCESSES = 2
MOST_GLANCES = 4

Process = subprocess.Popen[str]


@contextmanager
def _at_work(root: Path, seeds: Sequence[int]) -> Iterator[list[Process]]:
    with ExitStack() as stack:
        processes = []
        for seed in seeds:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.watch.chaos", root, str(seed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def _begin(processes: Sequence[Process], count: int) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{count}\n")


def _end(processes: Sequence[Process]) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"


def _are_busy(processes: Sequence[Process]) -> bool:
    pipes = [process.stdout for process in processes if process.stdout is not None]
    return len(select.select(pipes, [], [], 0)[0]) < len(pipes)


def _round(boxes: dict[Followed, list[Process]], chance: random.Random) -> int:
    """Let all work for a while and look at it meanwhile; then compare. Return in how many all was known."""
    processes = [process for each in boxes.values() for process in each]
    glances = chance.randrange(MOST_GLANCES) if chance.random() < 0.7 else 0
    first = next(iter(boxes))
    # Now and then all is read at the end, when every name is another one.
    with first.undrained() if not glances else nullcontext():
        _begin(processes, chance.choice([1, 5, 20, 60, 150]))
        while glances and _are_busy(processes):
            chance.choice(list(boxes)).glance()
            glances -= 1
        _end(processes)
        return sum(box.look_or_start_over(_pids(boxes[box])).complete for box in boxes)


def _pids(processes: Sequence[Process]) -> list[int]:
    return [process.pid for process in processes]


def _run(make_followed: MakeFollowed, seed: int, rounds: int) -> None:
    chance = random.Random(seed)
    with ExitStack() as stack:
        boxes = {}
        for number in range(2):
            box = make_followed()
            seeds = [seed * 100 + number * PROCESSES + each for each in range(PROCESSES)]
            boxes[box] = stack.enter_context(_at_work(box.root, seeds))
        known = sum(_round(boxes, chance) for _ in range(rounds))
        # Else nothing was tried but scanning.
        assert known > rounds


@pytest.mark.timeout(SECONDS + 300)
def test_chaos(make_followed: MakeFollowed) -> None:
    end = time.monotonic() + SECONDS
    seed = SEED
    while True:
        _run(make_followed, seed, ROUNDS)
        seed += 1
        if time.monotonic() >= end:
            break
