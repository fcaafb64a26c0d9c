"""The journal: what happened, durably, and the tables that follow from it."""

from turnkeep.journal.chain import Head
from turnkeep.journal.changes import (
    Change,
    Delete,
    Happened,
    Intent,
    Put,
    put_answer,
    put_checkpoint,
    put_intent,
    put_sandbox,
    put_turn,
)
from turnkeep.journal.database import SCHEMA_VERSION, Journal

__all__ = [
    "SCHEMA_VERSION",
    "Change",
    "Delete",
    "Happened",
    "Head",
    "Intent",
    "Journal",
    "Put",
    "put_answer",
    "put_checkpoint",
    "put_intent",
    "put_sandbox",
    "put_turn",
]
