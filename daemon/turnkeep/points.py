"""The daemon's named points between two steps: a crash is tried at each (see `turnkeep_store.points`)."""

from __future__ import annotations

import enum


class Point(enum.StrEnum):
    """What has just been done, and nothing after it."""

    ATTACH_PINNED = "attach.pinned"
    ATTACH_RECORDED = "attach.recorded"
    DETACH_RECORDED = "detach.recorded"

    TURN_BEGUN = "turn.begun"
    TURN_ENDED = "turn.ended"
    TURN_INSPECTED = "turn.inspected"
    TURN_SETTLED = "turn.settled"
    TURN_CLASSIFIED = "turn.classified"
    TURN_SKIPPED = "turn.skipped"
    STATE_STORED = "state.stored"
    STATE_RECORDED = "state.recorded"

    CAPTURE_FROZEN = "capture.frozen"
    CAPTURE_READ = "capture.read"
    CAPTURE_DUMPED = "capture.dumped"
    CAPTURE_THAWED = "capture.thawed"
    CAPTURE_RECORDED = "capture.recorded"

    COMMIT_ARCHIVED = "commit.archived"
    COMMIT_FLUSHED = "commit.flushed"
    COMMIT_STORED = "commit.stored"
    COMMIT_RECORDED = "commit.recorded"

    RESTORE_SAVED = "restore.saved"
    RESTORE_INTENDED = "restore.intended"
    RESTORE_KILLED = "restore.killed"
    RESTORE_WRITTEN = "restore.written"
    RESTORE_VERIFIED = "restore.verified"
    RESTORE_PROCESSES = "restore.processes-back"
    RESTORE_THAWED = "restore.thawed"
    RESTORE_STOPPED = "restore.stopped"
    RESTORE_FILLED = "restore.filled"
    RESTORE_STARTED = "restore.started"
    RESTORE_VOLATILE = "restore.volatile-filled"
    RESTORE_RECORDED = "restore.recorded"

    WHOLE_DUMPED = "whole.dumped"
    WHOLE_ORDERED = "whole.ordered"
    WHOLE_STARTED = "whole.started"

    REPLACE_SET_ASIDE = "replace.set-aside"
    REPLACE_CREATED = "replace.created"
    REPLACE_NEW_REMOVED = "replace.new-removed"
    REPLACE_RECORDED = "replace.recorded"
    REPLACE_OLD_REMOVED = "replace.old-removed"

    NEW_INTENDED = "new.intended"
    NEW_CREATED = "new.created"
    NEW_FILLED = "new.filled"
    NEW_RECORDED = "new.recorded"
    FORK_ONE_MADE = "fork.one-made"

    DELETE_FORGOTTEN = "delete.forgotten"
    DELETE_RECORDED = "delete.recorded"

    RECOVERY_AGREED = "recovery.agreed"
    RECOVERY_THAWED = "recovery.thawed"
    RECOVERY_RESTORED = "recovery.restored"
    RECOVERY_INTENTS = "recovery.intents-settled"
    RECOVERY_TURNS = "recovery.turns-settled"
