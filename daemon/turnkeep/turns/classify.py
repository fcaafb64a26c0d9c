"""From evidence to a class, without looking at anything else."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from turnkeep.model import Decision, TurnClass

SHOWN_PATHS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was found to differ from the last checkpoint.

    `changed` are paths inside the container whose net state differs. `processes`
    says what stateful processes did. `unsure` names what could not be known:
    each of them speaks for capturing.
    """

    changed: Sequence[str] = ()
    processes: Sequence[str] = ()
    unsure: Sequence[str] = ()
    stateful_running: int = 0


def is_cache(path: str, caches: Collection[str]) -> bool:
    """Whether a path lies in, or is, a folder of derived data."""
    return any(part in caches for part in path.split("/"))


def sort_out(changed: Iterable[str], caches: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the paths that are no derived data, and those that are."""
    plain: list[str] = []
    cached: list[str] = []
    # Of each path only what follows the folder of the one before: from the top,
    # a chain of nested folders would cost the square of its depth.
    above, is_above = "", False
    for path in changed:
        if not path.startswith(above):
            above, is_above = "", False
        folder, slash, name = path[len(above) :].rpartition("/")
        above, is_above = above + folder + slash, is_above or is_cache(folder, caches)
        (cached if is_above or name in caches else plain).append(path)
    return plain, cached


def classify(evidence: Evidence, caches: Collection[str]) -> Decision:
    """Decide what a turn has to keep, and say why in a sentence.

    Never STATELESS when anything is unsure.
    """
    plain, cached = sort_out(evidence.changed, caches)
    files = len(evidence.changed) > len(cached) or bool(evidence.unsure)
    processes = bool(evidence.processes)
    match files, processes:
        case True, True:
            turn_class = TurnClass.FULL
        case True, False:
            turn_class = TurnClass.FILESYSTEM
        case False, True:
            turn_class = TurnClass.PROCESS
        case _:
            turn_class = TurnClass.STATELESS
    return Decision(
        turn_class=turn_class,
        reason=_reason(turn_class, plain, cached, evidence),
        changed_paths=tuple((plain + cached)[:SHOWN_PATHS]),
        changed_path_count=len(evidence.changed),
        cache_path_count=len(cached),
        processes=tuple(evidence.processes[:SHOWN_PATHS]),
        unsure=tuple(evidence.unsure),
    )


def _reason(turn_class: TurnClass, plain: list[str], cached: list[str], evidence: Evidence) -> str:
    if turn_class is TurnClass.STATELESS:
        if cached:
            return f"only derived caches changed ({_list(cached)})"
        if evidence.stateful_running:
            return "no file changed, and no stateful process was born, died or ran"
        return "no file changed and no stateful process is running"
    parts = []
    if plain:
        parts.append(f"{_count(len(plain), 'path')} changed ({_list(plain)})")
    if evidence.processes:
        parts.append(f"{_count(len(evidence.processes), 'process', 'es')}: {_list(evidence.processes)}")
    if evidence.unsure:
        parts.append(f"not certain: {'; '.join(evidence.unsure)}")
    return "; ".join(parts)


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"


def _list(items: Sequence[str]) -> str:
    shown = ", ".join(items[:3])
    return shown if len(items) <= 3 else f"{shown}, …"
