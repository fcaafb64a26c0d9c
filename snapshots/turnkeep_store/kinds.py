"""What a blob holds."""

from __future__ import annotations

import enum


class BlobKind(enum.IntEnum):
    """What a blob holds. The numbers are part of the format."""

    DATA = 1
    TREE = 2
    EXTENTS = 3
