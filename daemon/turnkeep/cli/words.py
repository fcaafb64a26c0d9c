"""Sizes, times and hostile text in words for people."""

from __future__ import annotations

import time
import unicodedata

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories of characters that steer a terminal or hide: controls, directions, separators."""


def safe(text: str) -> str:
    """Return text from a sandbox such that it does nothing to a terminal and stays in its line."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(char) if unicodedata.category(char) in _HIDDEN else char for char in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def size(count: int) -> str:
    """Return bytes as "512 B" or "3.4 MiB"."""
    if abs(count) < 1024:
        return f"{count} B"
    value = float(count)
    for unit in _UNITS:
        value /= 1024
        if abs(value) < 1023.95 or unit == _UNITS[-1]:
            break
    return f"{value:.1f} {unit}"


def duration(nanoseconds: int) -> str:
    """Return a duration as "850 µs", "3.2 ms", "1.4 s" or "2m05s"."""
    if nanoseconds < 1_000_000:
        return f"{round(nanoseconds / 1000)} µs"
    if nanoseconds < 1_000_000_000:
        return f"{nanoseconds / 1e6:.1f} ms"
    seconds = nanoseconds / 1e9
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)}m{int(seconds % 60):02d}s"


def age(then_ns: int, now_ns: int | None = None) -> str:
    """Return how long ago something was: "12s", "5m", "3h", "4d"."""
    seconds = max(0, (now_ns or time.time_ns()) - then_ns) // 1_000_000_000
    for limit, unit, divisor in ((60, "s", 1), (3600, "m", 60), (86400, "h", 3600)):
        if seconds < limit:
            return f"{seconds // divisor}{unit}"
    return f"{seconds // 86400}d"


def clock(then_ns: int) -> str:
    """Return a local time of day with its date."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(then_ns / 1e9))


def count(number: int, one: str, many: str | None = None) -> str:
    """Return "1 file" or "3 files"."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def short(identifier: str | None) -> str:
    """Return an id shortened to what people read out: 12 digits."""
    return (identifier or "").removeprefix("sha256:")[:12]
