"""Speaking to CRIU: its RPC protocol, as much of it as is needed.

The messages are protocol buffers of CRIU's `images/rpc.proto`; a request or an
answer is one datagram. With so few fields a schema of our own would be longer
than this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from turnkeep.process.wire import message, read_fields

_DUMP, _RESTORE, _NOTIFY = 1, 2, 6
_NO_FD = -1
_CGROUPS_IGNORED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What CRIU is asked to do. `inherit` maps its names of files to descriptors it was given."""

    images_dir: str
    log_file: str
    pid: int = 0
    freeze_cgroup: str = ""
    timeout_s: int = 0
    tcp_close: bool = True
    ghost_limit: int = 0
    inherit: Mapping[str, int] | None = None
    external: Sequence[str] = ()
    log_level: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What CRIU says: a stage that it has reached (`stage`), or how it ended."""

    stage: str = ""
    success: bool = False
    error: str = ""
    pid: int = 0


def dump_request(options: Options) -> bytes:
    """Return the request to dump a tree that goes on running."""
    fields = [*_common(options), (2, options.pid), (3, True)]
    if options.freeze_cgroup:
        fields.append((44, options.freeze_cgroup))
    if options.ghost_limit:
        fields.append((35, options.ghost_limit))
    return message([(1, _DUMP), (2, message(fields))])


def restore_request(options: Options) -> bytes:
    """Return the request to restore a tree; CRIU tells of each stage and waits for `go_on`."""
    fields = [*_common(options), (12, True)]
    return message([(1, _RESTORE), (2, message(fields))])


def go_on(*, success: bool) -> bytes:
    """Return the answer to a stage: go on, or give up."""
    return message([(1, _NOTIFY), (3, success)])


def _common(options: Options) -> list[tuple[int, int | bool | str | bytes]]:
    fields: list[tuple[int, int | bool | str | bytes]] = [
        (1, _NO_FD),
        (4, True),
        (5, not options.tcp_close),
        (7, True),
        (8, True),
        (9, options.log_level),
        (10, options.log_file),
        (34, _CGROUPS_IGNORED),
        # Connections that nobody accepted yet are left out; the other end tries again.
        (46, True),
        (52, options.tcp_close),
        (68, options.images_dir),
    ]
    if options.timeout_s:
        fields.append((45, options.timeout_s))
    for key, fd in (options.inherit or {}).items():
        fields.append((27, message([(1, key), (2, fd)])))
    fields += [(37, each) for each in options.external]
    return fields


def read_answer(data: bytes) -> Answer:
    """Read a datagram of CRIU's.

    Raises:
        ValueError: it is none.
    """
    found = dict(read_fields(data))
    notify, restored, error = found.get(5), found.get(4), found.get(9, b"")
    if found.get(1) == _NOTIFY and isinstance(notify, bytes):
        said = dict(read_fields(notify))
        return Answer(stage=_text(said.get(1, b"")), pid=_int(said.get(2, 0)))
    pid = dict(read_fields(restored)).get(1, 0) if isinstance(restored, bytes) else 0
    return Answer(success=bool(found.get(2)), error=_text(error), pid=_int(pid))


def _text(value: int | bytes) -> str:
    return value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else ""


def _int(value: int | bytes) -> int:
    return value if isinstance(value, int) else 0
