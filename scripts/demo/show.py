"""What the demo prints: lines of 100 columns, plain text when piped."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from demo.agent import COPY_LEVEL, Agent, Played
from demo.script import STEPS
from demo.stage import BIN, Failed
from turnkeep.client import RestoreResult
from turnkeep.model import TurnState

WIDTH = 100


class Out:
    """Prints lines of at most the terminal's width; plain text when piped."""

    def __init__(self) -> None:
        self.console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
        self.width = max(WIDTH, self.console.width) if self.console.is_terminal else WIDTH

    def say(self, text: str = "", style: str = "") -> None:
        """Print a line."""
        self.console.print(Text(text, style=style))
        # Piped output is read while the demo runs, too.
        self.console.file.flush()

    def heads(self) -> None:
        """Print what stands over the turns."""
        self._row("turn", "command", "class", "why", ("files", "bytes", "stored", "freeze", "delay"), "bold")
        self._row("", "", "", "", ("changed", "changed", "", "ms", "ms"), "bold")

    def turn(self, played: Played) -> None:
        """Print a turn's line."""
        info = played.info
        assert info is not None and info.decision is not None
        kept = info.state is not TurnState.SKIPPED
        freeze = info.timings.freeze_ns
        numbers = (
            str(info.changed_files) if kept else "-",
            size(info.changed_bytes) if kept else "-",
            size(info.stored_bytes) if kept else "-",
            f"{freeze / 1e6:.1f}" if freeze else "-",
            f"{played.exposed_s * 1e3:.1f}",
        )
        style = {"STATELESS": "dim", "FILESYSTEM": ""}.get(info.decision.turn_class, "yellow")
        command = played.step.command
        self._row(str(info.number), command, info.decision.turn_class, info.decision.reason, numbers, style)

    def _row(self, turn: str, command: str, kind: str, why: str, numbers: Sequence[str], style: str) -> None:
        right = " ".join(f"{number:>{wide}}" for number, wide in zip(numbers, (7, 8, 8, 6, 5), strict=True))
        room = self.width - len(right) - 4 - 1 - 26 - 1 - 10 - 2
        self.say(f"{turn:>4} {_cut(command, 26):<26} {kind:<10} {_cut(why, room):<{room}} {right}", style)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1000 or unit == "MiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def restored(out: Out, result: RestoreResult, good: Played, listing: str) -> None:
    """Print what a restore did, and three comparisons with the turn restored to.

    Raises:
        Failed: one of them shows a difference.
    """
    out.say(
        f"  {result.mode}, {result.changed_paths} paths and {size(result.written_bytes)} written in"
        f" {result.total_ns / 1e6:.0f} ms, frozen for {result.freeze_ns / 1e6:.1f} ms of it"
    )
    for note in result.notes:
        out.say(f"  note: {note}")
    _compare(out, "digest", result.expected_digest, result.actual_digest)
    _compare(out, "listing", _sha256(good.listing.encode()), _sha256(listing.encode()))
    _compare(out, "conversation", _sha256(good.conversation), _sha256(result.harness_state or b""))
    out.say(
        f"  The listing has {listing.count(chr(10))} lines, made by find and sha256sum inside the sandbox."
    )


def _compare(out: Out, what: str, expected: str, actual: str) -> None:
    same = expected == actual
    verdict, style = ("equal", "green") if same else ("DIFFERENT", "bold red")
    out.say(f"  {what:<13} captured {expected[:24]}…  now {actual[:24]}…  {verdict}", style)
    if not same:
        raise Failed(f"{what}: {expected} was captured, {actual} is there now")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def command_line(out: Out, environment: Mapping[str, str], *words: str) -> None:
    """Run the CLI as a user would, and show what it prints."""
    out.say()
    out.say(f"$ turnkeep {' '.join(words)}", "bold")
    command = [BIN / "turnkeep", *words]
    if out.console.is_terminal:
        subprocess.run(command, env=environment, check=True)
        return
    # As in a terminal of our width that knows no colours: what is piped is
    # otherwise as wide as its longest cells.
    terminal = {"FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": str(WIDTH), "LINES": "50"}
    done = subprocess.run(
        command, env={**environment, **terminal}, check=True, capture_output=True, text=True
    )
    out.say(done.stdout.rstrip("\n"))


def summary(out: Out, agent: Agent, stored: tuple[int, int]) -> None:
    """Print the totals. `stored` was measured at the end of the script, before the restore."""
    played = agent.played
    script = played[: len(STEPS)]
    skipped = sum(each.info is not None and each.info.state is TurnState.SKIPPED for each in played)
    copies = sum(each.full_copy for each in script)
    exposed = [each.exposed_s * 1e3 for each in played]
    puts = [each.put_s * 1e3 for each in played]
    out.say()
    out.say("Summary", "bold")
    _total(out, "turns", f"{len(played)}; {skipped} of them had nothing to keep and were skipped")
    _total(
        out,
        "stored",
        f"{size(stored[0])} in packs and records after {len(script)} turns, conversations included;"
        f" {size(stored[1])} index, journal",
    )
    _total(
        out,
        "full copies",
        f"{size(copies)}, had each of these turns kept a tar of the writable layer (zstd level {COPY_LEVEL})",
    )
    _total(
        out,
        "exposed delay",
        f"{sum(exposed):.0f} ms in all, {max(exposed):.1f} ms at most: begin, its gate, and end",
    )
    _total(
        out,
        "conversations",
        f"{sum(puts):.0f} ms to store them, {max(puts):.1f} ms at most, during the LLM waits",
    )


def _total(out: Out, name: str, text: str) -> None:
    out.say(f"  {name:<14} {text}")
