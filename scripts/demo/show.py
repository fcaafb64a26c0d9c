"""What the demo prints: as wide as the terminal; 100 columns of plain text when piped."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text
from turnkeep.client import RestoreResult
from turnkeep.model import TurnState

from demo.agent import COPY_LEVEL, Agent, Played
from demo.script import STEPS
from demo.stage import BIN, Failed

WIDTH = 100


class Out:
    """Prints lines of at most the terminal's width; plain text when piped."""

    def __init__(self) -> None:
        self.console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
        self.width = max(WIDTH, self.console.width) if self.console.is_terminal else WIDTH

    def say(self, text: str = "", style: str = "") -> None:
        """Print a line."""
        self.console.print(Text(text, style=style))

    def heads(self) -> None:
        """Print what stands over the turns."""
        self._row("#", "command", "class", "why", ("files", "bytes", "stored", "freeze", "delay"), "bold")

    def turn(self, played: Played) -> None:
        """Print a turn's line."""
        info = played.info
        assert info is not None
        assert info.decision is not None
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
        command, decision = played.step.command, info.decision
        self._row(str(info.number), command, decision.turn_class, decision.reason, numbers, style)

    def _row(self, turn: str, command: str, kind: str, why: str, numbers: Sequence[str], style: str) -> None:
        left = f"{turn:>2} {_cut(command, 21):<21} {kind:<10}"
        right = " ".join(f"{number:>{wide}}" for number, wide in zip(numbers, (5, 6, 6, 6, 5), strict=True))
        room = self.width - len(left) - len(right) - 2
        self.say(f"{left} {_cut(why, room):<{room}} {right}", style)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def size(count: float) -> str:
    """Return bytes in short: K and M are KiB and MiB."""
    for unit in ("", "K"):
        if count < 1000:
            return f"{count:.0f}" if not unit else f"{count:.1f}K"
        count /= 1024
    return f"{count:.1f}M"


def restored(out: Out, result: RestoreResult, good: Played, listing: str) -> None:
    """Print what a restore did, and three comparisons with the turn restored to.

    Raises:
        Failed: one of them shows a difference.
    """
    out.say(
        f"  {result.mode}, {result.changed_paths} paths and {size(result.written_bytes)} bytes written in"
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


def counted(out: Out, whose: str, expected: int, actual: int) -> None:
    """Print a server's answer.

    Raises:
        Failed: it is not the one expected.
    """
    verdict, style = ("as it has to be", "green") if expected == actual else ("WRONG", "bold red")
    out.say(f"  {whose + ' count':<22} {actual}, {verdict}", style)
    if expected != actual:
        raise Failed(f"{whose} count is {actual}, not {expected}")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def command_line(out: Out, environment: Mapping[str, str], *words: str) -> None:
    """Run the CLI as a user would, and show what it prints."""
    out.say()
    out.say(f"$ turnkeep {' '.join(words)}", "bold")
    command = [str(BIN / "turnkeep"), *words]
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
    kept, other = stored
    turns = f"{len(script)} turns"
    _total(out, "stored", f"{size(kept)} in packs and records after {turns}, conversations included")
    _total(out, "", f"(and {size(other)} of SQLite: index, journal, and their write-ahead logs)")
    each = f"each a tar of the writable layer, zstd -{COPY_LEVEL}"
    _total(out, "full copies", f"{size(copies)} for the same {turns}: {each}")
    _total(out, "exposed delay", f"{_ms(exposed)}: begin with its gate, and end")
    _total(out, "conversations", f"{_ms(puts)}, to store them during the LLM waits")


def _ms(spent: Sequence[float]) -> str:
    return f"{sum(spent):.0f} ms in all, {max(spent):.1f} ms at most"


def _total(out: Out, name: str, text: str) -> None:
    out.say(f"  {name:<14} {text}")
