"""What can go wrong in a repository.

Every error holds the object it speaks of; its text says what happened, to
which object, and where it helps what to do.
"""

from __future__ import annotations


class StoreError(Exception):
    """Base of all errors of this library."""


class RepositoryNotFound(StoreError):
    """There is no repository at this place."""


class RepositoryExists(StoreError):
    """There is a repository (or something else) at this place already."""


class RepositoryLocked(StoreError):
    """Another process has the repository open."""


class UnsupportedFormat(StoreError):
    """The repository was written by a newer version."""


class StoreFull(StoreError):
    """The disk under the repository has no room (or no inodes, or no quota) left."""


class StoreIOError(StoreError):
    """The operating system failed to read or write a file of the repository."""


class SnapshotNotFound(StoreError):
    """No snapshot has this identifier."""


class AmbiguousId(StoreError):
    """Several snapshots start with these digits."""


class BlobNotFound(StoreError):
    """The repository does not hold this blob."""


class Damaged(StoreError):
    """Stored bytes are not what was written: magic, length, checksum or digest differ."""


class Headless(Damaged):
    """A file does not even begin as what it should be."""


class WrongKey(StoreError):
    """A repository is encrypted, and the key is missing or another; or it is not encrypted."""


class LimitExceeded(StoreError):
    """Input is larger, deeper or more numerous than the store accepts."""


class UnsafePath(StoreError):
    """A path would lead out of the directory it has to stay in."""


class RestoreMismatch(StoreError):
    """What was written is not what the snapshot holds."""
