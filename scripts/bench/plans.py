"""How much a run measures: a little to see that it works, what fits into five minutes, or all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench import endurance, files, store
from bench.figures import Part
from bench.peers import run as peers
from bench.processes import run as processes
from bench.scene import Scene
from bench.sizes import run as sizes
from bench.sizes.rows import MIB

_FOR_EVER_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan for each part, and how long all of them may take together."""

    seconds: float = _FOR_EVER_S
    files: files.Plan = field(default_factory=files.Plan)
    sizes: sizes.Plan = field(default_factory=sizes.Plan)
    peers: peers.Plan = field(default_factory=peers.Plan)
    store: store.Plan = field(default_factory=store.Plan)
    processes: processes.Plan = field(default_factory=processes.Plan)
    endurance: endurance.Plan = field(default_factory=endurance.Plan)


FULL = Plan()
SHORT = Plan(
    # What comes before and after the measuring has to fit into the five minutes, too.
    seconds=225,
    files=files.Plan(runs=10),
    sizes=sizes.Plan(
        files=(1_000, 100_000), changed=(5, 100), runs=10, large=(1 * MIB, 64 * MIB), large_runs=3
    ),
    peers=peers.Plan(files=(5_000,), runs=5),
    store=store.Plan(folders=("usr/share", "usr/lib/python3.11", "usr/lib/git-core"), runs=5),
    processes=processes.SHORT,
)
QUICK = Plan(
    files=files.Plan(files=500, runs=3),
    sizes=sizes.Plan(files=(100, 1_000), changed=(1, 5), runs=3, large=(1 * MIB,), large_runs=2),
    peers=peers.Plan(files=(100, 1_000), runs=2),
    store=store.Plan(folders=("usr/share/perl",), runs=2),
    processes=processes.QUICK,
    endurance=endurance.Plan(turns=50, files=100),
)

MEASURED: Mapping[str, Callable[[Scene, Any], Part]] = {
    "files": files.measure,
    "sizes": sizes.measure,
    "peers": peers.measure,
    "store": store.measure,
    "processes": processes.measure,
    "endurance": endurance.measure,
}
"""What measures each part, in the order of a run. A plan has a field of each name."""

SHARES = {"files": 2, "sizes": 6, "peers": 2, "store": 2, "processes": 4, "endurance": 2}

ONLY_FULL = frozenset({"endurance"})
"""What is no part of a short run, unless it is asked for."""
"""How the time is shared out among the parts that are measured."""
