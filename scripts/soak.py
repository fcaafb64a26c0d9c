"""Runs many sandboxes under one daemon for long, with random work and random ends of the daemon.

    sudo .venv/bin/python scripts/soak.py --minutes 60 --sandboxes 20 --seed 1

Everything is compared with a model (tests/soak/model.py): each restore, and at the end
each turn that was kept. Between two ends of the daemon its memory, descriptors and
threads are looked at. Exits with 1 on the first difference, whose seed it prints.
"""

from __future__ import annotations

import argparse
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import docker
import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from turnkeep.errors import (  # noqa: E402
    Conflict,
    DaemonUnavailable,
    RestoreFailed,
    TurnkeepError,
    TurnNotFound,
)

from tests.conftest import IMAGE  # noqa: E402
from tests.e2e.conftest import remove_named  # noqa: E402
from tests.e2e.harness import Daemon, make_box  # noqa: E402
from tests.soak.model import Subject, Wrong, act  # noqa: E402

WORKERS = 4
_LOG_LINES = 30


@dataclass(slots=True)
class Soak:
    """One soak: the daemon, its sandboxes, and what was done so far."""

    daemon: Daemon
    subjects: list[Subject]
    rng: random.Random
    until: float
    done: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, int, int, int]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def work(self, number: int) -> None:
        """Act on random sandboxes until the time is over."""
        rng = random.Random(self.rng.random() * 1e9 + number)
        while time.monotonic() < self.until and not self.stop.is_set():
            subject = rng.choice(self.subjects)
            if not subject.lock.acquire(blocking=False):
                continue
            try:
                self._act(subject)
            except Exception as error:
                self.wrong.append(f"{subject.box.name}: {type(error).__name__}: {error}")
                self.wrong += self.daemon.log.read_text().splitlines()[-_LOG_LINES:]
                top = subject.box.container.top(ps_args="-eo pid,stat,wchan:32,args")
                self.wrong += [" ".join(row) for row in top["Processes"]]
                self.stop.set()
            finally:
                subject.lock.release()

    def _act(self, subject: Subject) -> None:
        try:
            with self.daemon.connect(retry_s=60.0) as tk:
                self.done[act(subject, tk)] += 1
        except (DaemonUnavailable, Conflict, TurnNotFound, RestoreFailed) as error:
            # The daemon ended under it. What was asked may have been done, or not.
            with self.daemon.connect(retry_s=60.0) as tk:
                subject.settle(tk)
            self.done[f"cut off ({type(error).__name__})"] += 1

    def care(self) -> None:
        """Prune, and end and start the daemon, at random times."""
        while not self.stop.wait(min(self.rng.uniform(5, 25), max(0.0, self.until - time.monotonic()))):
            if time.monotonic() >= self.until:
                return
            if self.rng.random() < 0.5:
                with self.daemon.connect(retry_s=60.0) as tk:
                    tk.prune()
                self.done["prune"] += 1
            else:
                self.sample()
                self.daemon.kill()
                self.daemon.start()
                self.done["kill"] += 1

    def sample(self) -> None:
        """Write down what the daemon takes."""
        assert self.daemon.process is not None
        process = psutil.Process(self.daemon.process.pid)
        with process.oneshot():
            self.samples.append(
                (
                    time.time() - process.create_time(),
                    process.memory_info().rss,
                    process.num_fds(),
                    process.num_threads(),
                )
            )


def main() -> int:
    """Run it; return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--sandboxes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    options = parser.parse_args()
    print(
        f"soak: seed {options.seed}, {options.sandboxes} sandboxes, {options.minutes:g} minutes", flush=True
    )
    with _soak(options) as soak:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda *_: soak.stop.set())
        with ThreadPoolExecutor(WORKERS + 1) as pool:
            care = pool.submit(soak.care)
            for number in range(WORKERS):
                pool.submit(soak.work, number)
        care.result()
        if not soak.wrong:
            _finish(soak)
        _report(soak)
        return bool(soak.wrong)


@contextmanager
def _soak(options: argparse.Namespace) -> Iterator[Soak]:
    engine = docker.from_env()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="tk-soak-", dir="/var/tmp") as folder:
        daemon = Daemon(Path(folder))
        boxes = []
        try:
            daemon.start()
            boxes = [make_box(engine, IMAGE) for _ in range(options.sandboxes)]
            subjects = [Subject(daemon, box, random.Random(rng.random())) for box in boxes]
            with daemon.connect() as tk:
                for subject in subjects:
                    subject.begin(tk)
            yield Soak(daemon, subjects, rng, time.monotonic() + options.minutes * 60)
        finally:
            daemon.stop()
            remove_named(engine, tuple(box.name for box in boxes))
            engine.close()


def _finish(soak: Soak) -> None:
    """Compare everything that is left with what it has to be."""
    try:
        with soak.daemon.connect(retry_s=60.0) as tk:
            soak.done["restored at the end"] = sum(subject.verify_all(tk) for subject in soak.subjects)
            soak.wrong += tk.check().problems
            soak.wrong += tk.check(journal=True).problems
            soak.sample()
        soak.daemon.assert_nothing_missed()
    except (Wrong, AssertionError, TurnkeepError) as error:
        soak.wrong.append(f"{type(error).__name__}: {error}")


def _report(soak: Soak) -> None:
    for what, count in sorted(soak.done.items()):
        print(f"  {count:7,}  {what}")
    print("  daemon at its ends: seconds, MiB, descriptors, threads")
    for seconds, resident, descriptors, threads in soak.samples:
        print(f"  {seconds:7.0f}  {resident / 2**20:6.0f} {descriptors:5} {threads:4}")
    for each in soak.wrong:
        print(f"  WRONG: {each}")
    print("soak: something is wrong" if soak.wrong else "soak: all is as it has to be")


if __name__ == "__main__":
    raise SystemExit(main())
