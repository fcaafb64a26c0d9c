"""What is broken when, and what is called exact."""

from __future__ import annotations

import dataclasses

from bench.recovery import plans, verdicts
from bench.recovery.compare import Difference
from bench.recovery.listing import Listing, Node
from bench.recovery.living import Living
from bench.recovery.looks import Look
from bench.recovery.plans import Case, Fault, Moment
from bench.recovery.runs import Broken, Whole
from bench.recovery.verdicts import Verdict
from bench.replay.commands import Outcome
from bench.replay.traces import Step, Trace
from turnkeep.client.values import RestoreResult, SandboxInfo, TurnCounts
from turnkeep.model import ContainerState

FILE = Node(type="file", mode=0o644, uid=0, gid=0, size=1, mtime_ns=1, sha256="aa")
SERVER = Living(pid=7, name="server", command="server 8000", threads=1)


def trace(name: str, turns: int = 4, *, probe: int = 0) -> Trace:
    steps = [
        Step(turn=number, command="true", cwd="/", shell=("sh", "-c"), exit=0, probe=number == probe)
        for number in range(1, turns + 1)
    ]
    return Trace(name=name, sdist="", steps=tuple(steps))


def test_faults_go_round_the_recorded_runs_and_all_meet_the_written_ones() -> None:
    recorded, written = [trace(f"r{number}") for number in range(5)], [trace("w")]
    drawn = plans.cases(recorded, written, list(Fault), 1, each=False)
    assert [(case.trace.name, case.fault) for case in drawn] == [
        *(("r0", Fault.KILL), ("r1", Fault.REMOVE), ("r2", Fault.DAEMON), ("r3", Fault.ENGINE)),
        *(("r4", Fault.KILL), *(("w", fault) for fault in Fault)),
    ]
    assert len(plans.cases(recorded, written, list(Fault), 1, each=True)) == 24


def test_what_is_drawn_depends_on_seed_run_and_fault_alone() -> None:
    def drawn(*names: str, seed: int = 1) -> list[tuple[str, int, Moment, float]]:
        made = plans.cases([], [trace(name, 40) for name in names], [Fault.KILL], seed, each=False)
        return [(case.trace.name, case.at, case.moment, case.delay_s) for case in made]

    assert drawn("a", "b")[1:] == drawn("b")
    assert drawn("a") != drawn("a", seed=2)


def test_the_fault_leaves_a_turn_before_it_and_one_after_it() -> None:
    for seed in range(50):
        (case,) = plans.cases([], [trace("a", 4)], [Fault.KILL], seed, each=False)
        assert 2 <= case.at <= 3
    for turns in (1, 2):
        (case,) = plans.cases([], [trace("a", turns)], [Fault.KILL], 1, each=False)
        assert case.at == 1


def restored(*notes: str, mode: str = "cold") -> RestoreResult:
    sandbox = SandboxInfo(
        id="1",
        name="box",
        container_id="c",
        image_id="i",
        container_state=ContainerState.RUNNING,
        attached=True,
        attached_at_ns=0,
        last_turn=1,
        open_turn=None,
        head_checkpoint_id=None,
        head_turn=None,
        mounts=(),
        turns=TurnCounts(),
        stored_bytes=0,
        note="",
    )
    return RestoreResult(
        sandbox=sandbox,
        checkpoint_id="",
        turn=2,
        mode=mode,
        mode_reason="",
        safety_checkpoint_id=None,
        expected_digest="",
        actual_digest="",
        verify="full",
        changed_paths=0,
        written_bytes=0,
        freeze_ns=0,
        total_ns=0,
        notes=notes,
        stopped_processes=(),
        harness_state=None,
    )


def said(text: str) -> Outcome:
    return Outcome(exit=0, took_ns=1, digest=text, shown=text)


def look(*processes: Living, **more: Node) -> Look:
    files: Listing = {f"/f{number}": FILE for number in range(200)}
    files |= {"/" + name.replace("__", "/"): node for name, node in more.items()}
    return Look(files=files, processes=frozenset(processes))


