"""What `web@7`, `web@before-upgrade` and `ab12cd` stand for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from turnkeep.client import Checkpoint, Client
from turnkeep.client.calls import Ref
from turnkeep.errors import InvalidRequest

_TURN = re.compile(r"[0-9]{1,9}")
_ID = re.compile(r"[0-9a-f]{4,64}")

FORMS = "SANDBOX@TURN, SANDBOX@NAME or a checkpoint's id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A checkpoint as it was named. Without a sandbox the reference is a checkpoint's id."""

    sandbox: str
    ref: Ref

    @property
    def turn(self) -> int | None:
        """The turn's number, if it was named by one."""
        return self.ref if isinstance(self.ref, int) else None

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint's id or name, if it was named by one."""
        return self.ref if isinstance(self.ref, str) else None


def parse(text: str, *, sandbox: str = "") -> Target:
    """Read a target; `sandbox` is the one meant where the text names none.

    Up to nine digits after "@" are a turn's number, all else an id or a name.

    Raises:
        InvalidRequest: it is none of the forms.
    """
    before, at, after = text.partition("@")
    if at:
        sandbox, text = before, after
    if not text or (at and not sandbox):
        raise InvalidRequest(f"{before + at + after!r} names no checkpoint", hint=f"use {FORMS}")
    if sandbox and _TURN.fullmatch(text):
        return Target(sandbox=sandbox, ref=int(text))
    if not sandbox and not _ID.fullmatch(text):
        raise InvalidRequest(f"{text!r} names no checkpoint", hint=f"use {FORMS}")
    return Target(sandbox=sandbox, ref=text)


def find(tk: Client, target: Target) -> Checkpoint:
    """Return the checkpoint that is meant."""
    if target.sandbox:
        return tk.sandbox(target.sandbox).find_checkpoint(target.ref)
    return tk.checkpoint(str(target.ref))
