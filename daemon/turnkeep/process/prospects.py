"""What would become of a sandbox's processes if they were captured now.

The same looks as at a capture (`sharing.examine`) and the same rules as in
`engine`, said for people instead of acted upon. Nothing is dumped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from turnkeep.config import ProcessSettings
from turnkeep.process.findings import Blocks, Finding, Findings, Kind, Tie
from turnkeep.process.proc import Process
from turnkeep.process.trees import Forest, Tree, TreeKind

OWN_STATE = "the container's own process holds state"
_LEFT_OUT = ["a dump of the whole container, which would take that, leaves out what docker exec started"]
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """One tree that holds state. `engine` is the one that would take it, empty for none.

    `why` says why no better one would, `hints` what to do about that, `notes` what
    would be different after a restore.
    """

    processes: str
    engine: str
    why: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether only a dump of the whole container takes it."""
        return self.engine == Blocks.WHOLE.value


def prospects(forest: Forest, findings: Findings, settings: ProcessSettings) -> tuple[Prospect, ...]:
    """Say of each tree with state which engine would take it. What is being started comes last."""
    found = [_prospect(tree, findings, settings) for tree in forest.to_dump]
    if forest.starting:
        why = "it is being started"
        found.append(Prospect(processes=_names(forest.starting), engine="", why=(why,)))
    return tuple(found)


def _prospect(tree: Tree, findings: Findings, settings: ProcessSettings) -> Prospect:
    concerned = _concerned(tree, findings)
    ties = findings.ties_of(tree.root_pid)
    why = list(dict.fromkeys(_against_in_sandbox(tree, concerned, ties, settings)))
    engine = Blocks.IN_SANDBOX
    if why and tree.kind is TreeKind.INIT:
        # Only init's tree is in a dump of the whole container, and what blocks that
        # blocks all of it.
        blocking = findings.blocking_whole()
        engine = Blocks.NONE if tree.problems or blocking else Blocks.WHOLE
        why += [each.what for each in blocking if each.what not in why]
        concerned = [*concerned, *blocking]
    elif why:
        engine = Blocks.NONE
        why += _LEFT_OUT if any(each.blocks is Blocks.IN_SANDBOX for each in concerned) else []
    else:
        # What nothing can stand for is found out when the dump is about to begin.
        why = [tie.what for tie in ties if not _has_stand_in(tie)]
        engine = Blocks.NONE if why else engine
    hints = dict.fromkeys(each.hint for each in concerned if each.hint and each.blocks is Blocks.BOTH)
    return Prospect(
        processes=_described(tree),
        engine=engine.value if engine is not Blocks.NONE else "",
        why=tuple(why),
        hints=tuple(hints),
        notes=tuple(_notes(concerned, ties, settings)) if engine is not Blocks.NONE else (),
    )


def _concerned(tree: Tree, findings: Findings) -> list[Finding]:
    return [each for each in findings.findings if not each.trees or tree.root_pid in each.trees]


def _against_in_sandbox(
    tree: Tree, concerned: Iterable[Finding], ties: Iterable[Tie], settings: ProcessSettings
) -> Iterator[str]:
    if tree.kind is TreeKind.INIT and tree.root_pid in tree.stateful:
        yield OWN_STATE
    yield from tree.problems
    yield from (each.what for each in concerned if each.blocks.in_sandbox)
    if settings.exec_sessions in ("record", "fail") and _is_attached(tree, ties):
        yield f"a client of docker exec waits for it, and process.exec_sessions = {settings.exec_sessions}"


def _notes(concerned: Iterable[Finding], ties: Iterable[Tie], settings: ProcessSettings) -> Iterator[str]:
    cut = [each for each in ties if not each.null and each.init_fd is None]
    if cut:
        yield f"{len(cut)} of its files lead out of the sandbox; after a restore /dev/null stands for them"
    for each in concerned:
        if each.kind is Kind.CONNECTION and not settings.keep_connections:
            yield f"{each.what}; the processes see their end"
        elif each.kind is not Kind.CONNECTION and each.blocks is Blocks.NONE:
            yield each.what


def _has_stand_in(tie: Tie) -> bool:
    return tie.null or tie.init_fd is not None or tie.kind is Kind.PIPE


def _is_attached(tree: Tree, ties: Iterable[Tie]) -> bool:
    return tree.kind is TreeKind.EXEC and any(not tie.null and tie.init_fd is None for tie in ties)


def _described(tree: Tree) -> str:
    names = _names(each for each in tree.processes if each.pid in tree.stateful)
    return f"{names} (from docker exec)" if tree.kind is TreeKind.EXEC else names


def _names(processes: Iterable[Process]) -> str:
    listed = list(map(str, processes))
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
