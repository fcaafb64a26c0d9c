"""Structured logs: one event a line, as JSON or for a console."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TextIO, cast

import structlog

from turnkeep.errors import InvalidRequest

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure(log_format: str, level: str) -> None:
    """Send our own and the libraries' logs to standard error.

    `auto` means for a console if that is one, JSON otherwise.

    Raises:
        InvalidRequest: format or level is not known.
    """
    if level not in _LEVELS:
        raise InvalidRequest(f"log_level {level!r}: choose from {', '.join(_LEVELS)}")
    if log_format not in ("auto", "json", "console"):
        raise InvalidRequest(f"log_format {log_format!r}: choose auto, json or console")
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        if console
        else structlog.processors.JSONRenderer()
    )
    # Without local variables: they hold what sandboxes and their users keep secret.
    traceback = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    exceptions: list[structlog.typing.Processor] = (
        [] if console else [structlog.processors.ExceptionRenderer(traceback)]
    )
    structlog.configure(
        processors=[*shared, *exceptions, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _Patient(sys.stderr))),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[*exceptions, _drop_meta, renderer]
        )
    )
    logging.basicConfig(handlers=[handler], level=max(_LEVELS[level], logging.WARNING), force=True)


class _Patient:
    """A stream that may be a file on a full disk: what cannot be said there ends nobody."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def _drop_meta(
    logger: structlog.typing.WrappedLogger, name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return structlog.stdlib.ProcessorFormatter.remove_processors_meta(logger, name, event)
