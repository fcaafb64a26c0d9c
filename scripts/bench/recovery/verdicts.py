"""Whether a recovery was exact, and what the lesser ways would have brought back. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from turnkeep.config import Classify

from bench.recovery import compare
from bench.recovery.compare import Difference, Natural
from bench.recovery.living import Living
from bench.recovery.looks import Look
from bench.recovery.plans import Case
from bench.recovery.runs import Broken, Whole

CACHES = Classify().caches
_CACHES_NAMED = "derived caches are as of turn"

OWN = ("/.dockerenv", "/etc/hostname", "/etc/hosts", "/etc/mtab", "/etc/resolv.conf")
"""What the engine makes for each container anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Fault-free runs of one trace, and what differs between them."""

    runs: Sequence[Whole]
    at_start: Natural
    at_end: Natural


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of one recovery."""

    case: Case
    turn: int
    mode: str = ""
    restore_ns: int = 0
    error: str = ""
    log: Sequence[str] = ()
    notes: Sequence[str] = ()
    at_once: Sequence[Difference] = ()
    """Right after the restore, held against the look at that very turn."""
    lost: Sequence[Living] = ()
    extra: Sequence[Living] = ()
    at_end: Sequence[Difference] = ()
    """After the rest of the run, held against a fault-free one."""
    probes: int = 0
    wrong_probes: Sequence[str] = ()
    other_outputs: int = 0
    """Turns after the restore whose output is not that of the fault-free runs; it may tell the time."""
    can_tell: bool = True
    """False if the fault-free runs differ in too much."""
    had_processes: bool = False
    conversation_only: bool = False
    excused: Sequence[str] = field(default=())

    @property
    def files_at_once(self) -> bool:
        """Whether the files were those of the turn."""
        return not self.error and not self.at_once

    @property
    def processes_at_once(self) -> bool:
        """Whether the processes were those of the turn."""
        return not self.error and not self.lost and not self.extra

    @property
    def whole_at_end(self) -> bool:
        """Whether the run came to the same end as if nothing had been."""
        return not self.error and self.can_tell and not self.at_end and not self.wrong_probes

    @property
    def exact(self) -> bool:
        """Whether nothing at all differed."""
        return self.files_at_once and self.processes_at_once and self.whole_at_end

    @property
    def exact_but_names(self) -> bool:
        """Whether nothing differed but what the engine had made anew for a new container."""
        is_own = all(each.path in OWN for each in self.at_once)
        return not self.error and is_own and self.processes_at_once and self.whole_at_end

    @property
    def files_only(self) -> bool:
        """Whether bringing back the files alone would have been enough."""
        return self.exact_but_names and not self.had_processes


def reference(runs: Sequence[Whole]) -> Reference:
    """Return what two fault-free runs or more say."""
    return Reference(
        runs=runs,
        at_start=compare.natural([run.start.files for run in runs]),
        at_end=compare.natural([run.end.files for run in runs]),
    )


def judged(broken: Broken, known: Reference) -> Verdict:
    """Return the verdict on one broken run."""
    case, before, after, end = broken.case, broken.before, broken.after, broken.end
    if broken.error or broken.restored is None or before is None or after is None or end is None:
        error = broken.error or f"nobody looked at turn {broken.turn}, the last one that is durable"
        return Verdict(case=case, turn=broken.turn, error=error, log=broken.log)
    notes = broken.restored.notes
    at_once = compare.differences(before.files, after.files)
    if any(note.startswith(_CACHES_NAMED) for note in notes):
        at_once = compare.without(at_once, CACHES)
    probes, wrong, other = _outputs(broken, known)
    return Verdict(
        case=case,
        turn=broken.turn,
        mode=broken.restored.mode,
        restore_ns=broken.restore_ns,
        notes=notes,
        at_once=at_once,
        lost=sorted(before.processes - after.processes),
        extra=sorted(after.processes - before.processes),
        at_end=compare.unexcused(known.runs[0].end.files, end.files, known.at_end),
        probes=probes,
        wrong_probes=wrong,
        other_outputs=other,
        can_tell=known.at_end.is_small,
        had_processes=bool(before.processes),
        conversation_only=_is_fresh(before, known),
        excused=[f"{path}: {name}" for path, name in sorted(known.at_end.attributes)]
        + [f"{path}: not in every run" for path in sorted(known.at_end.absent)],
    )


def _is_fresh(before: Look, known: Reference) -> bool:
    """Whether a fresh container with the checkout would have been as good, caches aside."""
    changed = compare.unexcused(known.runs[0].start.files, before.files, known.at_start)
    return not compare.without(changed, CACHES) and not before.processes


def _outputs(broken: Broken, known: Reference) -> tuple[int, list[str], int]:
    """Return how many probes there were, which said something else, and how many other outputs did."""
    probes = other = 0
    wrong = []
    first, *others = known.runs
    for step, outcome, wanted, *again in zip(
        broken.case.trace.steps[broken.turn :],
        broken.outcomes,
        first.outcomes[broken.turn :],
        *(run.outcomes[broken.turn :] for run in others),
        strict=True,
    ):
        is_told = all((each.exit, each.digest) == (wanted.exit, wanted.digest) for each in again)
        is_same = (outcome.exit, outcome.digest) == (wanted.exit, wanted.digest)
        probes += step.probe
        if step.probe and not (is_told and is_same):
            wrong.append(
                f"turn {step.turn} was to say {wanted.shown!r} ({wanted.exit})"
                f" and said {outcome.shown!r} ({outcome.exit})"
            )
        elif is_told and not is_same:
            other += 1
    return probes, wrong, other
