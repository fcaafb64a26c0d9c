"""What nobody can do without: reading the same bytes, compressing them, one write that is durable."""

from __future__ import annotations

import os
from pathlib import Path

import zstandard

from bench.samples import Samples

_LEVEL = 1
_BLOCK = bytes(4096)


def fsync(samples: Samples, measure: str, path: Path) -> None:
    """Measure one append to a file that is on the disk when it returns."""
    with path.open("ab", buffering=0) as file, samples.timed(measure):
        file.write(_BLOCK)
        os.fsync(file.fileno())  # noqa: TID251 - measured, nothing depends on it


def compress(samples: Samples, measure: str, data: bytes) -> None:
    """Measure `zstd -1` of bytes in memory; the result is thrown away."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    with samples.timed(measure):
        compressor.compress(data)
