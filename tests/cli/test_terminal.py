"""What reaches a terminal: nothing raw, nothing cut, no traceback."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import turnkeep
from rich.console import Console
from turnkeep.cli import printing, root, words
from turnkeep.client import Progress
from typer.testing import Result

from tests.client.fake_daemon import FakeDaemon

Run = Callable[..., Result]

HOSTILE = "[red]x[/red]\x1b]0;owned\x07\x1b[2J\u202eevil\nline\x9b1m"
ESCAPED = "[red]x[/red]\\x1b]0;owned\\x07\\x1b[2J\\u202eevil\\x0aline\\x9b1m"


@pytest.fixture
def hostile(daemon: FakeDaemon) -> FakeDaemon:
    with turnkeep.connect(daemon.address) as tk:
        box = tk.attach("web")
        with box.turn(HOSTILE, labels={HOSTILE: HOSTILE}):
            pass
        box.checkpoint(name=HOSTILE, tags=[HOSTILE])
    service = daemon.service
    box_ = next(iter(service.sandboxes.values()))
    box_.name, box_.note = HOSTILE, HOSTILE
    box_.mounts[1].target = box_.mounts[1].reason = HOSTILE
    turn = service.turns[box_.id][0]
    turn.decision.reason = HOSTILE
    turn.decision.changed_paths[:] = [HOSTILE]
    service.add_event("attached")
    service.add_event(HOSTILE, sandbox_name=HOSTILE, message=HOSTILE)
    service.problems = [HOSTILE]
    service.status.kernel = HOSTILE
    return daemon


@pytest.mark.parametrize(
    "command",
    ["ps", "log {id}", "log {id} --graph", "show {id}@1", "checkpoint list", "events", "check", "doctor"],
)
@pytest.mark.parametrize("style", ["", " --json"])
def test_hostile_text_is_escaped(run: Run, hostile: FakeDaemon, command: str, style: str) -> None:
    sandbox = next(iter(hostile.service.sandboxes))
    done = run(*(command + style).format(id=sandbox).split())
    assert done.exit_code in (0, 1, 8)
    assert done.stdout
    # Byte for byte: nothing but printable characters and newlines.
    assert all(char.isprintable() or char == "\n" for char in done.stdout)
    if not style:
        assert ESCAPED in done.stdout


def test_hostile_errors_are_escaped(run: Run, daemon: FakeDaemon) -> None:
    done = run("show", f"{HOSTILE}@1")
    assert done.exit_code == 3
    assert ESCAPED in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_is_piped_is_not_cut(run: Run, web: FakeDaemon) -> None:
    turn = next(iter(web.service.turns.values()))[0]
    turn.label = "x" * 500
    [row] = [line for line in run("log", "web").stdout.splitlines() if "xxx" in line]
    assert "x" * 500 in row
    assert row.rstrip() == row
    assert turn.checkpoint_id[:12] in row


def test_a_narrow_terminal_cuts_text_and_no_id() -> None:
    out = Console(file=io.StringIO(), force_terminal=True, width=50, markup=False, color_system=None)
    rows = [("ab12cd34ef56", "words " * 30, "0123456789ab")]
    printing.table(out, ("ID", "WHY", "CHECKPOINT"), rows, flexible=["WHY"])
    assert isinstance(out.file, io.StringIO)
    _, row = out.file.getvalue().splitlines()
    assert row.startswith("ab12cd34ef56  words")
    assert row.endswith("…  0123456789ab")
    assert len(row) <= 50


def test_progress_shows_on_a_terminal_only() -> None:
    shown, piped = io.StringIO(), io.StringIO()
    with printing.progress_bar(Console(file=shown, force_terminal=True, width=80)) as show:
        assert show is not None
        show(Progress(phase="wri\x1bte", done=1, total=2))
    with printing.progress_bar(Console(file=piped)) as nothing:
        assert nothing is None
    assert "wri\\x1bte" in shown.getvalue()
    assert piped.getvalue() == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1024**2 - 1, "1.0 MiB"), (5 * 1024**3, "5.0 GiB")],
)
def test_sizes(value: int, text: str) -> None:
    assert words.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 µs"),
        (850_000, "850 µs"),
        (3_200_000, "3.2 ms"),
        (1_400_000_000, "1.4 s"),
        (125 * 10**9, "2m05s"),
    ],
)
def test_durations(value: int, text: str) -> None:
    assert words.duration(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (345_600, "4d")]
)
def test_ages(seconds: int, text: str) -> None:
    assert words.age(10**18 - seconds * 10**9, 10**18) == text


@pytest.mark.parametrize(
    "command",
    [
        "frobnicate",
        "show",
        "show web",
        "show @1",
        "diff ab12cd",
        "diff web@1 job@2",
        "restore ab12cd34",
        "restore web@1 --checkpoint ab12",
        "restore web@1 --new x --mode live",
        "restore web@1 --mode warm",
        "turn end web --label novalue",
        "turn wait web --state DONE",
        "--address tcp://x ps",
    ],
)
def test_usage_errors(run: Run, web: FakeDaemon, command: str) -> None:
    done = run(*command.split())
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def process(*arguments: str, **more: str) -> subprocess.Popen[str]:
    """Start the command line as a process of its own."""
    script = "from turnkeep.cli import main; main()"
    environment = {**os.environ, **more}
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_no_daemon_is_one_line(tmp_path: Path) -> None:
    running = process("--retry", "0", "ps", TURNKEEP_ADDRESS=f"unix://{tmp_path}/s")
    out, err = running.communicate()
    assert (running.returncode, out) == (5, "")
    assert err == (
        f"turnkeep: no Turnkeep daemon listens there (unix://{tmp_path}/s). "
        "start it: systemctl start turnkeep, or as root: turnkeep serve\n"
    )


def test_a_reader_that_goes_away(web: FakeDaemon) -> None:
    turn = next(iter(web.service.turns.values()))[0]
    turn.label = "x" * 1_000_000
    running = process("--address", web.address, "log", "web")
    assert running.stdout is not None
    assert running.stderr is not None
    assert running.stdout.read(1) == "T"
    running.stdout.close()
    assert running.stderr.read() == ""
    running.stderr.close()
    assert running.wait() == 141


def test_an_interrupt(daemon: FakeDaemon) -> None:
    daemon.service.add_event("attached")
    daemon.service.add_event("durable")
    # It may have been inherited that an interrupt is ignored, as by what a shell runs in the background.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        running = process("--address", daemon.address, "events", "--follow", "--after", "1", "--json")
    finally:
        signal.signal(signal.SIGINT, before)
    assert running.stdout is not None
    assert running.stdout.readline().startswith('{"sequence": 2')
    running.send_signal(signal.SIGINT)
    _, err = running.communicate()
    assert (running.returncode, err) == (130, "")


def test_a_defect_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("no\x1bthing")

    monkeypatch.setattr("turnkeep.cli.root.app", broken)
    with pytest.raises(SystemExit) as ended:
        root.main()
    assert ended.value.code == 1
    expected = (
        "turnkeep: defect in the command line: RuntimeError: no\\x1bthing. TURNKEEP_DEBUG=1 shows where\n"
    )
    assert capsys.readouterr().err == expected
