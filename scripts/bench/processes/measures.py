"""The rows of the part about processes, and the targets."""

from __future__ import annotations

from bench.figures import Axis, Limit, Measure, Sections
from bench.processes.boxes import MIB

_STOPPED_NS = {64 * MIB: 60_000_000}
_TERMINAL_NS, _SERVER_NS = 100_000_000, 150_000_000


def dump_prefix(size: int) -> str:
    """Return what the names of measures of a server of this size begin with."""
    return f"dump_{size // MIB}_"


def dumps(size: int) -> Sections:
    """Return the rows of dumps of a server that holds so many bytes."""
    at = dump_prefix(size)
    half = Limit(0.5, f"{at}runc_stopped")
    absolute = [Limit(_STOPPED_NS[size])] if size in _STOPPED_NS else []
    ours = {
        "freeze": Measure("freeze window of a turn", f"{at}runc_stopped", limits=(half, *absolute)),
        "freeze_criu": Measure("  stopped by CRIU, it says"),
        "freeze_rest": Measure("  the rest: ours"),
        "gap": _gap(size, "Turnkeep", peer=f"{at}runc_gap"),
        "captured": Measure("EndTurn to captured", f"{at}runc"),
        "durable": Measure("EndTurn to durable", f"{at}runc"),
        "first_durable": Measure("  for its first dump"),
        "first_stored": Measure("stored for the first dump", f"{at}runc_bytes", unit="bytes", short="first"),
        "stored": Measure(
            "stored for a later dump",
            f"{at}runc_bytes",
            unit="bytes",
            limits=(Limit(0.1, f"{at}first_stored"),),
        ),
    }
    theirs = {
        "runc": Measure("runc checkpoint, to tmpfs", short="runc"),
        "runc_stopped": Measure("  stopped by CRIU, it says", short="runc"),
        "runc_memory": Measure("    of it, memory and writing"),
        "runc_gap": _gap(size, "runc checkpoint", short="runc"),
        "runc_bytes": Measure("images of runc checkpoint", unit="bytes", short="runc"),
        "podman": Measure("podman container checkpoint", short="podman"),
        "podman_gap": _gap(size, "podman checkpoint", short="podman"),
        "docker": Measure("docker checkpoint create", short="docker"),
        "docker_gap": _gap(size, "docker checkpoint", short="docker"),
        "commit": Measure("docker commit, files alone"),
        "commit_pause": Measure("  pause inside it, by its events"),
    }
    rows = {f"{at}{key}": row for key, row in (ours | theirs).items()}
    return {f"dump of a {size // MIB:,} MiB server": rows}


def _gap(size: int, tool: str, *, peer: str = "", short: str = "") -> Measure:
    axes: dict[str, Axis] = {"quantity": "stopped", "tool": tool, "memory_bytes": size}
    return Measure("  as its server sees it", peer, short=short, axes=axes)


def restores(prefix: str, title: str, most_ns: int) -> Sections:
    """Return the rows of restores of one program."""
    restart = f"{prefix}restart"
    limits = (Limit(most_ns), Limit(1, restart))
    parts = {
        "restore_read": Measure("  images read from the store"),
        "restore_vet": Measure("  images vetted"),
        "restore_kill": Measure("  what ran is killed, and gone"),
        "restore_criu": Measure("  CRIU, from its start to its end"),
        "restore_back": Measure("  held, compared, let go"),
        "restore_rest": Measure("  the rest: files, journal, calls"),
    }
    rows = {
        "restore": Measure("restore, call to answer", restart, limits=limits, axes=_back(title, "Turnkeep")),
        **parts,
        "restore_asked": Measure("  to its first answer", f"{prefix}restart_asked"),
        "restore_saving": Measure("restore, changes saved first", restart),
        "restore_saving_asked": Measure("  to its first answer", f"{prefix}restart_asked"),
        "cold": Measure("restore, cold, by a new daemon", restart),
        "cold_saving": Measure("  changes saved first", restart),
        "restart": Measure(
            "docker stop -t 0, docker start",
            short="restart",
            axes=_back(title, "docker stop, start: state lost"),
        ),
        "restart_asked": Measure("  to an answer, started anew", short="restart"),
        "runc": Measure("runc restore, without Docker", axes=_back(title, "runc restore")),
        "podman": Measure("podman container restore", axes=_back(title, "podman restore")),
        "docker": Measure("docker start --checkpoint", axes=_back(title, "docker start --checkpoint")),
    }
    return {f"live restore: {title}": {f"{prefix}{key}": row for key, row in rows.items()}}


def _back(title: str, tool: str) -> dict[str, Axis]:
    return {"quantity": "back", "of": title, "tool": tool}


def forks(count: int) -> Sections:
    """Return the rows of making so many copies."""
    new = f"new_{count}"
    bare, live = f"fork_{count}", f"fork_live_{count}"
    rows = {
        bare: Measure("fork without processes", new, limits=(Limit(1.3, new),)),
        f"{bare}_engine": Measure("  in the engine: create, start"),
        f"{bare}_rest": Measure("  the rest: ours"),
        live: Measure("fork with a 64 MiB server", new),
        f"{live}_engine": Measure("  in the engine: create, start"),
        f"{live}_read": Measure("  images read from the store"),
        f"{live}_criu": Measure("  CRIU, from its start to its end"),
        f"{live}_rest": Measure("  the rest: ours"),
        new: Measure("docker create, docker start", short="new"),
    }
    return {f"{count} {'copy' if count == 1 else 'copies'}": rows}


def sections(sizes: list[int], counts: list[int]) -> Sections:
    """Return all rows."""
    found: dict[str, dict[str, Measure]] = {}
    tables = [dumps(size) for size in sizes]
    tables.append(restores("tmux_", "tmux with a REPL", _TERMINAL_NS))
    tables.append(restores("server_", "a 64 MiB server", _SERVER_NS))
    tables += [forks(count) for count in counts]
    for table in tables:
        found.update({title: dict(rows) for title, rows in table.items()})
    return found