def known(*outputs: str) -> verdicts.Reference:
    run = Whole(start=look(), outcomes=[said(each) for each in outputs], end=look(a=FILE))
    return verdicts.reference([run, dataclasses.replace(run)])


def broken(before: Look, after: Look, end: Look, *notes: str, probe: int = 0) -> Broken:
    case = Case(trace=trace("t", probe=probe), fault=Fault.KILL, at=3, moment=Moment.END, delay_s=0)
    return Broken(
        case=case,
        turn=2,
        before=before,
        after=after,
        outcomes=[said("3"), said("4")],
        end=end,
        restored=restored(*notes),
        restore_ns=5,
    )


def judged(made: Broken) -> Verdict:
    return verdicts.judged(made, known("1", "2", "3", "4"))


def test_a_recovery_is_exact_if_nothing_differs() -> None:
    found = judged(broken(look(SERVER, a=FILE), look(SERVER, a=FILE), look(a=FILE), probe=3))
    assert found.exact
    assert (found.probes, found.wrong_probes, found.other_outputs) == (1, [], 0)
    assert (found.files_only, found.conversation_only) == (False, False)


def test_files_alone_do_where_nothing_lived_and_the_conversation_where_nothing_changed() -> None:
    found = judged(broken(look(), look(), look(a=FILE)))
    assert (found.exact, found.files_only, found.conversation_only) == (True, True, True)
    cached = look()
    cached.files["/src/__pycache__/x.pyc"] = FILE
    assert judged(broken(cached, cached, look(a=FILE))).conversation_only


def test_any_difference_at_once_is_inexact() -> None:
    other = dataclasses.replace(FILE, mtime_ns=2)
    found = judged(broken(look(), look(f1=other), look(a=FILE)))
    assert not found.exact
    assert list(found.at_once) == [Difference(path="/f1", attribute="mtime_ns", wanted="1", found="2")]
    lost = judged(broken(look(SERVER), look(), look(a=FILE)))
    assert (lost.exact, lost.processes_at_once, list(lost.lost)) == (False, False, [SERVER])


def test_caches_are_left_out_only_if_the_restore_named_them() -> None:
    before, after, end = look(), look(), look(a=FILE)
    before.files["/src/__pycache__/x.pyc"] = FILE
    assert not judged(broken(before, after, end)).exact
    note = "derived caches are as of turn 1, not 2: 1 paths (/src/__pycache__/x.pyc)"
    assert judged(broken(before, after, end, note)).exact


def test_names_of_a_new_container_are_counted_apart() -> None:
    before, after = look(etc__hostname=FILE), look(etc__hostname=dataclasses.replace(FILE, sha256="b"))
    found = judged(broken(before, after, look(a=FILE)))
    assert (found.exact, found.exact_but_names) == (False, True)


def test_the_end_and_the_probes_are_compared_with_fault_free_runs() -> None:
    assert not judged(broken(look(), look(), look())).whole_at_end
    wrong = dataclasses.replace(
        broken(look(), look(), look(a=FILE), probe=3), outcomes=[said("9"), said("8")]
    )
    found = judged(wrong)
    assert len(found.wrong_probes) == 1
    assert "turn 3 was to say '3' (0) and said '9' (0)" in found.wrong_probes[0]
    assert (found.other_outputs, found.whole_at_end) == (1, False)


def test_a_failed_restore_and_an_unseen_turn_are_not_exact() -> None:
    failed = Broken(case=broken(look(), look(), look()).case, error="RestoreFailed: no", log=["line"])
    found = judged(failed)
    assert (found.exact, found.exact_but_names, found.error) == (False, False, "RestoreFailed: no")
    unseen = dataclasses.replace(broken(look(), look(), look()), before=None)
    assert "nobody looked at turn 2" in judged(unseen).error
