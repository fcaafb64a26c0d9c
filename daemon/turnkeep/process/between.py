"""What several trees hold together."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from functools import cmp_to_key

from turnkeep.process.descriptors import Held
from turnkeep.process.findings import Finding, Kind
from turnkeep.process.syscalls import compare
from turnkeep.process.trees import Tree

MAX_COMPARED = 4096
"""More holds than these are not compared with each other; it is said that they were not."""

_HINT = "start what belongs together in one exec, or leave one of the trees out"


def shared(holds: Iterable[Held], trees: Sequence[Tree]) -> bool:
    """Whether a tree that holds state shares this with another."""
    numbers = {held.tree for held in holds}
    return len(numbers) > 1 and any(trees[number].to_dump for number in numbers)


def between(
    kind: Kind, what: str, holds: Iterable[Held], trees: Sequence[Tree], hint: str = _HINT
) -> Finding:
    """Return the finding that several trees hold something, naming one process of each."""
    firsts: dict[int, Held] = {}
    for held in holds:
        firsts.setdefault(held.tree, held)
    ordered = [firsts[number] for number in sorted(firsts)]
    return Finding(
        kind=kind,
        what=f"{what} is shared by {' and '.join(map(str, ordered))}",
        trees=tuple(trees[held.tree].root_pid for held in ordered if trees[held.tree].to_dump),
        pids=tuple(held.process.pid for held in ordered),
        hint=hint,
    )


def one_and_the_same(kind: int, holds: Sequence[Held]) -> Iterator[list[Held]]:
    """Divide holds into those of one kernel object.

    Raises:
        OverflowError: there are more than MAX_COMPARED.
        OSError: the kernel does not tell.
    """
    if len(holds) > MAX_COMPARED:
        raise OverflowError(f"more than {MAX_COMPARED} of them")

    def order(first: Held, second: Held) -> int:
        return compare(kind, (first.process.pid, max(first.fd, 0)), (second.process.pid, max(second.fd, 0)))

    ordered = sorted(holds, key=cmp_to_key(order))
    run = ordered[:1]
    for held in ordered[1:]:
        if order(run[-1], held):
            yield run
            run = []
        run.append(held)
    yield run


def same_objects(
    kind: int, what: str, holds: Sequence[Held], trees: Sequence[Tree], finding: Kind
) -> Iterator[Finding]:
    """Find the kernel objects that several trees have in common."""
    try:
        for same in one_and_the_same(kind, still_there(kind, holds)):
            if shared(same, trees):
                yield between(finding, what, same, trees)
    except (OSError, OverflowError) as error:
        yield between(Kind.UNKNOWN, f"perhaps {what} ({error})", holds, trees)


def still_there(kind: int, holds: Sequence[Held]) -> list[Held]:
    """Leave out what has ended or was closed meanwhile."""
    found = []
    for held in holds:
        itself = (held.process.pid, max(held.fd, 0))
        try:
            compare(kind, itself, itself)
        except OSError as error:
            if error.errno in (errno.ESRCH, errno.EBADF):
                continue
        found.append(held)
    return found
